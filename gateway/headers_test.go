package gateway_test

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-sessions/holdfast"
	"github.com/holdfast-sessions/holdfast/gateway"
	"github.com/holdfast-sessions/holdfast/gateway/signed"
)

const (
	tokenA = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
	tokenB = "q83vq83vq83vq83vq83vq83vq83vq83vq83vq83vq80"
)

func idOf(token string) string {
	sum := sha256.Sum256([]byte(token))
	return hex.EncodeToString(sum[:])
}

// Attack 33: what upstreams trust, a client cannot send.
func TestClientHeadersStripped(t *testing.T) {
	protocols(t, func(t *testing.T, proto string) {
		var got http.Header
		var host string
		app := mustApp(t, func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			got, host = r.Header, r.Host
			for name := range r.Trailer {
				got["Trailer-"+name] = r.Trailer[name]
			}
		})
		g := mustRun(t, proto, gateway.Config{Upstreams: upstreams(app)})
		req := g.mustRequest("POST", "/", "x",
			"X-Session-Id", "forged", "x-session-user", "forged", "X_Session_Id", "forged", "x-session_id", "forged", "X-Session-", "forged",
			"X-Forwarded-For", "6.6.6.6", "X-Forwarded-Proto", "gopher", "X-Forwarded-Host", "evil", "X-Forwarded-Prefix", "/evil", "X_Forwarded_For", "6.6.6.6",
			"Forwarded", "for=6.6.6.6", "X-Real-Ip", "6.6.6.6", "Proxy", "http://evil",
			"X-Sessions", "mine", "X-Mine", "mine", "User-Agent", "test", "Accept-Language", "de")
		req.Host = "shop.example"
		req.ContentLength = -1
		req.Trailer = http.Header{"X-Session-Id": {"forged"}}
		wantStatus(t, g.do(req), 200)
		for _, name := range []string{"Content-Length", "Accept-Encoding", "X-Request-Id", "Holdfast-Hop"} {
			got.Del(name)
		}
		scheme, _, _ := strings.Cut(g.url, ":")
		want := http.Header{
			"X-Forwarded-For": {"127.0.0.1"}, "X-Forwarded-Host": {"shop.example"}, "X-Forwarded-Proto": {scheme},
			"X-Sessions": {"mine"}, "X-Mine": {"mine"}, "User-Agent": {"test"}, "Accept-Language": {"de"},
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("headers at the upstream (-want +got):\n%s", d)
		}
		if host != "shop.example" {
			t.Errorf("Host %q at the upstream, want the client's", host)
		}
	})
}

