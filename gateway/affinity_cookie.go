package gateway

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"math"
	"net/http"
	"time"

	"github.com/holdfast-sessions/holdfast/gateway/internal/mac"
)

// cookieAffinity keeps a client on an upstream by a cookie. Its value is the unpadded base64url of 30 bytes:
//
//	 0      version, 2
//	 1..5   when the client was bound, in seconds since 1970, big-endian
//	 6..13  name of the upstream: first 8 bytes of HMAC-SHA256(k1, upstream ID)
//	14..29  first 16 bytes of HMAC-SHA256(k2, bytes 0..13 + upstream ID)
//
// where k1 = HMAC-SHA256(key, "holdfast affinity v2 name") and k2 = HMAC-SHA256(key, "holdfast affinity v2"). It tells no
// address and no ID, and nobody without the key can make one. Every gateway with the key knows it, without a table of
// clients. The date bounds how long a cookie counts (Cookie.MaxAge), and of two cookies the newer counts.
//
// A value of version 1, 16 bytes, is read too: HMAC-SHA256(key, "holdfast affinity v1\x00" + upstream ID). It has no date.
type cookieAffinity struct {
	cookie    Cookie
	secure    string // its name where it is Secure
	mac       *mac.MAC
	upstreams map[[8]byte]*named // by name in version 2, and by the first bytes of version 1
	names     map[*upstream]*named
}

type named struct {
	*upstream
	name    [8]byte
	undated [16]byte // version 1
}

const (
	cookieVersion = 2
	rawCookie     = 30
	rawCookieV1   = 16
	cookieChars   = rawCookie * 4 / 3           // 40
	cookieCharsV1 = (rawCookieV1*8 + 6 - 1) / 6 // 22
	// maxCopies is how many cookies of its name are looked at. A browser has one.
	maxCopies = 4
)

func newCookieAffinity(c Cookie, key []byte, upstreams []*upstream) *cookieAffinity {
	a := &cookieAffinity{
		cookie: c, secure: "__Host-" + c.Name, mac: mac.New(key, "holdfast affinity v2"),
		upstreams: make(map[[8]byte]*named), names: make(map[*upstream]*named),
	}
	names := mac.New(key, "holdfast affinity v2 name")
	for _, u := range upstreams {
		sum := names.Sum(nil, u.id)
		n := &named{upstream: u, name: [8]byte(sum[:])}
		h := hmac.New(sha256.New, key)
		h.Write([]byte("holdfast affinity v1\x00" + u.id))
		copy(n.undated[:], h.Sum(nil))
		a.names[u] = n
		a.upstreams[n.name] = n
		a.upstreams[[8]byte(n.undated[:])] = n
	}
	return a
}

func (*cookieAffinity) binds() bool { return true }

// name returns what the cookie is called on this request, and whether it is Secure.
func (a *cookieAffinity) name(r *http.Request) (name string, secure bool) {
	if a.cookie.AllowPlainLocalhost && plainLocalhost(r) {
		return a.cookie.Name, false
	}
	return a.secure, true
}

// value returns the value of the cookie that binds a client to u from a moment on.
func (a *cookieAffinity) value(u *upstream, at time.Time) string {
	n := a.names[u]
	raw := append(make([]byte, 0, rawCookie), cookieVersion)
	s := at.Unix()
	raw = append(raw, byte(s>>32), byte(s>>24), byte(s>>16), byte(s>>8), byte(s))
	raw = append(raw, n.name[:]...)
	sum := a.mac.Sum(raw, u.id)
	return base64.RawURLEncoding.EncodeToString(append(raw, sum[:16]...))
}

// home is what an affinity cookie says of its client.
type home struct {
	to   *upstream // nil: nothing
	date int64     // in seconds since 1970; 0: undated
}

// read returns what the value of a cookie says.
func (a *cookieAffinity) read(v string) home {
	if len(v) != cookieChars && len(v) != cookieCharsV1 {
		return home{}
	}
	var text [cookieChars]byte
	var raw [rawCookie]byte
	copy(text[:], v)
	n, err := strictBase64.Decode(raw[:], text[:len(v)])
	switch {
	case err != nil:
	case n == rawCookieV1:
		if u := a.upstreams[[8]byte(raw[:8])]; u != nil && subtle.ConstantTimeCompare(raw[:n], u.undated[:]) == 1 {
			return home{to: u.upstream}
		}
	case n == rawCookie && raw[0] == cookieVersion:
		if u := a.upstreams[[8]byte(raw[6:14])]; u != nil {
			if sum := a.mac.Sum(raw[:14], u.id); subtle.ConstantTimeCompare(raw[14:], sum[:16]) == 1 {
				return home{u.upstream, int64(raw[1])<<32 | int64(raw[2])<<24 | int64(raw[3])<<16 | int64(raw[4])<<8 | int64(raw[5])}
			}
		}
	}
	return home{}
}

