package holdfast

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"time"
)

// Config configures a Manager. The zero value of every field means the default that its comment states.
type Config struct {
	// IdleTimeout ends a session that was not used for so long. Default 30 minutes, or Lifetime if that is
	// shorter. It is extended at most every twentieth of itself, so a session may end that much early.
	IdleTimeout time.Duration
	// Lifetime ends a session so long after it was made or logged in, used or not. Default 12 hours.
	Lifetime time.Duration

	// Cookie says how the session cookie looks. Ignored where CookieFor is set.
	Cookie Cookie
	// CookieFor returns the cookie settings for a request, for applications that serve several tenants. It must
	// answer the same for all requests of a tenant.
	CookieFor func(*http.Request) Cookie
	// DisableCookie switches the cookie off; Header or URLParameter must be set then.
	DisableCookie bool
	// Header names a request header that may carry the token, for API clients, such as "X-Auth-Token". A client
	// that wants its token there sends the header, empty at first; the response carries the new token in a header
	// of the same name. Default: off.
	Header string
	// URLParameter names a query parameter that may carry the token, for clients without cookies; see Manager.URL.
	// Addresses are copied, shared and logged: switch it on only where such clients must be served. Default: off.
	URLParameter string

	// MaxSessions is how many sessions a user can have at once. Default 100; negative: no limit. At the limit, a
	// login ends the oldest.
	MaxSessions int
	// RefuseAtLimit makes a login at the limit fail with ErrLimit instead.
	RefuseAtLimit bool
	// MaxBytes is the largest encoded session. Default 1 MiB, or what the store accepts if that is less.
	MaxBytes int
	// StoreTimeout bounds the work one call of the Manager does in the store, retries included. Default 3 seconds.
	StoreTimeout time.Duration

	// Strict, for sealed sessions, keeps a record of each with its latest revision in the store, so that a token from
	// before the latest is refused, Field.Update works, and a session that is logged out is over in the same moment
	// everywhere. It costs what NewSealed saves: a load per request that uses its session, and a save per change. And a
	// client that never gets the answer to a request that changed or extended its session, as the server was killed or the
	// network failed, is left with a token from before: it has lost the session.
	Strict bool
	// FailOpen, for sealed sessions, accepts those that are logged in while the store of user records cannot answer.
	// Whoever was logged out by force or whose token was stolen stays in for as long. Default: such requests fail with
	// ErrUnavailable, as they do where the session itself is in a store.
	FailOpen bool
	// Spill, for sealed sessions, moves the largest fields of a session that does not fit into its token to the store, as
	// long as it does not. Requests with such a session load them, and where the store has dropped them the session is
	// over. Default: ErrTooLarge.
	Spill bool
	// Bearer takes the token of sealed sessions from "Authorization: Bearer", for API clients, where the request has no
	// session cookie. A new token is in the same header of the response. Default: off.
	Bearer bool

	// ValueKeys encrypt the values of fields in the store, with AES-256-GCM bound to session and field name. Each has
	// 32 random bytes. The first encrypts, all decrypt. Default: values are stored as plain JSON.
	ValueKeys [][]byte
	// AcceptPlainValues reads values that were stored before ValueKeys was set. Without it they are ErrTampered.
	AcceptPlainValues bool

	// ClearSiteData makes Logout send Clear-Site-Data, so that the browser drops all it keeps for the site.
	ClearSiteData bool

	// OnEvent is called after something happened to a session, during the request that did it: it must be quick.
	OnEvent func(context.Context, Event)
	// OnError answers a request whose session could not be saved: nothing is written yet, and the header is empty, but
	// for the token where a login was stored before. It must answer; an error it leaves unanswered becomes an empty 200.
	// Default: Manager.Error.
	OnError func(http.ResponseWriter, *http.Request, error)
	// Logger gets what an operator should act on. Default: slog.Default().
	Logger *slog.Logger
	// Rand is the source of tokens. Default: crypto/rand. If it fails, no session starts.
	Rand io.Reader
}

// Cookie says how the session cookie looks. It is always HttpOnly.
type Cookie struct {
	// Name is the base name, default "session". What is sent starts with "__Host-Http-", or with "__Secure-" where
	// Domain or Path is set, so that browsers hold the cookie to its rules (RFC 6265bis).
	Name string
	// NoPrefix sends the base name alone, for a cookie that other software reads.
	NoPrefix bool
	// Domain shares the cookie with all subdomains, for example "example.com". Default: this host only.
	Domain string
	// Path limits the cookie to a path. Default "/".
	Path string
	// SameSite defaults to http.SameSiteLaxMode.
	SameSite http.SameSite
	// Partitioned keeps one cookie per embedding site (CHIPS). It needs SameSite=None.
	Partitioned bool
	// AllowPlainLocalhost drops Secure and the prefix where a plain http request names a loopback host, because not
	// every browser sends Secure cookies there. For demonstrations and development: behind a proxy that rewrites
	// Host to a loopback address, it would drop them for everybody.
	AllowPlainLocalhost bool
	// Tenant is sealed into sealed sessions, beside the name: a token of one tenant is refused at another, however their
	// cookies are called. Up to 256 bytes.
	Tenant string
}

