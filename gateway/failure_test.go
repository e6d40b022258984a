package gateway_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-sessions/holdfast/gateway"
)

// Attack 35. A client's upstream is killed: its next 15 GETs and 4 POSTs succeed elsewhere, without health checks,
// and the client stays there when the first one is back.
func TestUpstreamKilled(t *testing.T) {
	protocols(t, func(t *testing.T, proto string) {
		apps := []*process{mustProcess(t, "127.0.0.1:0"), mustProcess(t, "127.0.0.1:0"), mustProcess(t, "127.0.0.1:0")}
		g := mustRun(t, proto, gateway.Config{
			Upstreams: upstreams("http://"+apps[0].addr, "http://"+apps[1].addr, "http://"+apps[2].addr),
			Affinity:  gateway.AffinityCookie,
		})
		first := g.send("GET", "/", "")
		cookie := affinityCookie(first)
		if !strings.HasPrefix(first.body, apps[0].addr) {
			t.Fatalf("first request went to %q, want %s", first.body, apps[0].addr)
		}
		apps[0].kill()

		rewritten, home := 0, ""
		send := func(method, body string) {
			t.Helper()
			a := g.send(method, "/", body, "Cookie", cookie)
			wantStatus(t, a, 200)
			addr, rest, _ := strings.Cut(a.body, " ")
			if want := method + " " + body; rest != want {
				t.Fatalf("upstream got %q, want %q", rest, want)
			}
			if c := affinityCookie(a); c != "" {
				cookie, home = c, addr
				rewritten++
			}
			if addr != home || addr == apps[0].addr {
				t.Fatalf("request went to %s, home is %s", addr, home)
			}
		}
		for i := range 19 {
			if i%4 == 0 && i < 16 {
				send("POST", fmt.Sprintf("visit %d", i))
			} else {
				send("GET", "")
			}
		}
		if rewritten != 1 {
			t.Errorf("cookie rewritten %d times, want once", rewritten)
		}

		mustProcess(t, apps[0].addr)
		for range 5 {
			send("GET", "")
		}
		if rewritten != 1 {
			t.Error("client was moved when its first upstream came back")
		}
		// New clients find it: the back-off after one failure is at most 250 ms.
		for deadline := time.Now().Add(10 * time.Second); !strings.HasPrefix(g.send("GET", "/", "").body, apps[0].addr); {
			if time.Now().After(deadline) {
				t.Fatal("upstream that came back gets no requests")
			}
		}
	})
}

// The upstream is killed each time just before a request: a POST must not be lost on an old connection either.
func TestPostAfterKill(t *testing.T) {
	app := mustProcess(t, "127.0.0.1:0")
	other := mustApp(t, says("other"))
	g := mustRun(t, "h1", gateway.Config{
		Upstreams: []gateway.Upstream{{ID: "app", URL: "http://" + app.addr}, {ID: "other", URL: other}},
	})
	for range 8 {
		for !strings.HasPrefix(g.send("GET", "/", "").body, app.addr) {
		}
		g.send("GET", "/", "") // the other's turn
		app.kill()
		wantStatus(t, g.send("POST", "/", "once"), 200)
		app = mustProcess(t, app.addr)
	}
}

// A POST whose upstream broke off is not repeated; idempotent requests that can be sent again are.
func TestBrokenMidway(t *testing.T) {
	large := strings.Repeat("x", 1<<20)
	protocols(t, func(t *testing.T, proto string) {
		for _, c := range []struct {
			method, body string
			status       int
		}{
			{"GET", "", 200}, {"HEAD", "", 200}, {"OPTIONS", "", 200}, {"DELETE", "", 200}, {"PUT", "small", 200}, {"PUT", "", 200},
			{"POST", "", 502}, {"POST", "small", 502}, {"PATCH", "small", 502}, {"PUT", large, 502},
		} {
			t.Run(fmt.Sprintf("%s of %d bytes", c.method, len(c.body)), func(t *testing.T) {
				bad := mustBreaking(t, "")
				good := mustApp(t, func(w http.ResponseWriter, r *http.Request) {
					body, _ := io.ReadAll(r.Body)
					w.Header().Set("Got", r.Method+":"+string(body))
				})
				g := mustRun(t, proto, gateway.Config{Upstreams: upstreams(bad.url, good), Affinity: gateway.AffinityCookie})
				a := g.send(c.method, "/", c.body)
				wantStatus(t, a, c.status)
				bad.wantArrivals(t, 1)
				if got, want := a.Header.Get("Got"), c.method+":"+c.body; c.status == 200 && got != want {
					t.Errorf("repeated request %q, want %q", got, want)
				}
				if c.status == 200 && affinityCookie(a) == "" {
					t.Error("no affinity cookie for the upstream that answered")
				}
			})
		}
	})
}

