package gateway

import (
	"net/http"
	"net/url"
	"strings"
	"time"
)

// places are where the application's session ID can be.
type places struct {
	cookies                          []string // nil: the library's
	noCookie, plainLocalhost         bool
	header, parameter, pathParameter string
}

// maxIDs is how many session IDs of one request, or one header of an answer, are looked at.
const maxIDs = 4

func placesOf(c Config) places {
	return places{
		cookies: c.SessionCookies, noCookie: c.DisableSessionCookie, plainLocalhost: c.Cookie.AllowPlainLocalhost,
		header: c.SessionHeader, parameter: c.SessionParameter, pathParameter: c.SessionPathParameter,
	}
}

// beyondCookies reports whether there are places that clients without cookies can use.
func (p *places) beyondCookies() bool {
	return p.header != "" || p.parameter != "" || p.pathParameter != ""
}

var (
	defaultSessionCookies   = []string{"__Host-Http-session"}
	localhostSessionCookies = []string{"session"}
)

// cookieNames returns the names of the application's session cookie on r.
func (p *places) cookieNames(r *http.Request) []string {
	switch {
	case p.noCookie:
		return nil
	case len(p.cookies) > 0:
		return p.cookies
	case p.plainLocalhost && plainLocalhost(r):
		return localhostSessionCookies
	}
	return defaultSessionCookies
}

// inCookie returns the session ID that r has in a cookie, or "".
func (p *places) inCookie(r *http.Request) string {
	for _, name := range p.cookieNames(r) {
		for v := range cookies(r.Header, name) {
			if v = unquote(v); v != "" {
				return v
			}
		}
	}
	return ""
}

// ids returns the session IDs of r, at most maxIDs, as far as into has room: those in cookies, in the header, in the
// path, in the query.
func (p *places) ids(r *http.Request, into []string) []string {
	add := func(v string) bool {
		if v != "" && len(into) < maxIDs {
			into = append(into, v)
		}
		return len(into) < maxIDs
	}
	for _, name := range p.cookieNames(r) {
		for v := range cookies(r.Header, name) {
			if !add(unquote(v)) {
				return into
			}
		}
	}
	if p.header != "" {
		for _, v := range r.Header.Values(p.header) {
			add(v)
		}
	}
	if p.pathParameter != "" {
		path := r.URL.RawPath // with %3B, which begins no parameter, left alone
		if path == "" {
			path = r.URL.Path
		}
		p.inPath(path, add)
	}
	if p.parameter != "" {
		eachParameter(r.URL.RawQuery, p.parameter, add)
	}
	return into
}

// inReferer returns the session IDs in the address of the page that r comes from, like ids.
func (p *places) inReferer(r *http.Request, into []string) []string {
	target, _, _ := strings.Cut(r.Header.Get("Referer"), "#")
	p.inURL(target, func(v string) bool {
		if v != "" && len(into) < maxIDs {
			into = append(into, v)
		}
		return len(into) < maxIDs
	})
	return into
}

// inURL gives f the values of the parameters in a URL.
func (p *places) inURL(target string, f func(string) bool) {
	path, query, _ := strings.Cut(target, "?")
	if p.pathParameter != "" {
		p.inPath(path, f)
	}
	if p.parameter != "" {
		eachParameter(query, p.parameter, f)
	}
}

// inPath gives f the values of the path parameter: /a;jsessionid=VALUE/b.
func (p *places) inPath(path string, f func(string) bool) {
	for {
		_, after, ok := strings.Cut(path, ";")
		if !ok {
			return
		}
		end := strings.IndexAny(after, ";/")
		if end < 0 {
			end = len(after)
		}
		if name, v, ok := strings.Cut(after[:end], "="); ok && name == p.pathParameter {
			if plain, err := url.PathUnescape(v); err == nil {
				v = plain
			}
			if !f(v) {
				return
			}
		}
		path = after[end:]
	}
}

// eachParameter gives f the values of a query parameter until it returns false.
func eachParameter(query, name string, f func(string) bool) {
	for query != "" {
		var part string
		part, query, _ = strings.Cut(query, "&")
		key, v, _ := strings.Cut(part, "=")
		if key != name {
			if !strings.ContainsAny(key, "%+") {
				continue
			}
			if plain, err := url.QueryUnescape(key); err != nil || plain != name {
				continue
			}
		}
		if plain, err := url.QueryUnescape(v); err == nil {
			v = plain
		}
		if !f(v) {
			return
		}
	}
}

// announced gives f the session IDs that the answer tells the client in its header, other than in cookies.
func (p *places) announced(h http.Header, f func(string)) {
	if p.header != "" {
		if v := h.Get(p.header); v != "" {
			f(v)
		}
	}
	if p.parameter == "" && p.pathParameter == "" {
		return
	}
	for _, name := range [...]string{"Location", "Content-Location", "Refresh", "Link"} {
		for _, text := range h[name] {
			n := 0
			inURLs(text, func(target string) bool {
				p.inURL(target, func(v string) bool {
					if v != "" {
						f(v)
						n++
					}
					return n < maxIDs
				})
				return n < maxIDs
			})
		}
	}
}

// inURLs gives f what may be URLs in the text of a header: what is between the characters that no URL has, without
// fragments.
func inURLs(text string, f func(string) bool) {
	for part := range strings.FieldsFuncSeq(text, func(r rune) bool { return strings.ContainsRune(" \t<>\"'", r) }) {
		part, _, _ = strings.Cut(part, "#")
		if !f(part) {
			return
		}
	}
}

// change is what an answer does to the application's session cookie.
type change struct {
	set, ended bool
	id         string // if set
	like       like
}

// change reads the Set-Cookie lines of an answer to r. Of several, the last counts, as in a browser.
func (p *places) change(r *http.Request, h http.Header) (c change) {
	lines := h["Set-Cookie"]
	if len(lines) == 0 {
		return c
	}
	names := p.cookieNames(r)
	for _, line := range lines {
		for _, name := range names {
			rest, ok := strings.CutPrefix(line, name)
			if !ok {
				continue
			}
			if rest, ok = strings.CutPrefix(strings.TrimLeft(rest, " \t"), "="); !ok {
				continue
			}
			value, attributes, _ := strings.Cut(rest, ";")
			c = change{set: true, id: unquote(strings.Trim(value, " \t"))}
			// Only the attributes: the value may be one that net/http finds fault with.
			if cookie, err := http.ParseSetCookie("x=;" + attributes); err == nil {
				c.like = like{sameSite: cookie.SameSite, partitioned: cookie.Partitioned}
				switch {
				case cookie.MaxAge > 0:
					c.like.lifetime = time.Duration(min(cookie.MaxAge, int(maxCookieAge/time.Second))) * time.Second
				case cookie.MaxAge < 0:
					c.set = false
				case !cookie.Expires.IsZero():
					c.like.lifetime = min(time.Until(cookie.Expires), maxCookieAge)
					c.set = c.like.lifetime > 0
				}
			}
			if c.id == "" || !c.set {
				c = change{ended: true, like: c.like}
			}
		}
	}
	return c
}

// unquote removes the quotes around the value of a cookie.
func unquote(v string) string {
	if len(v) >= 2 && v[0] == '"' && v[len(v)-1] == '"' {
		return v[1 : len(v)-1]
	}
	return v
}
