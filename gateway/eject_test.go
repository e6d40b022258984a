package gateway_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-sessions/holdfast/gateway"
)

// Failures in a row eject, and an answer ends the row.
func TestEjection(t *testing.T) {
	for _, c := range []struct {
		name     string
		ejection gateway.Ejection
		status   int
		ejected  bool
	}{
		{"5xx do not count by default", gateway.Ejection{}, 500, false},
		{"503 counts if wanted", gateway.Ejection{Statuses: []int{502, 503}}, 503, true},
		{"500 is not among them", gateway.Ejection{Statuses: []int{502, 503}}, 500, false},
		{"switched off", gateway.Ejection{Disable: true, Statuses: []int{503}}, 503, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			inBubble(t, 2, gateway.Config{Ejection: c.ejection}, false, func(t *testing.T, b *bubble) {
				a := b.app("a")
				for range 3 { // 4 failures and an answer
					a.set(func() { a.status = c.status })
					for range 8 {
						b.send("GET")
					}
					a.set(func() { a.status = 0 })
					b.send("GET")
					b.send("GET")
				}
				b.wantState("a", gateway.StateUp)
				a.set(func() { a.status = c.status })
				for range 10 {
					b.send("GET")
				}
				if c.ejected {
					b.wantState("a", gateway.StateEjected)
					b.want(10, "b")
				} else {
					b.wantState("a", gateway.StateUp)
				}
			})
		})
	}
}

// Broken answers count without being asked to; they cost the clients nothing.
func TestEjectionOfBroken(t *testing.T) {
	inBubble(t, 2, gateway.Config{}, false, func(t *testing.T, b *bubble) {
		b.app("a").set(func() {
			b.app("a").handler = func(w http.ResponseWriter, r *http.Request) { panic(http.ErrAbortHandler) }
		})
		b.want(20, "b")
		b.wantState("a", gateway.StateEjected)
		if n := b.app("a").arrivals(); n != 5 {
			t.Errorf("%d requests went there, want 5", n)
		}
	})
}

// Each ejection lasts longer, up to the longest. Without Run, one request tries the upstream after each.
func TestEjectionBackOff(t *testing.T) {
	c := gateway.Config{Ejection: gateway.Ejection{Statuses: []int{500}, Failures: 1, Time: 10 * time.Second, MaxTime: time.Minute}}
	inBubble(t, 2, c, false, func(t *testing.T, b *bubble) {
		var at []time.Time
		b.app("a").set(func() {
			b.app("a").handler = func(w http.ResponseWriter, r *http.Request) {
				at = append(at, time.Now())
				w.WriteHeader(500)
			}
		})
		for range 10 * 600 {
			b.send("GET")
			time.Sleep(100 * time.Millisecond)
		}
		want := 10 * time.Second
		for i := range len(at) - 1 {
			if d := at[i+1].Sub(at[i]); d < want/2 || d > want+200*time.Millisecond {
				t.Errorf("%v between try %d and the next, want %v to %v", d, i+1, want/2, want)
			}
			want = min(2*want, time.Minute)
		}
		if len(at) < 10 {
			t.Errorf("%d tries in ten minutes", len(at))
		}
	})
}

// No more than MaxShare is ejected, but one of two always may be; of one, none.
func TestEjectionMaxShare(t *testing.T) {
	for _, c := range []struct {
		n     int
		share float64
		want  int
	}{{1, 0, 0}, {2, 0.1, 1}, {5, 0, 2}, {4, 0.75, 3}, {4, 1, 4}} {
		t.Run(fmt.Sprint(c.n, c.share), func(t *testing.T) {
			inBubble(t, c.n, gateway.Config{Ejection: gateway.Ejection{Statuses: []int{500}, Failures: 2, MaxShare: c.share}}, false, func(t *testing.T, b *bubble) {
				for _, u := range b.Upstreams() {
					a := b.app(u.ID)
					a.set(func() { a.status = 500 })
				}
				var wg sync.WaitGroup
				for range 40 {
					wg.Go(func() { b.send("GET") })
				}
				wg.Wait()
				ejected := 0
				for _, u := range b.Upstreams() {
					if u.State == gateway.StateEjected {
						ejected++
					}
				}
				if ejected != c.want {
					t.Errorf("%d of %d ejected, want %d", ejected, c.n, c.want)
				}
			})
		})
	}
}

