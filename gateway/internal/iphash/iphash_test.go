package iphash_test

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"github.com/holdfast-sessions/holdfast/gateway/internal/iphash"
	"github.com/holdfast-sessions/holdfast/internal/testserver"
)

func all(int) bool { return true }

// Computed by hand. 1.2.3: 89*113+1 = 10058, mod 6271 = 3787; *113+2 = 427933, mod 6271 = 1505; *113+3 = 170068, mod
// 6271 = 751. Again from there: 751*113+1 = 84864, 3341; 377535, 1275; 144078, 6116.
func TestPick(t *testing.T) {
	three := iphash.New([]int{1, 1, 1})
	weighted := iphash.New([]int{5, 1, 3})
	addr := netip.MustParseAddr("1.2.3.4")
	for _, c := range []struct {
		name    string
		servers iphash.Servers
		client  netip.Addr
		ok      func(int) bool
		want    int
	}{
		{"751 mod 3", three, addr, all, 1},
		{"the last byte does not count", three, netip.MustParseAddr("1.2.3.255"), all, 1},
		{"751 mod 9 = 4", weighted, addr, all, 0},
		{"first is down: 6116 mod 9 = 5", weighted, addr, func(i int) bool { return i != 0 }, 1},
		{"all are down", weighted, addr, func(int) bool { return false }, -1},
		{"one server", iphash.New([]int{7}), addr, all, -1},
		{"no server", iphash.New(nil), addr, all, -1},
		{"no address is 0.0.0: 0 mod 3 of 89*113^3 mod 6271", three, netip.Addr{}, all, 89 * 113 % 6271 * 113 % 6271 * 113 % 6271 % 3},
	} {
		if got := c.servers.Pick(c.client, c.ok); got != c.want {
			t.Errorf("%s: Pick(%v) = %d, want %d", c.name, c.client, got, c.want)
		}
	}
}

// nginx gives up after 20 further steps, whatever could be had later.
func TestPickGivesUp(t *testing.T) {
	s := iphash.New([]int{1, 1})
	asked := 0
	if got := s.Pick(netip.MustParseAddr("10.0.0.1"), func(int) bool { asked++; return false }); got != -1 || asked != 21 {
		t.Errorf("Pick = %d after asking %d times, want -1 after 21", got, asked)
	}
}

// The real nginx, asked about random addresses, over weighted servers of which some are marked down, or refuse connections,
// which nginx finds out for each request and goes on to the next.
func TestAgainstNginx(t *testing.T) {
	for _, c := range []struct {
		name    string
		weights []int
		down    []bool
		refuse  bool // those that are down are not marked so
	}{
		{"weights", []int{1, 5, 2, 1}, []bool{false, false, false, false}, false},
		{"two down", []int{3, 1, 4, 1, 5}, []bool{false, true, true, false, false}, false},
		{"most weight down", []int{1, 200, 1}, []bool{false, true, false}, false},
		{"two refuse", []int{3, 1, 4, 1, 5}, []bool{true, true, false, false, false}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			ask := nginx(t, c.weights, c.down, c.refuse)
			s := iphash.New(c.weights)
			ok := func(i int) bool { return !c.down[i] }
			exhausted := 0
			for _, addr := range addresses(testserver.Scale(2500, 20000)) {
				got := s.Pick(addr, ok)
				if got == -1 {
					exhausted++ // nginx takes round robin
					continue
				}
				if want := ask(addr); fmt.Sprint(got) != want {
					t.Fatalf("Pick(%v) = %d, nginx took %s", addr, got, want)
				}
			}
			if c.name != "most weight down" && exhausted > 0 {
				t.Errorf("%d addresses came to no server", exhausted)
			}
		})
	}
}

// nginx returns what tells which server nginx sends a client of an address to.
func nginx(t *testing.T, weights []int, down []bool, refuse bool) func(netip.Addr) string {
	t.Helper()
	upstream := []string{"upstream app { ip_hash;"}
	for i, w := range weights {
		addr := testserver.FreeAddr(t)
		if !down[i] || !refuse {
			serve(t, addr, fmt.Sprint(i))
		}
		line := fmt.Sprintf("server %s weight=%d max_fails=0", addr, w)
		if down[i] && !refuse {
			line += " down"
		}
		upstream = append(upstream, line+";")
	}
	srv := testserver.Nginx(t, testserver.NginxOptions{
		HTTP:   append(upstream, "keepalive 8; }"),
		Server: []string{"set_real_ip_from 127.0.0.1;", "real_ip_header Client;", "keepalive_requests 1000000;", `location / { proxy_pass http://app; proxy_http_version 1.1; proxy_set_header Connection ""; }`},
	})
	client := &http.Client{Transport: &http.Transport{}}
	t.Cleanup(client.CloseIdleConnections)
	return func(addr netip.Addr) string {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+srv.Addr, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Client", addr.String())
		res, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		if err != nil || res.StatusCode != http.StatusOK {
			t.Fatalf("nginx answered %d %q, %v", res.StatusCode, b, err)
		}
		return strings.TrimSpace(string(b))
	}
}

// serve answers every request with text.
func serve(t *testing.T, addr, text string) {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, text) })}
	var serving sync.WaitGroup
	serving.Go(func() { _ = srv.Serve(l) })
	t.Cleanup(func() { srv.Close(); serving.Wait() })
}

// addresses returns n addresses, half of them IPv6.
func addresses(n int) []netip.Addr {
	random := rand.New(rand.NewPCG(1, 2))
	all := make([]netip.Addr, 0, n)
	for len(all) < n {
		var b [16]byte
		for i := range b {
			b[i] = byte(random.Uint32())
		}
		if len(all)%2 == 0 {
			all = append(all, netip.AddrFrom4([4]byte(b[:4])))
		} else if a := netip.AddrFrom16(b); !a.Is4In6() {
			all = append(all, a)
		}
	}
	return all
}

func BenchmarkPick(b *testing.B) {
	s := iphash.New([]int{1, 5, 2, 1})
	for _, addr := range []string{"192.0.2.1", "2001:db8::1"} {
		a := netip.MustParseAddr(addr)
		b.Run(addr, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				s.Pick(a, all)
			}
		})
	}
}
