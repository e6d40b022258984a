package gateway_test

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-sessions/holdfast/gateway"
)

func TestRoundRobin(t *testing.T) {
	protocols(t, func(t *testing.T, proto string) {
		g := mustRun(t, proto, gateway.Config{Upstreams: upstreams(
			mustApp(t, says("a")), mustApp(t, says("b")), mustApp(t, says("c")))})
		got := ""
		for range 9 {
			a := g.send("GET", "/", "")
			wantStatus(t, a, 200)
			if c := a.Header.Values("Set-Cookie"); c != nil {
				t.Fatalf("Set-Cookie %q without affinity", c)
			}
			got += a.body
		}
		if got != "abcabcabc" {
			t.Errorf("9 requests went to %q, want them in turn", got)
		}
	})
}

// One upstream down: the others share its part equally.
func TestRoundRobinWithoutOne(t *testing.T) {
	g := mustRun(t, "h1", gateway.Config{Upstreams: upstreams(
		refusing(t), mustApp(t, says("b")), mustApp(t, says("c")), mustApp(t, says("d")))})
	count := map[string]int{}
	for range 90 {
		count[g.send("GET", "/", "").body]++
	}
	for _, name := range []string{"b", "c", "d"} {
		if count[name] < 25 || count[name] > 35 {
			t.Errorf("requests by upstream: %v, want about 30 each", count)
			break
		}
	}
}

func TestAffinitySticks(t *testing.T) {
	protocols(t, func(t *testing.T, proto string) {
		var cookies []string // that reach an upstream
		app := func(name string) string {
			return mustApp(t, func(w http.ResponseWriter, r *http.Request) {
				cookies = append(cookies, r.Header.Get("Cookie"))
				w.Header().Set("Cache-Control", "public, max-age=60")
				w.Header().Set("CDN-Cache-Control", "max-age=60")
				fmt.Fprint(w, name)
			})
		}
		g := mustRun(t, proto, gateway.Config{
			Upstreams: upstreams(app("a"), app("b"), app("c")), Affinity: gateway.AffinityCookie,
		})
		for _, want := range []string{"a", "b", "c"} {
			first := g.send("GET", "/", "", "Cookie", "x=1; y=2")
			cookie := affinityCookie(first)
			if first.body != want || cookie == "" {
				t.Fatalf("new client went to %q with cookie %q, want %q and one", first.body, cookie, want)
			}
			if cc, cdn := first.Header.Get("Cache-Control"), first.Header.Get("CDN-Cache-Control"); cc != "no-store" || cdn != "" {
				t.Errorf("answer that sets the cookie: Cache-Control %q, CDN-Cache-Control %q, want no-store and none", cc, cdn)
			}
			for range 5 {
				a := g.send("POST", "/", "x", "Cookie", "x=1; "+cookie+";y=2")
				if a.body != want || a.Header.Get("Set-Cookie") != "" {
					t.Fatalf("client of %q went to %q, Set-Cookie %q", want, a.body, a.Header.Get("Set-Cookie"))
				}
				if cc := a.Header.Get("Cache-Control"); cc != "public, max-age=60" {
					t.Fatalf("Cache-Control %q, want the upstream's", cc)
				}
			}
		}
		for i, c := range cookies {
			if want := "x=1; y=2"; c != want && c != "x=1;y=2" {
				t.Fatalf("request %d reached its upstream with Cookie %q, want %q", i, c, want)
			}
		}
	})
}

func TestAffinityCookieAttributes(t *testing.T) {
	protocols(t, func(t *testing.T, proto string) {
		app := mustApp(t, says("a"))
		g := mustRun(t, proto, gateway.Config{
			Upstreams: upstreams(app), Affinity: gateway.AffinityCookie,
		})
		set := g.send("GET", "/", "").Header.Get("Set-Cookie")
		name, attributes := "holdfast-upstream", "; Path=/; HttpOnly; SameSite=Lax"
		if proto == "h2" {
			name, attributes = "__Host-holdfast-upstream", "; Path=/; HttpOnly; Secure; SameSite=Lax"
		}
		value, ok := strings.CutPrefix(strings.TrimSuffix(set, attributes), name+"=")
		if raw, err := base64.RawURLEncoding.DecodeString(value); !ok || err != nil || len(raw) != 30 {
			t.Errorf("Set-Cookie: %s, want %s=<30 bytes of base64url>%s", set, name, attributes)
		}
	})
	// Without AllowPlainLocalhost, and for hosts that are not local, the cookie is Secure.
	for _, c := range []struct {
		host   string
		allow  bool
		secure bool
	}{
		{"localhost:1", true, false}, {"LOCALHOST", true, false}, {"127.0.0.1", true, false}, {"[::1]:80", true, false}, {"[::1]", true, false},
		{"localhost", false, true}, {"example.com", true, true}, {"localhost.example.com", true, true}, {"10.0.0.1", true, true}, {"", true, true},
	} {
		if got := gateway.CookieIsSecure(c.host, c.allow); got != c.secure {
			t.Errorf("host %q, AllowPlainLocalhost %v: Secure %v, want %v", c.host, c.allow, got, c.secure)
		}
	}
}

