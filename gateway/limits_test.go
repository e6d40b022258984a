package gateway_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-sessions/holdfast/gateway"
)

// Attack 22, and bodies: what is too large is refused and counted, and is not the upstream's fault.
func TestTooLarge(t *testing.T) {
	protocols(t, func(t *testing.T, proto string) {
		app := mustApp(t, func(w http.ResponseWriter, r *http.Request) {
			n, _ := io.Copy(io.Discard, r.Body)
			fmt.Fprint(w, n, " ", len(r.Cookies()))
		})
		g := mustRun(t, proto, gateway.Config{Upstreams: upstreams(app), MaxBodyBytes: 100 << 10, MaxHeaders: 50})
		many := func(n int) string { return strings.Repeat("a=b; ", n-1) + "a=b" }
		for _, c := range []struct {
			name, cookie string
			headers      int
			body         int64
			status       int
			answer       string
		}{
			{"1000 cookies", many(1000), 0, 0, 200, "0 1000"},
			{"1001 cookies", many(1001), 0, 0, 431, ""},
			{"3001 cookies", many(3001), 0, 0, 431, ""},
			{"64 KiB cookie", "a=" + strings.Repeat("x", 64<<10), 0, 0, 431, ""},
			{"63 KiB cookie", "a=" + strings.Repeat("x", 63<<10), 0, 0, 200, "0 1"},
			{"many headers", "", 60, 0, 431, ""},
			{"body at the limit", "", 0, 100 << 10, 200, "102400 0"},
			{"body beyond", "", 0, 100<<10 + 1, 413, ""},
			{"chunks beyond", "", 0, -(1 << 20), 413, ""},
			{"chunks at the limit", "", 0, -(100 << 10), 200, "102400 0"},
		} {
			before := g.Stats().Rejections
			req := g.mustRequest("PUT", "/", "")
			if c.cookie != "" {
				req.Header.Set("Cookie", c.cookie)
			}
			for i := range c.headers {
				req.Header.Set(fmt.Sprint("A-", i), "x")
			}
			if c.body != 0 {
				req.Body, req.ContentLength = io.NopCloser(io.LimitReader(pattern{}, max(c.body, -c.body))), max(c.body, -1)
			}
			a := g.do(req)
			if a.StatusCode != c.status || c.answer != "" && a.body != c.answer {
				t.Errorf("%s: %d %.80q, want %d %q", c.name, a.StatusCode, a.body, c.status, c.answer)
			}
			after := g.Stats().Rejections
			switch c.status {
			case 431:
				before.Headers++
			case 413:
				before.Body++
			}
			if d := cmp.Diff(before, after); d != "" {
				t.Errorf("%s: rejections (-want +got):\n%s", c.name, d)
			}
		}
		if u := g.upstream("a"); !u.Up || u.Failures > 0 {
			t.Errorf("upstream %+v, want no failure", u)
		}
	})
}