// An upstream that is slow for one request, and answers others meanwhile, is not frozen.
func TestSlowIsNotFrozen(t *testing.T) {
	inBubble(t, 2, gateway.Config{ResponseHeaderTimeout: 10 * time.Second}, false, func(t *testing.T, b *bubble) {
		b.app("a").set(func() {
			b.app("a").handler = func(w http.ResponseWriter, r *http.Request) {
				if r.Method == "POST" {
					<-r.Context().Done()
				}
				_, _ = io.WriteString(w, "a")
			}
		})
		var wg sync.WaitGroup
		wg.Go(func() {
			if w := b.send("POST"); w.Code != 504 {
				t.Errorf("status %d, want 504", w.Code)
			}
		})
		time.Sleep(5 * time.Second)
		b.want(4, "ab")
		wg.Wait()
		b.wantState("a", gateway.StateUp)
		b.want(4, "ab")
	})
}

// An answer that stops midway is cut after BodyIdleTimeout; one that goes on, however long, and an event stream are not.
func TestBodyIdleTimeout(t *testing.T) {
	inBubble(t, 1, gateway.Config{BodyIdleTimeout: 10 * time.Second}, false, func(t *testing.T, b *bubble) {
		b.app("a").set(func() {
			b.app("a").handler = func(w http.ResponseWriter, r *http.Request) {
				pause, _ := time.ParseDuration(r.Header.Get("Pause"))
				w.Header().Set("Content-Type", r.Header.Get("Kind"))
				for range 3 {
					_, _ = io.WriteString(w, "x")
					_ = http.NewResponseController(w).Flush()
					select {
					case <-time.After(pause):
					case <-r.Context().Done():
						return
					}
				}
			}
		})
		for _, c := range []struct {
			pause time.Duration
			kind  string
			cut   bool
		}{{9 * time.Second, "text/plain", false}, {11 * time.Second, "text/plain", true}, {time.Hour, "text/event-stream", false}} {
			began := time.Now()
			cut := func() (cut bool) {
				defer func() {
					if e := recover(); e == http.ErrAbortHandler {
						cut = true
					} else if e != nil {
						panic(e)
					}
				}()
				r := httptest.NewRequest("GET", "/", nil)
				r.Header.Set("Pause", c.pause.String())
				r.Header.Set("Kind", c.kind)
				b.ServeHTTP(httptest.NewRecorder(), r.WithContext(context.WithValue(t.Context(), http.ServerContextKey, &http.Server{})))
				return false
			}()
			if cut != c.cut {
				t.Errorf("pauses of %v in %s: cut %v, want %v", c.pause, c.kind, cut, c.cut)
			}
			if d := time.Since(began); c.cut && d != 10*time.Second {
				t.Errorf("cut after %v", d)
			}
		}
		b.wantState("a", gateway.StateUp) // the only one is not ejected
	})
}

