package holdfast

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/holdfast-sessions/holdfast/driver"
)

// tokenBytes is what a token is made of: 256 bits, so that none is ever guessed or made twice.
const tokenBytes = 32

// newToken returns 32 random bytes as 43 characters of base64url.
func newToken(random io.Reader) (string, error) {
	var b [tokenBytes]byte
	if _, err := io.ReadFull(random, b[:]); err != nil {
		return "", fmt.Errorf("new session token: the random source failed: %w", err)
	}
	return base64.RawURLEncoding.EncodeToString(b[:]), nil
}

var strictBase64 = base64.RawURLEncoding.Strict()

// TokenID returns the ID of a token, and whether it can be one: 43 characters, the one base64url encoding of 32 bytes.
// Whatever else clients send reaches no store. The ID is the SHA-256 of the 43 characters.
func TokenID(token string) (driver.ID, bool) {
	if len(token) != (tokenBytes*8+5)/6 {
		return driver.ID{}, false
	}
	var text [(tokenBytes*8 + 5) / 6]byte
	var raw [tokenBytes]byte
	copy(text[:], token)
	if n, err := strictBase64.Decode(raw[:], text[:]); err != nil || n != tokenBytes {
		return driver.ID{}, false
	}
	return sha256.Sum256(text[:]), true
}

// carrier is how a request carries its token.
type carrier int

const (
	carrierNone carrier = iota
	carrierCookie
	carrierHeader
	carrierBearer
	carrierURL
)

// Beyond these limits a Cookie header is refused: net/http drops all cookies silently at more than 3000, and no
// browser or proxy in its default settings sends as many bytes.
const (
	maxCookies     = 3000
	maxCookieBytes = 32 << 10
)

// findToken returns the token of the request, "" if it has none. The first transport that the request uses counts: the
// cookie, then the header, then the URL.
func (x *exchange) findToken() (string, error) {
	m := x.m
	if !m.config.DisableCookie {
		c, err := m.cookie(x.r)
		if err != nil {
			return "", err
		}
		var room [2]string // more are not needed to know that there is more than one
		values, err := cookieValues(room[:0], x.r.Header["Cookie"], c.Name)
		if err != nil {
			m.emit(x.Context, &m.counters.oversized, Event{Kind: EventRefused, Cause: "oversized"})
			return "", err
		}
		if len(values) > 0 {
			x.carrier = carrierCookie
			token := x.only(values)
			if m.sealed() && strings.HasPrefix(token, chunkMark) {
				token = x.joinChunks(c.Name, token)
			}
			return token, nil
		}
	}
	if m.config.Header != "" {
		if values := x.r.Header.Values(m.config.Header); len(values) > 0 {
			x.carrier = carrierHeader
			return x.only(values), nil
		}
	}
	if m.config.Bearer {
		if token, ok := bearer(x.r); ok {
			x.carrier = carrierBearer
			return token, nil
		}
	}
	if len(x.urlTokens) > 0 {
		x.carrier = carrierURL
		return x.only(x.urlTokens), nil
	}
	return "", nil
}

// only returns the one value. Of two, either may be an attacker's: neither is taken.
func (x *exchange) only(values []string) string {
	if len(values) == 1 {
		return values[0]
	}
	return x.refuseDuplicate()
}

func (x *exchange) refuseDuplicate() string {
	x.duplicate = true
	x.m.emit(x.Context, &x.m.counters.duplicate, Event{Kind: EventRefused, Cause: "duplicate"})
	return ""
}

// cookieValues appends the values of all cookies of a name to values. Other than http.Request.Cookies it tells one
// that is absent from a header that is too large, and allocates nothing.
func cookieValues(values, lines []string, name string) ([]string, error) {
	count, size := 0, 0
	for _, line := range lines {
		if size += len(line); size > maxCookieBytes {
			return nil, fmt.Errorf("%w: more than %d bytes", ErrCookies, maxCookieBytes)
		}
		for more := true; more; {
			var pair string
			pair, line, more = strings.Cut(line, ";")
			if count++; count > maxCookies {
				return nil, fmt.Errorf("%w: more than %d cookies", ErrCookies, maxCookies)
			}
			n, v, ok := strings.Cut(strings.Trim(pair, " \t"), "=")
			if ok && n == name {
				values = append(values, v)
			}
		}
	}
	return values, nil
}

// bearer returns the token of an Authorization header of that scheme (RFC 6750, section 2.1).
func bearer(r *http.Request) (string, bool) {
	values := r.Header["Authorization"]
	if len(values) != 1 {
		return "", false
	}
	scheme, token, ok := strings.Cut(values[0], " ")
	return strings.TrimLeft(token, " "), ok && strings.EqualFold(scheme, "Bearer")
}