func TestConnectionsPerClient(t *testing.T) {
	g := mustRun(t, "h1", gateway.Config{Upstreams: upstreams(mustApp(t, says("a"))), MaxConnectionsPerClient: 2, MaxConnections: 4, TrustedProxies: prefixes("127.0.0.9/32")})
	var open []net.Conn
	// get opens a connection from an address of this machine, makes a request on it and returns the status.
	get := func(from string) int {
		t.Helper()
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
		c, err := d.Dial("tcp", strings.TrimPrefix(g.url, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
		res, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		if res.StatusCode != 200 && res.Header.Get("Retry-After") == "" {
			t.Errorf("%s without Retry-After", res.Status)
		}
		if res.StatusCode == 200 {
			open = append(open, c)
		}
		return res.StatusCode
	}
	want := func(from string, status int) {
		t.Helper()
		if got := get(from); got != status {
			t.Errorf("connection from %s: %d, want %d", from, got, status)
		}
	}
	want("127.0.0.1", 200)
	want("127.0.0.1", 200)
	want("127.0.0.1", 429)
	want("127.0.0.2", 200) // others are served
	open[0].Close()
	for deadline := time.Now().Add(10 * time.Second); ; { // until the gateway notices
		if status := get("127.0.0.1"); status == 200 {
			break
		} else if time.Now().After(deadline) {
			t.Fatalf("after a connection was closed: %d, want 200", status)
		}
	}
	want("127.0.0.9", 200) // a trusted proxy: not counted by address
	want("127.0.0.9", 503) // but in total
	if r := g.Stats().Rejections; r.PerClient == 0 || r.Connections != 1 {
		t.Errorf("rejections %+v, want some per client and 1 of all connections", r)
	}
}

// pipes is a network without buffers, for a bubble of synctest.
type pipes struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func newPipes() *pipes { return &pipes{conns: make(chan net.Conn), done: make(chan struct{})} }

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error   { p.once.Do(func() { close(p.done) }); return nil }
func (p *pipes) Addr() net.Addr { return &net.TCPAddr{} }

func (p *pipes) dial(context.Context, string, string) (net.Conn, error) {
	near, far := net.Pipe()
	p.conns <- far
	return near, nil
}

// piped runs f with a gateway in front of app, all of it in the bubble that it is called in. dial connects to the gateway.
func piped(t *testing.T, c gateway.Config, app http.HandlerFunc, f func(t *testing.T, g *gateway.Gateway, dial func() net.Conn)) {
	back, front := newPipes(), newPipes()
	srv := &http.Server{Handler: app}
	var running sync.WaitGroup
	running.Go(func() { _ = srv.Serve(back) })
	c.Upstreams, c.Dial = upstreams("http://app:1"), back.dial
	g, err := gateway.New(c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	running.Go(func() { _ = g.Run(ctx, front) })
	f(t, g, func() net.Conn {
		c, _ := front.dial(ctx, "", "")
		return c
	})
	cancel()
	synctest.Wait()
	_ = srv.Close()
	running.Wait()
}

func pipeTransport(dial func() net.Conn) *http.Transport {
	return &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return dial(), nil }}
}

// Attack 40: who sends a header or a body too slowly is cut off, when the time is over, and others are served meanwhile.
func TestSlowClients(t *testing.T) {
	const head = "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n"
	for _, c := range []struct {
		name  string
		begin string
		every time.Duration
		bytes int
		until time.Duration
		want  string // of the answer; "": the end of the connection
		slow  uint64
	}{
		{name: "a header, byte by byte", begin: "GET / HTTP/1.1\r\nA: ", every: time.Second, bytes: 1, until: 10 * time.Second},
		{name: "nothing", begin: "", every: time.Hour, until: 10 * time.Second},
		{name: "a body, not at all", begin: head, every: time.Hour, until: 30 * time.Second, want: "HTTP/1.1 408 ", slow: 1},
		{name: "a body, byte by byte", begin: head, every: time.Second, bytes: 1, until: 31 * time.Second, want: "HTTP/1.1 408 ", slow: 1},
		{name: "a body at half the rate", begin: head, every: time.Second, bytes: 250, until: 60 * time.Second, want: "HTTP/1.1 408 ", slow: 1},
		{name: "a body at the rate", begin: head, every: time.Second, bytes: 500, until: 200 * time.Second, want: "HTTP/1.1 200 "},
		{name: "a body with pauses", begin: head, every: 20 * time.Second, bytes: 20000, until: 100 * time.Second, want: "HTTP/1.1 200 "},
	} {
		t.Run(c.name, func(t *testing.T) {
			app := func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) }
			synctest.Test(t, func(t *testing.T) {
				piped(t, gateway.Config{}, app, func(t *testing.T, g *gateway.Gateway, dial func() net.Conn) {
					began := time.Now()
					slow := dial()
					defer slow.Close()
					stop := make(chan struct{})
					var sending sync.WaitGroup
					sending.Go(func() {
						_, err := io.WriteString(slow, c.begin)
						for err == nil {
							select {
							case <-time.After(c.every):
								_, err = io.WriteString(slow, strings.Repeat("x", c.bytes))
							case <-stop:
								return
							}
						}
					})
					for range 3 {
						other := dial()
						fmt.Fprint(other, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
						if b, err := io.ReadAll(other); err != nil || !strings.HasPrefix(string(b), "HTTP/1.1 200 ") {
							t.Errorf("another client: %q, %v", b, err)
						}
					}
					if d := time.Since(began); d != 0 {
						t.Errorf("other clients waited %v", d)
					}
					answer := make([]byte, 13)
					n, _ := io.ReadFull(slow, answer)
					if got := string(answer[:n]); got != c.want {
						t.Errorf("answer %q, want %q", got, c.want)
					}
					if took := time.Since(began); took < c.until-time.Second || took > c.until+time.Second {
						t.Errorf("after %v, want %v", took, c.until)
					}
					close(stop)
					slow.Close()
					sending.Wait()
					if s := g.Stats(); s.Rejections.Slow != c.slow || s.Upstreams[0].Failures > 0 {
						t.Errorf("%+v, want %d slow and no failure of the upstream", s, c.slow)
					}
				})
			})
		})
	}
}

