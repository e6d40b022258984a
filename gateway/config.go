package gateway

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// Upstream is an application server behind the gateway.
type Upstream struct {
	// ID is what the affinity cookie names, so it must stay the same when the order or the number of the upstreams
	// changes: 1 to 64 of A-Z a-z 0-9 . _ -. Empty: 8 characters of a hash of URL.
	ID string
	// URL is http://host:port or https://host:port, with a path if the application lives under one.
	URL string

	// Resolve makes every address that the name in URL has an upstream of its own, with an ID made of this one and the
	// address. The name is looked up by Run, again every Config.ResolveEvery, and when it comes with a Reload. Without
	// it, the name is looked up for each connection, and its addresses are one upstream.
	Resolve bool
	// Weight is how many clients it gets for each one of an upstream of weight 1: 1 to 1000. Default 1.
	Weight int
	// Zone is where it stands, such as a data centre. See Config.Zone.
	Zone string
	// MaxRequests is how many requests it gets at once, WebSockets and event streams included; more wait, see
	// Config.MaxQueued. 0: no limit.
	MaxRequests int

	// Route is what AffinityRoute finds in session IDs, such as Tomcat's jvmRoute: like an ID. Default: ID.
	Route string
}

// ParseUpstream reads URL or ID=URL, as on a command line. New checks what it returns.
func ParseUpstream(s string) Upstream {
	if id, u, ok := strings.Cut(s, "="); ok && !strings.ContainsAny(id, ":/") {
		return Upstream{ID: id, URL: u}
	}
	return Upstream{URL: s}
}

// Cookie is how the affinity cookie looks. It is always HttpOnly, SameSite=Lax and Path=/.
type Cookie struct {
	// Name is "holdfast-upstream" if empty. The cookie is called __Host-Name and is Secure.
	Name string
	// MaxAge bounds how long a client is kept on an upstream, from when it came there, however active it is; then it is
	// assigned anew. 0: for ever. With AffinityCookie the browser keeps the cookie for that long, or if 0 until it
	// ends; with AffinitySession for as long as the application's.
	MaxAge time.Duration
	// AllowPlainLocalhost calls it Name, not Secure, on plain HTTP to a loopback host (localhost, 127.0.0.1, ::1), and
	// expects the same of the application's session cookie: set it as in holdfast.Cookie.
	AllowPlainLocalhost bool
}

