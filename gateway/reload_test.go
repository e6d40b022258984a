package gateway_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-sessions/holdfast/gateway"
)

// load is clients that send one request after the other.
type load struct {
	t       *testing.T
	stop    chan struct{}
	clients sync.WaitGroup
	sent    atomic.Int64

	mu    sync.Mutex
	moves map[string]int // "from>to"
}

// mustLoad starts n clients, each with a cookie of its own, and waits until all have been answered once.
func (r *running) mustLoad(t *testing.T, n int) *load {
	t.Helper()
	l := &load{t: t, stop: make(chan struct{}), moves: make(map[string]int)}
	var first sync.WaitGroup
	for i := range n {
		first.Add(1)
		l.clients.Go(func() {
			client := &http.Client{Transport: r.http.Transport}
			cookie, home := "", ""
			for k := 0; ; k++ {
				select {
				case <-l.stop:
					return
				default:
				}
				method := []string{"GET", "POST"}[(i+k)%2]
				req, err := http.NewRequest(method, r.url, strings.NewReader("x"))
				if err != nil {
					t.Error(err)
					return
				}
				if cookie != "" {
					req.Header.Set("Cookie", cookie)
				}
				res, err := client.Do(req)
				if err != nil {
					t.Errorf("%s: %v", method, err)
					return
				}
				b, err := io.ReadAll(res.Body)
				res.Body.Close()
				if err != nil || res.StatusCode != 200 {
					t.Errorf("%s: status %d, %q, %v", method, res.StatusCode, b, err)
				}
				if c := affinityCookie(answer{Response: res}); c != "" {
					cookie = c
				}
				addr, _, _ := strings.Cut(string(b), " ")
				if home != "" && addr != home {
					l.mu.Lock()
					l.moves[home+">"+addr]++
					l.mu.Unlock()
				}
				home = addr
				l.sent.Add(1)
				if k == 0 {
					first.Done()
				}
			}
		})
	}
	first.Wait()
	return l
}

// more waits until n more requests have been answered.
func (l *load) more(n int64) {
	l.t.Helper()
	want := l.sent.Load() + n
	for deadline := time.Now().Add(30 * time.Second); l.sent.Load() < want; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			l.t.Fatalf("%d requests answered in 30 s, want %d", l.sent.Load()-want+n, n)
		}
	}
}

// end stops the clients and wants that only those at from have moved.
func (l *load) end(from string) {
	l.t.Helper()
	close(l.stop)
	l.clients.Wait()
	for m := range l.moves {
		if from == "" || !strings.HasPrefix(m, from+">") {
			l.t.Errorf("a client moved from one upstream to the other: %s", m)
		}
	}
	if from != "" && len(l.moves) == 0 {
		l.t.Error("no client moved from the upstream that was taken out")
	}
}

