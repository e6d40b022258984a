package gateway_test

import (
	"bufio"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-sessions/holdfast/gateway"
)

// switcher answers an upgrade to proto and echoes lines.
func switcher(proto string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		c, brw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		fmt.Fprintf(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\nX-Got: %s\r\n\r\n", proto, r.Header.Get("Upgrade"))
		_, _ = io.Copy(c, brw)
	}
}

func (r *running) mustUpgrade(proto string) (net.Conn, *bufio.Reader, *http.Response) {
	r.t.Helper()
	c := r.mustDial()
	fmt.Fprintf(c, "GET /socket HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", proto)
	br := bufio.NewReader(c)
	res, err := http.ReadResponse(br, nil)
	if err != nil {
		r.t.Fatal(err)
	}
	return c, br, res
}

func TestUpgrade(t *testing.T) {
	g := mustRun(t, "h1", gateway.Config{
		Upstreams: upstreams(refusing(t), mustApp(t, switcher("websocket"))), Affinity: gateway.AffinityCookie,
	})
	c, br, res := g.mustUpgrade("websocket")
	if res.StatusCode != 101 || res.Header.Get("Upgrade") != "websocket" || res.Header.Get("X-Got") != "websocket" {
		t.Fatalf("answer %v %v", res.Status, res.Header)
	}
	if affinityCookie(answer{Response: res}) == "" {
		t.Error("101 does not set the affinity cookie")
	}
	for i := range 3 {
		fmt.Fprintf(c, "line %d\n", i)
		if line, err := br.ReadString('\n'); err != nil || line != fmt.Sprintf("line %d\n", i) {
			t.Fatalf("echo %q, %v", line, err)
		}
	}
	_ = c.(*net.TCPConn).CloseWrite()
	if b, err := io.ReadAll(br); err != nil || len(b) > 0 {
		t.Errorf("after our end: %q, %v, want the other end", b, err)
	}
}

// A tunnel of another HTTP would go past everything that is stripped.
func TestUpgradeToHTTPRefused(t *testing.T) {
	g := mustRun(t, "h1", gateway.Config{Upstreams: upstreams(mustApp(t, switcher("h2c")))})
	for _, proto := range []string{"h2c", "HTTP/2.0", "TLS/1.0", "websocket, h2c"} {
		if _, _, res := g.mustUpgrade(proto); res.StatusCode != 502 {
			t.Errorf("upgrade to %s although it was not asked for: %v, want 502", proto, res.Status)
		}
	}
	plain := mustRun(t, "h1", gateway.Config{Upstreams: upstreams(mustApp(t, func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, r.Header.Get("Upgrade"), r.Header.Get("Connection"), r.Header.Get("Http2-Settings"))
	}))})
	if got := plain.raw("GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings, close\r\nUpgrade: h2c\r\nHTTP2-Settings: AAAA\r\n\r\n"); !strings.HasSuffix(got, "\r\n\r\n") {
		t.Errorf("the upstream saw an upgrade to h2c: %q", got)
	}
}

func TestEventStream(t *testing.T) {
	protocols(t, func(t *testing.T, proto string) {
		next := make(chan string)
		g := mustRun(t, proto, gateway.Config{Upstreams: upstreams(mustApp(t, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "text/event-stream")
			w.WriteHeader(200)
			_ = http.NewResponseController(w).Flush()
			for event := range next {
				fmt.Fprintf(w, "data: %s\n\n", event)
				_ = http.NewResponseController(w).Flush()
			}
		}))})
		res, err := g.http.Do(g.mustRequest("GET", "/", ""))
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		br := bufio.NewReader(res.Body)
		for _, event := range []string{"one", "two"} {
			next <- event // the one before was read
			if line, err := br.ReadString('\n'); err != nil || line != "data: "+event+"\n" {
				t.Fatalf("event %q, %v, want %q", line, err, event)
			}
			_, _ = br.ReadString('\n')
		}
		close(next)
		if _, err := br.ReadByte(); err != io.EOF {
			t.Errorf("end of the stream: %v", err)
		}
	})
}

func TestInformationalAndTrailers(t *testing.T) {
	protocols(t, func(t *testing.T, proto string) {
		g := mustRun(t, proto, gateway.Config{Upstreams: upstreams(refusing(t), mustApp(t, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Link", "</style.css>; rel=preload")
			w.WriteHeader(http.StatusEarlyHints)
			w.Header().Set("Trailer", "Checksum")
			fmt.Fprint(w, "body")
			w.Header().Set("Checksum", "42")
			w.Header().Set(http.TrailerPrefix+"Unannounced", "43")
		})), Affinity: gateway.AffinityCookie})
		var early []string
		req := g.mustRequest("GET", "/", "")
		req = req.WithContext(httptrace.WithClientTrace(req.Context(), &httptrace.ClientTrace{
			Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
				early = append(early, fmt.Sprint(code, h.Get("Link"), h.Get("Set-Cookie")))
				return nil
			},
		}))
		a := g.do(req)
		if want := "103</style.css>; rel=preload"; len(early) != 1 || early[0] != want {
			t.Errorf("1xx: %q, want %q and no cookie", early, want)
		}
		if a.body != "body" || a.Trailer.Get("Checksum") != "42" || a.Trailer.Get("Unannounced") != "43" || len(a.Header.Values("Set-Cookie")) != 1 {
			t.Errorf("body %q, trailer %v, header %v", a.body, a.Trailer, a.Header)
		}
	})
}