// strictBase64 refuses two spellings of one value.
var strictBase64 = base64.RawURLEncoding.Strict()

// known keeps what home found out, for the next who asks about the same request.
type known struct {
	by   *cookieAffinity // nil: nothing
	home home
}

// home returns the home of r's client, if it has one.
func (a *cookieAffinity) home(r *http.Request) home {
	x, ok := r.Context().Value(exchangeKey{}).(*exchange)
	if !ok {
		return a.newest(r)
	}
	if x.known.by != a {
		x.known = known{a, a.newest(r)}
	}
	return x.known.home
}

// newest returns what the newest cookie of r's client says that still counts. One that is further in the future than MaxAge, by
// a clock that was wrong, counts no longer than one of the past.
func (a *cookieAffinity) newest(r *http.Request) (newest home) {
	name, _ := a.name(r)
	copies := 0
	for v := range cookies(r.Header, name) {
		if copies++; copies > maxCopies {
			break
		}
		b := a.read(v)
		if b.to == nil || newest.to != nil && b.date <= newest.date {
			continue
		}
		if m := a.cookie.MaxAge; m > 0 && b.date != 0 && math.Abs(float64(time.Now().Unix()-b.date)) > m.Seconds() {
			continue
		}
		newest = b
	}
	return newest
}

func (a *cookieAffinity) prefer(r *http.Request, ok func(*upstream) bool, say *steps) *upstream {
	u := a.home(r).to
	switch {
	case u == nil:
		if say != nil {
			say.add("no affinity cookie of this gateway's key: the client belongs to no upstream yet")
		}
		return nil
	case !ok(u):
		if say != nil {
			say.add("the affinity cookie names upstream %s, which takes no requests of this client now", u.id)
		}
		return nil
	}
	if say != nil {
		say.add("the affinity cookie names upstream %s", u.id)
	}
	return u
}

func (a *cookieAffinity) answered(r *http.Request, u *upstream, res *http.Response) {
	// A cache in front would add what a 304 carries to the page it keeps for everybody.
	if res.StatusCode != http.StatusNotModified && a.changes(a.home(r), u) {
		a.bind(r, u, res.Header, like{lifetime: a.cookie.MaxAge})
	}
}

// changes reports whether a client with this home needs another cookie to belong to u.
func (a *cookieAffinity) changes(b home, u *upstream) bool {
	return b.to != u || b.date == 0 && a.cookie.MaxAge > 0
}

// like says what of the affinity cookie is as of another one.
type like struct {
	lifetime    time.Duration // 0: until the browser ends
	sameSite    http.SameSite // of interest is only None
	partitioned bool
}

// bind tells the client of r that u is its upstream from now on. The answer becomes one that no cache keeps: a shared
// one would hand the cookie to others.
func (a *cookieAffinity) bind(r *http.Request, u *upstream, answer http.Header, l like) {
	a.set(r, answer, a.value(u, time.Now()), int(l.lifetime/time.Second), l)
}

// unbind takes the cookie back.
func (a *cookieAffinity) unbind(r *http.Request, answer http.Header, l like) {
	a.set(r, answer, "", -1, l)
}

func (a *cookieAffinity) set(r *http.Request, answer http.Header, value string, maxAge int, l like) {
	name, secure := a.name(r)
	c := http.Cookie{
		Name: name, Value: value, Path: "/", MaxAge: maxAge, Secure: secure, HttpOnly: true, SameSite: http.SameSiteLaxMode,
	}
	if secure { // or browsers refuse both
		c.Partitioned = l.partitioned
		if l.sameSite == http.SameSiteNoneMode {
			c.SameSite = l.sameSite
		}
	}
	answer.Add("Set-Cookie", c.String())
	answer.Set("Cache-Control", "no-store")
	answer.Del("CDN-Cache-Control") // these two overrule Cache-Control in the caches that know them
	answer.Del("Surrogate-Control")
}

// strip removes the cookie from the header that goes to an upstream.
func (a *cookieAffinity) strip(h http.Header) {
	removeCookies(h, a.secure, a.cookie.Name)
}