// Reload, re-weight, add, drain and remove under the load of 64 clients: no request fails, and no client moves but
// those of the upstream that is taken out.
func TestChangesUnderLoad(t *testing.T) {
	var apps []*process
	var all []gateway.Upstream
	for i := range 4 {
		apps = append(apps, mustProcess(t, "127.0.0.1:0"))
		all = append(all, gateway.Upstream{ID: string(rune('a' + i)), URL: "http://" + apps[i].addr})
	}
	c := gateway.Config{Upstreams: all[:3], Affinity: gateway.AffinityCookie, Key: testKey}
	g := mustRun(t, "h1", c)
	c.Cookie.AllowPlainLocalhost = true
	l := g.mustLoad(t, 64)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		l.more(100)
	}
	for i := range 5 {
		c.Upstreams = []gateway.Upstream{all[2], all[0], all[1]}
		c.Upstreams[0].Weight = 1 + i
		c.ResponseHeaderTimeout = time.Duration(50+i%2) * time.Second // new connections
		must(g.Reload(c))
	}
	must(g.SetWeight("b", 7))
	must(g.SetUpstream(all[3])) // add
	must(g.Drain("b", 2*time.Second))
	if u := g.upstream("b"); u.State != gateway.StateDraining || u.DrainUntil.IsZero() {
		t.Errorf("%+v", u)
	}
	deadline := time.Now().Add(2 * time.Second)
	for g.upstream("b").State == gateway.StateDraining {
		if time.Now().After(deadline.Add(10 * time.Second)) {
			t.Fatal("still drains")
		}
		time.Sleep(time.Millisecond)
	}
	if u := g.upstream("b"); u.Active != 0 || u.State != gateway.StateMaintenance {
		t.Errorf("at the deadline: %+v, want it empty", u)
	}
	before := g.upstream("b").Requests
	l.more(100)
	if n := g.upstream("b").Requests; n != before {
		t.Errorf("%d requests after the deadline", n-before)
	}
	must(g.RemoveUpstream("b"))
	apps[1].kill()
	l.more(200)
	l.end(apps[1].addr)
	ids := ""
	for _, u := range g.Upstreams() {
		ids += u.ID
		if u.Requests == 0 || u.Failures != 0 {
			t.Errorf("%+v", u)
		}
	}
	if ids != "cad" {
		t.Errorf("upstreams %s, want c, a and d", ids)
	}
	t.Logf("%d requests, %d moves of clients", l.sent.Load(), len(l.moves))
}

// A removed upstream finishes what it has, even if it was the home of everybody and all were replaced.
func TestReplaceAllUnderLoad(t *testing.T) {
	for _, kind := range []gateway.Affinity{gateway.AffinityNone, gateway.AffinityIP} {
		t.Run(string(kind), func(t *testing.T) {
			var urls []string
			for range 4 {
				urls = append(urls, "http://"+mustProcess(t, "127.0.0.1:0").addr)
			}
			old := gateway.Config{Upstreams: upstreams(urls[:2]...), Affinity: kind}
			now := gateway.Config{Upstreams: []gateway.Upstream{{ID: "c", URL: urls[2]}, {ID: "d", URL: urls[3]}}, Affinity: kind}
			g := mustRun(t, "h1", old)
			l := g.mustLoad(t, 64)
			for range 4 {
				for _, c := range []gateway.Config{now, old} {
					if err := g.Reload(c); err != nil {
						t.Fatal(err)
					}
					l.more(50)
				}
			}
			close(l.stop)
			l.clients.Wait()
		})
	}
}

