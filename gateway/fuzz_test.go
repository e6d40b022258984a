package gateway_test

import (
	"net/http/httptest"
	"testing"

	"github.com/holdfast-sessions/holdfast/gateway"
)

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