// A sealed token that is too long for one cookie is sent in several, of which the first has the session cookie's name
// and the others that name with ".1" to ".9" behind it. The first begins with "~", which no token does, the number of
// cookies as one digit, and a dot; then in each come 8 random characters that are the same in the cookies of one token, and a
// dot. So the parts of two tokens are never put together: the seal would tell, but not that a part is missing.
const (
	chunkMark = "~"
	chunkID   = 8
	maxChunks = 9

	// maxCookie is the longest name and value together that browsers keep (RFC 6265bis, section 5.6).
	maxCookie = 4096
)

// ChunkName returns the name of the cookie that carries part k of a sealed token, the first being 0, where name is that of the
// session's cookie as it is sent. It is for tools, like JoinToken.
func ChunkName(name string, k int) string {
	if k == 0 {
		return name
	}
	return name + "." + strconv.Itoa(k)
}

// splitToken returns the values of the cookies that a token is sent in, the first under the name itself.
func splitToken(name, token string) []string {
	if len(name)+len(token) <= maxCookie {
		return []string{token}
	}
	id := rand.Text()[:chunkID]
	first := maxCookie - len(name) - len("~2.") - chunkID - 1
	other := maxCookie - len(name) - len(".1") - chunkID - 1
	parts := []string{token[:first]}
	for rest := token[first:]; rest != ""; {
		n := min(len(rest), other)
		parts = append(parts, id+"."+rest[:n])
		rest = rest[n:]
	}
	parts[0] = chunkMark + strconv.Itoa(len(parts)) + "." + id + "." + parts[0]
	return parts
}

// Why several cookies are no token.
var (
	errIncomplete = errors.New("incomplete")
	errDuplicate  = errors.New("duplicate")
)

// joinChunks is JoinToken, with the events that it means.
func (x *exchange) joinChunks(name, first string) string {
	token, err := joinChunks(x.r.Header["Cookie"], name, first)
	switch {
	case errors.Is(err, errDuplicate):
		return x.refuseDuplicate()
	case err != nil:
		x.m.emit(x.Context, &x.m.counters.incomplete, Event{Kind: EventRefused, Cause: "incomplete"})
	}
	return token
}

// joinChunks returns the token whose first part came in the cookie of the name itself. The others are in the lines of the
// Cookie header, which findToken refuses if it is too large.
func joinChunks(lines []string, name, first string) (string, error) {
	const head = len("~2.") + chunkID + 1
	if len(first) < head || first[1] < '2' || first[1] > '0'+maxChunks || first[2] != '.' || first[head-1] != '.' {
		return "", fmt.Errorf("%w: cookie %s begins like the first part of a token in several cookies, and is none: it was cut off or changed", errIncomplete, name)
	}
	id, n := first[len("~2."):head-1], int(first[1]-'0')
	parts := make([]string, 1, maxChunks)
	parts[0] = first[head:]
	for k := 1; k < n; k++ {
		var room [2]string
		part := ChunkName(name, k)
		values, err := cookieValues(room[:0], lines, part)
		switch {
		case err != nil:
			return "", err
		case len(values) == 0:
			return "", fmt.Errorf("%w: cookie %s is missing: %s says that the token is in %d cookies", errIncomplete, part, name, n)
		case len(values) > 1:
			return "", fmt.Errorf("%w: cookie %s is there more than once", errDuplicate, part)
		case len(values[0]) <= chunkID || values[0][:chunkID] != id || values[0][chunkID] != '.':
			return "", fmt.Errorf("%w: cookie %s is part of another token than %s: one was kept from an earlier answer", errIncomplete, part, name)
		}
		parts = append(parts, values[0][chunkID+1:])
	}
	return strings.Join(parts, ""), nil
}

// JoinToken returns the sealed token that the lines of a Cookie header carry in the cookie of a name, as it is sent, or in
// several whose names begin with it: what a Manager reads from them. It is for tools that explain tokens. The error says
// which cookie is missing, there twice, or part of another token; it matches ErrNotFound if there is no cookie of the name.
func JoinToken(name string, lines []string) (string, error) {
	values, err := cookieValues(nil, lines, name)
	switch {
	case err != nil:
		return "", err
	case len(values) == 0:
		return "", fmt.Errorf("%w: no cookie %s", ErrNotFound, name)
	case len(values) > 1:
		return "", fmt.Errorf("%w: cookie %s is there more than once", errDuplicate, name)
	case strings.HasPrefix(values[0], chunkMark):
		return joinChunks(lines, name, values[0])
	}
	return values[0], nil
}