// What is still on a drained upstream at its deadline is cut off: a WebSocket, an event stream, which ends without an
// error, and a request that takes too long. New clients do not get there, its own do until then.
func TestDrain(t *testing.T) {
	release := make(chan struct{})
	app := func(name string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			switch r.URL.Path {
			case "/socket":
				switcher("websocket")(w, r)
			case "/events":
				w.Header().Set("Content-Type", "text/event-stream")
				fmt.Fprint(w, "data: x\n\n")
				_ = http.NewResponseController(w).Flush()
				<-r.Context().Done()
			case "/slow":
				select {
				case <-release:
				case <-r.Context().Done():
				}
			default:
				fmt.Fprint(w, name)
			}
		}
	}
	g := mustRun(t, "h1", gateway.Config{Upstreams: upstreams(mustApp(t, app("a")), mustApp(t, app("b"))), Affinity: gateway.AffinityCookie})
	first := g.send("GET", "/", "")
	cookie := affinityCookie(first)
	if first.body != "a" {
		t.Fatalf("first request went to %q", first.body)
	}
	events, err := g.http.Do(g.mustRequest("GET", "/events", "", "Cookie", cookie))
	if err != nil {
		t.Fatal(err)
	}
	defer events.Body.Close()
	c, err := net.Dial("tcp", strings.TrimPrefix(g.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	fmt.Fprintf(c, "GET /socket HTTP/1.1\r\nHost: localhost\r\nCookie: %s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", cookie)
	br := bufio.NewReader(c)
	if res, err := http.ReadResponse(br, nil); err != nil || res.StatusCode != 101 {
		t.Fatalf("upgrade: %v, %v", res, err)
	}
	slow := make(chan answer, 1)
	var wg sync.WaitGroup
	wg.Go(func() { slow <- g.send("POST", "/slow", "x", "Cookie", cookie) })
	for g.upstream("a").Active < 3 {
		time.Sleep(time.Millisecond)
	}

	if err := g.Drain("a", time.Second); err != nil {
		t.Fatal(err)
	}
	for range 4 {
		if a := g.send("GET", "/", ""); a.body != "b" {
			t.Errorf("new client went to %q", a.body)
		}
		if a := g.send("GET", "/", "", "Cookie", cookie); a.body != "a" || affinityCookie(a) != "" {
			t.Errorf("client of the draining upstream went to %q", a.body)
		}
	}
	fmt.Fprintln(c, "still here")
	if line, err := br.ReadString('\n'); err != nil || line != "still here\n" {
		t.Errorf("WebSocket: %q, %v", line, err)
	}
	if b, err := io.ReadAll(events.Body); err != nil || string(b) != "data: x\n\n" {
		t.Errorf("event stream: %q, %v, want a clean end", b, err)
	}
	if _, err := br.ReadByte(); err == nil {
		t.Error("WebSocket is still open")
	}
	wg.Wait()
	if a := <-slow; a.StatusCode != 502 {
		t.Errorf("request that took too long: %d", a.StatusCode)
	}
	for deadline := time.Now().Add(10 * time.Second); g.upstream("a").Active > 0 && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond) // until the gateway's side of the WebSocket has ended, too
	}
	if u := g.upstream("a"); u.State != gateway.StateMaintenance || u.Active != 0 {
		t.Errorf("%+v", u)
	}
	a := g.send("GET", "/", "", "Cookie", cookie)
	if a.body != "b" || affinityCookie(a) == "" {
		t.Errorf("client of the drained upstream went to %q", a.body)
	}
	// Back again.
	if err := g.Ready("a"); err != nil {
		t.Fatal(err)
	}
	if a := g.send("GET", "/", "", "Cookie", cookie); a.body != "a" {
		t.Errorf("after the drain the client went to %q", a.body)
	}
	close(release)
}

func TestDrainAndMaintenance(t *testing.T) {
	t.Run("affinity that binds nobody", func(t *testing.T) {
		inBubble(t, 3, gateway.Config{Affinity: gateway.AffinityHash, Hash: gateway.HashOf{Header: "User"}}, false, func(t *testing.T, b *bubble) {
			_ = b.Drain("b", time.Hour)
			for i := range 50 {
				if w := b.send("GET", "User", fmt.Sprint(i)); w.Body.String() == "b" {
					t.Fatal("request at the draining upstream")
				}
			}
		})
	})
	t.Run("last resort", func(t *testing.T) {
		inBubble(t, 2, gateway.Config{}, false, func(t *testing.T, b *bubble) {
			b.app("b").set(func() { b.app("b").refuses = true })
			_ = b.Drain("a", time.Minute)
			b.want(4, "a") // nobody else is there
			time.Sleep(time.Minute + 1)
			b.wantState("a", gateway.StateMaintenance)
			if w := b.send("GET"); w.Code != 503 {
				t.Errorf("status %d, want 503: one is drained, the other down", w.Code)
			}
		})
	})
	t.Run("maintenance", func(t *testing.T) {
		inBubble(t, 2, gateway.Config{Affinity: gateway.AffinityCookie}, false, func(t *testing.T, b *bubble) {
			cookie, _, _ := strings.Cut(b.send("GET").Header().Get("Set-Cookie"), ";")
			b.app("a").freeze()
			slow := make(chan int, 1)
			go func() { slow <- b.send("POST", "Cookie", cookie).Code }()
			synctest.Wait()
			_ = b.Maintenance("a")
			if w := b.send("GET", "Cookie", cookie); w.Body.String() != "b" {
				t.Errorf("went to %s", w.Body)
			}
			time.Sleep(30 * time.Second)
			b.app("a").thaw()
			if code := <-slow; code != 200 {
				t.Errorf("request in flight: %d, want it finished", code)
			}
			_ = b.Maintenance("b")
			if w := b.send("GET"); w.Code != 503 {
				t.Errorf("all in maintenance: %d", w.Code)
			}
			// Ready within a drain ends it.
			_ = b.Drain("a", time.Minute)
			time.Sleep(30 * time.Second)
			_ = b.Ready("a")
			time.Sleep(time.Hour)
			b.wantState("a", gateway.StateUp)
			b.want(2, "a")
			for _, f := range []func(string) error{b.Ready, b.Maintenance, b.RemoveUpstream, func(id string) error { return b.Drain(id, 0) }, func(id string) error { return b.SetWeight(id, 1) }} {
				if err := f("nobody"); !errors.Is(err, gateway.ErrNoUpstream) {
					t.Errorf("unknown ID: %v", err)
				}
			}
			if err := b.Drain("a", -1); err == nil {
				t.Error("negative time accepted")
			}
			if err := b.SetWeight("a", 0); err == nil {
				t.Error("weight 0 accepted")
			}
		})
	})
}