// An upstream that leads back to the gateway is found out, and the request, whatever it is, goes elsewhere.
func TestLoop(t *testing.T) {
	protocols(t, func(t *testing.T, proto string) {
		_, roots := testCert()
		l := mustListen(t)
		g := mustRun(t, proto, gateway.Config{Upstreams: upstreams("http://"+l.Addr().String(), mustApp(t, says("b")))})
		// The way back: another gateway, so that g does not see its own address.
		back := mustNew(t, gateway.Config{Upstreams: []gateway.Upstream{{URL: g.url}}, UpstreamTLS: &tls.Config{RootCAs: roots}})
		srv := &http.Server{Handler: back}
		go func() { _ = srv.Serve(l) }()
		t.Cleanup(func() { srv.Close(); back.Close() })

		for range 6 {
			a := g.send("POST", "/", "x")
			wantStatus(t, a, 200)
			if a.body != "b" {
				t.Errorf("answer %q", a.body)
			}
		}
		if u := g.upstream("a"); u.State != gateway.StateEjected || u.Failures != 1 {
			t.Errorf("upstream that leads back: %+v", u)
		}
		if log := g.log.String(); !strings.Contains(log, "leads back to this gateway") {
			t.Errorf("log:\n%s", log)
		}
	})
	t.Run("nothing else", func(t *testing.T) {
		l := mustListen(t)
		g := mustRun(t, "h1", gateway.Config{Upstreams: upstreams("http://" + l.Addr().String())})
		back := mustNew(t, gateway.Config{Upstreams: []gateway.Upstream{{URL: g.url}}})
		srv := &http.Server{Handler: back}
		go func() { _ = srv.Serve(l) }()
		t.Cleanup(func() { srv.Close(); back.Close() })
		a := g.send("GET", "/", "")
		wantStatus(t, a, 508)
		if !strings.Contains(a.body, "leads back") || a.Header.Get("Holdfast-Hop") != "" {
			t.Errorf("answer %q, %v", a.body, a.Header)
		}
	})
}

// Gateways one behind another are no loop, and a client cannot make one by what it sends.
func TestGatewaysInARow(t *testing.T) {
	var hops []string
	app := mustApp(t, func(w http.ResponseWriter, r *http.Request) { hops = r.Header.Values("Holdfast-Hop") })
	url := app
	for range 3 {
		url = mustRun(t, "h1", gateway.Config{Upstreams: upstreams(url)}).url
	}
	last := mustRun(t, "h1", gateway.Config{Upstreams: upstreams(url)})
	wantStatus(t, last.send("GET", "/", "", "Holdfast-Hop", "forged"), 200)
	if len(hops) != 5 || hops[0] != "forged" {
		t.Errorf("marks at the application: %q", hops)
	}
	wantStatus(t, last.send("GET", "/", "", "Holdfast-Hop", strings.Repeat("x", 2000)), 508)
}

// Only as many requests as it may have get to an upstream; the others wait in order, or are answered 503.
func TestQueue(t *testing.T) {
	c := gateway.Config{MaxQueued: 3, QueueTimeout: 10 * time.Second}
	c.Upstreams = weighted(1)
	c.Upstreams[0].MaxRequests = 2
	inBubble(t, 1, c, false, func(t *testing.T, b *bubble) {
		var mu sync.Mutex
		now, most := 0, 0
		var order []string
		b.app("a").set(func() {
			b.app("a").handler = func(w http.ResponseWriter, r *http.Request) {
				mu.Lock()
				now++
				most = max(most, now)
				order = append(order, r.Header.Get("N"))
				mu.Unlock()
				time.Sleep(4 * time.Second)
				mu.Lock()
				now--
				mu.Unlock()
			}
		})
		codes := make([]int, 7)
		took := make([]time.Duration, 7)
		var wg sync.WaitGroup
		for i := range codes {
			wg.Go(func() {
				began := time.Now()
				w := b.send("GET", "N", fmt.Sprint(i))
				codes[i], took[i] = w.Code, time.Since(began)
				if w.Code == 503 && w.Header().Get("Retry-After") != "10" {
					t.Errorf("503 with %v", w.Header())
				}
			})
			synctest.Wait()
			time.Sleep(time.Millisecond)
		}
		wg.Wait()
		if got, want := fmt.Sprint(codes), "[200 200 200 200 200 503 503]"; got != want {
			t.Errorf("answers %s, want %s", got, want)
		}
		if most != 2 || strings.Join(order, "") != "01234" {
			t.Errorf("%d at once, in the order %s", most, order)
		}
		if took[5] != 0 || took[4] < 11*time.Second || took[4] > 12*time.Second {
			t.Errorf("times %v", took)
		}
		// A wait that is too long.
		b.app("a").freeze()
		wg.Go(func() { b.send("GET") })
		wg.Go(func() { b.send("GET") })
		synctest.Wait()
		began := time.Now()
		if w := b.send("GET"); w.Code != 503 || time.Since(began) != 10*time.Second {
			t.Errorf("status %d after %v, want 503 after the queue's deadline", w.Code, time.Since(began))
		}
		if u := b.upstream("a"); u.Active != 2 || u.Waiting != 0 {
			t.Errorf("%+v", u)
		}
		b.app("a").thaw()
		wg.Wait()
		if u := b.upstream("a"); u.Active != 0 {
			t.Errorf("%d requests in flight at the end", u.Active)
		}
	})
}

