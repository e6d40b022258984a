package gateway_test

import (
	"log/slog"
	"math"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-sessions/holdfast/gateway"
)

// weighted returns upstreams a, b, c ... of these weights, which nobody connects to.
func weighted(weights ...int) []gateway.Upstream {
	all := upstreams(make([]string, len(weights))...)
	for i, w := range weights {
		all[i].URL, all[i].Weight = "http://"+all[i].ID+":1", w
	}
	return all
}

// failer is a test, or one of rapid's.
type failer interface {
	Helper()
	Fatal(...any)
}

func mustNew(t failer, c gateway.Config) *gateway.Gateway {
	t.Helper()
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	g, err := gateway.New(c)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func anyRequest() *http.Request { return httptest.NewRequest("GET", "/", nil) }

// picks returns where n requests without affinity go, one letter each.
func picks(g *gateway.Gateway, n int, tried ...string) string {
	var b strings.Builder
	for range n {
		b.WriteString(g.Pick(anyRequest(), tried...))
	}
	return b.String()
}

// The order is nginx's: its commit message of smooth weighted round robin has the first example.
func TestSmoothRoundRobin(t *testing.T) {
	for _, c := range []struct {
		weights []int
		tried   string
		want    string
	}{
		{[]int{5, 1, 1}, "", "aabacaa" + "aabacaa"},
		{[]int{1, 1, 1}, "", "abcabc"},
		{[]int{0, 2}, "", "babbab"},
		{[]int{5, 1, 1}, "a", "bcbc"},
		{[]int{3}, "", "aaa"},
	} {
		g := mustNew(t, gateway.Config{Upstreams: weighted(c.weights...)})
		var tried []string
		if c.tried != "" {
			tried = []string{c.tried}
		}
		if got := picks(g, len(c.want), tried...); got != c.want {
			t.Errorf("weights %v without %q: %s, want %s", c.weights, c.tried, got, c.want)
		}
	}
}

func TestLeastRequests(t *testing.T) {
	g := mustNew(t, gateway.Config{Upstreams: weighted(1, 1, 2), Balance: gateway.BalanceLeastRequests})
	for _, c := range []struct {
		active [3]int
		want   string // of 4 requests
	}{
		{[3]int{0, 0, 0}, "cabc"}, // by weight
		{[3]int{1, 0, 0}, "cbcc"},
		{[3]int{1, 2, 3}, "aaaa"},
		{[3]int{2, 1, 1}, "cccc"},
		{[3]int{5, 4, 9}, "bbbb"},
	} {
		for i, n := range c.active {
			g.SetActive(string(rune('a'+i)), n)
		}
		got := picks(g, 4)
		for _, id := range "abc" {
			if g, w := strings.Count(got, string(id)), strings.Count(c.want, string(id)); g != w && (w == 0 || g == 0) {
				t.Errorf("in flight %v: %s, want as many of each as in %s", c.active, got, c.want)
				break
			}
		}
	}
}

func TestTwoChoices(t *testing.T) {
	g := mustNew(t, gateway.Config{Upstreams: weighted(1, 2, 1), Balance: gateway.BalanceTwoChoices})
	const n = 20_000
	got := picks(g, n)
	// The first of two decides while none has requests: each is drawn by its weight.
	for id, want := range map[string]float64{"a": 0.25, "b": 0.5, "c": 0.25} {
		if share := float64(strings.Count(got, id)) / n; math.Abs(share-want) > 0.02 {
			t.Errorf("%s got %.3f of the requests, want %.2f", id, share, want)
		}
	}
	// The busiest never wins.
	g.SetActive("b", 100)
	if got := picks(g, 1000); strings.Contains(got, "b") {
		t.Error("of two, the one with more requests was taken")
	}
	if got := picks(g, 10, "a", "c"); got != "bbbbbbbbbb" {
		t.Errorf("only b is left, picked %s", got)
	}
}

// Its own zone serves a gateway while half of it is up.
func TestZones(t *testing.T) {
	all := weighted(1, 1, 2, 1)
	all[0].Zone, all[1].Zone, all[2].Zone, all[3].Zone = "x", "x", "x", "y"
	g := mustNew(t, gateway.Config{Upstreams: all, Zone: "x"})
	if got := picks(g, 4); strings.Contains(got, "d") {
		t.Errorf("own zone up: %s", got)
	}
	if got := picks(g, 3, "a", "b", "c"); got != "ddd" {
		t.Errorf("own zone tried: %s, want the others", got)
	}
	g.Down("a")
	g.Down("b")
	if got := picks(g, 4); got != "cccc" {
		t.Errorf("half of the own zone up: %s, want only it", got)
	}
	g.Back("a")
	g.Back("b")
	g.Down("c")
	g.Down("b")
	if got := picks(g, 4); strings.Count(got, "d") != 2 {
		t.Errorf("a quarter of the own zone up: %s, want all that are up", got)
	}
	g.Down("a")
	if got := picks(g, 2); got != "dd" {
		t.Errorf("own zone down: %s, want the others", got)
	}
}

// No upstream has more than the stated bound, whoever is drawn.
func TestLoadFactor(t *testing.T) {
	const factor = 1.25
	weights := []int{1, 2, 1}
	g := mustNew(t, gateway.Config{Upstreams: weighted(weights...), Balance: gateway.BalanceTwoChoices, LoadFactor: factor})
	active := map[string]int{"a": 0, "b": 0, "c": 0}
	for m := range 2000 {
		id := g.Pick(anyRequest())
		active[id]++
		g.SetActive(id, active[id])
		w := weights[id[0]-'a']
		if most := int(math.Ceil(factor * float64(m+1) * float64(w) / 4)); active[id] > most {
			t.Fatalf("after %d requests %s has %d, want at most %d", m+1, id, active[id], most)
		}
	}
	// Where the others are down, all goes to the one that is left.
	g.Down("a")
	g.Down("b")
	if got := picks(g, 5); got != "ccccc" {
		t.Errorf("one is up: %s", got)
	}
}

// An upstream that comes back has a tenth of its weight at first, then the part of SlowStart that is over.
func TestSlowStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := mustNew(t, gateway.Config{Upstreams: weighted(1, 1), SlowStart: time.Minute})
		if got := picks(g, 10); strings.Count(got, "b") != 5 {
			t.Errorf("from the beginning: %s", got)
		}
		time.Sleep(time.Second)
		g.Down("b")
		g.Back("b")
		for _, c := range []struct {
			after time.Duration
			want  float64 // share of b
		}{
			{0, 0.1 / 1.1}, {5 * time.Second, 0.1 / 1.1}, {25 * time.Second, 0.5 / 1.5}, {15 * time.Second, 0.75 / 1.75}, {15 * time.Second, 0.5},
		} {
			time.Sleep(c.after)
			const n = 1000
			if share := float64(strings.Count(picks(g, n), "b")) / n; math.Abs(share-c.want) > 0.01 {
				t.Errorf("%v later b gets %.3f, want %.3f", c.after, share, c.want)
			}
		}
	})
}

func BenchmarkPick(b *testing.B) {
	for _, c := range []struct {
		name   string
		config gateway.Config
	}{
		{"round robin", gateway.Config{}},
		{"least requests", gateway.Config{Balance: gateway.BalanceLeastRequests}},
		{"two choices", gateway.Config{Balance: gateway.BalanceTwoChoices}},
		{"bounded", gateway.Config{Balance: gateway.BalanceTwoChoices, LoadFactor: 1.25, Zone: "x"}},
		{"cookie", gateway.Config{Affinity: gateway.AffinityCookie, Key: testKey}},
	} {
		b.Run(c.name, func(b *testing.B) {
			c.config.Upstreams = weighted(1, 2, 3, 4)
			for i := range c.config.Upstreams {
				c.config.Upstreams[i].Zone = "x"
			}
			g := mustNew(b, c.config)
			r := anyRequest()
			if c.config.Affinity != "" {
				r.AddCookie(&http.Cookie{Name: "__Host-holdfast-upstream", Value: g.AffinityValue("c", time.Now())})
			}
			b.ReportAllocs()
			for b.Loop() {
				if g.Pick(r) == "" {
					b.Fatal("none")
				}
			}
		})
	}
}