// Bodies that are larger than what may be kept go through, both ways, and the answer starts before the request ends.
func TestLargeBodies(t *testing.T) {
	const size = 8 << 20
	protocols(t, func(t *testing.T, proto string) {
		app := mustApp(t, func(w http.ResponseWriter, r *http.Request) {
			if r.ContentLength > 0 {
				w.Header().Set("Content-Length", fmt.Sprint(r.ContentLength))
			}
			_ = http.NewResponseController(w).EnableFullDuplex()
			_, _ = io.Copy(w, r.Body)
		})
		g := mustRun(t, proto, gateway.Config{Upstreams: upstreams(app)})
		for _, length := range []int64{size, -1} {
			for _, method := range []string{"POST", "PUT"} {
				req := g.mustRequest(method, "/", "")
				sent, got := sha256.New(), sha256.New()
				req.Body = io.NopCloser(io.TeeReader(io.LimitReader(pattern{}, size), sent))
				req.ContentLength = length
				res, err := g.http.Do(req)
				if err != nil {
					t.Fatal(err)
				}
				n, err := io.Copy(got, res.Body)
				res.Body.Close()
				if err != nil || n != size || string(got.Sum(nil)) != string(sent.Sum(nil)) {
					t.Errorf("%s, length %d: %d bytes back, %v", method, length, n, err)
				}
			}
		}
	})
}

// An upstream that answers before it has read a request ends neither the connection to the client nor the gateway.
func TestEarlyAnswer(t *testing.T) {
	protocols(t, func(t *testing.T, proto string) {
		app := mustApp(t, func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.CopyN(io.Discard, r.Body, 10)
			w.WriteHeader(http.StatusForbidden)
		})
		g := mustRun(t, proto, gateway.Config{Upstreams: upstreams(app)})
		for _, size := range []int{100, 100 << 10, 4 << 20} {
			for _, length := range []int64{int64(size), -1} {
				req := g.mustRequest("POST", "/", "")
				req.Body, req.ContentLength = io.NopCloser(io.LimitReader(pattern{}, int64(size))), length
				// A client may see the end of the connection before the answer if it has not sent all.
				if res, err := g.http.Do(req); err == nil {
					res.Body.Close()
					if res.StatusCode != 403 {
						t.Errorf("%d bytes: status %d, want 403", size, res.StatusCode)
					}
				} else if size == 100 {
					t.Errorf("%d bytes: %v", size, err)
				}
			}
		}
		wantStatus(t, g.send("GET", "/", ""), 403)
		if u := g.upstream("a"); !u.Up {
			t.Error("upstream is down")
		}
		if log := g.log.String(); strings.Contains(log, "panic") {
			t.Errorf("log:\n%s", log)
		}
	})
}

type pattern struct{}

func (pattern) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = byte(i * 7)
	}
	return len(p), nil
}

// The server ends: requests in flight finish, event streams and WebSockets end at once, new connections are refused.
func TestGracefulEnd(t *testing.T) {
	protocols(t, func(t *testing.T, proto string) {
		started, finish := make(chan struct{}), make(chan struct{})
		app := mustApp(t, func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/events" {
				w.Header().Set("Content-Type", "text/event-stream")
				fmt.Fprint(w, "data: x\n\n")
				_ = http.NewResponseController(w).Flush()
				<-r.Context().Done()
				return
			}
			close(started)
			<-finish
			fmt.Fprint(w, "finished")
		})
		g := mustRun(t, proto, gateway.Config{Upstreams: upstreams(app)})
		events, err := g.http.Do(g.mustRequest("GET", "/events", ""))
		if err != nil {
			t.Fatal(err)
		}
		defer events.Body.Close()

		var wg sync.WaitGroup
		defer wg.Wait()
		wg.Go(func() {
			if a := g.send("GET", "/", ""); a.StatusCode != 200 || a.body != "finished" {
				t.Errorf("request in flight: %d %q", a.StatusCode, a.body)
			}
		})
		<-started
		stopped := make(chan error, 1)
		wg.Go(func() { stopped <- g.stop() })
		if b, err := io.ReadAll(events.Body); err != nil || string(b) != "data: x\n\n" {
			t.Errorf("event stream: %q, %v, want a clean end", b, err)
		}
		if c, err := net.Dial("tcp", g.url[strings.LastIndex(g.url, "/")+1:]); err == nil {
			c.Close()
			t.Error("a new connection is accepted after the end")
		}
		select {
		case err := <-stopped:
			t.Errorf("Run returned %v before the request in flight", err)
		default:
		}
		close(finish)
		if err := <-stopped; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
}

func TestEndCutsOff(t *testing.T) {
	started := make(chan struct{})
	app := mustApp(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/socket" {
			switcher("websocket")(w, r)
			return
		}
		close(started)
		<-r.Context().Done()
	})
	g := mustRun(t, "h1", gateway.Config{Upstreams: upstreams(app), DrainTimeout: 50 * time.Millisecond})
	g.mayFail = true
	_, br, _ := g.mustUpgrade("websocket")
	done := make(chan error, 1)
	go func() {
		res, err := g.http.Do(g.mustRequest("GET", "/", ""))
		if err == nil {
			res.Body.Close()
		}
		done <- err
	}()
	<-started
	if err := g.stop(); err == nil || !strings.Contains(err.Error(), "cut off") {
		t.Errorf("Run: %v, want that requests were cut off", err)
	}
	if err := <-done; err == nil {
		t.Error("a request that was cut off was answered")
	}
	if _, err := br.ReadByte(); err == nil {
		t.Error("WebSocket is still open")
	}
}