func TestSessionID(t *testing.T) {
	const host, local = "__Host-Http-session", "session"
	plain := gateway.Config{Cookie: gateway.Cookie{AllowPlainLocalhost: true}}
	for _, c := range []struct {
		name   string
		config gateway.Config
		host   string // example.com by default
		cookie []string
		header string
		query  string
		want   string // the token
	}{
		{name: "none"},
		{name: "cookie", cookie: []string{host + "=" + tokenA}, want: tokenA},
		{name: "among others", cookie: []string{"a=b; " + host + "=" + tokenA + ";c=d"}, want: tokenA},
		{name: "second line", cookie: []string{"a=b", host + "=" + tokenA}, want: tokenA},
		{name: "other token", cookie: []string{host + "=" + tokenB}, want: tokenB},
		{name: "twice", cookie: []string{host + "=" + tokenA + "; " + host + "=" + tokenB}},
		{name: "twice the same", cookie: []string{host + "=" + tokenA + "; " + host + "=" + tokenA}},
		{name: "twice over lines", cookie: []string{host + "=" + tokenA, host + "="}},
		{name: "42", cookie: []string{host + "=" + tokenA[:42]}},
		{name: "44", cookie: []string{host + "=" + tokenA + "A"}},
		{name: "not canonical", cookie: []string{host + "=" + tokenA[:42] + "B"}},
		{name: "wrong alphabet", cookie: []string{host + "=" + tokenA[:42] + "+"}},
		{name: "quoted", cookie: []string{host + `="` + tokenA + `"`}},
		{name: "plain name, not local", cookie: []string{local + "=" + tokenA}},
		{name: "plain name, local, not allowed", host: "localhost:8080", cookie: []string{local + "=" + tokenA}},
		{name: "plain name, local", config: plain, host: "localhost:8080", cookie: []string{local + "=" + tokenA}, want: tokenA},
		{name: "both names, local", config: plain, host: "127.0.0.1:8080", cookie: []string{local + "=" + tokenA + "; " + host + "=" + tokenB}, want: tokenA},
		{name: "plain name, allowed, not local", config: plain, cookie: []string{local + "=" + tokenA}},
		{name: "own name", config: gateway.Config{SessionCookies: []string{"sid"}}, cookie: []string{"sid=" + tokenA + "; " + host + "=" + tokenB}, want: tokenA},
		{name: "switched off", config: gateway.Config{DisableSessionCookie: true}, cookie: []string{host + "=" + tokenA}},
		{name: "header off", header: tokenA},
		{name: "header", config: gateway.Config{SessionHeader: "Session-Token"}, header: tokenA, want: tokenA},
		{name: "cookie before header", config: gateway.Config{SessionHeader: "Session-Token"}, cookie: []string{host + "=" + tokenB}, header: tokenA, want: tokenB},
		{name: "broken cookie before header", config: gateway.Config{SessionHeader: "Session-Token"}, cookie: []string{host + "=x"}, header: tokenA},
		{name: "parameter off", query: "s=" + tokenA},
		{name: "parameter", config: gateway.Config{SessionParameter: "s"}, query: "a=b&s=" + tokenA, want: tokenA},
		{name: "parameter twice", config: gateway.Config{SessionParameter: "s"}, query: "s=" + tokenA + "&s=" + tokenA},
		{name: "parameter behind a semicolon", config: gateway.Config{SessionParameter: "s"}, query: "a=b;s=" + tokenA},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.config.Upstreams = upstreams("http://127.0.0.1:1")
			g, err := gateway.New(c.config)
			if err != nil {
				t.Fatal(err)
			}
			r := httptest.NewRequest("GET", "/?"+c.query, nil)
			if r.Host = "example.com"; c.host != "" {
				r.Host = c.host
			}
			r.Header["Cookie"] = c.cookie
			if c.header != "" {
				r.Header.Set("Session-Token", c.header)
			}
			id, ok := g.SessionID(r)
			if ok != (c.want != "") || ok && id.Hex() != idOf(c.want) {
				t.Errorf("session ID %v, %v, want that of %q", id, ok, c.want)
			}
		})
	}
}

// Through the whole gateway: the ID arrives, with the cookie itself, and no log has the token.
func TestSessionIDForwarded(t *testing.T) {
	protocols(t, func(t *testing.T, proto string) {
		app := mustApp(t, func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, "%s %s", r.Header.Get("X-Session-Id"), r.Header.Get("Cookie"))
		})
		g := mustRun(t, proto, gateway.Config{Upstreams: upstreams(refusing(t), app), SessionParameter: "s"})
		cookie := "__Host-Http-session=" + tokenB
		if proto == "h1" { // plain, on a loopback address
			cookie = "session=" + tokenB
		}
		a := g.send("GET", "/", "", "Cookie", cookie, "X-Session-Id", idOf(tokenA))
		if want := idOf(tokenB) + " " + cookie; a.body != want {
			t.Errorf("upstream got %q, want %q", a.body, want)
		}
		// A client that has its cookie taken for a hop-by-hop header gets no ID for it.
		if proto == "h1" {
			a = g.send("GET", "/", "", "Cookie", cookie, "Connection", "cookie, x-session-id, x-forwarded-for")
			if a.body != " " {
				t.Errorf("upstream got %q, want no ID without its token", a.body)
			}
		}
		g.send("GET", "/?s="+tokenA, "")
		if log := g.log.String(); strings.Contains(log, tokenA) || strings.Contains(log, tokenB) {
			t.Errorf("token in the log:\n%s", log)
		}
	})
}