// Config is what a Gateway is made of. Only Upstreams is required.
type Config struct {
	// Upstreams are the application servers, at least one.
	Upstreams []Upstream
	// Affinity is AffinityNone if empty.
	Affinity Affinity
	// Key makes affinity cookies, and hashes that nobody else can foresee: 32 random bytes, the same on every gateway in
	// front of these upstreams and across restarts. Required for AffinityCookie and AffinitySession; without it, clients
	// of AffinityHash and AffinityRoute can work out values that all go to one upstream.
	Key []byte
	// Cookie is the affinity cookie.
	Cookie Cookie

	// SessionCookies are the names under which the application keeps its session token; the first that a request
	// carries counts. Empty: the library's, which is __Host-Http-session, and session where AllowPlainLocalhost applies.
	SessionCookies []string
	// DisableSessionCookie says that the application does not keep its token in a cookie.
	DisableSessionCookie bool
	// SessionHeader and SessionParameter are the header and the URL parameter that hold the token of a client
	// without cookies. Empty: not looked at.
	SessionHeader, SessionParameter string

	// SessionPathParameter is a path parameter that holds it, such as jsessionid in /cart;jsessionid=.... Empty: not
	// looked at. It is for AffinitySession and AffinityRoute.
	SessionPathParameter string
	// SessionByAddress is for AffinitySession: a client whose upstream is not known goes by a hash of its address, not by
	// Balance. So an application that tells session IDs in pages only, which the gateway does not read, finds its clients
	// again, and several gateways agree on clients without cookies; but all clients behind one address begin on one upstream.
	SessionByAddress bool
	// LearnedEntries is how many sessions of clients without cookies AffinitySession remembers, at up to 160 bytes each.
	// Default 100,000. The least recently used make room, those that were used only once first.
	LearnedEntries int
	// LearnedIdle is for how long one is remembered that is not used: as long as the application's session timeout.
	// Default 2 h.
	LearnedIdle time.Duration
	// RouteSeparator is between session ID and route: one of . ! : ~ - _ | . Default ".".
	RouteSeparator string
	// Hash is what AffinityHash hashes.
	Hash HashOf
	// UpstreamHeader is the header in which, for AffinityHeader, one of TrustedProxies names the upstream. It is
	// stripped.
	UpstreamHeader string
	// TrustedProxies are the addresses of proxies in front. What they say about their clients in X-Forwarded-For,
	// X-Forwarded-Proto and X-Forwarded-Host is believed, so they must set or strip all three. Of all others, nothing is.
	TrustedProxies []netip.Prefix
	// UseForwarded says that the trusted proxies use Forwarded (RFC 7239), and not X-Forwarded-*.
	UseForwarded bool
	// ProxyProtocol says that the trusted proxies begin each connection with a header of the PROXY protocol, version 1 or
	// 2. A connection of theirs without one is closed.
	ProxyProtocol bool

	// SignatureKey signs X-Session-Id, so that applications can tell that it comes from a gateway: 32 random bytes, the
	// same for all gateways and applications. See package signed. Empty: not signed.
	SignatureKey []byte

	// Certificates are for the clients' side of Run, which is then https, HTTP/2 included. Of several, each client gets the
	// first that is for the name it asks for. The files are read again when they change; see ReloadCertificates.
	Certificates []CertificateFiles
	// TLS is for more than that, such as certificates from elsewhere or from clients. Nil, and no Certificates: plain
	// HTTP/1.1.
	TLS *tls.Config
	// UpstreamTLS is for upstreams with an https URL. Nil: the system's roots.
	UpstreamTLS *tls.Config

	// DialTimeout is for connecting to an upstream, TLS included. Default 2 s.
	DialTimeout time.Duration
	// ResponseHeaderTimeout is from the end of a request until the header of its answer. Default 60 s.
	ResponseHeaderTimeout time.Duration
	// ReadHeaderTimeout is for a client to send the header of a request. Default 10 s.
	ReadHeaderTimeout time.Duration
	// IdleTimeout is how long a client's connection waits for its next request. Default 2 min.
	IdleTimeout time.Duration
	// WriteTimeout is how long a client may take nothing of an answer before its connection is closed. Default 60 s.
	WriteTimeout time.Duration
	// DrainTimeout is how long Run lets requests finish after its context ended. Default 30 s.
	DrainTimeout time.Duration
	// MaxHeaderBytes and MaxHeaders bound the header of a request, in bytes and lines (431 beyond). Default 64 KiB and 200.
	// A request may carry up to 1000 cookies.
	MaxHeaderBytes, MaxHeaders int
	// MaxBodyBytes bounds the body of a request (413 beyond). 0: no limit.
	MaxBodyBytes int64
	// BodyTimeout is how long the gateway waits for a request's body (408 then). Each byte that comes gives the client
	// 1/MinBodyRate of a second more, up to BodyTimeout again. Default 30 s and 500 bytes a second; negative: no limit,
	// and no rate.
	BodyTimeout time.Duration
	MinBodyRate int
	// MaxConnections bounds the connections of all clients (503 beyond). 0: no limit.
	MaxConnections int
	// MaxConnectionsPerClient bounds the connections from one address, or one IPv6 network of 64 bits (429 beyond). Those
	// of trusted proxies are not counted, unless the PROXY protocol tells whose they are. 0: no limit.
	MaxConnectionsPerClient int

	// Balance is BalanceRoundRobin if empty. It is for requests that the affinity leaves open.
	Balance Balance
	// Zone is where this gateway stands. Its upstreams are preferred by Balance, not by an affinity, while at least
	// ZoneMinimum of their weight is up; then all are equal. Empty: zones do not matter.
	Zone string
	// ZoneMinimum is a share, 0 to 1. Default 0.5.
	ZoneMinimum float64
	// LoadFactor bounds what an upstream gets from Balance, AffinityHash and AffinityHeader to
	// ⌈LoadFactor × (requests in flight + 1) × weight / weight of all that are up⌉ requests at once. 1.25 is usual;
	// less is more even and moves more clients. 0: no bound.
	LoadFactor float64
	// SlowStart is how long an upstream that comes back, or is added, has less than its weight for Balance: a tenth at
	// first, and then the part of SlowStart that is over. 0: all of it at once.
	SlowStart time.Duration

	// HealthCheck asks the upstreams how they are.
	HealthCheck HealthCheck
	// Ejection leaves out upstreams that accept connections but do not answer.
	Ejection Ejection
	// PanicThreshold is the share of the weight, 0 to 1, below which health checks and ejections are not believed, so
	// that few upstreams need not carry the load of all. Failed connects count all the same. 0: only when none is
	// left.
	PanicThreshold float64
	// BodyIdleTimeout is how long an upstream may send no more of an answer that it has begun, or read no more of a
	// request. Event streams and WebSockets may be silent for longer. Default 60 s.
	BodyIdleTimeout time.Duration
	// MaxQueued is how many requests may wait for a place at an upstream that has MaxRequests, and as many for a place
	// at any. More are answered 503. Default 1000; -1: none may wait.
	MaxQueued int
	// QueueTimeout is how long a request may wait there; then it is answered 503. Default 5 s.
	QueueTimeout time.Duration

	// ResolveEvery is how often the names of upstreams with Resolve are looked up, from nine tenths to eleven tenths
	// at random. A look-up that fails changes nothing. Default 30 s.
	ResolveEvery time.Duration
	// Resolver looks them up. Nil: net.DefaultResolver.
	Resolver Resolver

	// Dial connects to an upstream. Nil: a net.Dialer.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// OnRequest is called when a request is over, on its goroutine.
	OnRequest func(Request)
	// Logger is slog.Default() if nil. It never gets a token, a cookie or a query string.
	Logger *slog.Logger
}