// A small answer that breaks off is had from elsewhere before any of it reaches the client.
func TestAnswerBreaksOff(t *testing.T) {
	for _, c := range []struct{ name, method, reply, want string }{
		{"length", "GET", "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly this", "good"},
		{"nothing but the header", "GET", "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n", "good"},
		{"half a header", "GET", "HTTP/1.1 200 OK\r\nContent-Le", "good"},
		{"not HTTP", "GET", "SSH-2.0-OpenSSH\r\n", "good"},
		{"POST", "POST", "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly this", ""},
		{"chunked", "GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			bad := mustBreaking(t, c.reply)
			g := mustRun(t, "h1", gateway.Config{Upstreams: upstreams(bad.url, mustApp(t, says("good")))})
			var b []byte
			res, err := g.http.Do(g.mustRequest(c.method, "/", ""))
			if err == nil {
				defer res.Body.Close()
				b, err = io.ReadAll(res.Body)
			}
			if c.want == "" && err == nil {
				t.Errorf("answer %q ended without an error, want it broken off as the upstream's", b)
			}
			if c.want != "" && (err != nil || string(b) != c.want) {
				t.Errorf("answer %q, %v, want %q", b, err, c.want)
			}
			bad.wantArrivals(t, 1)
		})
	}
}

// Requests go out on connections that the upstream has closed meanwhile: none is lost, and the client stays.
func TestStaleConnections(t *testing.T) {
	for _, c := range []struct{ method, body string }{{"GET", ""}, {"DELETE", ""}, {"PUT", "x"}, {"POST", ""}, {"POST", "x"}} {
		t.Run(c.method+" "+c.body, func(t *testing.T) {
			app := httptest.NewServer(says("a"))
			t.Cleanup(app.Close)
			g := mustRun(t, "h1", gateway.Config{Upstreams: upstreams(app.URL, mustApp(t, says("b"))), Affinity: gateway.AffinityCookie})
			cookie := affinityCookie(g.send("GET", "/", ""))
			for range 50 {
				app.CloseClientConnections()
				a := g.send(c.method, "/", c.body, "Cookie", cookie)
				wantStatus(t, a, 200)
				if a.body != "a" || affinityCookie(a) != "" {
					t.Fatalf("went to %q, Set-Cookie %q, want it to stay", a.body, affinityCookie(a))
				}
			}
			if !g.upstream("a").Up {
				t.Error("upstream is down because it closed idle connections")
			}
		})
	}
}

// The upstream takes an old connection's request and resets: only idempotent ones are sent again.
func TestResetOnOldConnection(t *testing.T) {
	for _, c := range []struct {
		method, body string
		status       int
		arrivals     int32
		header       []string
	}{
		{"GET", "", 200, 2, nil}, {"PUT", "x", 200, 2, nil}, {"DELETE", "", 200, 2, nil}, {"POST", "", 502, 1, nil}, {"POST", "x", 502, 1, nil},
		{"POST", "", 200, 2, []string{"Idempotency-Key", "1"}}, {"POST", "x", 502, 1, []string{"Idempotency-Key", "1"}}, // net/http
	} {
		t.Run(fmt.Sprint(c.method, c.body, c.header), func(t *testing.T) {
			var arrivals atomic.Int32
			var armed atomic.Bool
			app := mustApp(t, func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path != "/reset" {
					return
				}
				arrivals.Add(1)
				if armed.CompareAndSwap(true, false) {
					nc, _, err := http.NewResponseController(w).Hijack()
					if err == nil {
						_ = nc.(*net.TCPConn).SetLinger(0)
						nc.Close()
					}
				}
			})
			g := mustRun(t, "h1", gateway.Config{Upstreams: upstreams(app)})
			wantStatus(t, g.send("GET", "/", ""), 200)
			armed.Store(true)
			wantStatus(t, g.send(c.method, "/reset", c.body, c.header...), c.status)
			if n := arrivals.Load(); n != c.arrivals {
				t.Errorf("%d arrivals, want %d", n, c.arrivals)
			}
		})
	}
}

