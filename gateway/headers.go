package gateway

import (
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"
	"time"

	"github.com/holdfast-sessions/holdfast"
	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/gateway/signed"
)

// rewrite makes the request that goes to an upstream; where to is decided at each attempt. ReverseProxy has
// removed the hop-by-hop headers.
func (g *Gateway) rewrite(p *httputil.ProxyRequest) {
	h := p.Out.Header
	for name := range h {
		if reserved(name) {
			delete(h, name)
		}
	}
	// An upgrade to another HTTP would be a tunnel past everything that is stripped here (h2c smuggling).
	// One with a body would leave its end to whoever answers.
	if up := h.Get("Upgrade"); up != "" && (!strings.EqualFold(up, "websocket") || p.In.Method != http.MethodGet || p.In.ContentLength != 0) {
		delete(h, "Upgrade")
		delete(h, "Connection")
	}
	p.Out.Trailer = nil // each attempt has its own
	x := exchangeOf(p.In.Context())
	x.forwardHeaders(h)
	g.markHop(h)
	x.table.affinity.strip(h)
	// ReverseProxy drops parameters it cannot parse. An application may read them, but where the token is one of
	// the parameters, the application must see no other than we do.
	if x.table.places.parameter == "" {
		p.Out.URL.RawQuery = p.In.URL.RawQuery
	}
	if id, ok := x.table.places.sessionID(p.Out); ok && len(x.table.config.SignatureKey) > 0 {
		signed.Sign(h, x.table.config.SignatureKey, id, p.Out.Method, p.Out.Host, time.Now())
	} else if ok {
		h.Set(signed.HeaderID, id.Hex())
	}
}

// reserved reports whether a client may not send a header of this name, because upstreams trust what the gateway
// puts there. CGI and its descendants do not tell _ from -, so neither does this.
func reserved(name string) bool {
	if name == "" || !strings.Contains("xXfFpP", name[:1]) {
		return false // most names: spare them the copy
	}
	name = strings.ToLower(strings.ReplaceAll(name, "_", "-"))
	switch name {
	case "forwarded", "x-real-ip", "x-request-id", "proxy": // proxy: CVE-2016-5385, httpoxy
		return true
	}
	return strings.HasPrefix(name, "x-session-") || strings.HasPrefix(name, "x-forwarded-")
}

// sessionID returns the ID of the session whose token r carries. There is none if the first place that holds
// something holds more than one thing, or anything but a well-formed token.
func (p *places) sessionID(r *http.Request) (driver.ID, bool) {
	token, n := p.sessionToken(r)
	if n != 1 {
		return driver.ID{}, false
	}
	return holdfast.TokenID(token)
}

// sessionToken returns what the first place where a session token can be holds, and how many values are there.
func (p *places) sessionToken(r *http.Request) (token string, n int) {
	count := func(v string) { token, n = v, n+1 }
	for _, name := range p.cookieNames(r) {
		for v := range cookies(r.Header, name) {
			count(v)
		}
		if n > 0 {
			return token, n
		}
	}
	if name := p.header; name != "" {
		for _, v := range r.Header.Values(name) {
			count(v)
		}
		if n > 0 {
			return token, n
		}
	}
	if name := p.parameter; name != "" {
		for part := range strings.SplitSeq(r.URL.RawQuery, "&") {
			key, v, _ := strings.Cut(part, "=")
			if key, err := url.QueryUnescape(key); err == nil && key == name {
				count(v)
			}
		}
	}
	return token, n
}
