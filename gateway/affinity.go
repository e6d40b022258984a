package gateway

import (
	"cmp"
	"iter"
	"net"
	"net/http"
	"net/textproto"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-sessions/holdfast/internal/loopback"
)

// Affinity says which upstream a client goes to.
type Affinity string

const (
	// AffinityNone leaves every request to Config.Balance. It is what the zero value means.
	AffinityNone Affinity = "none"
	// AffinityCookie keeps a client on its first upstream by a keyed cookie, for as long as that one is up.
	AffinityCookie Affinity = "cookie"
	// AffinitySession keeps a client on the upstream that set the application's session cookie, by the same keyed cookie,
	// until the application ends it. Clients without cookies are found by their session ID in a header or URL.
	AffinitySession Affinity = "session"
	// AffinityRoute follows the route that the application appends to its session IDs, as Tomcat does with its jvmRoute.
	AffinityRoute Affinity = "route"
	// AffinityHash spreads the values of a cookie, header or query parameter over the upstreams by a keyed rendezvous
	// hash. What has no such value is left to Config.Balance.
	AffinityHash Affinity = "hash"
	// AffinityIP is nginx's ip_hash, exactly.
	AffinityIP Affinity = "ip"
	// AffinityHeader takes the upstream whose ID or route a trusted proxy names in a header.
	AffinityHeader Affinity = "header"
)

var affinities = []Affinity{AffinityNone, AffinityCookie, AffinitySession, AffinityRoute, AffinityHash, AffinityIP, AffinityHeader}

// HashOf says what AffinityHash hashes: exactly one of a cookie, a header ("Host" is one) and a query parameter.
type HashOf struct{ Cookie, Header, Parameter string }

// affinity is how clients are assigned to the upstreams of a table.
type affinity interface {
	// prefer returns the upstream that the client of r is to go to, of those that ok accepts, or nil if any other will
	// do as well. It is asked once for each attempt, and then ok accepts fewer. It says why to say, which may be nil.
	prefer(r *http.Request, ok func(*upstream) bool, say *steps) *upstream
	// binds reports whether clients belong to an upstream by something that they carry. Then one that drains keeps its
	// clients until the deadline; otherwise it is left out at once.
	binds() bool
	// answered sees the header of u's answer to r before the client does. It may bind the client to u.
	answered(r *http.Request, u *upstream, res *http.Response)
	// strip removes what only the gateway is to see from the header that goes to an upstream.
	strip(h http.Header)
}

// newAffinity returns the affinity of c over the upstreams of a new table. What old, which may be nil, has learned
// lives on.
func newAffinity(c Config, upstreams []*upstream, old affinity) affinity {
	switch c.Affinity {
	case AffinityCookie:
		return newCookieAffinity(c.Cookie, c.Key, upstreams)
	case AffinitySession:
		before, _ := old.(*sessionAffinity)
		return newSessionAffinity(c, upstreams, before)
	case AffinityRoute:
		return newRouteAffinity(c, upstreams)
	case AffinityHash:
		return newHashAffinity(c, upstreams)
	case AffinityIP:
		return newIPAffinity(upstreams)
	case AffinityHeader:
		return newHeaderAffinity(c, upstreams)
	}
	return noAffinity{}
}

// Browsers keep no cookie for longer (RFC 6265bis).
const maxCookieAge = 400 * 24 * time.Hour