// A client that is bound waits for its upstream while others go elsewhere; when that fails, it need not wait.
func TestQueueOfBoundClients(t *testing.T) {
	c := gateway.Config{Affinity: gateway.AffinityCookie, QueueTimeout: time.Minute}
	c.Upstreams = weighted(1, 1)
	c.Upstreams[0].MaxRequests = 1
	inBubble(t, 2, c, true, func(t *testing.T, b *bubble) {
		first := b.send("GET")
		cookie := strings.SplitN(first.Header().Get("Set-Cookie"), ";", 2)[0]
		if first.Body.String() != "a" || cookie == "" {
			t.Fatalf("first request: %s, %v", first.Body, first.Header())
		}
		b.app("a").freeze()
		var wg sync.WaitGroup
		wg.Go(func() { b.send("POST", "Cookie", cookie) })
		synctest.Wait()
		answers := make(chan string, 2)
		wg.Go(func() { answers <- b.send("GET", "Cookie", cookie).Body.String() })
		synctest.Wait()
		if u := b.upstream("a"); u.Waiting != 1 || u.Active != 1 {
			t.Errorf("%+v", u)
		}
		b.want(4, "b") // without a cookie
		b.app("a").thaw()
		wg.Wait()
		if got := <-answers; got != "a" {
			t.Errorf("bound client went to %s", got)
		}

		b.app("a").freeze()
		wg.Go(func() { b.send("POST", "Cookie", cookie) })
		synctest.Wait()
		wg.Go(func() { answers <- b.send("GET", "Cookie", cookie).Body.String() })
		synctest.Wait()
		b.Down("a")
		synctest.Wait()
		select {
		case got := <-answers:
			if got != "b" {
				t.Errorf("went to %s", got)
			}
		default:
			t.Error("still waits for an upstream that is down")
		}
		b.app("a").thaw()
		wg.Wait()
	})
}

// A reload that makes room, or takes an upstream away, is noticed by those who wait.
func TestQueueAndReload(t *testing.T) {
	c := gateway.Config{QueueTimeout: time.Hour, Upstreams: weighted(1)}
	c.Upstreams[0].MaxRequests = 1
	inBubble(t, 2, c, false, func(t *testing.T, b *bubble) {
		b.app("a").freeze()
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() {
				if w := b.send("GET"); w.Code != 200 {
					t.Errorf("status %d", w.Code)
				}
			})
		}
		synctest.Wait()
		if n := b.Stats().Waiting; n != 2 {
			t.Errorf("%d wait, want 2", n)
		}
		more := c
		more.Upstreams = weighted(1)
		more.Upstreams[0].MaxRequests = 2
		if err := b.Reload(more); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if u := b.upstream("a"); u.Active != 2 || b.Stats().Waiting != 1 {
			t.Errorf("%+v, %d wait, want 2 there and 1 waiting", u, b.Stats().Waiting)
		}
		more.Upstreams = []gateway.Upstream{{ID: "b", URL: "http://b:1"}}
		if err := b.Reload(more); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if n := b.Stats().Waiting; n != 0 || b.app("b").arrivals() != 1 {
			t.Errorf("%d wait, %d went to the new upstream", n, b.app("b").arrivals())
		}
		b.app("a").thaw()
		wg.Wait()
	})
}