// A request that breaks every upstream does not get to all of them.
func TestRepeatsBounded(t *testing.T) {
	var all []*breaking
	var urls []string
	for range 6 {
		b := mustBreaking(t, "")
		all, urls = append(all, b), append(urls, b.url)
	}
	g := mustRun(t, "h1", gateway.Config{Upstreams: upstreams(urls...)})
	wantStatus(t, g.send("GET", "/", ""), 502)
	arrivals := 0
	for _, b := range all {
		b.mu.Lock()
		arrivals += b.arrivals
		b.mu.Unlock()
	}
	if arrivals != 4 {
		t.Errorf("%d arrivals, want 4", arrivals)
	}
}

func TestUpstreamTLS(t *testing.T) {
	app := httptest.NewUnstartedServer(says("a"))
	app.Config.ErrorLog = log.New(io.Discard, "", 0) // of the handshake that is to fail
	app.StartTLS()
	t.Cleanup(app.Close)
	_, roots := testCert()
	g := mustRun(t, "h1", gateway.Config{Upstreams: upstreams(app.URL), UpstreamTLS: &tls.Config{RootCAs: roots}})
	for range 20 {
		wantStatus(t, g.send("POST", "/", "x"), 200)
		app.CloseClientConnections()
		wantStatus(t, g.send("GET", "/", ""), 200)
	}
	if u := g.upstream("a"); !u.Up {
		t.Errorf("upstream %+v", u)
	}
	// A certificate that is not trusted is a failed connect.
	other := mustRun(t, "h1", gateway.Config{Upstreams: upstreams(app.URL)})
	wantStatus(t, other.send("POST", "/", "x"), 503)
}