func (c Config) validateAffinity(bad badFunc) {
	if !slices.Contains(affinities, c.Affinity) {
		var names []string
		for _, a := range affinities {
			names = append(names, string(a))
		}
		bad("Affinity", "affinity %q unknown (want %s)", c.Affinity, strings.Join(names, ", "))
	}
	switch needed := c.Affinity == AffinityCookie || c.Affinity == AffinitySession; {
	case len(c.Key) == 0 && !needed:
	case len(c.Key) != 32:
		bad("Key", "key of %d bytes: affinity %q needs 32 random ones, the same on every gateway", len(c.Key), c.Affinity)
	case [32]byte(c.Key) == [32]byte{}:
		bad("Key", "key is all zeros: affinity %q needs 32 random bytes, the same on every gateway", c.Affinity)
	}
	if !fieldName.MatchString(c.Cookie.Name) || strings.HasPrefix(c.Cookie.Name, "__") {
		bad("Cookie.Name", "cookie name %q: want letters, digits and - . _ without a __ prefix, which is added", c.Cookie.Name)
	}
	if d := c.Cookie.MaxAge; d < 0 || d > maxCookieAge || d%time.Second != 0 {
		bad("Cookie.MaxAge", "cookie max age %v: want whole seconds, up to 400 days", d)
	}
	named := func(field, what, name string) {
		if name != "" && !fieldName.MatchString(name) {
			bad(field, "%s %q is not such a name", what, name)
		}
	}
	named("SessionPathParameter", "session path parameter", c.SessionPathParameter)
	inURL := c.SessionHeader != "" || c.SessionParameter != "" || c.SessionPathParameter != ""
	switch c.Affinity {
	case AffinitySession:
		if c.DisableSessionCookie && !inURL {
			bad("DisableSessionCookie", "affinity %q without the session cookie: say where the session ID is (SessionHeader, SessionParameter, SessionPathParameter)", c.Affinity)
		}
	case AffinityRoute:
		if (len(c.SessionCookies) == 0 || c.DisableSessionCookie) && !inURL {
			bad("Affinity", "affinity %q: say where the session ID is, such as SessionCookies JSESSIONID and SessionPathParameter jsessionid", c.Affinity)
		}
	case AffinityHash:
		n := 0
		for _, v := range []string{c.Hash.Cookie, c.Hash.Header, c.Hash.Parameter} {
			if v != "" {
				n++
			}
		}
		if n != 1 {
			bad("Hash", "affinity %q: say what to hash: exactly one of a cookie, a header and a parameter", c.Affinity)
		}
		named("Hash.Cookie", "cookie to hash", c.Hash.Cookie)
		named("Hash.Header", "header to hash", c.Hash.Header)
		if reserved(c.Hash.Header) {
			bad("Hash.Header", "header to hash %q: the gateway strips this name from clients' requests; use another", c.Hash.Header)
		}
	case AffinityHeader:
		if c.UpstreamHeader == "" {
			bad("UpstreamHeader", "affinity %q: give the header in which a trusted proxy names the upstream", c.Affinity)
		} else if named("UpstreamHeader", "upstream header", c.UpstreamHeader); reserved(c.UpstreamHeader) {
			bad("UpstreamHeader", "upstream header %q: the gateway strips this name from clients' requests; use another, such as Upstream", c.UpstreamHeader)
		}
		if len(c.TrustedProxies) == 0 {
			bad("TrustedProxies", "affinity %q: name the trusted proxies that may choose an upstream", c.Affinity)
		}
	}
	if s := c.RouteSeparator; len(s) != 1 || !strings.Contains(".!:~-_|", s) {
		bad("RouteSeparator", "route separator %q: want one of . ! : ~ - _ |", s)
	}
	routes := make(map[string]int)
	for i, u := range c.Upstreams {
		route := u.Route
		if route == "" {
			if route = u.ID; route == "" {
				continue // derived from the URL: unique
			}
		} else if !upstreamID.MatchString(route) {
			bad(upstreamField(i, "Route"), "upstream %d: route %q: want 1 to 64 of A-Z a-z 0-9 . _ -", i+1, route)
		} else if u.Resolve {
			bad(upstreamField(i, "Route"), "upstream %d: a route, but its name is resolved: each address has its ID as its route", i+1)
		}
		if first, ok := routes[route]; ok && (u.Route != "" || c.Upstreams[first-1].Route != "") {
			bad(upstreamField(i, "Route"), "upstreams %d and %d have the same route %q: give each its own", first, i+1, route)
		} else if !ok {
			routes[route] = i + 1
		}
	}
	if c.LearnedEntries < 0 || c.LearnedEntries > 50_000_000 {
		bad("LearnedEntries", "learned entries %d: want 1 to 50000000", c.LearnedEntries)
	}
	if c.LearnedIdle < 0 {
		bad("LearnedIdle", "learned idle %v is negative", c.LearnedIdle)
	}
}

// withAffinityDefaults fills in what has to do with affinity.
func (c *Config) withAffinityDefaults() {
	c.Affinity = cmp.Or(c.Affinity, AffinityNone)
	c.Cookie.Name = cmp.Or(c.Cookie.Name, "holdfast-upstream")
	c.RouteSeparator = cmp.Or(c.RouteSeparator, ".")
	c.LearnedEntries = cmp.Or(c.LearnedEntries, 100_000)
	c.LearnedIdle = cmp.Or(c.LearnedIdle, 2*time.Hour)
}

// noAffinity has no preference.
type noAffinity struct{}

func (noAffinity) prefer(*http.Request, func(*upstream) bool, *steps) *upstream { return nil }
func (noAffinity) binds() bool                                                  { return false }
func (noAffinity) answered(*http.Request, *upstream, *http.Response)            {}
func (noAffinity) strip(http.Header)                                            {}

// byID returns upstreams by their IDs.
func byID(upstreams []*upstream) map[string]*upstream {
	all := make(map[string]*upstream, len(upstreams))
	for _, u := range upstreams {
		all[u.id] = u
	}
	return all
}

// byRoute returns upstreams by their routes.
func byRoute(upstreams []*upstream) map[string]*upstream {
	all := make(map[string]*upstream, len(upstreams))
	for _, u := range upstreams {
		all[u.route] = u
	}
	return all
}

// cookies yields the values of every cookie called name, as package holdfast reads them. (http.Request.Cookies is silently empty when there are
// more than 3000.)
func cookies(h http.Header, name string) iter.Seq[string] {
	return func(yield func(string) bool) {
		for _, line := range h["Cookie"] {
			for part := range strings.SplitSeq(line, ";") {
				n, v, ok := strings.Cut(textproto.TrimString(part), "=")
				if ok && n == name && !yield(v) {
					return
				}
			}
		}
	}
}

// removeCookies takes the named cookies out of h and leaves the others as they were written. It replaces the
// slice of lines rather than changing it.
func removeCookies(h http.Header, names ...string) {
	var kept []string
	for _, line := range h["Cookie"] {
		var parts []string
		for part := range strings.SplitSeq(line, ";") {
			n, _, _ := strings.Cut(part, "=")
			if !slices.Contains(names, textproto.TrimString(n)) {
				parts = append(parts, part)
			}
		}
		if line = textproto.TrimString(strings.Join(parts, ";")); line != "" {
			kept = append(kept, line)
		}
	}
	if len(kept) == 0 {
		delete(h, "Cookie")
		return
	}
	h["Cookie"] = kept
}

// plainLocalhost reports whether r came over plain HTTP and names a loopback host.
func plainLocalhost(r *http.Request) bool {
	if r.TLS != nil {
		return false
	}
	host := r.Host
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	return loopback.Is(host)
}