// A bad configuration changes nothing, and all that is wrong with it is said. What is good keeps the states.
func TestReload(t *testing.T) {
	inBubble(t, 3, gateway.Config{Upstreams: weighted(1, 1), Affinity: gateway.AffinityCookie}, true, func(t *testing.T, b *bubble) {
		good := gateway.Config{Upstreams: weighted(1, 1, 2), Affinity: gateway.AffinityCookie, Key: testKey, Cookie: gateway.Cookie{AllowPlainLocalhost: true}}
		bad := good
		bad.Upstreams = []gateway.Upstream{{URL: "ftp://x"}}
		bad.Balance, bad.Key = "luck", nil
		wantFaults(t, b.Reload(bad), "upstream 1", "key of 0 bytes", `balance "luck"`)
		fixed := good
		fixed.IdleTimeout, fixed.MaxHeaderBytes = time.Second, 1000
		wantFaults(t, b.Reload(fixed), "idle timeout changes from 2m0s to 1s: restart", "max header bytes changes")
		own := good
		own.Upstreams = append(own.Upstreams, gateway.Upstream{ID: "self", URL: "http://localhost:1"})
		wantFaults(t, b.Reload(own), "upstream self, http://localhost:1, is an address of this gateway itself")
		b.want(4, "ab")

		cookie, _, _ := strings.Cut(b.send("GET").Header().Get("Set-Cookie"), ";")
		home := b.send("GET", "Cookie", cookie).Body.String()
		_ = b.Maintenance("b")
		_ = b.SetWeight("a", 9)
		before := b.upstream("a").Requests
		if err := b.Reload(good); err != nil {
			t.Fatal(err)
		}
		b.wantState("b", gateway.StateMaintenance)
		_ = b.Ready("b")
		b.want(8, "abc")
		if w := b.send("GET", "Cookie", cookie); w.Body.String() != home || w.Header().Get("Set-Cookie") != "" {
			t.Errorf("client moved from %s to %s", home, w.Body)
		}
		if u := b.upstream("a"); u.Weight != 1 || u.Requests <= before {
			t.Errorf("after the reload: %+v", u)
		}
		// The last one cannot go, two with one ID cannot come.
		for _, id := range []string{"a", "b"} {
			if err := b.RemoveUpstream(id); err != nil {
				t.Error(err)
			}
		}
		if err := b.RemoveUpstream("c"); err == nil || !strings.Contains(err.Error(), "the last one") {
			t.Errorf("last upstream removed: %v", err)
		}
		if err := b.SetUpstream(gateway.Upstream{ID: "no good", URL: "http://a:1"}); err == nil {
			t.Error("bad ID accepted")
		}
		b.want(2, "c")
	})
}