// The same over HTTP/2, where the deadline is the stream's.
func TestSlowBodyHTTP2(t *testing.T) {
	g := mustRun(t, "h2", gateway.Config{Upstreams: upstreams(mustApp(t, says("a"))), BodyTimeout: 50 * time.Millisecond})
	for _, length := range []int64{10, -1} {
		req := g.mustRequest("PUT", "/", "")
		body, w := io.Pipe()
		req.Body, req.ContentLength = body, length
		go func() { _, _ = io.WriteString(w, "half") }()
		a := g.do(req)
		w.Close()
		wantStatus(t, a, 408)
	}
	wantStatus(t, g.send("GET", "/", ""), 200)
	if s := g.Stats(); s.Rejections.Slow != 2 || s.Upstreams[0].Failures > 0 {
		t.Errorf("%+v, want 2 slow and no failure of the upstream", s)
	}
}

// An upstream that does not read for a while is not the client's fault.
func TestSlowUpstreamBody(t *testing.T) {
	protocols(t, func(t *testing.T, proto string) {
		const size = 8 << 20
		app := mustApp(t, func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.CopyN(io.Discard, r.Body, 1<<20)
			time.Sleep(300 * time.Millisecond)
			n, err := io.Copy(io.Discard, r.Body)
			fmt.Fprint(w, n, err)
		})
		g := mustRun(t, proto, gateway.Config{Upstreams: upstreams(app), BodyTimeout: 100 * time.Millisecond})
		req := g.mustRequest("PUT", "/", "")
		req.Body, req.ContentLength = io.NopCloser(io.LimitReader(anything{}, size)), size
		if a := g.do(req); a.StatusCode != 200 || a.body != fmt.Sprint(size-1<<20, nil) {
			t.Errorf("%d %s", a.StatusCode, a.body)
		}
	})
}

// A client that takes nothing of its answer does not hold the upstream for ever; one that only waits for events, or reads
// slowly, is left alone.
func TestSlowReader(t *testing.T) {
	protocols(t, func(t *testing.T, proto string) {
		ended := make(chan struct{})
		app := mustApp(t, func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/events" {
				w.Header().Set("Content-Type", "text/event-stream")
				for i := range 3 {
					fmt.Fprintf(w, "data: %d\n\n", i)
					_ = http.NewResponseController(w).Flush()
					time.Sleep(200 * time.Millisecond)
				}
				return
			}
			defer close(ended)
			_, _ = io.Copy(w, io.LimitReader(pattern{}, 1<<30))
		})
		g := mustRun(t, proto, gateway.Config{Upstreams: upstreams(app), WriteTimeout: 100 * time.Millisecond})
		if a := g.send("GET", "/events", ""); a.body != "data: 0\n\ndata: 1\n\ndata: 2\n\n" {
			t.Errorf("events with pauses: %q", a.body)
		}
		res, err := g.http.Do(g.mustRequest("GET", "/", ""))
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		select {
		case <-ended:
		case <-time.After(20 * time.Second):
			t.Error("the upstream still sends to a client that does not read")
		}
	})
}
