package gateway_test

import (
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-sessions/holdfast/gateway"
)

// Explain says where a request goes and why; the request then goes there.
func TestExplain(t *testing.T) {
	c := gateway.Config{Affinity: gateway.AffinityCookie, Upstreams: weighted(1, 2, 1)}
	c.Upstreams[1].MaxRequests, c.Upstreams[2].Zone = 1, "east"
	inBubble(t, 3, c, false, func(t *testing.T, b *bubble) {
		explain := func(q gateway.Query) string {
			t.Helper()
			steps, err := b.Explain(q)
			if err != nil {
				t.Fatal(err)
			}
			return strings.Join(steps, "\n")
		}
		states := "upstream a: up, weight 1, 0 requests in flight\n" +
			"upstream b: up, weight 2, 0 requests in flight of 1\n" +
			"upstream c: up, zone east, weight 1, 0 requests in flight\n" +
			"affinity cookie\n"
		want := states + "no affinity cookie of this gateway's key: the client belongs to no upstream yet\n" +
			"balance round-robin: upstream b, weight 2, 0 requests in flight\n" +
			"the request goes to upstream b\n" +
			"if that cannot be connected, it goes to upstream a"
		for range 3 { // it takes no turn away
			if d := cmp.Diff(want, explain(gateway.Query{})); d != "" {
				t.Fatalf("(-want +got):\n%s", d)
			}
		}
		w := b.send("GET")
		if w.Body.String() != "b" {
			t.Errorf("the request went to %s", w.Body)
		}
		cookie, _, _ := strings.Cut(w.Header().Get("Set-Cookie"), ";")
		want = states + "the affinity cookie names upstream b\nthe request goes to upstream b\nif that cannot be connected, it goes to upstream a"
		if d := cmp.Diff(want, explain(gateway.Query{Cookie: cookie})); d != "" {
			t.Errorf("(-want +got):\n%s", d)
		}
		_, value, _ := strings.Cut(cookie, "=")
		if got := explain(gateway.Query{Cookie: cookie, Path: "/x?token=" + value}); strings.Contains(got, value) {
			t.Errorf("shows the cookie: %s", got)
		}

		b.app("b").freeze()
		go b.send("POST", "Cookie", cookie)
		synctest.Wait()
		if got := explain(gateway.Query{Cookie: cookie}); !strings.HasSuffix(got, "upstream b has as many requests as it may (1): the request waits\n"+
			"the request goes to upstream b when that has room; after 5s it is answered 503") {
			t.Errorf("full: %s", got)
		}
		b.app("b").thaw()
		synctest.Wait()

		_ = b.Drain("b", time.Minute)
		b.Down("a")
		if got := explain(gateway.Query{Cookie: cookie}); !strings.Contains(got, "upstream b: draining for another 1m0s") ||
			!strings.Contains(got, "upstream a: down, it cannot be connected, tried again in ") || !strings.Contains(got, "the request goes to upstream b") {
			t.Errorf("draining: %s", got)
		}
		_ = b.Maintenance("b")
		if got := explain(gateway.Query{Cookie: cookie}); !strings.Contains(got, "names upstream b, which takes no requests of this client now") ||
			!strings.Contains(got, "the request goes to upstream c\nif that cannot be connected, it goes to upstream a") {
			t.Errorf("maintenance: %s", got)
		}
		_, _ = b.Maintenance("a"), b.Maintenance("c")
		if got := explain(gateway.Query{}); !strings.HasSuffix(got, "all upstreams are in maintenance or full: the request is answered 503\nthe answer is 503") {
			t.Errorf("all in maintenance: %s", got)
		}
	})
}

func TestExplainQuery(t *testing.T) {
	g := mustNew(t, gateway.Config{
		Upstreams: weighted(1, 1, 1, 1, 1, 1, 1, 1), Affinity: gateway.AffinityHash, Hash: gateway.HashOf{Header: "User"}, Zone: "", LoadFactor: 1.5,
	})
	for _, q := range []gateway.Query{{IP: "nonsense"}, {Path: "no-slash"}, {Path: "/%zz"}, {Path: "http://evil/"}} {
		if steps, err := g.Explain(q); err == nil {
			t.Errorf("%+v: no error, %q", q, steps)
		}
	}
	// Header, address and path decide as they do for requests.
	for _, user := range []string{"ada", "grace", "edsger", "barbara"} {
		steps, err := g.Explain(gateway.Query{Header: http.Header{"User": {user}}, IP: "2001:db8::1", Path: "/a;b?c=d", Host: "shop.example", TLS: true})
		if err != nil {
			t.Fatal(err)
		}
		r := anyRequest()
		r.Header.Set("User", user)
		if want := "the request goes to upstream " + g.Pick(r); steps[len(steps)-2] != want {
			t.Errorf("%q, want %q", steps, want)
		}
	}
}

// The client's address is taken from where requests have it: from a trusted proxy, in its header.
func TestExplainClientAddress(t *testing.T) {
	g := mustNew(t, gateway.Config{
		Upstreams: weighted(make([]int, 16)...), Affinity: gateway.AffinityIP, TrustedProxies: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")},
	})
	goes := func(q gateway.Query) string {
		t.Helper()
		steps, err := g.Explain(q)
		if err != nil {
			t.Fatal(err)
		}
		return steps[len(steps)-2]
	}
	for _, ip := range []string{"192.0.2.1", "198.51.100.7", "203.0.113.9", "2001:db8::1"} {
		direct := goes(gateway.Query{IP: ip})
		if got := goes(gateway.Query{IP: "10.1.2.3", Header: http.Header{"X-Forwarded-For": {ip}}}); got != direct {
			t.Errorf("%s through a trusted proxy: %s, itself: %s", ip, got, direct)
		}
	}
}