// Under many requests at once no place is lost and none is used twice.
func TestQueueUnderLoad(t *testing.T) {
	c := gateway.Config{MaxQueued: 1000, QueueTimeout: time.Hour}
	c.Upstreams = weighted(1, 1, 1)
	for i := range c.Upstreams {
		c.Upstreams[i].MaxRequests = 2 + i
	}
	inBubble(t, 3, c, false, func(t *testing.T, b *bubble) {
		var mu sync.Mutex
		now := make(map[string]int)
		for i, u := range c.Upstreams {
			b.app(u.ID).set(func() {
				b.app(u.ID).handler = func(w http.ResponseWriter, r *http.Request) {
					mu.Lock()
					now[u.ID]++
					if now[u.ID] > 2+i {
						t.Errorf("%d requests at %s", now[u.ID], u.ID)
					}
					mu.Unlock()
					time.Sleep(time.Duration(1+len(r.Header.Get("N"))) * time.Millisecond)
					mu.Lock()
					now[u.ID]--
					mu.Unlock()
				}
			})
		}
		began := time.Now()
		var wg sync.WaitGroup
		for i := range 900 {
			wg.Go(func() {
				if w := b.send("GET", "N", strings.Repeat("x", i%4)); w.Code != 200 {
					t.Errorf("status %d", w.Code)
				}
			})
		}
		wg.Wait()
		// 900 requests of 2.5 ms on average over 9 places.
		if d := time.Since(began); d > 300*time.Millisecond {
			t.Errorf("took %v: places stay empty", d)
		}
		for _, u := range b.Upstreams() {
			if u.Active != 0 || u.Waiting != 0 {
				t.Errorf("%+v", u)
			}
		}
	})
}

func TestConfigErrorsOfFailure(t *testing.T) {
	_, err := gateway.New(gateway.Config{
		Upstreams:   upstreams("http://a"),
		HealthCheck: gateway.HealthCheck{TCP: true, Path: "x", Status: 99, Interval: -1, Timeout: -1, Rise: -1},
		Ejection:    gateway.Ejection{Failures: -1, Statuses: []int{404}, Time: -1, MaxTime: -2, MaxShare: 2},
		MaxQueued:   -2, QueueTimeout: -1, PanicThreshold: -1, BodyIdleTimeout: -1,
	})
	wantFaults(t, err, "both TCP and a path", `path "x"`, "status 99", "interval -1ns", "timeout -1ns", "rise -1",
		"failures -1", "status 404", "time -1ns", "max time -2ns", "max share 2", "max queued -2", "queue timeout -1ns", "panic threshold -1", "body idle timeout -1ns")
	_, err = gateway.New(gateway.Config{Upstreams: upstreams("http://a"), HealthCheck: gateway.HealthCheck{Status: 200}})
	wantFaults(t, err, "without a path")
}

// An upstream that stops reading a request is given up after BodyIdleTimeout, too.
func TestUpstreamDoesNotRead(t *testing.T) {
	deaf := mustListen(t) // its backlog accepts connections; nobody reads
	g := mustRun(t, "h1", gateway.Config{
		Upstreams: upstreams("http://"+deaf.Addr().String(), mustApp(t, says("b"))), BodyIdleTimeout: 100 * time.Millisecond,
	})
	req := g.mustRequest("PUT", "/", "")
	req.Body, req.ContentLength = io.NopCloser(io.LimitReader(pattern{}, 64<<20)), 64<<20
	res, err := g.http.Do(req)
	if err == nil { // or the connection ended while the client was still sending
		res.Body.Close()
		if res.StatusCode != 504 {
			t.Errorf("status %d, want 504", res.StatusCode)
		}
	}
	if u := g.upstream("a"); u.State != gateway.StateEjected {
		t.Errorf("upstream that does not read: %+v, %v", u, err)
	}
}
