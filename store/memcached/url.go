package memcached

import (
	"errors"
	"fmt"
	"net"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/holdfast-sessions/holdfast/internal/storeurl"
)

// config is what a URL says.
type config struct {
	hosts    []host
	addrs    []string // host:port of each
	hash     string
	prefix   string
	conns    int
	timeout  time.Duration
	grace    time.Duration
	maxBytes int // 0: what the servers take
	copies   int
}

const wantURL = "want memcached://host[:port][,host[:port]...][?option=value&...]"

// The prefix keeps keys, with their 64 hexadecimal characters, well below memcached's 250 bytes, and has nothing that
// ends a key in its protocol.
var validPrefix = regexp.MustCompile(`^[A-Za-z0-9.:_/-]{1,64}$`)

// parseURL reads a URL. Its errors never quote the user, the password, or what may be a part of one.
func parseURL(raw string) (config, error) {
	c := config{hash: hashKetama, prefix: "holdfast:", conns: 64, timeout: 3 * time.Second, grace: 10 * time.Minute, copies: 1}
	u, err := storeurl.Parse(raw)
	if err != nil {
		return config{}, fmt.Errorf("%w; %s", err, wantURL)
	}
	switch {
	case u.Scheme != "memcached":
		return config{}, errors.New(wantURL)
	case u.User != "" || u.HasPassword:
		return config{}, errors.New("memcached's text protocol has no login, so the URL must have no user and no password; keep strangers away from the servers by their setting -l and by a firewall")
	case strings.Trim(u.Path, "/") != "":
		return config{}, errors.New("nothing may follow the hosts but ?option=value; " + wantURL)
	}
	if c.addrs, err = u.Addrs(defaultPort); err != nil {
		return config{}, fmt.Errorf("%w; %s", err, wantURL)
	}
	for _, addr := range c.addrs {
		name, port, _ := net.SplitHostPort(addr)
		c.hosts = append(c.hosts, host{name: name, port: port, weight: 1})
	}
	weighted := false
	err = u.Options(map[string]func(string) error{
		"prefix": func(v string) error {
			if !validPrefix.MatchString(v) {
				return errors.New("want 1 to 64 letters, digits and . : _ / -")
			}
			c.prefix = v
			return nil
		},
		"hash": func(v string) error {
			if !slices.Contains(hashes, v) {
				return fmt.Errorf("%q unknown, did you mean %s? (want %s)", v, storeurl.Nearest(v, hashes), strings.Join(hashes, ", "))
			}
			c.hash = v
			return nil
		},
		"weights": func(v string) error {
			weighted = true
			return c.setWeights(v)
		},
		"conns": func(v string) (err error) {
			c.conns, err = between(v, 1, 1024)
			return err
		},
		"timeout": func(v string) (err error) {
			c.timeout, err = duration(v, 10*time.Millisecond, time.Minute)
			return err
		},
		"grace": func(v string) (err error) {
			c.grace, err = duration(v, 5*time.Second, 24*time.Hour)
			return err
		},
		"max_bytes": func(v string) (err error) {
			c.maxBytes, err = between(v, 1024, 1<<30)
			return err
		},
		"copies": func(v string) (err error) {
			c.copies, err = between(v, 1, 2)
			return err
		},
	})
	switch {
	case err != nil:
		return config{}, err
	case weighted && c.hash != hashKetama:
		return config{}, fmt.Errorf("option weights: only hash=%s has weights, %s has none", hashKetama, c.hash)
	case c.copies > len(c.hosts):
		return config{}, errors.New("option copies: a second copy needs a second server in the URL")
	}
	return c, nil
}

func (c *config) setWeights(v string) error {
	weights := strings.Split(v, ",")
	if len(weights) != len(c.hosts) {
		return fmt.Errorf("%d weights for %d servers; want one for each, such as weights=1,2,1", len(weights), len(c.hosts))
	}
	for i, w := range weights {
		n, err := between(w, 1, 1000)
		if err != nil {
			return err
		}
		c.hosts[i].weight = uint32(n)
	}
	return nil
}

func between(v string, least, most int) (int, error) {
	n, err := strconv.Atoi(v)
	if err != nil || n < least || n > most {
		return 0, fmt.Errorf("%q: want a number from %d to %d", v, least, most)
	}
	return n, nil
}

func duration(v string, least, most time.Duration) (time.Duration, error) {
	d, err := time.ParseDuration(v)
	if err != nil || d < least || d > most {
		return 0, fmt.Errorf("%q: want a time from %v to %v, such as %v", v, least, most, least)
	}
	return d, nil
}