// An upstream that is removed while it works finishes within DrainTimeout and is then cut off.
func TestRemovedFinishes(t *testing.T) {
	for _, c := range []struct {
		takes  time.Duration
		status int
	}{{9 * time.Second, 200}, {11 * time.Second, 502}} {
		inBubble(t, 2, gateway.Config{DrainTimeout: 10 * time.Second}, false, func(t *testing.T, b *bubble) {
			b.app("a").freeze()
			done := make(chan int, 1)
			go func() { done <- b.send("POST").Code }()
			synctest.Wait()
			if err := b.RemoveUpstream("a"); err != nil {
				t.Fatal(err)
			}
			b.want(4, "b")
			time.Sleep(c.takes)
			b.app("a").thaw()
			if code := <-done; code != c.status {
				t.Errorf("request that took %v: status %d, want %d", c.takes, code, c.status)
			}
		})
	}
}

// The address at which the gateway listens is no upstream.
func TestOwnAddress(t *testing.T) {
	for _, host := range []string{"127.0.0.1", "localhost", "[::ffff:127.0.0.1]"} {
		l := mustListen(t)
		_, port, _ := strings.Cut(l.Addr().String(), ":")
		g := mustNew(t, gateway.Config{Upstreams: []gateway.Upstream{{ID: "x", URL: "http://" + host + ":" + port}}})
		if err := g.Run(t.Context(), l); err == nil || !strings.Contains(err.Error(), "upstream x") || !strings.Contains(err.Error(), "this gateway itself") {
			t.Errorf("Run with an upstream at %s, its own address: %v", host, err)
		}
	}
}

// A gateway that takes the place of another knows its clients.
func TestRestartKeepsAffinity(t *testing.T) {
	c := gateway.Config{Upstreams: upstreams(mustApp(t, says("a")), mustApp(t, says("b")), mustApp(t, says("c"))), Affinity: gateway.AffinityCookie}
	g := mustRun(t, "h1", c)
	homes := make(map[string]string)
	for range 12 {
		a := g.send("GET", "/", "")
		homes[affinityCookie(a)] = a.body
	}
	if err := g.stop(); err != nil {
		t.Fatal(err)
	}
	c.Upstreams = []gateway.Upstream{c.Upstreams[2], c.Upstreams[0], c.Upstreams[1]}
	next := mustRun(t, "h1", c)
	for cookie, home := range homes {
		if a := next.send("GET", "/", "", "Cookie", cookie); a.body != home || affinityCookie(a) != "" {
			t.Errorf("client of %s went to %s", home, a.body)
		}
	}
}

// A Reload changes also what of a request is looked at.
func TestReloadSettings(t *testing.T) {
	c := gateway.Config{}
	inBubble(t, 1, c, false, func(t *testing.T, b *bubble) {
		var got http.Header
		b.app("a").set(func() {
			b.app("a").handler = func(_ http.ResponseWriter, r *http.Request) { got = r.Header }
		})
		token := strings.Repeat("A", 43)
		b.send("GET", "Session-Token", token)
		synctest.Wait()
		if got.Get("X-Session-Id") != "" {
			t.Error("ID from a header that is not configured")
		}
		c.Upstreams, c.SessionHeader, c.SignatureKey = weighted(1), "Session-Token", testKey
		if err := b.Reload(c); err != nil {
			t.Fatal(err)
		}
		b.send("GET", "Session-Token", token)
		synctest.Wait()
		if got.Get("X-Session-Id") != idOf(token) || got.Get("X-Session-Signature") == "" {
			t.Errorf("after the reload: %v", got)
		}
	})
}
