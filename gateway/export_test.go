package gateway

import (
	"net/http"

	"github.com/holdfast-sessions/holdfast/driver"
)

// CookieIsSecure reports whether a request for host over plain HTTP gets a Secure affinity cookie.
func CookieIsSecure(host string, allow bool) bool {
	a := newCookieAffinity(Cookie{Name: "c", AllowPlainLocalhost: allow}, nil, nil)
	_, secure := a.name(&http.Request{Host: host})
	return secure
}

// Home returns the ID of the upstream that r's affinity cookie names.
func (g *Gateway) Home(r *http.Request) string {
	if u := g.cookies().home(r); u != nil {
		return u.id
	}
	return ""
}

// SessionID is what becomes X-Session-Id.
func (g *Gateway) SessionID(r *http.Request) (driver.ID, bool) { return g.sessionID(r) }

// StripCookies removes the affinity cookies.
func (g *Gateway) StripCookies(h http.Header) { g.table.Load().affinity.strip(h) }

// AffinityValue returns the value of the affinity cookie for an upstream.
func (g *Gateway) AffinityValue(id string) string {
	for _, u := range g.table.Load().upstreams {
		if u.id == id {
			return g.cookies().values[u]
		}
	}
	return ""
}

func (g *Gateway) cookies() *cookieAffinity { return g.table.Load().affinity.(*cookieAffinity) }