func (c Config) withDefaults() Config {
	if c.Lifetime == 0 {
		c.Lifetime = 12 * time.Hour
	}
	if c.IdleTimeout == 0 {
		c.IdleTimeout = min(30*time.Minute, c.Lifetime)
	}
	c.Cookie = c.Cookie.withDefaults()
	if c.MaxSessions == 0 {
		c.MaxSessions = 100
	}
	if c.MaxBytes == 0 {
		c.MaxBytes = 1 << 20
	}
	if c.StoreTimeout == 0 {
		c.StoreTimeout = 3 * time.Second
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	if c.Rand == nil {
		c.Rand = rand.Reader
	}
	return c
}

func (c Cookie) withDefaults() Cookie {
	if c.Name == "" {
		c.Name = "session"
	}
	if c.Path == "" {
		c.Path = "/"
	}
	if c.SameSite == 0 || c.SameSite == http.SameSiteDefaultMode {
		c.SameSite = http.SameSiteLaxMode
	}
	return c
}

// maxCookieAge is the longest lifetime browsers keep a cookie for (RFC 6265bis, section 5.5).
const maxCookieAge = 400 * 24 * time.Hour

// Validate reports every field that cannot be used, at once. New and NewSealed call it.
func (c Config) Validate() error {
	c = c.withDefaults()
	var errs []error
	bad := func(format string, a ...any) { errs = append(errs, fmt.Errorf("holdfast config: "+format, a...)) }
	if c.Lifetime < time.Second {
		bad("Lifetime is %v: want at least 1s", c.Lifetime)
	}
	if c.IdleTimeout < time.Second || c.IdleTimeout > c.Lifetime {
		bad("IdleTimeout is %v: want 1s to Lifetime (%v)", c.IdleTimeout, c.Lifetime)
	}
	if c.MaxBytes < 1024 {
		bad("MaxBytes is %d: want at least 1024", c.MaxBytes)
	}
	if c.StoreTimeout < 0 {
		bad("StoreTimeout is %v: want more than 0", c.StoreTimeout)
	}
	if c.DisableCookie && c.Header == "" && c.URLParameter == "" && !c.Bearer {
		bad("DisableCookie leaves no way to carry the token: set Header, URLParameter or Bearer")
	}
	switch name := http.CanonicalHeaderKey(c.Header); name {
	case "Authorization", "Cookie", "Set-Cookie", "Host":
		bad("Header is %s, which has a meaning of its own: choose another, such as X-Auth-Token", name)
	default:
		if !isToken(c.Header) && c.Header != "" {
			bad("Header %q is not a header name", c.Header)
		}
	}
	if c.URLParameter != "" && !isToken(c.URLParameter) {
		bad("URLParameter %q is not a plain name", c.URLParameter)
	}
	for i, k := range c.ValueKeys {
		if len(k) != valueKeyBytes {
			bad("ValueKeys[%d] has %d bytes: want %d random ones", i, len(k), valueKeyBytes)
		} else if strings.Count(string(k), string(k[:1])) == len(k) {
			bad("ValueKeys[%d] is one byte repeated: want random bytes", i)
		}
	}
	if err := c.Cookie.validate(); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (c Cookie) validate() error {
	var errs []error
	bad := func(format string, a ...any) {
		errs = append(errs, fmt.Errorf("holdfast config: Cookie."+format, a...))
	}
	if !isToken(c.Name) {
		bad("Name %q is not a cookie name (RFC 6265: letters, digits and !#$%%&'*+-.^_`|~)", c.Name)
	}
	if strings.HasPrefix(c.Name, "__") {
		bad("Name %q: the prefix is added by itself, leave it out (or set NoPrefix and choose a name without one)", c.Name)
	}
	if len(c.Tenant) > 256 {
		bad("Tenant has %d bytes: want at most 256", len(c.Tenant))
	}
	if len(c.Name) > 256 || len(c.Domain) > 1024 || len(c.Path) > 1024 {
		bad("Name, Domain or Path is longer than browsers keep (256, 1024, 1024 bytes)")
	}
	// net/http leaves out a Domain or Path that it does not know, so that the cookie would go elsewhere.
	if (&http.Cookie{Name: "x", Domain: c.Domain}).Valid() != nil && c.Domain != "" {
		bad("Domain %q is not a domain name", c.Domain)
	}
	if !strings.HasPrefix(c.Path, "/") || (&http.Cookie{Name: "x", Path: c.Path}).Valid() != nil {
		bad("Path %q: want a path that starts with /", c.Path)
	}
	if c.Partitioned && c.SameSite != http.SameSiteNoneMode {
		bad("Partitioned needs SameSite: http.SameSiteNoneMode")
	}
	return errors.Join(errs...)
}

// isToken reports whether s is a token of RFC 9110, as header and cookie names are.
func isToken(s string) bool {
	for i := range len(s) {
		c := s[i]
		alnum := '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
		if !alnum && !strings.ContainsRune("!#$%&'*+-.^_`|~", rune(c)) {
			return false
		}
	}
	return s != ""
}
