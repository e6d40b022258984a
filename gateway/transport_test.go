package gateway_test

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/textproto"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-sessions/holdfast/gateway"
)

// mustBackend starts an application server that speaks a protocol: h1 over TCP, h1s and h2 over TLS, unix over a socket. It
// returns the upstream, and sets what c needs for it.
func mustBackend(t testing.TB, proto string, c *gateway.Config, h http.HandlerFunc) gateway.Upstream {
	t.Helper()
	s := httptest.NewUnstartedServer(h)
	t.Cleanup(s.Close)
	u := gateway.Upstream{ID: "a"}
	switch proto {
	case "unix":
		s.Listener.Close()
		path := filepath.Join(t.TempDir(), "app.sock")
		l, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		s.Listener = l
		s.Start()
		u.URL = "unix:" + path
	case "h1":
		s.Start()
		u.URL = s.URL
	default:
		s.EnableHTTP2 = proto == "h2"
		s.StartTLS()
		_, roots := testCert()
		c.UpstreamTLS = &tls.Config{RootCAs: roots}
		u.URL, u.HTTP2 = s.URL, proto != "h1s"
	}
	return u
}

// backends runs f for every protocol of clients and of upstreams.
func backends(t *testing.T, f func(t *testing.T, front, back string)) {
	for _, back := range []string{"h1", "h1s", "h2", "unix"} {
		for _, front := range []string{"h1", "h2"} {
			t.Run(front+" to "+back, func(t *testing.T) { f(t, front, back) })
		}
	}
}

// What goes through is the same with every protocol on either side.
func TestProtocols(t *testing.T) {
	backends(t, func(t *testing.T, front, back string) {
		var c gateway.Config
		c.Upstreams = []gateway.Upstream{mustBackend(t, back, &c, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Got", fmt.Sprintf("%s %s %s %s", r.Proto, r.Method, r.RequestURI, r.Host))
			switch r.URL.Path {
			case "/204":
				w.WriteHeader(204)
			case "/304":
				w.Header().Set("Etag", `"x"`)
				w.WriteHeader(304)
			case "/early":
				w.Header().Set("Link", "</a.css>")
				w.WriteHeader(http.StatusEarlyHints)
				fmt.Fprint(w, "late")
			case "/length":
				w.Header().Set("Content-Length", "1000")
				if r.Method != "HEAD" {
					_, _ = w.Write(make([]byte, 1000))
				}
			case "/echo":
				w.Header().Set("Trailer", "Sum")
				_, _ = io.Copy(w, r.Body)
				_ = http.NewResponseController(w).Flush() // or HTTP/2 gives it a length, and HTTP/1 has trailers behind chunks only
				w.Header().Set("Sum", "42")
			}
		})}
		g := mustRun(t, front, c)
		proto := map[bool]string{true: "HTTP/2.0", false: "HTTP/1.1"}[back == "h2"]
		host := g.url[strings.LastIndex(g.url, "/")+1:]
		for _, r := range []struct {
			method, target, body string
			status               int
			answer               string
			length               int64
		}{
			{"GET", "/204?a=%20b", "", 204, "", 0},
			{"GET", "/304", "", 304, "", -1},
			{"HEAD", "/length", "", 200, "", 1000},
			{"GET", "/length", "", 200, strings.Repeat("\x00", 1000), 1000},
			{"DELETE", "/204", "", 204, "", 0},
			{"POST", "/echo", "hello", 200, "hello", -1},
		} {
			a := g.send(r.method, r.target, r.body)
			if a.StatusCode != r.status || a.body != r.answer || r.length >= 0 && a.ContentLength != r.length && r.status != 204 {
				t.Errorf("%s %s: %d, length %d, %.20q", r.method, r.target, a.StatusCode, a.ContentLength, a.body)
			}
			if got, want := a.Header.Get("Got"), proto+" "+r.method+" "+r.target+" "+host; got != want {
				t.Errorf("the upstream got %s, want %s", got, want)
			}
			if r.method == "POST" && a.Trailer.Get("Sum") != "42" {
				t.Errorf("trailer of the answer: %v", a.Trailer)
			}
		}
		early := 0
		req := g.mustRequest("GET", "/early", "")
		req = req.WithContext(httptrace.WithClientTrace(req.Context(), &httptrace.ClientTrace{
			Got1xxResponse: func(code int, h textproto.MIMEHeader) error { early = code; return nil },
		}))
		if a := g.do(req); early != 103 || a.body != "late" {
			t.Errorf("1xx: %d, then %q", early, a.body)
		}
		if u := g.upstream("a"); u.Failures > 0 || u.URL != c.Upstreams[0].URL {
			t.Errorf("upstream %+v", u)
		}
	})
}

