package gateway

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"iter"
	"net"
	"net/http"
	"net/netip"
	"net/textproto"
	"slices"
	"strings"
)

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

// noAffinity has no preference.
type noAffinity struct{}

func (noAffinity) prefer(*http.Request, func(*upstream) bool, *steps) *upstream { return nil }
func (noAffinity) binds() bool                                                  { return false }
func (noAffinity) answered(*http.Request, *upstream, *http.Response)            {}
func (noAffinity) strip(http.Header)                                            {}

// cookieAffinity keeps a client on an upstream by a cookie. Its value is the unpadded base64url of the first 16
// bytes of HMAC-SHA256(key, "holdfast affinity v1\x00" + upstream ID): it names an upstream without telling which
// or how many there are, and nobody without the key can make one. Every gateway with the key knows it, without a
// table of clients.
type cookieAffinity struct {
	cookie    Cookie
	upstreams map[string]*upstream // by cookie value
	values    map[*upstream]string
}

func newCookieAffinity(c Cookie, key []byte, upstreams []*upstream) *cookieAffinity {
	a := &cookieAffinity{cookie: c, upstreams: make(map[string]*upstream), values: make(map[*upstream]string)}
	for _, u := range upstreams {
		mac := hmac.New(sha256.New, key)
		mac.Write([]byte("holdfast affinity v1\x00" + u.id))
		v := base64.RawURLEncoding.EncodeToString(mac.Sum(nil)[:16])
		a.upstreams[v] = u
		a.values[u] = v
	}
	return a
}

// name returns what the cookie is called on this request, and whether it is Secure.
func (a *cookieAffinity) name(r *http.Request) (name string, secure bool) {
	if a.cookie.AllowPlainLocalhost && plainLocalhost(r) {
		return a.cookie.Name, false
	}
	return "__Host-" + a.cookie.Name, true
}

// home returns the upstream the client belongs to, or nil if it has no cookie or one of nobody's making.
func (a *cookieAffinity) home(r *http.Request) *upstream {
	name, _ := a.name(r)
	for v := range cookies(r.Header, name) {
		if u := a.upstreams[v]; u != nil {
			return u
		}
	}
	return nil
}

func (a *cookieAffinity) prefer(r *http.Request, ok func(*upstream) bool, say *steps) *upstream {
	u := a.home(r)
	switch {
	case u == nil:
		if say != nil {
			say.add("no affinity cookie of this gateway's key: the client belongs to no upstream yet")
		}
	case !ok(u):
		if say != nil {
			say.add("the affinity cookie names upstream %s, which takes no requests of this client now", u.id)
		}
	default:
		if say != nil {
			say.add("the affinity cookie names upstream %s", u.id)
		}
		return u
	}
	return nil
}

func (*cookieAffinity) binds() bool { return true }

func (a *cookieAffinity) answered(r *http.Request, u *upstream, res *http.Response) {
	// A cache in front would add what a 304 carries to the page it keeps for everybody.
	if res.StatusCode != http.StatusNotModified && a.home(r) != u {
		a.bind(r, u, res.Header)
	}
}

// bind tells the client of r that u is its upstream from now on. The answer becomes one that no cache keeps: a
// shared one would hand the cookie to others.
func (a *cookieAffinity) bind(r *http.Request, u *upstream, answer http.Header) {
	name, secure := a.name(r)
	c := http.Cookie{
		Name: name, Value: a.values[u], Path: "/", Secure: secure, HttpOnly: true, SameSite: http.SameSiteLaxMode,
	}
	answer.Add("Set-Cookie", c.String())
	answer.Set("Cache-Control", "no-store")
	answer.Del("CDN-Cache-Control") // these two overrule Cache-Control in the caches that know them
	answer.Del("Surrogate-Control")
}

// strip removes the cookie from the header that goes to an upstream.
func (a *cookieAffinity) strip(h http.Header) {
	removeCookies(h, "__Host-"+a.cookie.Name, a.cookie.Name)
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
	if strings.EqualFold(host, "localhost") {
		return true
	}
	addr, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return err == nil && addr.IsLoopback()
}
