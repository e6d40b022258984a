package gateway_test

import (
	"fmt"
	"math"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/holdfast-sessions/holdfast/gateway"
)

// The bound on load goes before a hash, and before nothing that knows its clients.
func TestBoundedAffinity(t *testing.T) {
	r := httptest.NewRequest("GET", "http://example.com/", nil)
	r.RemoteAddr = "192.0.2.1:1"
	r.Header.Set("Tenant", "t1")
	r.Header.Set("Session", "s1.b")
	for _, c := range []struct {
		name    string
		config  gateway.Config
		bounded bool
	}{
		{"hash", gateway.Config{Affinity: gateway.AffinityHash, Hash: gateway.HashOf{Header: "Tenant"}}, true},
		{"ip", gateway.Config{Affinity: gateway.AffinityIP}, false},
		{"route", gateway.Config{Affinity: gateway.AffinityRoute, SessionHeader: "Session"}, false},
		{"session", gateway.Config{Affinity: gateway.AffinitySession, SessionHeader: "Session", Key: testKey}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.config.Upstreams, c.config.LoadFactor = weighted(1, 1, 1), 1.5
			g := mustNew(t, c.config)
			home := g.Pick(r)
			for range 5 {
				if got := g.Pick(r); got != home {
					t.Fatalf("went to %s, then to %s", home, got)
				}
			}
			// 1.5 × (9+1) / 3 = 5, and it has 9.
			g.SetActive(home, 9)
			got := g.Pick(r)
			if c.bounded == (got == home) {
				t.Errorf("home %s has 9 of 9 requests: the next goes to %s", home, got)
			}
			for range 5 {
				if again := g.Pick(r); again != got {
					t.Errorf("beyond the bound, went to %s, then to %s", got, again)
				}
			}
		})
	}
}

// With a bound, 10,000 requests of one value that all last spread no worse than the factor says; the requests in
// flight are those of a simulation.
func TestBoundedHashOfOneValue(t *testing.T) {
	const factor, requests = 1.25, 10_000
	g := mustNew(t, gateway.Config{
		Upstreams: weighted(1, 2, 3), Affinity: gateway.AffinityHash, Hash: gateway.HashOf{Cookie: "c"}, LoadFactor: factor,
	})
	r := httptest.NewRequest("GET", "/", nil)
	r.AddCookie(&http.Cookie{Name: "c", Value: "everybody"})
	has := map[string]int{}
	for n := range requests {
		id := g.Pick(r)
		has[id]++
		g.SetActive(id, has[id])
		for i, weight := range []int{1, 2, 3} {
			id := string(rune('a' + i))
			if bound := int(math.Ceil(factor * float64(n+1) * float64(weight) / 6)); has[id] > bound {
				t.Fatalf("after %d requests, upstream %s has %d, want at most %d", n+1, id, has[id], bound)
			}
		}
	}
	if len(has) < 2 {
		t.Errorf("requests by upstream: %v", has)
	}
}

// Rendezvous through the gateway: when an upstream is added, removed or given more weight, only its own clients move,
// and two gateways agree.
func TestReloadMovesOnlyItsOwn(t *testing.T) {
	config := gateway.Config{Affinity: gateway.AffinityHash, Hash: gateway.HashOf{Cookie: "c"}, Key: testKey, Upstreams: weighted(1, 1, 1, 1)}
	g := mustNew(t, config)
	where := func(g *gateway.Gateway) map[string]string {
		all := make(map[string]string)
		for i := range 2000 {
			v := fmt.Sprint("client", i)
			r := httptest.NewRequest("GET", "/", nil)
			r.AddCookie(&http.Cookie{Name: "c", Value: v})
			all[v], _ = g.Prefer(r)
		}
		return all
	}
	before := where(g)
	for _, c := range []struct {
		name      string
		upstreams []gateway.Upstream
		changed   string
	}{
		{"removed", weighted(1, 1, 1), "d"}, {"added", weighted(1, 1, 1, 1), "d"}, {"weight", weighted(1, 3, 1, 1), "b"},
	} {
		config.Upstreams = c.upstreams
		if err := g.Rebuild(config); err != nil {
			t.Fatal(err)
		}
		after, other := where(g), where(mustNew(t, config))
		moved := 0
		for v := range before {
			if after[v] != before[v] {
				moved++
				if before[v] != c.changed && after[v] != c.changed {
					t.Errorf("%s: %s moved from %s to %s", c.name, v, before[v], after[v])
				}
			}
			if after[v] != other[v] {
				t.Errorf("%s: %s goes to %s, and to %s on another gateway", c.name, v, after[v], other[v])
			}
		}
		if moved == 0 || moved > len(before)/2 {
			t.Errorf("%s: %d of %d clients moved", c.name, moved, len(before))
		}
		before = after
	}
}

// An upstream that is full keeps its clients waiting, but none that only a hash would send there.
func TestFullUpstreamTakesNoNewClients(t *testing.T) {
	all := weighted(1, 1, 1)
	for i := range all {
		all[i].MaxRequests = 2
	}
	g := mustNew(t, gateway.Config{Upstreams: all, Affinity: gateway.AffinitySession, Key: testKey, SessionHeader: "Session", SessionByAddress: true})
	r := withCookies()
	r.RemoteAddr = "192.0.2.1:1"
	home, _ := g.Prefer(r)
	g.SetActive(home, 2)
	if got, _ := g.Prefer(r); got == home || got == "" {
		t.Errorf("a new client goes to %q, where %q is full", got, home)
	}
	r.Header.Set("Session", "s1")
	g.Answered(r, home, &http.Response{StatusCode: 200, Header: http.Header{}})
	if got, _ := g.Prefer(r); got != home {
		t.Errorf("a client of %s, which is full, goes to %q", home, got)
	}
}