// WithDefaults returns c with the defaults in the place of zero values.
func (c Config) WithDefaults() Config { return c.withDefaults() }

func (c Config) withDefaults() Config {
	def := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	def(&c.DialTimeout, 2*time.Second)
	def(&c.ResponseHeaderTimeout, time.Minute)
	def(&c.ReadHeaderTimeout, 10*time.Second)
	def(&c.IdleTimeout, 2*time.Minute)
	def(&c.WriteTimeout, time.Minute)
	def(&c.DrainTimeout, 30*time.Second)
	c.withAffinityDefaults()
	c.HealthCheck = c.HealthCheck.withDefaults()
	c.Ejection = c.Ejection.withDefaults()
	def(&c.BodyIdleTimeout, time.Minute)
	def(&c.QueueTimeout, 5*time.Second)
	def(&c.ResolveEvery, 30*time.Second)
	if c.Resolver == nil {
		c.Resolver = net.DefaultResolver
	}
	if c.MaxQueued == 0 {
		c.MaxQueued = 1000
	}
	if c.Balance == "" {
		c.Balance = BalanceRoundRobin
	}
	if c.ZoneMinimum == 0 {
		c.ZoneMinimum = 0.5
	}
	c.withLimitDefaults()
	if c.Dial == nil {
		c.Dial = (&net.Dialer{Timeout: c.DialTimeout}).DialContext
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	return c
}

var (
	upstreamID = regexp.MustCompile(`^[A-Za-z0-9._-]{1,64}$`)
	fieldName  = regexp.MustCompile("^[!#$%&'*+.^_`|~0-9A-Za-z-]+$") // RFC 9110, token
)

// ConfigError is one thing that is wrong with a Config.
type ConfigError struct {
	// Field is where: "DialTimeout", "Cookie.Name", "Upstreams[1].URL".
	Field string
	Err   error
}

func (e *ConfigError) Error() string { return "gateway: " + e.Err.Error() }
func (e *ConfigError) Unwrap() error { return e.Err }

// badFunc notes what is wrong with a field.
type badFunc func(field, format string, args ...any)

// upstreamField names a field of the upstream with index i.
func upstreamField(i int, name string) string { return fmt.Sprintf("Upstreams[%d].%s", i, name) }

// Validate reports everything that is wrong with c: it joins a *ConfigError for each fault.
func (c Config) Validate() error {
	c = c.withDefaults()
	var errs []error
	bad := func(field, format string, args ...any) {
		errs = append(errs, &ConfigError{field, fmt.Errorf(format, args...)})
	}

	if len(c.Upstreams) == 0 {
		bad("Upstreams", "no upstream: give the URL of at least one application server")
	}
	seen := make(map[string]int)
	for i, u := range c.Upstreams {
		parsed, err := u.parse()
		if err != nil {
			bad(upstreamField(i, "URL"), "upstream %d: %w", i+1, err)
			continue
		}
		id := u.id(parsed)
		if !upstreamID.MatchString(id) {
			bad(upstreamField(i, "ID"), "upstream %d: ID %q: want 1 to 64 of A-Z a-z 0-9 . _ -", i+1, id)
		}
		if first, ok := seen[id]; ok {
			bad(upstreamField(i, "ID"), "upstreams %d and %d have the same ID %q: give each its own", first, i+1, id)
		} else {
			seen[id] = i + 1
		}
	}
	c.validateAffinity(bad)
	for _, name := range c.SessionCookies {
		if !fieldName.MatchString(name) {
			bad("SessionCookies", "session cookie name %q is not a cookie name", name)
		}
	}
	if h := c.SessionHeader; h != "" {
		if !fieldName.MatchString(h) {
			bad("SessionHeader", "session header %q is not a header name", h)
		} else if reserved(h) {
			bad("SessionHeader", "session header %q: the gateway strips this name from clients' requests; use another, such as Session-Token", h)
		}
	}
	if t := c.TLS; t != nil && len(c.Certificates) == 0 && len(t.Certificates) == 0 && t.GetCertificate == nil && t.GetConfigForClient == nil {
		bad("TLS", "TLS has no certificate")
	}
	for _, t := range []struct {
		field, name string
		d           time.Duration
	}{
		{"DialTimeout", "dial timeout", c.DialTimeout},
		{"ResponseHeaderTimeout", "response header timeout", c.ResponseHeaderTimeout},
		{"ReadHeaderTimeout", "read header timeout", c.ReadHeaderTimeout},
		{"IdleTimeout", "idle timeout", c.IdleTimeout},
		{"WriteTimeout", "write timeout", c.WriteTimeout},
		{"DrainTimeout", "drain timeout", c.DrainTimeout},
	} {
		if t.d < 0 {
			bad(t.field, "%s %v is negative", t.name, t.d)
		}
	}
	c.validateBalance(bad)
	c.validateResolve(bad)
	c.HealthCheck.validate(bad)
	c.Ejection.validate(bad)
	c.validateQueue(bad)
	if !(c.PanicThreshold >= 0 && c.PanicThreshold <= 1) {
		bad("PanicThreshold", "panic threshold %v: want a share, 0 to 1", c.PanicThreshold)
	}
	if c.BodyIdleTimeout < 0 {
		bad("BodyIdleTimeout", "body idle timeout %v is negative", c.BodyIdleTimeout)
	}
	c.validateClients(bad)
	c.validateLimits(bad)
	for i, f := range c.Certificates {
		if f.CertFile == "" || f.KeyFile == "" {
			bad("Certificates", "certificate %d: give both the file of the certificate and that of its key", i+1)
		}
	}
	return errors.Join(errs...)
}

// parse returns the URL of u. Its errors do not show the URL where that may hold a password.
func (u Upstream) parse() (*url.URL, error) {
	p, err := url.Parse(u.URL)
	switch {
	case err != nil:
		var parse *url.Error
		if errors.As(err, &parse) {
			err = parse.Err
		}
		return nil, fmt.Errorf("bad URL: %w (want http://host:port)", err)
	case p.User != nil:
		return nil, errors.New("URL has a user name or password: remove it (want http://host:port)")
	case p.Scheme != "http" && p.Scheme != "https":
		return nil, fmt.Errorf("URL %q: want http://host:port or https://host:port", u.URL)
	case p.Hostname() == "":
		return nil, fmt.Errorf("URL %q has no host (want http://host:port)", u.URL)
	case p.RawQuery != "" || p.ForceQuery || p.Fragment != "":
		return nil, fmt.Errorf("URL %q has a query or fragment: remove it", u.URL)
	}
	if port := p.Port(); port != "" {
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return nil, fmt.Errorf("URL %q: port %s is not 1 to 65535", u.URL, port)
		}
	}
	return p, nil
}

func (u Upstream) id(p *url.URL) string {
	if u.ID != "" {
		return u.ID
	}
	sum := sha256.Sum256([]byte("holdfast upstream v1\x00" + strings.ToLower(p.Scheme+"://"+p.Host) + strings.TrimSuffix(p.EscapedPath(), "/")))
	return hex.EncodeToString(sum[:4])
}
