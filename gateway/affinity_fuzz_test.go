package gateway_test

import (
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/holdfast-sessions/holdfast/gateway"
)

// fuzzRequest returns a request with this target and cookie, or nil if net/http would refuse it.
func fuzzRequest(target, cookie string) *http.Request {
	u, err := url.ParseRequestURI(target)
	if err != nil || !strings.HasPrefix(u.Path, "/") {
		return nil
	}
	r := httptest.NewRequest("GET", "/", nil)
	r.URL = u
	r.Header["Cookie"] = []string{cookie}
	return r
}

// Whatever a client sends, the route that is found in it is one of the configuration, and stood there: behind a separator
// or, before one, at the beginning of a value (attack 33: never an address of the client's choice).
func FuzzRoute(f *testing.F) {
	routes := map[string]string{"a": "node1", "b": "n.2"}
	g := mustNew(f, gateway.Config{
		Upstreams: []gateway.Upstream{{ID: "a", URL: "http://a:1", Route: "node1"}, {ID: "b", URL: "http://b:1", Route: "n.2"}},
		Affinity:  gateway.AffinityRoute, SessionCookies: []string{"JSESSIONID"}, SessionPathParameter: "jsessionid", SessionParameter: "sid",
	})
	f.Fuzz(func(t *testing.T, target, cookie string) {
		r := fuzzRequest(target, cookie)
		if r == nil {
			return
		}
		id, _ := g.Prefer(r)
		if id == "" {
			return
		}
		route, ok := routes[id]
		if !ok {
			t.Fatalf("upstream %q", id)
		}
		path, _ := url.PathUnescape(r.URL.EscapedPath())
		query, err := url.QueryUnescape(r.URL.RawQuery)
		if err != nil {
			query = r.URL.RawQuery + unescapeEach(r.URL.RawQuery)
		}
		for _, text := range []string{path, query, cookie, r.URL.EscapedPath()} {
			if strings.Contains(text, "."+route) || strings.Contains(text, "="+route+".") || strings.Contains(text, `="`+route+".") {
				return
			}
		}
		t.Errorf("target %q, Cookie %q: route of upstream %s, which is not there", target, cookie, id)
	})
}

// unescapeEach unescapes what can be, part by part.
func unescapeEach(query string) string {
	var b strings.Builder
	for part := range strings.SplitSeq(query, "&") {
		for side := range strings.SplitSeq(part, "=") {
			if plain, err := url.QueryUnescape(side); err == nil {
				side = plain
			}
			b.WriteString("=" + side)
		}
		b.WriteString("&")
	}
	return b.String()
}

// What is learned of a session ID in an answer is found again when the client uses the URL that it was told, and nothing
// else is.
func FuzzSessionURL(f *testing.F) {
	f.Fuzz(func(t *testing.T, location, other string) {
		told, using := fuzzRequest(location, ""), fuzzRequest(other, "")
		if told == nil || using == nil || strings.ContainsAny(location, " \t<>\"'#\r\n") {
			return
		}
		g := mustNew(t, gateway.Config{
			Upstreams: weighted(1, 1, 1), Affinity: gateway.AffinitySession, Key: testKey, DisableSessionCookie: true,
			SessionPathParameter: "jsessionid", SessionParameter: "sid", LearnedEntries: 16,
		})
		g.Answered(httptest.NewRequest("GET", "/", nil), "c", &http.Response{StatusCode: 302, Header: http.Header{"Location": {location}}})
		learned := g.Stats().Learned.Entries > 0
		has := func(r *http.Request) bool {
			_, why := g.Prefer(r)
			return strings.Contains(strings.Join(why, "\n"), "by a hash of the session ID") || strings.Contains(strings.Join(why, "\n"), "was learned")
		}
		if learned != has(told) {
			t.Fatalf("Location %q: learned %v, but a session ID in a request for it: %v", location, learned, has(told))
		}
		if !learned {
			return
		}
		if id, _ := g.Prefer(told); id != "c" {
			t.Errorf("Location %q: a request for it goes to %q, want c", location, id)
		}
		if _, why := g.Prefer(using); strings.Contains(strings.Join(why, "\n"), "was learned") && !sharesValue(told, using) {
			t.Errorf("%q was found by what %q told", other, location)
		}
	})
}

// sharesValue reports whether both have a value of a parameter in common.
func sharesValue(a, b *http.Request) bool {
	values := func(r *http.Request) map[string]bool {
		all := make(map[string]bool)
		for part := range strings.FieldsFuncSeq(r.URL.EscapedPath()+"&"+r.URL.RawQuery, func(r rune) bool { return strings.ContainsRune(";/&?", r) }) {
			_, v, _ := strings.Cut(part, "=")
			all[v] = true
			for _, unescape := range []func(string) (string, error){url.PathUnescape, url.QueryUnescape} {
				if plain, err := unescape(v); err == nil {
					all[plain] = true
				}
			}
		}
		return all
	}
	of := values(b)
	for v := range values(a) {
		if v != "" && of[v] {
			return true
		}
	}
	return false
}

// Whatever an upstream answers, the affinity adds at most one cookie, of its own name, and takes none away.
func FuzzSetCookie(f *testing.F) {
	g := mustNew(f, gateway.Config{
		Upstreams: weighted(1, 1, 1), Affinity: gateway.AffinitySession, Key: testKey, SessionCookies: []string{"JSESSIONID"},
	})
	f.Fuzz(func(t *testing.T, first, second, cookie string) {
		r := fuzzRequest("/", cookie)
		res := &http.Response{StatusCode: 200, Header: http.Header{"Set-Cookie": {first, second}}}
		g.Answered(r, "b", res)
		lines := res.Header["Set-Cookie"]
		if len(lines) < 2 || len(lines) > 3 || lines[0] != first || lines[1] != second {
			t.Fatalf("Set-Cookie %q became %q", []string{first, second}, lines)
		}
		if len(lines) == 3 && !strings.HasPrefix(lines[2], secureName+"=") {
			t.Errorf("added Set-Cookie %q", lines[2])
		}
		if len(lines) == 3 && !strings.Contains(first+second+cookie, "JSESSIONID") {
			t.Errorf("%q and Cookie %q made the gateway set %q", []string{first, second}, cookie, lines[2])
		}
	})
}