// mostChunks returns in how many cookies a token can be at most.
func (m *Manager) mostChunks(name string) int {
	other := maxCookie - len(name) - len(".1") - chunkID - 1
	return (m.maxToken + other) / other // the first has room for one character less
}

// dropChunks has the browser drop the cookies of an earlier token that the one sent now has no use for: all that it
// sent, from number k on, and all below number unseen.
func (x *exchange) dropChunks(c sentCookie, k, unseen int) {
	name := c.Name
	came := x.chunksSent(name)
	for ; k <= maxChunks; k++ {
		if k < unseen || came[k] {
			c.Name = ChunkName(name, k)
			x.Header().Add("Set-Cookie", c.header("", -1))
		}
	}
}

// chunksSent reports which parts of a token the request has.
func (x *exchange) chunksSent(name string) (came [maxChunks + 1]bool) {
	for _, line := range x.r.Header["Cookie"] {
		for rest, more := line, true; more; {
			var pair string
			pair, rest, more = strings.Cut(rest, ";")
			part, ok := strings.CutPrefix(strings.TrimLeft(pair, " \t"), name+".")
			if ok && len(part) > 1 && part[1] == '=' && part[0] > '0' && part[0] <= '0'+maxChunks {
				came[part[0]-'0'] = true
			}
		}
	}
	return came
}

// binding is what a sealed token of the request is bound to: what carries it, and for which tenant.
func (x *exchange) binding() string {
	m := x.m
	if x.carrier != carrierHeader && x.carrier != carrierBearer && !m.config.DisableCookie {
		c, _ := m.cookie(x.r) // findToken refused what is not valid
		return Binding(c.Name, c.Tenant)
	}
	tenant := m.config.Cookie.Tenant
	if m.config.CookieFor != nil {
		tenant = m.config.CookieFor(x.r).Tenant
	}
	return Binding("", tenant)
}

// Binding returns what a sealed token is bound to, besides the settings of its Sealer: the name of the cookie that it is
// in, as it is sent, or "" if it is in a header, and the tenant, as Cookie.Tenant has it. It is for tools that explain tokens.
func Binding(cookie, tenant string) string {
	if cookie == "" {
		cookie = "\x00header" // which is no cookie's name
	}
	if tenant == "" {
		return cookie
	}
	return cookie + "\x00" + tenant
}

// sentCookie is a Cookie with its prefix in Name.
type sentCookie struct {
	Cookie
	secure bool
}

// cookie returns the cookie settings for a request.
func (m *Manager) cookie(r *http.Request) (sentCookie, error) {
	c := m.config.Cookie
	if m.config.CookieFor != nil {
		c = m.config.CookieFor(r).withDefaults()
		if err := c.validate(); err != nil {
			return sentCookie{}, fmt.Errorf("CookieFor: %w", err)
		}
	}
	if c.AllowPlainLocalhost && r.TLS == nil && isLoopback(r.Host) {
		return sentCookie{Cookie: c}, nil
	}
	if m.config.CookieFor == nil {
		return m.secureCookie, nil
	}
	return c.prefixed(), nil
}

// prefixed returns c as it is sent where it is Secure.
func (c Cookie) prefixed() sentCookie {
	switch {
	case c.NoPrefix:
	case c.Domain == "" && c.Path == "/":
		c.Name = "__Host-Http-" + c.Name
	default:
		c.Name = "__Secure-" + c.Name
	}
	return sentCookie{Cookie: c, secure: true}
}

// isLoopback reports whether a Host header names this machine.
func isLoopback(host string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	if strings.EqualFold(host, "localhost") {
		return true
	}
	ip := net.ParseIP(strings.Trim(host, "[]"))
	return ip != nil && ip.IsLoopback()
}

// header returns the cookie as a Set-Cookie header. The value is a token or a part of one, which has no characters that a
// cookie may not have: net/http, which looks at each, would take as long as to seal it.
func (c sentCookie) header(value string, maxAge int) string {
	h := http.Cookie{
		Name: c.Name, Path: c.Path, Domain: c.Domain, MaxAge: maxAge,
		Secure: c.secure, HttpOnly: true, SameSite: c.SameSite, Partitioned: c.Partitioned && c.secure,
	}
	line := h.String()
	at := len(c.Name) + len("=")
	return line[:at] + value + line[at:]
}

