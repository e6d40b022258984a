package redisstore

import (
	"cmp"
	"crypto/tls"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/holdfast-sessions/holdfast/internal/storeurl"
)

// kind is what a URL says that there is.
type kind int

const (
	single kind = iota
	sentinelled
	clustered
)

// config is what a URL says.
type config struct {
	kind  kind
	addrs []string // the server's, the Sentinels', or those of some of the cluster's nodes
	login login
	db    int

	master        string // what the Sentinels call the set
	sentinelLogin login

	prefix string
	tls    *tls.Config // nil: plain TCP

	wait        int // how many replicas have to confirm a write
	waitTimeout time.Duration

	cacheBytes int64 // 0: no cache
	cacheTTL   time.Duration
}

// login is how to log in. The file is read before each connection, so that a password can be changed while the program
// runs.
type login struct {
	user         string
	password     string
	passwordFile string
}

// read returns the password to connect with.
func (l login) read() (string, error) {
	if l.passwordFile == "" {
		return l.password, nil
	}
	return storeurl.Password(l.passwordFile)
}

const (
	defaultWaitTimeout = time.Second
	// defaultCacheTTL is for how long a session that was ended elsewhere may be served, as with sealed sessions.
	defaultCacheTTL = 5 * time.Second
)

// The prefix has no character that is special in a pattern of SCAN or of an ACL, and no { }, which would put all
// sessions of a cluster into one slot.
var validPrefix = regexp.MustCompile(`^[A-Za-z0-9.:_/-]{1,64}$`)

const (
	wantSingle   = "want redis://[[user]:password@]host[:port][/db][?option=value&...], or rediss:// for TLS"
	wantSentinel = "want redis-sentinel://[[user]:password@]sentinel[:port][,sentinel...][/db]?master=name[&option=value...], or rediss-sentinel:// for TLS"
	wantCluster  = "want redis-cluster://[[user]:password@]node[:port][,node...][?option=value&...], or rediss-cluster:// for TLS"
)

// schemes are those of Open's URLs.
var schemes = map[string]struct {
	kind kind
	tls  bool
	port string
	want string
}{
	"redis":           {single, false, "6379", wantSingle},
	"rediss":          {single, true, "6379", wantSingle},
	"redis-sentinel":  {sentinelled, false, "26379", wantSentinel},
	"rediss-sentinel": {sentinelled, true, "26379", wantSentinel},
	"redis-cluster":   {clustered, false, "6379", wantCluster},
	"rediss-cluster":  {clustered, true, "6379", wantCluster},
}

