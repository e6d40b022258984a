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

// SessionID is what becomes X-Session-Id.
func (g *Gateway) SessionID(r *http.Request) (driver.ID, bool) {
	return g.table.Load().places.sessionID(r)
}