// completeHeader adds what the session means to the response: its token, and who may keep a copy.
func (x *exchange) completeHeader(s *Session) {
	x.protectAddress()
	if !s.loaded {
		return
	}
	m, h := x.m, x.Header()
	if x.send && m.sealed() {
		m.counters.seals.Add(1)
	}
	if !m.config.DisableCookie {
		addVary(h, "Cookie", &s.vary)
	}
	if m.config.Header != "" {
		addVary(h, m.config.Header, &s.vary)
	}
	if x.send || x.clear || x.duplicate {
		h.Set("Cache-Control", "no-store")
	} else {
		makePrivate(h, &s.private)
	}
	if x.clear && m.config.ClearSiteData {
		what := `"cookies", "storage"`
		if x.send { // "cookies" would take the new one along
			what = `"storage"`
		}
		h.Set("Clear-Site-Data", what)
	}
	if m.config.Bearer {
		addVary(h, "Authorization", &s.vary)
	}
	if m.config.Bearer && (x.carrier == carrierBearer || m.config.DisableCookie && m.config.Header == "") {
		if x.send {
			h.Set("Authorization", "Bearer "+s.token)
		}
		return
	}
	if m.config.Header != "" && (x.carrier == carrierHeader || m.config.DisableCookie) {
		if x.send {
			h.Set(m.config.Header, s.token)
		} else if x.clear {
			h.Set(m.config.Header, "")
		}
		return
	}
	if m.config.DisableCookie || !x.send && !x.clear && !x.duplicate {
		return
	}
	c, err := m.cookie(x.r)
	if err != nil {
		return // findToken refused it
	}
	if x.duplicate && x.carrier == carrierCookie {
		x.expireVariants(c)
		for k := 1; m.sealed() && k <= maxChunks; k++ {
			chunk := c
			chunk.Name = ChunkName(c.Name, k)
			var room [2]string
			if values, _ := cookieValues(room[:0], x.r.Header["Cookie"], chunk.Name); len(values) > 1 { // findToken refused a header too large
				x.expireVariants(chunk)
			}
		}
	}
	switch {
	case x.send:
		m.warnPlain(x.r, c)
		maxAge := 0
		if s.policy.Persistent {
			end := s.record.Created.Add(s.policy.Lifetime)
			maxAge = max(1, int(min(time.Until(end), maxCookieAge)/time.Second))
		}
		if !m.sealed() {
			h.Add("Set-Cookie", c.header(s.token, maxAge))
			break
		}
		parts := splitToken(c.Name, s.token)
		for k, part := range parts {
			chunk := c
			chunk.Name = ChunkName(c.Name, k)
			h.Add("Set-Cookie", chunk.header(part, maxAge))
		}
		x.dropChunks(c, len(parts), 0)
	case x.clear:
		h.Add("Set-Cookie", c.header("", -1))
		if m.sealed() {
			// Also those that the browser has got since: from the answer to a request beside this one.
			x.dropChunks(c, 1, m.mostChunks(c.Name))
		}
	}
}

// protectAddress keeps a token in the address of this page, or in those it links to, out of caches and Referer headers.
func (x *exchange) protectAddress() {
	if x.inURL || len(x.urlTokens) > 0 {
		x.Header().Set("Cache-Control", "no-store")
		x.Header().Set("Referrer-Policy", "no-referrer")
	}
}

// expireVariants has the browser drop every cookie of the name that it may have sent: of this host and of the domains
// above, one of which may be an attacker's, for the request's path and those above it. It spares the one that the
// response sets itself.
func (x *exchange) expireVariants(c sentCookie) {
	own := c.Cookie
	host := x.r.Host
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	domains := []string{""}
	if net.ParseIP(strings.Trim(host, "[]")) == nil {
		for d := host; strings.Contains(d, ".") && len(domains) < 6; _, d, _ = strings.Cut(d, ".") {
			domains = append(domains, d)
		}
	}
	paths := pathsAbove(x.r.URL.EscapedPath())
	if !slices.Contains(paths, own.Path) {
		paths = append(paths, own.Path)
	}
	for _, c.Domain = range domains {
		for _, c.Path = range paths {
			if (x.send || x.clear) && c.Domain == own.Domain && c.Path == own.Path {
				continue
			}
			x.Header().Add("Set-Cookie", c.header("", -1))
		}
	}
}

// pathsAbove returns the cookie paths that match a request's path (RFC 6265, section 5.1.4), the shortest first and not
// too many of them.
func pathsAbove(path string) []string {
	paths := []string{"/"}
	for i := 1; i < len(path) && len(paths) < 16; i++ {
		if path[i] == '/' {
			paths = append(paths, path[:i], path[:i+1])
		}
	}
	if !slices.Contains(paths, path) && strings.HasPrefix(path, "/") {
		paths = append(paths, path)
	}
	return paths
}