// Attack 33: a forged cookie is nobody's.
func TestForgedCookie(t *testing.T) {
	a, b := mustApp(t, says("a")), mustApp(t, says("b"))
	g := mustRun(t, "h1", gateway.Config{Upstreams: upstreams(a, b), Affinity: gateway.AffinityCookie})
	own := strings.TrimPrefix(affinityCookie(g.send("GET", "/", "")), "holdfast-upstream=")
	other := mustRun(t, "h1", gateway.Config{
		Upstreams: upstreams(a, b), Affinity: gateway.AffinityCookie, Key: []byte(strings.Repeat("k", 32)),
	})
	foreign := strings.TrimPrefix(affinityCookie(other.send("GET", "/", "")), "holdfast-upstream=")
	for _, v := range []string{
		"", "a", "b", "127.0.0.1:80", "http://127.0.0.1:80", "../../x", own[:39], own + "A", own + "=", strings.ToUpper(own),
		`"` + own + `"`, foreign, strings.Repeat("A", 22), strings.Repeat("A", 40), strings.Repeat("A", 20000), "%00",
	} {
		got := g.send("GET", "/", "", "Cookie", "holdfast-upstream="+v)
		wantStatus(t, got, 200)
		if c := affinityCookie(got); c == "" || c == "holdfast-upstream="+v {
			t.Errorf("forged cookie %.40q: answer sets %q, want one of ours", v, c)
		}
	}
	// The right value under the other name counts for nothing, and one among forged ones counts.
	if c := affinityCookie(g.send("GET", "/", "", "Cookie", "__Host-holdfast-upstream="+own)); c == "" {
		t.Error("cookie under the secure name accepted on plain localhost")
	}
	if got := g.send("GET", "/", "", "Cookie", "holdfast-upstream=forged; holdfast-upstream="+own); got.body != "a" || affinityCookie(got) != "" {
		t.Errorf("one's own cookie beside a forged one: went to %q, Set-Cookie %q", got.body, affinityCookie(got))
	}
}

// Two gateways with one key agree, whatever the order of their upstreams.
func TestGatewaysAgree(t *testing.T) {
	a, b := mustApp(t, says("a")), mustApp(t, says("b"))
	one := mustRun(t, "h1", gateway.Config{Upstreams: []gateway.Upstream{{URL: a}, {URL: b}}, Affinity: gateway.AffinityCookie})
	two := mustRun(t, "h1", gateway.Config{Upstreams: []gateway.Upstream{{URL: b + "/"}, {URL: a}}, Affinity: gateway.AffinityCookie})
	for range 4 {
		first := one.send("GET", "/", "")
		got := two.send("GET", "/", "", "Cookie", affinityCookie(first))
		if got.body != first.body || affinityCookie(got) != "" {
			t.Errorf("client of %q went to %q on the other gateway, Set-Cookie %q", first.body, got.body, affinityCookie(got))
		}
	}
}

// Attack 28: a cache adds what a 304 carries to the page that it has for everybody.
func TestNoCookieOnNotModified(t *testing.T) {
	app := mustApp(t, func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusNotModified) })
	g := mustRun(t, "h1", gateway.Config{Upstreams: upstreams(app), Affinity: gateway.AffinityCookie})
	if got := g.send("GET", "/", "").Header.Values("Set-Cookie"); got != nil {
		t.Errorf("304 sets %q", got)
	}
}

func TestOnRequest(t *testing.T) {
	var seen []gateway.Request
	done := make(chan struct{}, 1)
	g := mustRun(t, "h1", gateway.Config{
		Upstreams: upstreams(refusing(t), mustApp(t, says("b"))),
		OnRequest: func(r gateway.Request) {
			if r.Duration <= 0 || r.UpstreamDuration <= 0 || r.UpstreamDuration > r.Duration || len(r.ID) != 32 || r.Time.IsZero() {
				t.Errorf("durations %v, %v, ID %q, time %v", r.Duration, r.UpstreamDuration, r.ID, r.Time)
			}
			r.Duration, r.UpstreamDuration, r.ID, r.Time = 0, 0, "", time.Time{}
			seen = append(seen, r)
			done <- struct{}{}
		},
	})
	g.send("POST", "/x;jsessionid=secret?token=secret", "body")
	<-done
	want := []gateway.Request{{
		Client: netip.MustParseAddr("127.0.0.1"), Method: "POST", Host: g.url[len("http://"):], Path: "/x", Proto: "HTTP/1.1", Status: 200,
		BytesIn: 4, BytesOut: 1, Upstream: "b", Attempts: 2,
	}}
	if d := cmp.Diff(want, seen, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); d != "" {
		t.Errorf("OnRequest (-want +got):\n%s", d)
	}
	if s := g.Stats(); s.Requests != 1 || s.Failed != 0 || s.Upstreams[0].Failures != 1 || s.Upstreams[0].Repeats != 1 || s.Upstreams[1].Requests != 1 {
		t.Errorf("stats %+v", s)
	}
	if log := g.log.String(); strings.Contains(log, "secret") {
		t.Errorf("log has a token:\n%s", log)
	}
}