// parseURL reads a URL. Its errors never quote the user, the password, or a part of the URL that an unescaped
// character may have made of a password.
func parseURL(raw string) (config, error) {
	name, _, _ := strings.Cut(raw, ":")
	scheme, ok := schemes[strings.ToLower(name)]
	if !ok {
		return config{}, errors.New(wantSingle)
	}
	u, err := storeurl.Parse(raw)
	if err != nil {
		return config{}, fmt.Errorf("%w; %s", err, scheme.want)
	}
	c := config{
		kind:   scheme.kind,
		login:  login{user: u.User, password: u.Password},
		prefix: "holdfast:",
	}
	if c.addrs, err = u.Addrs(scheme.port); err != nil {
		return config{}, fmt.Errorf("%w; %s", err, scheme.want)
	}
	if c.kind == single && len(c.addrs) > 1 {
		return config{}, errors.New("redis:// is for one server; write redis-sentinel:// with the Sentinels, or redis-cluster:// with nodes of a cluster")
	}
	if c.db, err = database(u.Path); err != nil {
		return config{}, err
	}
	if c.kind == clustered && c.db != 0 {
		return config{}, fmt.Errorf("a Redis Cluster has database 0 only, not %d; keep applications apart with prefix=", c.db)
	}
	if scheme.tls {
		c.tls = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	for _, secret := range []string{"password", "sentinel_password"} {
		if u.Query.Has(secret) {
			return config{}, fmt.Errorf("option %s: write redis://user:password@host, or name a file that holds it with %[1]s_file=", secret)
		}
	}
	if err := u.Options(c.options()); err != nil {
		return config{}, errors.New(strings.ReplaceAll(err.Error(), "\n", "; "))
	}
	if c.tls != nil {
		if c.tls.Certificates, err = storeurl.Certificates(u.Query.Get("cert_file"), u.Query.Get("key_file")); err != nil {
			return config{}, err
		}
	}
	return c, c.check(u)
}

// check looks for what does not go together.
func (c *config) check(u storeurl.URL) error {
	switch {
	case u.HasPassword && c.login.passwordFile != "":
		return errors.New("the password is in the URL and in password_file; want one of them")
	case c.login.user != "" && !u.HasPassword && c.login.passwordFile == "":
		return errors.New("the user has no password; write redis://user:password@host, redis://:password@host for a password alone, or add password_file=")
	case c.sentinelLogin.user != "" && c.sentinelLogin.passwordFile == "":
		return errors.New("option sentinel_user: add sentinel_password_file=")
	case c.kind == sentinelled && c.master == "":
		return errors.New("option master is missing: the name that the Sentinels have for the primary (sentinel monitor NAME in their configuration)")
	case c.waitTimeout != 0 && c.wait == 0:
		return errors.New("option wait_timeout: add wait=, for how many replicas to wait")
	case c.cacheTTL != 0 && c.cacheBytes == 0:
		return errors.New("option cache_ttl: add cache=, how much memory the cache may take")
	}
	c.waitTimeout = cmp.Or(c.waitTimeout, defaultWaitTimeout)
	c.cacheTTL = cmp.Or(c.cacheTTL, defaultCacheTTL)
	return nil
}

// options are what may stand after the question mark. Their values are files, names and numbers, never secrets.
func (c *config) options() map[string]func(value string) error {
	only := func(allowed bool, why string, set func(string) error) func(string) error {
		if allowed {
			return set
		}
		return func(string) error { return errors.New(why) }
	}
	withTLS := func(set func(string) error) func(string) error {
		return only(c.tls != nil, "is for TLS; write rediss:// instead of redis://, and so on", set)
	}
	withSentinel := func(set func(string) error) func(string) error {
		return only(c.kind == sentinelled, "is for redis-sentinel:// and rediss-sentinel://", set)
	}
	later := func(string) error { return nil } // these two are read together
	return map[string]func(string) error{
		"prefix":                 c.setPrefix,
		"password_file":          file(&c.login),
		"ca_file":                withTLS(c.setAuthority),
		"server_name":            withTLS(c.setServerName),
		"cert_file":              withTLS(later),
		"key_file":               withTLS(later),
		"master":                 withSentinel(name(&c.master, "want the name that the Sentinels have for the primary")),
		"sentinel_user":          withSentinel(name(&c.sentinelLogin.user, "want the name of a user of the Sentinels")),
		"sentinel_password_file": withSentinel(file(&c.sentinelLogin)),
		"wait":                   c.setWait,
		"wait_timeout":           span(&c.waitTimeout, time.Millisecond, time.Minute),
		"cache":                  c.setCache,
		"cache_ttl":              span(&c.cacheTTL, 10*time.Millisecond, time.Minute),
	}
}

func (c *config) setPrefix(v string) error {
	if !validPrefix.MatchString(v) {
		return errors.New("want 1 to 64 letters, digits and . : _ / -")
	}
	c.prefix = v
	return nil
}

func (c *config) setAuthority(v string) (err error) {
	c.tls.RootCAs, err = storeurl.Authorities(v)
	return err
}

func (c *config) setServerName(v string) error {
	if v == "" {
		return errors.New("want the name in the server's certificate")
	}
	c.tls.ServerName = v
	return nil
}

func (c *config) setWait(v string) error {
	n, err := strconv.ParseUint(v, 10, 16)
	if err != nil || n == 0 || n > 100 {
		return errors.New("want how many replicas have to confirm a write, 1 to 100")
	}
	c.wait = int(n)
	return nil
}

var sizeUnits = map[string]int64{"KB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30}

func (c *config) setCache(v string) error {
	const minSize, maxSize = 1 << 20, 64 << 30
	wrong := errors.New("want how much memory the cache may take, 1MB to 64GB")
	if len(v) < 3 {
		return wrong
	}
	unit, ok := sizeUnits[strings.ToUpper(v[len(v)-2:])]
	n, err := strconv.ParseUint(v[:len(v)-2], 10, 32)
	if !ok || err != nil || int64(n)*unit < minSize || int64(n)*unit > maxSize {
		return wrong
	}
	c.cacheBytes = int64(n) * unit
	return nil
}

// name returns the setter of an option that must not be empty.
func name(to *string, want string) func(string) error {
	return func(v string) error {
		if v == "" || strings.ContainsAny(v, " \r\n") {
			return errors.New(want)
		}
		*to = v
		return nil
	}
}

func file(to *login) func(string) error {
	return func(v string) error {
		to.passwordFile = v
		_, err := to.read()
		return err
	}
}

func span(to *time.Duration, low, high time.Duration) func(string) error {
	return func(v string) error {
		d, err := time.ParseDuration(v)
		if err != nil || d < low || d > high {
			return fmt.Errorf("want a time from %v to %v, such as 500ms or 2s", low, high)
		}
		*to = d
		return nil
	}
}

func database(path string) (int, error) {
	path = strings.TrimPrefix(path, "/")
	if path == "" {
		return 0, nil
	}
	n, err := strconv.ParseUint(path, 10, 31)
	if err != nil {
		return 0, errors.New("what follows the host is not the number of a database; want redis://host:port/0")
	}
	return int(n), nil
}