// warnPlain says once why a cookie may not come back.
func (m *Manager) warnPlain(r *http.Request, c sentCookie) {
	if c.secure && r.TLS == nil && isLoopback(r.Host) && r.Header.Get("X-Forwarded-Proto") == "" && m.warnedPlain.CompareAndSwap(false, true) {
		m.config.Logger.Warn("session cookie is Secure and this is plain http on localhost: some browsers do not send it back; set Config.Cookie.AllowPlainLocalhost for development")
	}
}

// addVary adds name to the Vary header unless it is there. The first line is kept in room.
func addVary(h http.Header, name string, room *[1]string) {
	for _, line := range h["Vary"] {
		for part := range strings.SplitSeq(line, ",") {
			if part = strings.TrimSpace(part); part == "*" || strings.EqualFold(part, name) {
				return
			}
		}
	}
	if len(h["Vary"]) > 0 {
		h.Add("Vary", name)
		return
	}
	room[0] = name
	h["Vary"] = room[:]
}

// makePrivate keeps shared caches from storing the response, unless the handler said so already. Shared caches lose
// their directives, the browser's stay. The usual line is kept in room.
func makePrivate(h http.Header, room *[1]string) {
	lines := h["Cache-Control"]
	if len(lines) == 0 {
		room[0] = "private"
		h["Cache-Control"] = room[:]
		return
	}
	kept := []string{"private"}
	for _, line := range lines {
		for part := range strings.SplitSeq(line, ",") {
			part = strings.TrimSpace(part)
			name, _, qualified := strings.Cut(strings.ToLower(part), "=")
			switch {
			case name == "no-store", name == "private" && !qualified:
				return
			case part == "", name == "public", name == "s-maxage", name == "private", name == "proxy-revalidate":
			default:
				kept = append(kept, part)
			}
		}
	}
	h.Set("Cache-Control", strings.Join(kept, ", "))
}

// takeURLToken takes the tokens out of the request's address, so that no handler logs or links to it.
func (x *exchange) takeURLToken(r *http.Request) *http.Request {
	name := x.m.config.URLParameter
	if !strings.Contains(r.URL.RawQuery, name) {
		return r
	}
	var rest []string
	for part := range strings.SplitSeq(r.URL.RawQuery, "&") {
		key, value, _ := strings.Cut(part, "=")
		if k, err := url.QueryUnescape(key); err != nil || k != name {
			rest = append(rest, part)
			continue
		}
		x.urlTokens = append(x.urlTokens, value)
	}
	if len(x.urlTokens) == 0 {
		return r
	}
	u := *r.URL
	u.RawQuery = strings.Join(rest, "&")
	r.URL = &u
	r.RequestURI = u.RequestURI()
	return r
}

// URL returns path, an address on this site, with the token of r's session added where the client needs it: where
// Config.URLParameter is on and the request did not bring the token in a cookie. Use it for every link, form and
// redirect that such clients follow. Addresses of other sites are returned as they are.
//
// The response gets Referrer-Policy: no-referrer and Cache-Control: no-store; it must not be started yet.
func (m *Manager) URL(r *http.Request, path string) string {
	x, ok := r.Context().Value(m).(*exchange)
	if !ok || m.config.URLParameter == "" {
		return path
	}
	u, err := url.Parse(path)
	if err != nil || !leadsHere(u, path, r.Host) {
		return path
	}
	s := x.use()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.load()
	starts := s.err == nil && s.lost == "" && s.record.Revision == 0 && len(s.pending) > 0 && x.phase.Load() == phaseOpen
	if starts && s.token == "" {
		if err := s.mint(); err != nil {
			return path // storing the session fails likewise, and says why
		}
	}
	if s.token == "" || x.carrier == carrierCookie || u.Query().Has(m.config.URLParameter) {
		return path
	}
	x.inURL = true
	q := m.config.URLParameter + "=" + s.token
	if u.RawQuery != "" {
		q = u.RawQuery + "&" + q
	}
	u.RawQuery = q
	return u.String()
}

// leadsHere reports whether an address, parsed as u, is one of this host for browsers too. They take a backslash for a
// slash, and whatever number of slashes for the two before a host (WHATWG URL Standard).
func leadsHere(u *url.URL, address, host string) bool {
	switch {
	case u.Opaque != "":
		return false
	case u.Host != "":
		return u.Host == host && (u.Scheme == "" || u.Scheme == "http" || u.Scheme == "https")
	}
	return u.Scheme == "" && !strings.HasPrefix(strings.ReplaceAll(address, `\`, "/"), "//")
}