// What the gateway signs, an application can verify, and what a client signs does not arrive.
func TestSessionIDSigned(t *testing.T) {
	key := []byte("fedcba9876543210fedcba9876543210")
	protocols(t, func(t *testing.T, proto string) {
		app := mustApp(t, func(w http.ResponseWriter, r *http.Request) {
			id, err := signed.Verify(r, time.Minute, key)
			fmt.Fprint(w, id.Hex(), " ", err)
		})
		g := mustRun(t, proto, gateway.Config{Upstreams: upstreams(app), SignatureKey: key, SessionHeader: "Session-Token"})
		if got, want := g.send("POST", "/", "x", "Session-Token", tokenA).body, idOf(tokenA)+" <nil>"; got != want {
			t.Errorf("signed: %s, want %s", got, want)
		}
		forged := http.Header{}
		id, _ := holdfast.TokenID(tokenB)
		signed.Sign(forged, key, id, "GET", g.url[strings.LastIndex(g.url, "/")+1:], time.Now())
		a := g.send("GET", "/", "", signed.HeaderID, forged.Get(signed.HeaderID), signed.HeaderSignature, forged.Get(signed.HeaderSignature))
		if want := signed.ErrNone.Error(); !strings.HasSuffix(a.body, want) {
			t.Errorf("replayed by a client: %s, want %s", a.body, want)
		}
	})
}

// What is not for a reverse proxy. TestFraming has what is refused before it becomes a request.
func TestRefused(t *testing.T) {
	arrived := 0
	app := mustApp(t, func(http.ResponseWriter, *http.Request) { arrived++ })
	g := mustRun(t, "h1", gateway.Config{Upstreams: upstreams(app)})
	for _, c := range []struct{ name, request, status string }{
		{"CONNECT", "CONNECT 127.0.0.1:22 HTTP/1.1\r\nConnection: close\r\nHost: 127.0.0.1:22\r\n\r\n", "501"},
		{"asterisk", "GET * HTTP/1.1\r\nConnection: close\r\nHost: x\r\n\r\n", "400"},
		{"opaque", "GET http:evil HTTP/1.1\r\nConnection: close\r\nHost: x\r\n\r\n", "400"},
		{"user", "GET http://user@x/ HTTP/1.1\r\nConnection: close\r\nHost: x\r\n\r\n", "400"},
		{"bad Host", "GET / HTTP/1.1\r\nHost: x y\r\n\r\n", "400"},
	} {
		if got := g.raw(c.request); !strings.HasPrefix(got, "HTTP/1.1 "+c.status) {
			t.Errorf("%s: answer %.60q, want %s", c.name, got, c.status)
		}
	}
	if arrived != 0 {
		t.Errorf("%d of them reached the upstream", arrived)
	}
}

// Attack 40, headers.
func TestSlowHeader(t *testing.T) {
	g := mustRun(t, "h1", gateway.Config{Upstreams: upstreams(mustApp(t, says("a"))), ReadHeaderTimeout: 50 * time.Millisecond})
	began := time.Now()
	if got := g.raw("GET / HTTP/1.1\r\nHost: x\r\nA: "); strings.Contains(got, " 200 ") || time.Since(began) > 5*time.Second {
		t.Errorf("half a header: %q after %v, want the end of the connection", got, time.Since(began))
	}
}

// Paths and queries arrive as they were sent, below the path of the upstream's URL.
func TestTargets(t *testing.T) {
	app := mustApp(t, func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.RequestURI) })
	for _, c := range []struct{ base, target, want string }{
		{"", "/", "/"},
		{"", "/a%2Fb//c/../d?x=1&y=%zz;z", "/a%2Fb//c/../d?x=1&y=%zz;z"},
		{"", "//evil.example/x", "//evil.example/x"},
		{"", "http://x/x?y", "/x?y"},
		{"/app", "/x?", "/app/x?"},
		{"/app/", "/%20", "/app/%20"},
	} {
		g := mustRun(t, "h1", gateway.Config{Upstreams: upstreams(app + c.base)})
		got := g.raw("GET " + c.target + " HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
		if _, body, _ := strings.Cut(got, "\r\n\r\n"); body != c.want {
			t.Errorf("upstream %q, target %q: arrived as %q, want %q", c.base, c.target, body, c.want)
		}
	}
}
