package gateway_test

import (
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/holdfast-sessions/holdfast/gateway"
)

// Whatever a client sends, its affinity cookie names an upstream only by the exact value under the exact name, and
// none of it reaches an upstream, while other cookies do.
func FuzzAffinityCookie(f *testing.F) {
	g, err := gateway.New(gateway.Config{
		Upstreams: upstreams("http://127.0.0.1:1", "http://127.0.0.1:2"), Affinity: gateway.AffinityCookie, Key: testKey,
	})
	if err != nil {
		f.Fatal(err)
	}
	const name = "__Host-holdfast-upstream"
	values := map[string]string{"a": g.AffinityValue("a"), "b": g.AffinityValue("b")}
	f.Fuzz(func(t *testing.T, first, second string) {
		r := httptest.NewRequest("GET", "http://example.com/", nil)
		r.Header["Cookie"] = []string{first, second}
		var sent []string
		for _, line := range r.Header["Cookie"] {
			for part := range strings.SplitSeq(line, ";") {
				if v, ok := strings.CutPrefix(strings.Trim(part, " \t\r\n"), name+"="); ok {
					sent = append(sent, v)
				}
			}
		}
		if id := g.Home(r); id != "" && !slices.Contains(sent, values[id]) {
			t.Errorf("Cookie %q names upstream %s", r.Header["Cookie"], id)
		} else if id == "" && (slices.Contains(sent, values["a"]) || slices.Contains(sent, values["b"])) {
			t.Errorf("Cookie %q names nobody", r.Header["Cookie"])
		}
		r.Header["Cookie"] = append(r.Header["Cookie"], "mine=1")
		g.StripCookies(r.Header)
		if _, err := r.Cookie(name); err != http.ErrNoCookie {
			t.Errorf("affinity cookie left: %q", r.Header["Cookie"])
		}
		if lines := r.Header["Cookie"]; len(lines) == 0 || lines[len(lines)-1] != "mine=1" {
			t.Errorf("another cookie was lost: %q", lines)
		}
	})
}

// Whatever a client sends, there is an ID only for exactly one well-formed token in the first place that holds any.
func FuzzSessionToken(f *testing.F) {
	g, err := gateway.New(gateway.Config{
		Upstreams: upstreams("http://127.0.0.1:1"), SessionHeader: "Session-Token", SessionParameter: "s",
	})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, cookie, header, query string) {
		r := httptest.NewRequest("GET", "http://example.com/", nil)
		r.Header["Cookie"] = []string{cookie}
		if header != "" {
			r.Header["Session-Token"] = []string{header}
		}
		r.URL.RawQuery = query
		id, ok := g.SessionID(r)
		if !ok {
			return
		}
		// The token must be there as it is, among what was sent.
		for _, text := range []string{cookie, header, query} {
			for i := 0; i+43 <= len(text); i++ {
				if id.Hex() == idOf(text[i:i+43]) {
					return
				}
			}
		}
		t.Errorf("ID %v of no token in cookie %q, header %q, query %q", id, cookie, header, query)
	})
}
