package gateway_test

import (
	"net/http"
	"net/http/httptest"
	"net/netip"
	"testing"
	"time"

	"github.com/holdfast-sessions/holdfast/gateway"
)

// Each kind over the wire: a client's requests all go to one upstream, which sees nothing that is only the gateway's,
// and several clients do not all go to the same.
func TestKindsOverTheWire(t *testing.T) {
	protocols(t, func(t *testing.T, proto string) {
		for _, c := range []struct {
			name    string
			config  gateway.Config
			clients [][]string // header fields
			oneAt   bool       // they are told apart by their addresses, which are one here
		}{
			{"route", gateway.Config{Affinity: gateway.AffinityRoute, SessionHeader: "Session"},
				[][]string{{"Session", "1.a"}, {"Session", "1.b"}, {"Session", "1.c"}}, false},
			{"hash", gateway.Config{Affinity: gateway.AffinityHash, Hash: gateway.HashOf{Cookie: "c"}},
				[][]string{{"Cookie", "c=1"}, {"Cookie", "c=2"}, {"Cookie", "c=3"}, {"Cookie", "c=4"}, {"Cookie", "c=5"}, {"Cookie", "c=6"}}, false},
			{"ip", gateway.Config{Affinity: gateway.AffinityIP}, [][]string{{}}, true},
			{"ip, behind a proxy", gateway.Config{Affinity: gateway.AffinityIP, TrustedProxies: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}},
				[][]string{{"X-Forwarded-For", "1.2.3.4"}, {"X-Forwarded-For", "1.2.4.4"}, {"X-Forwarded-For", "1.2.5.4"}}, false},
			{"header", gateway.Config{Affinity: gateway.AffinityHeader, UpstreamHeader: "Upstream", TrustedProxies: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}},
				[][]string{{"Upstream", "a"}, {"Upstream", "b"}, {"Upstream", "c"}}, false},
			{"session", gateway.Config{Affinity: gateway.AffinitySession, Key: testKey, SessionHeader: "Session"},
				[][]string{{"Session", "1"}, {"Session", "2"}, {"Session", "3"}, {"Session", "4"}, {"Session", "5"}, {"Session", "6"}}, false},
		} {
			t.Run(c.name, func(t *testing.T) {
				app := func(name string) string {
					return mustApp(t, func(w http.ResponseWriter, r *http.Request) {
						if v := r.Header.Get("Upstream"); v != "" {
							t.Errorf("upstream sees the header that chose it: %q", v)
						}
						says(name)(w, r)
					})
				}
				c.config.Upstreams = upstreams(app("a"), app("b"), app("c"))
				g := mustRun(t, proto, c.config)
				used := make(map[string]bool)
				for _, header := range c.clients {
					home := g.send("GET", "/", "", header...).body
					used[home] = true
					for range 5 {
						if got := g.send("POST", "/", "x", header...).body; got != home {
							t.Errorf("client %q of %s went to %s", header, home, got)
						}
					}
				}
				if !c.oneAt && len(used) < 2 {
					t.Errorf("all clients went to %v", used)
				}
			})
		}
	})
}

// What an affinity costs a request, its part of the answer included.
func BenchmarkAffinity(b *testing.B) {
	key := gateway.Config{Upstreams: weighted(1, 1, 1), Key: testKey}
	with := func(affinity gateway.Affinity, change func(*gateway.Config)) gateway.Config {
		c := key
		c.Affinity = affinity
		if change != nil {
			change(&c)
		}
		return c
	}
	url := func(c *gateway.Config) { c.SessionPathParameter = "jsessionid" }
	cookie := func(name, v string) *http.Request {
		r := httptest.NewRequest("GET", "http://example.com/shop/cart;jsessionid=0123456789ABCDEF0123456789ABCDEF?x=y", nil)
		if name != "" {
			r.Header.Set("Cookie", "a=b; "+name+"="+v+"; JSESSIONID=0123456789ABCDEF0123456789ABCDEF.b; c=d")
		}
		return r
	}
	names := func(c *gateway.Config) { c.SessionCookies = []string{"JSESSIONID"} }
	for _, c := range []struct {
		name   string
		config gateway.Config
		bound  bool
	}{
		{"none", with(gateway.AffinityNone, nil), true},
		{"cookie", with(gateway.AffinityCookie, nil), true},
		{"session", with(gateway.AffinitySession, names), true},
		{"session/learned", with(gateway.AffinitySession, url), false},
		{"route", with(gateway.AffinityRoute, names), true},
		{"hash", with(gateway.AffinityHash, func(c *gateway.Config) { c.Hash.Cookie = "JSESSIONID" }), true},
		{"ip", with(gateway.AffinityIP, nil), false},
	} {
		b.Run(c.name, func(b *testing.B) {
			g := mustNew(b, c.config)
			r := cookie("", "")
			if c.bound {
				name := secureName
				value := mustNew(b, with(gateway.AffinityCookie, nil)).AffinityValue("b", time.Now())
				r = cookie(name, value)
			}
			f := g.Preferring(r)
			f()
			b.ReportAllocs()
			for b.Loop() {
				f()
			}
		})
	}
}
