package gateway_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/holdfast-sessions/holdfast/gateway"
)

const secureName = "__Host-holdfast-upstream"

// withCookies returns a request that no gateway counts as plain localhost, with affinity cookies.
func withCookies(values ...string) *http.Request {
	r := httptest.NewRequest("GET", "http://example.com/", nil)
	for _, v := range values {
		r.Header.Add("Cookie", secureName+"="+v)
	}
	return r
}

// The cookie's value must never change, or a new release moves every client. Computed with another implementation of
// HMAC.
func TestAffinityValue(t *testing.T) {
	g := mustNew(t, gateway.Config{Upstreams: weighted(1, 1), Affinity: gateway.AffinityCookie, Key: testKey})
	for id, want := range map[string]struct{ value, undated string }{
		"a": {"AgBlU_EAXaK_VPO6Pgdr_LYD8ibclaw6yxZ5aYpw", "GtGAfO8f6f1lShC_C2Sv1Q"},
		"b": {"AgBlU_EAGQrAwmMSOp5X5vT085i6tgSo_dP1l4DO", "xHUV01_wcIsnxrlB359UrQ"},
	} {
		if got := g.AffinityValue(id, time.Unix(1_700_000_000, 0)); got != want.value {
			t.Errorf("value for %s: %s, want %s", id, got, want.value)
		}
		if got := g.UndatedValue(id); got != want.undated {
			t.Errorf("undated value for %s: %s, want %s", id, got, want.undated)
		}
	}
}

func TestNewestCookieWins(t *testing.T) {
	g := mustNew(t, gateway.Config{Upstreams: weighted(1, 1, 1), Affinity: gateway.AffinityCookie, Key: testKey})
	now := time.Now()
	older, newer, undated := g.AffinityValue("a", now.Add(-time.Hour)), g.AffinityValue("b", now), g.UndatedValue("c")
	for _, c := range []struct {
		values []string
		want   string
	}{
		{[]string{older, newer, undated}, "b"}, {[]string{undated, newer, older}, "b"}, {[]string{older, undated}, "a"}, {[]string{undated}, "c"},
		{[]string{"forged", "forged", "forged", newer}, "b"},
		{[]string{"forged", "forged", "forged", "forged", newer}, ""}, // there is an end to it
	} {
		if got := g.Home(withCookies(c.values...)); got != c.want {
			t.Errorf("cookies %v: home %q, want %q", c.values, got, c.want)
		}
	}
}

// A cookie counts for MaxAge, from when it was made, by clocks that may be wrong.
func TestCookieMaxAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := mustNew(t, gateway.Config{
			Upstreams: weighted(1, 1), Affinity: gateway.AffinityCookie, Key: testKey, Cookie: gateway.Cookie{MaxAge: time.Hour},
		})
		now := time.Now()
		v := g.AffinityValue("b", now)
		wantHome := func(when, value, want string) {
			t.Helper()
			if got := g.Home(withCookies(value)); got != want {
				t.Errorf("%s: home %q, want %q", when, got, want)
			}
		}
		wantHome("at once", v, "b")
		time.Sleep(time.Hour)
		wantHome("after max age", v, "b")
		time.Sleep(time.Second)
		wantHome("a second later", v, "")
		wantHome("set by a clock an hour ahead", g.AffinityValue("b", time.Now().Add(time.Hour)), "b")
		wantHome("set by a clock that was wrong", g.AffinityValue("b", time.Now().Add(time.Hour+time.Second)), "")
		wantHome("without date", g.UndatedValue("b"), "b")
	})
}

// The cookie is set again only when something changes.
func TestCookieIsSetOnChange(t *testing.T) {
	for _, c := range []struct {
		name     string
		maxAge   time.Duration
		value    func(g *gateway.Gateway) string
		answerer string
		want     string // in Set-Cookie
	}{
		{"none", 0, func(g *gateway.Gateway) string { return "" }, "a", "; Path=/; HttpOnly; Secure; SameSite=Lax"},
		{"with an age", time.Hour, func(g *gateway.Gateway) string { return "" }, "a", "; Path=/; Max-Age=3600; HttpOnly"},
		{"the same", 0, func(g *gateway.Gateway) string { return g.AffinityValue("a", time.Now()) }, "a", ""},
		{"old", 0, func(g *gateway.Gateway) string { return g.AffinityValue("a", time.Now().Add(-1000*time.Hour)) }, "a", ""},
		{"too old", time.Hour, func(g *gateway.Gateway) string { return g.AffinityValue("a", time.Now().Add(-1000*time.Hour)) }, "a", "Max-Age=3600"},
		{"another", 0, func(g *gateway.Gateway) string { return g.AffinityValue("a", time.Now()) }, "b", "Path=/"},
		{"undated", 0, func(g *gateway.Gateway) string { return g.UndatedValue("a") }, "a", ""},
		{"undated, with an age", time.Hour, func(g *gateway.Gateway) string { return g.UndatedValue("a") }, "a", "Max-Age=3600"},
		{"forged", 0, func(g *gateway.Gateway) string { return strings.Repeat("A", 40) }, "a", "Path=/"},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := mustNew(t, gateway.Config{
				Upstreams: weighted(1, 1), Affinity: gateway.AffinityCookie, Key: testKey, Cookie: gateway.Cookie{MaxAge: c.maxAge},
			})
			res := &http.Response{StatusCode: 200, Header: http.Header{}}
			g.Answered(withCookies(c.value(g)), c.answerer, res)
			set := res.Header.Get("Set-Cookie")
			if (set == "") != (c.want == "") || !strings.Contains(set, c.want) {
				t.Fatalf("Set-Cookie %q, want %q in it", set, c.want)
			}
			if set == "" {
				return
			}
			value, _, _ := strings.Cut(strings.TrimPrefix(set, secureName+"="), ";")
			if got := g.Home(withCookies(value)); got != c.answerer {
				t.Errorf("the new cookie names %q, want %q", got, c.answerer)
			}
		})
	}
}