func TestAllDown(t *testing.T) {
	protocols(t, func(t *testing.T, proto string) {
		l := mustListen(t)
		addr := l.Addr().String()
		l.Close()
		g := mustRun(t, proto, gateway.Config{Upstreams: upstreams(refusing(t), "http://"+addr), Affinity: gateway.AffinityCookie})
		for _, method := range []string{"GET", "POST"} {
			a := g.send(method, "/", "")
			wantStatus(t, a, 503)
			if a.Header.Get("Retry-After") != "1" || a.Header.Get("Cache-Control") != "no-store" || !strings.Contains(a.body, "try again") {
				t.Errorf("503 with %v and body %q", a.Header, a.body)
			}
		}
		for _, u := range g.Upstreams() {
			if u.Up || u.Failures == 0 {
				t.Errorf("upstream %+v, want it down", u)
			}
		}
		// All down: they are tried all the same, so there is nothing to wait for when one is back.
		l, err := net.Listen("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		app := httptest.NewUnstartedServer(says("back"))
		app.Listener.Close()
		app.Listener = l
		app.Start()
		t.Cleanup(app.Close)
		a := g.send("POST", "/", "x")
		wantStatus(t, a, 200)
		if a.body != "back" || !g.upstream("b").Up {
			t.Errorf("answer %q, %+v", a.body, g.Upstreams())
		}
	})
}

// A frozen upstream: idempotent requests go elsewhere at the deadline, others get 504. Only the first pays.
func TestFrozen(t *testing.T) {
	frozen := mustListen(t) // its backlog accepts connections; nobody answers
	g := mustRun(t, "h1", gateway.Config{
		Upstreams: upstreams("http://"+frozen.Addr().String(), mustApp(t, says("b"))), Affinity: gateway.AffinityCookie,
		ResponseHeaderTimeout: 100 * time.Millisecond,
	})
	a := g.send("GET", "/", "")
	wantStatus(t, a, 200)
	if affinityCookie(a) == "" {
		t.Error("client not bound to the upstream that answered")
	}
	if u := g.upstream("a"); u.State != gateway.StateEjected || u.Ejections != 1 {
		t.Errorf("frozen upstream: %+v, want it ejected", u)
	}
	for range 5 {
		wantStatus(t, g.send("POST", "/", "x"), 200)
	}
	if u := g.upstream("a"); u.Failures != 1 {
		t.Errorf("%d requests paid for it, want 1", u.Failures)
	}
	post := mustRun(t, "h1", gateway.Config{
		Upstreams: upstreams("http://"+frozen.Addr().String(), mustApp(t, says("b"))), ResponseHeaderTimeout: 100 * time.Millisecond,
	})
	wantStatus(t, post.send("POST", "/", "x"), 504)
	wantStatus(t, post.send("POST", "/", "x"), 200)
	wantStatus(t, post.send("POST", "/", "x"), 200)
}

// A process that is stopped (SIGSTOP) still accepts connections. Its client is answered within the deadline and pays
// once; all stay away until the process goes on.
func TestProcessStopped(t *testing.T) {
	apps := []*process{mustProcess(t, "127.0.0.1:0"), mustProcess(t, "127.0.0.1:0")}
	const deadline = 2 * time.Second // long enough for a busy machine
	g := mustRun(t, "h1", gateway.Config{
		Upstreams: upstreams("http://"+apps[0].addr, "http://"+apps[1].addr), Affinity: gateway.AffinityCookie,
		ResponseHeaderTimeout: deadline,
		HealthCheck:           gateway.HealthCheck{Path: "/", Interval: time.Hour, Timeout: deadline},
		Ejection:              gateway.Ejection{Time: deadline},
	})
	first := g.send("GET", "/", "")
	cookie := affinityCookie(first)
	if !strings.HasPrefix(first.body, apps[0].addr) {
		t.Fatalf("first request went to %q, want %s", first.body, apps[0].addr)
	}
	apps[0].mustFreeze(t)
	a := g.send("GET", "/", "", "Cookie", cookie)
	wantStatus(t, a, 200)
	if !strings.HasPrefix(a.body, apps[1].addr) || affinityCookie(a) == "" {
		t.Errorf("answer %q, cookie %q", a.body, affinityCookie(a))
	}
	for range 20 {
		wantStatus(t, g.send("POST", "/", "x", "Cookie", cookie), 200) // another client of the stopped one
		wantStatus(t, g.send("POST", "/", "x"), 200)
	}
	if u := g.upstream("a"); u.State != gateway.StateEjected || u.Failures != 1 {
		t.Errorf("stopped upstream: %+v, want it ejected after one failure", u)
	}
	if err := apps[0].cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	for until := time.Now().Add(20 * time.Second); !g.upstream("a").Up; time.Sleep(time.Millisecond) {
		if time.Now().After(until) {
			t.Fatal("the upstream goes on and is not taken back")
		}
	}
	if a := g.send("GET", "/", "", "Cookie", cookie); !strings.HasPrefix(a.body, apps[0].addr) {
		t.Errorf("answer %q", a.body)
	}
}

// A client that goes away, or breaks its own request, is no reason to leave an upstream.
func TestClientFailures(t *testing.T) {
	protocols(t, func(t *testing.T, proto string) {
		arrived := make(chan struct{}, 1)
		app := mustApp(t, func(w http.ResponseWriter, r *http.Request) {
			switch r.URL.Path {
			case "/slow":
				arrived <- struct{}{}
				<-r.Context().Done()
			case "/body":
				arrived <- struct{}{}
				_, _ = io.Copy(io.Discard, r.Body)
			}
		})
		over := make(chan gateway.Request, 1)
		g := mustRun(t, proto, gateway.Config{
			Upstreams: upstreams(app, mustApp(t, says("b"))), Affinity: gateway.AffinityCookie,
			OnRequest: func(r gateway.Request) { over <- r },
		})
		cookie := affinityCookie(g.send("GET", "/", ""))
		<-over

		ctx, cancel := context.WithCancel(t.Context())
		go func() { <-arrived; cancel() }()
		if res, err := g.http.Do(g.mustRequest("GET", "/slow", "", "Cookie", cookie).WithContext(ctx)); err == nil {
			res.Body.Close()
			t.Fatal("cancelled request was answered")
		}
		if r := <-over; r.Status != 499 || r.Attempts != 1 {
			t.Errorf("cancelled request: %+v, want 499 after 1 attempt", r)
		}

		pr, pw := io.Pipe()
		req := g.mustRequest("POST", "/body", "", "Cookie", cookie)
		req.Body, req.ContentLength = pr, 100
		go func() {
			_, _ = io.WriteString(pw, "half")
			<-arrived
			pw.CloseWithError(errors.New("client breaks off"))
		}()
		if res, err := g.http.Do(req); err == nil {
			res.Body.Close()
			t.Fatal("half a request was answered")
		}
		if r := <-over; r.Status != 499 && r.Status != 400 || r.Attempts != 1 {
			t.Errorf("half a request: %+v, want 499 or 400 after 1 attempt", r)
		}
		for _, u := range g.Upstreams() {
			if !u.Up || u.Failures != 0 {
				t.Errorf("upstream %+v after its clients failed, want it up", u)
			}
		}
	})
}

// A client's broken chunk is answered 400 and counts against nobody.
func TestBadChunk(t *testing.T) {
	app := mustApp(t, says("a"))
	g := mustRun(t, "h1", gateway.Config{Upstreams: upstreams(app)})
	for _, method := range []string{"POST", "PUT"} {
		got := g.raw(method + " / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nzz\r\n")
		if !strings.HasPrefix(got, "HTTP/1.1 400 ") {
			t.Errorf("%s with a bad chunk: %q, want 400", method, got)
		}
	}
	if u := g.upstream("a"); !u.Up || u.Failures != 0 {
		t.Errorf("upstream %+v, want it up", u)
	}
}

// raw sends text to the gateway and returns the answer, up to the end of the connection.
func (r *running) raw(text string) string {
	r.t.Helper()
	c := r.mustDial()
	defer c.Close()
	if _, err := io.WriteString(c, text); err != nil {
		r.t.Fatal(err)
	}
	b, _ := io.ReadAll(c) // a reset after the answer is all right
	return string(b)
}

// The body of a request is not asked for before an upstream is connected, and survives failed connects.
func TestExpectContinue(t *testing.T) {
	g := mustRun(t, "h1", gateway.Config{Upstreams: upstreams(refusing(t), refusing(t), mustApp(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/refuse" {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		b, err := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %v", b, err)
	}))})
	for _, c := range []struct{ path, want string }{{"/", "HTTP/1.1 100 "}, {"/refuse", "HTTP/1.1 403 "}} {
		nc, err := net.Dial("tcp", strings.TrimPrefix(g.url, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		_ = nc.SetDeadline(time.Now().Add(10 * time.Second))
		fmt.Fprintf(nc, "POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n", c.path)
		br := bufio.NewReader(nc)
		line, err := br.ReadString('\n')
		if err != nil || !strings.HasPrefix(line, c.want) {
			t.Fatalf("%s: answer %q, %v, want %q before the body is sent", c.path, line, err, c.want)
		}
		if c.path == "/refuse" {
			continue
		}
		if _, err := br.ReadString('\n'); err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(nc, "hello")
		res, err := http.ReadResponse(br, nil)
		if err != nil {
			t.Fatal(err)
		}
		if b, _ := io.ReadAll(res.Body); string(b) != "hello <nil>" {
			t.Errorf("upstream got %q", b)
		}
		res.Body.Close()
	}
}

// An upstream that is down is probed by one request after each back-off, which doubles up to 10 s.
func TestBackOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var dials []time.Time
		up := false
		g, err := gateway.New(gateway.Config{
			Upstreams: upstreams("http://down:1", "http://up:1"),
			Logger:    slog.New(slog.DiscardHandler),
			Dial: func(_ context.Context, _, address string) (net.Conn, error) {
				if address == "down:1" {
					dials = append(dials, time.Now())
					if !up {
						return nil, errors.New("refused")
					}
				}
				near, far := net.Pipe()
				go func() {
					defer far.Close()
					if _, err := http.ReadRequest(bufio.NewReader(far)); err == nil {
						_, _ = io.WriteString(far, "HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
					}
				}()
				return near, nil
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		send := func() {
			w := httptest.NewRecorder()
			g.ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
			if w.Code != 204 {
				t.Fatalf("status %d", w.Code)
			}
		}
		for range 60 * 100 {
			send()
			time.Sleep(10 * time.Millisecond)
		}
		want := 250 * time.Millisecond
		for i := range len(dials) - 1 {
			// Up to 20 ms until it is its turn.
			if d := dials[i+1].Sub(dials[i]); d < want/2 || d > want+20*time.Millisecond {
				t.Errorf("%v between dial %d and the next, want %v to %v", d, i+1, want/2, want)
			}
			want = min(2*want, 10*time.Second)
		}
		if len(dials) < 9 {
			t.Errorf("%d dials in a minute", len(dials))
		}
		if g.Upstreams()[0].Up {
			t.Error("upstream up that never answered")
		}
		up = true
		time.Sleep(10 * time.Second)
		send()
		send()
		if !g.Upstreams()[0].Up {
			t.Error("upstream still down after it answered")
		}
		_ = g.Close()
	})
}
