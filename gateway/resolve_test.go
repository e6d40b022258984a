package gateway_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-sessions/holdfast/gateway"
)

// fakeDNS answers every name with addrs, or err.
type fakeDNS struct {
	mu    sync.Mutex
	addrs []string
	err   error
	asked []time.Time
}

func (f *fakeDNS) LookupNetIP(_ context.Context, network, host string) ([]netip.Addr, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked = append(f.asked, time.Now())
	if host != "app.internal" || network != "ip" {
		return nil, fmt.Errorf("asked for %s of %s", network, host)
	}
	var all []netip.Addr
	for _, a := range f.addrs {
		all = append(all, netip.MustParseAddr(a))
	}
	return all, f.err
}

func (f *fakeDNS) set(err error, addrs ...string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.addrs, f.err = addrs, err
}

// Every address of a name is an upstream whose ID does not depend on the others, and a failing look-up changes nothing.
func TestResolve(t *testing.T) {
	dns := &fakeDNS{}
	dns.set(nil, "10.0.0.2", "10.0.0.1", "10.0.0.2", "::ffff:10.0.0.1", "fd00::1")
	c := gateway.Config{
		Upstreams: []gateway.Upstream{{ID: "app", URL: "http://app.internal:8080/x", Resolve: true, Weight: 2}},
		Resolver:  dns, ResolveEvery: 10 * time.Second, Affinity: gateway.AffinityCookie,
	}
	inBubble(t, 0, c, true, func(t *testing.T, b *bubble) {
		b.mu.Lock()
		for _, addr := range []string{"10.0.0.1:8080", "10.0.0.2:8080", "10.0.0.3:8080", "[fd00::1]:8080"} {
			b.mu.Unlock()
			a := b.add(strings.TrimSuffix(addr, ":8080"))
			b.mu.Lock()
			b.apps[addr] = a
		}
		b.mu.Unlock()
		ids := func() (all []string) {
			for _, u := range b.Upstreams() {
				all = append(all, u.ID+" "+u.URL)
			}
			return all
		}
		want := []string{"app-190242c2 http://10.0.0.1:8080/x", "app-28931949 http://10.0.0.2:8080/x", "app-512ba826 http://[fd00::1]:8080/x"}
		if got := ids(); !slices.Equal(got, want) {
			t.Fatalf("upstreams %q, want %q", got, want)
		}
		if b.Upstreams()[0].Weight != 2 {
			t.Error("weight is lost")
		}
		cookies := make(map[string]string)
		for range 9 {
			w := b.send("GET")
			cookie, _, _ := strings.Cut(w.Header().Get("Set-Cookie"), ";")
			cookies[cookie] = w.Body.String()
		}
		if len(cookies) != 3 {
			t.Fatalf("clients at %v", cookies)
		}
		_ = b.Maintenance(b.Upstreams()[1].ID) // its state survives
		dns.set(errors.New("no answer"))
		time.Sleep(time.Minute)
		dns.set(nil)
		time.Sleep(time.Minute)
		if got := ids(); !slices.Equal(got, want) {
			t.Fatalf("after failed look-ups: %q, want the last answer", got)
		}
		dns.set(nil, "10.0.0.3", "10.0.0.2", "10.0.0.1")
		time.Sleep(11 * time.Second)
		if got := ids(); len(got) != 3 || got[0] != want[0] || got[1] != want[1] || !strings.HasSuffix(got[2], " http://10.0.0.3:8080/x") {
			t.Fatalf("after a change: %q", got)
		}
		b.wantState(b.Upstreams()[1].ID, gateway.StateMaintenance)
		_ = b.Ready(b.Upstreams()[1].ID)
		for cookie, home := range cookies {
			w := b.send("GET", "Cookie", cookie)
			if got := w.Body.String(); got != home && home != "[fd00::1]" || got == "[fd00::1]" {
				t.Errorf("client of %s went to %s", home, got)
			}
		}
		dns.mu.Lock()
		defer dns.mu.Unlock()
		for i := range len(dns.asked) - 1 {
			if d := dns.asked[i+1].Sub(dns.asked[i]); d < 9*time.Second || d > 11*time.Second {
				t.Errorf("%v between two look-ups, want 9 to 11 s", d)
			}
		}
	})
}

// Without an answer there is no upstream, and it is asked for every second.
func TestResolveAtStart(t *testing.T) {
	dns := &fakeDNS{err: errors.New("no answer")}
	c := gateway.Config{Upstreams: []gateway.Upstream{{URL: "http://app.internal:1", Resolve: true}}, Resolver: dns, ResolveEvery: time.Hour}
	inBubble(t, 1, c, true, func(t *testing.T, b *bubble) {
		if w := b.send("GET"); w.Code != 503 {
			t.Errorf("status %d, want 503", w.Code)
		}
		b.mu.Lock()
		b.apps["10.0.0.1:1"] = b.apps["a:1"]
		b.mu.Unlock()
		time.Sleep(5 * time.Second)
		dns.set(nil, "10.0.0.1")
		time.Sleep(1100 * time.Millisecond)
		b.want(1, "a")

		// What a Reload brings is looked up before it is taken.
		bad := c
		bad.Upstreams = []gateway.Upstream{{URL: "http://nowhere.internal:1", Resolve: true}}
		wantFaults(t, b.Reload(bad), "look up nowhere.internal")
		b.want(1, "a")
	})
}

func TestConfigErrorsOfResolve(t *testing.T) {
	_, err := gateway.New(gateway.Config{
		Upstreams:    []gateway.Upstream{{URL: "http://10.0.0.1", Resolve: true}, {ID: strings.Repeat("x", 60), URL: "http://a", Resolve: true}},
		ResolveEvery: -1,
	})
	wantFaults(t, err, "10.0.0.1 is an address, not a name", "at most 55 characters", "resolve every -1ns")
}

// The certificate of an address has to be for the name.
func TestResolveTLS(t *testing.T) {
	app := httptest.NewUnstartedServer(says("a"))
	app.Config.ErrorLog = log.New(io.Discard, "", 0) // of the handshake that is to fail
	app.StartTLS()
	t.Cleanup(app.Close)
	_, roots := testCert()
	_, port, _ := strings.Cut(app.Listener.Addr().String(), ":")
	for name, status := range map[string]int{"example.com": 200, "other.test": 503} { // the certificate is for example.com
		g := mustRun(t, "h1", gateway.Config{
			Upstreams: []gateway.Upstream{{URL: "https://" + name + ":" + port, Resolve: true}}, UpstreamTLS: &tls.Config{RootCAs: roots},
			Resolver: lookUpFunc(func() []netip.Addr { return []netip.Addr{netip.MustParseAddr("127.0.0.1")} }),
		})
		wantStatus(t, g.send("GET", "/", ""), status)
	}
}

type lookUpFunc func() []netip.Addr

func (f lookUpFunc) LookupNetIP(context.Context, string, string) ([]netip.Addr, error) {
	return f(), nil
}