// Gateways with one key, and clocks apart, read each other's cookies, whatever the order and number of their upstreams.
func TestCookiesOfAnotherGateway(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ids := rapid.SliceOfNDistinct(rapid.StringMatching(`[A-Za-z0-9._-]{1,64}`), 1, 8, rapid.ID).Draw(t, "ids")
		var one, other []gateway.Upstream
		for i, id := range ids {
			one = append(one, gateway.Upstream{ID: id, URL: fmt.Sprintf("http://h%d:1", i)})
		}
		other = append(rapid.Permutation(one).Draw(t, "order"), gateway.Upstream{ID: "more", URL: "http://more:1"})
		if slices.Contains(ids, "more") {
			t.Skip()
		}
		a := newQuietly(t, gateway.Config{Upstreams: one, Affinity: gateway.AffinityCookie, Key: testKey})
		b := newQuietly(t, gateway.Config{Upstreams: other, Affinity: gateway.AffinitySession, Key: testKey})
		id := rapid.SampledFrom(ids).Draw(t, "id")
		at := time.Unix(rapid.Int64Range(1, 1<<40-1).Draw(t, "date"), 0)
		if got := b.Home(withCookies(a.AffinityValue(id, at))); got != id {
			t.Errorf("cookie for %q names %q on the other gateway", id, got)
		}
	})
}

// Whatever a client sends, its affinity cookie names an upstream only by a value of the gateway's making under the exact
// name, and none of it reaches an upstream, while other cookies do.
func FuzzAffinityCookie(f *testing.F) {
	g := mustNew(f, gateway.Config{Upstreams: weighted(1, 1), Affinity: gateway.AffinityCookie, Key: testKey})
	at := time.Unix(1_700_000_000, 0)
	values := map[string][]string{"a": {g.AffinityValue("a", at), g.UndatedValue("a")}, "b": {g.AffinityValue("b", at), g.UndatedValue("b")}}
	f.Fuzz(func(t *testing.T, first, second string) {
		r := httptest.NewRequest("GET", "http://example.com/", nil)
		r.Header["Cookie"] = []string{first, second}
		var sent []string
		for _, line := range r.Header["Cookie"] {
			for part := range strings.SplitSeq(line, ";") {
				if v, ok := strings.CutPrefix(strings.Trim(part, " \t\r\n"), secureName+"="); ok {
					sent = append(sent, v)
				}
			}
		}
		sent = sent[:min(len(sent), 4)]
		isOf := func(id string) bool {
			return slices.ContainsFunc(values[id], func(v string) bool { return slices.Contains(sent, v) })
		}
		if id := g.Home(r); id != "" && !isOf(id) {
			t.Errorf("Cookie %q names upstream %s", r.Header["Cookie"], id)
		} else if id == "" && (isOf("a") || isOf("b")) {
			t.Errorf("Cookie %q names nobody", r.Header["Cookie"])
		}
		r.Header["Cookie"] = append(r.Header["Cookie"], "mine=1")
		g.StripCookies(r.Header)
		if _, err := r.Cookie(secureName); err != http.ErrNoCookie {
			t.Errorf("affinity cookie left: %q", r.Header["Cookie"])
		}
		if lines := r.Header["Cookie"]; len(lines) == 0 || lines[len(lines)-1] != "mine=1" {
			t.Errorf("another cookie was lost: %q", lines)
		}
	})
}

// One character of a cookie changed at any place makes it nobody's (attack 33).
func TestEveryCharacterCounts(t *testing.T) {
	g := mustNew(t, gateway.Config{Upstreams: weighted(1, 1, 1), Affinity: gateway.AffinityCookie, Key: testKey})
	for _, value := range []string{g.AffinityValue("a", time.Now()), g.UndatedValue("a")} {
		for i := range value {
			for _, c := range "AZaz09-_=+/ \"\n" {
				forged := value[:i] + string(c) + value[i+1:]
				if got := g.Home(withCookies(forged)); forged != value && got != "" {
					t.Errorf("%s, of which %q was changed into %q, names upstream %s", value, value[i], c, got)
				}
			}
		}
	}
}

func BenchmarkAffinityCookie(b *testing.B) {
	g := mustNew(b, gateway.Config{Upstreams: weighted(make([]int, 20)...), Affinity: gateway.AffinityCookie, Key: testKey})
	now := time.Now()
	flood := make([]string, 1000)
	for i := range flood {
		flood[i] = g.AffinityValue("a", now)[:39] + "A"
	}
	for _, c := range []struct {
		name string
		r    *http.Request
	}{
		{"none", withCookies()}, {"own", withCookies(g.AffinityValue("a", now))}, {"undated", withCookies(g.UndatedValue("a"))}, {"flood", withCookies(flood...)},
	} {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				g.Home(c.r)
			}
		})
	}
}

// newQuietly is mustNew for rapid.
func newQuietly(t *rapid.T, c gateway.Config) *gateway.Gateway {
	g, err := gateway.New(c)
	if err != nil {
		t.Fatal(err)
	}
	return g
}
