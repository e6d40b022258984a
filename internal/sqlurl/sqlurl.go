// Package sqlurl reads the parts of a URL that stores in databases have in common: hosts, the user, TLS, the pool of
// connections, the table and its clean-up.
//
//	u, err := storeurl.Parse(raw)
//	c, err := sqlurl.Server(u, "3306", map[string]func(string) error{"engine": setEngine})
package sqlurl

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/holdfast-sessions/holdfast/internal/storeurl"
)

// Table is what every store in a database has.
type Table struct {
	Name     string
	Sweep    time.Duration // negative: never
	MaxConns int
}

// Config is what the URL of a store in a database server says.
type Config struct {
	Table
	Addrs    []string // host:port
	User     string
	Database string
	// TLS is nil for plain TCP. Its ServerName is empty if that of the host is to be used.
	TLS *tls.Config
	// ConnectTimeout bounds making a connection to one host, login included.
	ConnectTimeout time.Duration
	// Prepare says that statements are prepared on the server, once a connection.
	Prepare bool

	password     string
	hasPassword  bool
	passwordFile string
	tlsMode      string
	tlsOptions   []string // that were given and need TLS
	roots        *x509.CertPool
	serverName   string
	certFile     string
	keyFile      string
}

// The name of a table is written into statements, and means the same on every database and file system: no capitals.
var validTable = regexp.MustCompile(`^[a-z_][a-z0-9_]{0,47}$`)

// Options returns the functions that set t, for storeurl.Options, and sets the defaults.
func (t *Table) Options(maxConns int) map[string]func(string) error {
	*t = Table{Name: "holdfast_sessions", Sweep: time.Minute, MaxConns: maxConns}
	return map[string]func(string) error{
		"table": func(v string) error {
			if !validTable.MatchString(v) {
				return errors.New("want 1 to 48 small letters, digits and _, the first not a digit")
			}
			t.Name = v
			return nil
		},
		"sweep": func(v string) error {
			if v == "never" {
				t.Sweep = -1
				return nil
			}
			return Duration(&t.Sweep, time.Second, 24*time.Hour)(v)
		},
		"max_conns": Int(&t.MaxConns, 1, 1000),
	}
}

// Server reads the URL of a store in a database server. The options in more are the database's own.
func Server(u storeurl.URL, defaultPort string, more map[string]func(string) error) (*Config, error) {
	c := &Config{ConnectTimeout: 5 * time.Second, Prepare: true, User: u.User, password: u.Password, hasPassword: u.HasPassword}
	var err error
	if c.Addrs, err = u.Addrs(defaultPort); err != nil {
		return nil, err
	}
	c.Database = strings.TrimPrefix(u.Path, "/")
	if c.Database == "" || strings.Contains(c.Database, "/") {
		return nil, fmt.Errorf("the URL names no database; want %s://user:password@host/database", u.Scheme)
	}
	if c.User == "" {
		return nil, fmt.Errorf("the URL names no user; want %s://user:password@host/database", u.Scheme)
	}
	options := c.Table.Options(16)
	maps.Copy(options, c.options())
	maps.Copy(options, more)
	if err := u.Options(options); err != nil {
		return nil, err
	}
	if c.hasPassword && c.passwordFile != "" {
		return nil, errors.New("the password is in the URL and in password_file; want one of them")
	}
	return c, c.setTLS()
}

func (c *Config) options() map[string]func(string) error {
	tlsOption := func(name string, set func(string) error) func(string) error {
		return func(v string) error {
			c.tlsOptions = append(c.tlsOptions, name)
			if v == "" {
				return errors.New("it is empty")
			}
			return set(v)
		}
	}
	return map[string]func(string) error{
		"password": func(string) error {
			return errors.New("write user:password@host, or name a file that holds it with password_file=")
		},
		"password_file": func(v string) error {
			c.passwordFile = v
			_, err := c.Password()
			return err
		},
		"connect_timeout": Duration(&c.ConnectTimeout, 100*time.Millisecond, time.Minute),
		"prepare":         Bool(&c.Prepare),
		"tls": func(v string) error {
			if v != "off" && v != "verify" && v != "insecure" {
				return errors.New("want off, verify, or insecure (encrypted, but to whoever answers)")
			}
			c.tlsMode = v
			return nil
		},
		"ca_file": tlsOption("ca_file", func(v string) (err error) {
			c.roots, err = storeurl.Authorities(v)
			return err
		}),
		"server_name": tlsOption("server_name", func(v string) error { c.serverName = v; return nil }),
		"cert_file":   tlsOption("cert_file", func(v string) error { c.certFile = v; return nil }),
		"key_file":    tlsOption("key_file", func(v string) error { c.keyFile = v; return nil }),
	}
}

// setTLS puts the TLS options together. Any of them means tls=verify.
func (c *Config) setTLS() error {
	if c.tlsMode == "" && len(c.tlsOptions) > 0 {
		c.tlsMode = "verify"
	}
	if c.tlsMode == "off" && len(c.tlsOptions) > 0 {
		return fmt.Errorf("option %s is for TLS, and tls=off; want tls=verify", c.tlsOptions[0])
	}
	if c.tlsMode == "" || c.tlsMode == "off" {
		return nil
	}
	c.TLS = &tls.Config{
		MinVersion:         tls.VersionTLS12,
		ServerName:         c.serverName,
		RootCAs:            c.roots,
		InsecureSkipVerify: c.tlsMode == "insecure",
	}
	var err error
	c.TLS.Certificates, err = storeurl.Certificates(c.certFile, c.keyFile)
	return err
}

// TLSFor returns the TLS configuration for one of Addrs, or nil.
func (c *Config) TLSFor(addr string) *tls.Config {
	if c.TLS == nil || c.TLS.ServerName != "" {
		return c.TLS
	}
	t := c.TLS.Clone()
	t.ServerName, _, _ = net.SplitHostPort(addr) // it has a port
	return t
}

// Password returns the password to connect with. A file is read each time, so that the password can be changed while
// the program runs.
func (c *Config) Password() (string, error) {
	if c.passwordFile == "" {
		return c.password, nil
	}
	return storeurl.Password(c.passwordFile)
}

// Shown returns the URL as a command line in an error message has it: without the password.
func Shown(u storeurl.URL) string {
	s := u.Scheme + "://" + url.User(u.User).String() + "@" + strings.Join(u.Hosts, ",") + (&url.URL{Path: u.Path}).EscapedPath()
	query := maps.Clone(u.Query)
	query.Del("password_file")
	if len(query) > 0 {
		s += "?" + query.Encode()
	}
	return s
}

// Duration returns a function that sets d from an option.
func Duration(d *time.Duration, low, high time.Duration) func(string) error {
	return func(v string) error {
		n, err := time.ParseDuration(v)
		if err != nil || n < low || n > high {
			return fmt.Errorf("want a duration between %v and %v, such as 30s", low, high)
		}
		*d = n
		return nil
	}
}

// Int returns a function that sets n from an option.
func Int(n *int, low, high int) func(string) error {
	return func(v string) error {
		i, err := strconv.Atoi(v)
		if err != nil || i < low || i > high {
			return fmt.Errorf("want a number between %d and %d", low, high)
		}
		*n = i
		return nil
	}
}

// Bool returns a function that sets b from an option.
func Bool(b *bool) func(string) error {
	return func(v string) error {
		if v != "true" && v != "false" {
			return errors.New("want true or false")
		}
		*b = v == "true"
		return nil
	}
}
