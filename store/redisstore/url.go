package redisstore

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// config is what a URL says.
type config struct {
	addr         string
	user         string
	password     string
	passwordFile string // read before each connection, so that a password can be changed while the program runs
	db           int
	prefix       string
	tls          *tls.Config // nil: plain TCP
}

// urlOptions are the options after the question mark. Their values are files or names, never secrets.
var urlOptions = map[string]func(c *config, value string) error{
	"prefix": func(c *config, v string) error {
		if !validPrefix.MatchString(v) {
			return errors.New("want 1 to 64 letters, digits and . : _ / -")
		}
		c.prefix = v
		return nil
	},
	"password_file": func(c *config, v string) error {
		c.passwordFile = v
		_, err := c.credentials()
		return err
	},
	"ca_file": func(c *config, v string) error {
		pem, err := os.ReadFile(v)
		if err != nil {
			return err
		}
		c.tls.RootCAs = x509.NewCertPool()
		if !c.tls.RootCAs.AppendCertsFromPEM(pem) {
			return fmt.Errorf("%s has no certificate in PEM form", v)
		}
		return nil
	},
	"server_name": func(c *config, v string) error {
		if v == "" {
			return errors.New("want the name in the server's certificate")
		}
		c.tls.ServerName = v
		return nil
	},
	"cert_file": nil, // these two are read together
	"key_file":  nil,
}

// The prefix has no character that is special in a pattern of SCAN or of an ACL, and no { }, which would put all
// sessions of a cluster into one slot.
var validPrefix = regexp.MustCompile(`^[A-Za-z0-9.:_/-]{1,64}$`)

const wantURL = "want redis://[[user]:password@]host[:port][/db][?option=value&...], or rediss:// for TLS"

// parseURL reads a URL. Its errors never quote the user, the password, or a part of the URL that an unescaped
// character may have made of a password.
func parseURL(raw string) (config, error) {
	u, err := url.Parse(raw)
	if err != nil {
		return config{}, errors.New("the URL is malformed; in a password, write characters other than letters and digits as %XX (/ is %2F); " + wantURL)
	}
	if u.Scheme != "redis" && u.Scheme != "rediss" || u.Opaque != "" {
		return config{}, errors.New(wantURL)
	}
	if strings.Contains(u.EscapedPath()+u.RawQuery, "@") || strings.Contains(raw, "#") {
		return config{}, errors.New("write @ after the host, and # and / and ? in a password, as %40, %23, %2F and %3F")
	}
	c := config{prefix: "holdfast:"}
	if c.addr, err = address(u); err != nil {
		return config{}, err
	}
	if c.db, err = database(u.Path); err != nil {
		return config{}, err
	}
	hasPassword := false
	if u.User != nil {
		c.user = u.User.Username()
		c.password, hasPassword = u.User.Password()
	}
	if u.Scheme == "rediss" {
		c.tls = &tls.Config{ServerName: u.Hostname(), MinVersion: tls.VersionTLS12}
	}
	query, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return config{}, errors.New("the options are malformed; want name=value&name=value, other characters as %XX")
	}
	for _, name := range slices.Sorted(maps.Keys(query)) {
		if err := c.setOption(name, query[name]); err != nil {
			return config{}, err
		}
	}
	if err := c.setCertificate(query.Get("cert_file"), query.Get("key_file")); err != nil {
		return config{}, err
	}
	if hasPassword && c.passwordFile != "" {
		return config{}, errors.New("the password is in the URL and in password_file; want one of them")
	}
	if c.user != "" && !hasPassword && c.passwordFile == "" {
		return config{}, errors.New("the user has no password; write redis://user:password@host, redis://:password@host for a password alone, or add password_file=")
	}
	return c, nil
}

func (c *config) setOption(name string, values []string) error {
	set, ok := urlOptions[name]
	switch {
	case name == "password":
		return errors.New("option password: write redis://user:password@host, or name a file that holds it with password_file=")
	case !ok:
		return fmt.Errorf("option %q unknown, did you mean %q? (want %s)", name, nearest(name, urlOptions), strings.Join(slices.Sorted(maps.Keys(urlOptions)), ", "))
	case len(values) > 1:
		return fmt.Errorf("option %s is given %d times", name, len(values))
	case c.tls == nil && name != "prefix" && name != "password_file":
		return fmt.Errorf("option %s is for TLS; write rediss:// instead of redis://", name)
	case set == nil:
		return nil
	}
	if err := set(c, values[0]); err != nil {
		return fmt.Errorf("option %s=%s: %w", name, values[0], err)
	}
	return nil
}

// setCertificate loads the client's certificate.
func (c *config) setCertificate(certFile, keyFile string) error {
	if certFile == "" && keyFile == "" {
		return nil
	}
	if certFile == "" || keyFile == "" {
		return errors.New("options cert_file and key_file: want both or neither")
	}
	pair, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		return fmt.Errorf("options cert_file and key_file: %w", err)
	}
	c.tls.Certificates = []tls.Certificate{pair}
	return nil
}

// credentials returns the password to connect with.
func (c *config) credentials() (string, error) {
	if c.passwordFile == "" {
		return c.password, nil
	}
	b, err := os.ReadFile(c.passwordFile)
	if err != nil {
		return "", fmt.Errorf("password_file: %w", err)
	}
	password := strings.TrimRight(string(b), "\r\n")
	if password == "" {
		return "", fmt.Errorf("password_file: %s is empty", c.passwordFile)
	}
	return password, nil
}

func address(u *url.URL) (string, error) {
	host, port := u.Hostname(), u.Port()
	if host == "" {
		return "", errors.New("the URL names no host; " + wantURL)
	}
	if port == "" {
		port = "6379"
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return "", fmt.Errorf("port %s: want 1 to 65535", port)
	}
	return net.JoinHostPort(host, port), nil
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

// nearest returns the key of m that takes the fewest edits to write instead of name.
func nearest[V any](name string, m map[string]V) string {
	return slices.MinFunc(slices.Sorted(maps.Keys(m)), func(a, b string) int {
		return edits(name, a) - edits(name, b)
	})
}

// edits is the Levenshtein distance of a and b.
func edits(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost = 1 + min(diagonal, row[j], row[j+1])
			}
			diagonal, row[j+1] = row[j+1], cost
		}
	}
	return row[len(b)]
}