// Announced trailers of requests arrive, but those that would change what the header said.
func TestRequestTrailers(t *testing.T) {
	backends(t, func(t *testing.T, front, back string) {
		var c gateway.Config
		var got http.Header
		c.Upstreams = []gateway.Upstream{mustBackend(t, back, &c, func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			got = r.Trailer
		})}
		c.SessionHeader = "Session-Token"
		g := mustRun(t, front, c)
		for _, body := range []string{"hello", strings.Repeat("x", 200<<10)} {
			req := g.mustRequest("POST", "/", "")
			trailer := http.Header{
				"Checksum": nil, "X-Session-Id": {"forged"}, "X-Forwarded-For": {"6.6.6.6"}, "Cookie": {"a=b"},
				"Session-Token": {tokenA}, "X_forwarded_for": {"6.6.6.6"},
			}
			if front == "h1" { // over HTTP/2, net/http refuses these
				for _, name := range []string{"Authorization", "Content-Type", "If-Match", "Range"} {
					trailer.Set(name, "forged")
				}
			}
			req.Trailer, req.ContentLength, req.GetBody = trailer, -1, nil
			req.Body = io.NopCloser(io.MultiReader(strings.NewReader(body), readerFunc(func([]byte) (int, error) {
				trailer["Checksum"] = []string{"one", "two"}
				return 0, io.EOF
			})))
			wantStatus(t, g.do(req), 200)
			if d := cmp.Diff(http.Header{"Checksum": {"one", "two"}}, got); d != "" {
				t.Errorf("trailer at the upstream (-want +got):\n%s", d)
			}
		}
	})
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// Requests share one connection of HTTP/2, and another is made when it breaks: no request fails for that.
func TestHTTP2Upstream(t *testing.T) {
	var c gateway.Config
	var mu sync.Mutex
	conns := make(map[string]int)
	var open []net.Conn
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		mu.Lock()
		defer mu.Unlock()
		conns[r.RemoteAddr]++
	}))
	s.EnableHTTP2 = true
	s.Config.ConnState = func(c net.Conn, state http.ConnState) {
		mu.Lock()
		defer mu.Unlock()
		if state == http.StateActive || state == http.StateNew {
			open = append(open, c)
		}
	}
	s.StartTLS()
	t.Cleanup(s.Close)
	_, roots := testCert()
	c.UpstreamTLS = &tls.Config{RootCAs: roots}
	c.Upstreams = []gateway.Upstream{{ID: "a", URL: s.URL, HTTP2: true}}
	g := mustRun(t, "h1", c)
	for round := range 2 {
		var all sync.WaitGroup
		wantStatus(t, g.send("GET", "/", ""), 200)
		for range 20 {
			all.Go(func() { wantStatus(t, g.send("PUT", "/", "hello"), 200) })
		}
		all.Wait()
		mu.Lock()
		if len(conns) > 2*(round+1) {
			t.Errorf("round %d: connections %v, want shared ones", round, conns)
		}
		for _, c := range open {
			_ = c.Close()
		}
		open = nil
		mu.Unlock()
	}
	if u := g.upstream("a"); !u.Up {
		t.Errorf("upstream %+v", u)
	}
}

// An upstream that breaks HTTP/2 fails the request. (Go's client would try again for ever.)
func TestHTTP2UpstreamBreaks(t *testing.T) {
	cert, roots := testCert()
	l := mustListen(t)
	var conns atomic.Int32
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(10 * time.Second))
				s := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: []string{"h2"}})
				if s.Handshake() != nil {
					return
				}
				conns.Add(1)
				_, _ = io.WriteString(s, "\x00\x00\x00\x04\x00\x00\x00\x00\x00") // SETTINGS
				_, _ = io.CopyN(io.Discard, s, 24)                               // the client's preface
				for frame := make([]byte, 9); frame[3] != 1; {                   // until HEADERS
					if _, err := io.ReadFull(s, frame); err != nil {
						return
					}
					_, _ = io.CopyN(io.Discard, s, int64(frame[0])<<16|int64(frame[1])<<8|int64(frame[2]))
				}
				_, _ = io.WriteString(s, "\x00\x00\x04\x03\x00\x00\x00\x00\x01\x00\x00\x00\x01") // RST_STREAM 1, PROTOCOL_ERROR
				_, _ = io.Copy(io.Discard, s)
			})
		}
	})
	t.Cleanup(func() { l.Close(); serving.Wait() })
	g := mustRun(t, "h1", gateway.Config{
		Upstreams: []gateway.Upstream{{URL: "https://" + l.Addr().String(), HTTP2: true}}, UpstreamTLS: &tls.Config{RootCAs: roots},
	})
	wantStatus(t, g.send("GET", "/", ""), 503)
	if n := conns.Load(); n > 20 {
		t.Errorf("%d connections for one request", n)
	}
}

// A socket that is gone is as a refused connection.
func TestSocketGone(t *testing.T) {
	g := mustRun(t, "h1", gateway.Config{Upstreams: []gateway.Upstream{
		{ID: "a", URL: "unix:" + filepath.Join(t.TempDir(), "gone.sock")}, {ID: "b", URL: mustApp(t, says("b"))},
	}})
	for range 4 {
		if a := g.send("POST", "/", "x"); a.StatusCode != 200 || a.body != "b" {
			t.Errorf("%d %s, want the other upstream", a.StatusCode, a.body)
		}
	}
	if u := g.upstream("a"); u.Up {
		t.Error("the upstream without a socket is up")
	}
}

// An upgrade with a body would leave it open where the body ends.
func TestUpgradeWithBody(t *testing.T) {
	g := mustRun(t, "h1", gateway.Config{Upstreams: upstreams(mustApp(t, func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%q %q", r.Header.Get("Upgrade"), r.Header.Get("Connection"))
	}))})
	for _, request := range []string{
		"POST / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, close\r\nUpgrade: websocket\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, close\r\nUpgrade: websocket\r\nContent-Length: 5\r\n\r\nhello",
		"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, close\r\nUpgrade: websocket\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
	} {
		if got := g.raw(request); !strings.HasSuffix(got, `"" ""`) {
			t.Errorf("%q: the upstream saw an upgrade: %q", request, got)
		}
	}
}
