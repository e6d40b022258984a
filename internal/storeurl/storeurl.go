// Package storeurl reads the URLs that stores are opened by. It is strict: what it does not know is an error that says
// what to write instead, and no error quotes the URL, of which an unescaped character may have made anything out of a
// password.
//
//	u, err := storeurl.Parse("mysql://app:secret@db1,db2:3307/shop?table=sessions")
//	addrs, err := u.Addrs("3306")                                  // db1:3306, db2:3307
//	err = u.Options(map[string]func(string) error{"table": setTable})
package storeurl

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// URL is what a store's URL says.
type URL struct {
	Scheme      string // in lower case
	User        string
	Password    string
	HasPassword bool
	Hosts       []string // each a host, or a host and a port, as it was written; empty if the URL names none
	Path        string   // unescaped, with its leading slash
	Query       url.Values
}

// Parse reads scheme://[user[:password]@]host[:port][,host[:port]...][/path][?option=value&...].
func Parse(raw string) (URL, error) {
	scheme, rest, ok := strings.Cut(raw, "://")
	if !ok {
		return URL{}, errors.New("the URL has no :// after its scheme")
	}
	if strings.Contains(rest, "#") {
		return URL{}, errors.New("write # in a password, or in an option, as %23")
	}
	authority, tail := rest, ""
	if i := strings.IndexAny(rest, "/?"); i >= 0 {
		authority, tail = rest[:i], rest[i:]
	}
	if strings.Contains(tail, "@") {
		return URL{}, errors.New("write @ after the host, and / and ? in a password, as %40, %2F and %3F")
	}
	user, hosts := "", authority
	if i := strings.LastIndex(authority, "@"); i >= 0 {
		user, hosts = authority[:i+1], authority[i+1:]
	}
	// package url takes one host only.
	u, err := url.Parse(scheme + "://" + user + "host" + tail)
	if err != nil {
		return URL{}, errors.New("the URL is malformed; in a password, write characters other than letters and digits as %XX (/ is %2F)")
	}
	parsed := URL{Scheme: u.Scheme, Path: u.Path}
	if u.User != nil {
		parsed.User = u.User.Username()
		parsed.Password, parsed.HasPassword = u.User.Password()
	}
	if hosts != "" {
		parsed.Hosts = strings.Split(hosts, ",")
	}
	if parsed.Query, err = url.ParseQuery(u.RawQuery); err != nil {
		return URL{}, errors.New("the options are malformed; want name=value&name=value, other characters as %XX")
	}
	return parsed, nil
}

// Addrs returns the hosts with their ports, or defaultPort, in the form that package net dials.
func (u URL) Addrs(defaultPort string) ([]string, error) {
	if len(u.Hosts) == 0 {
		return nil, errors.New("the URL names no host")
	}
	var addrs []string
	for i, h := range u.Hosts {
		if h == "" {
			return nil, fmt.Errorf("the URL names no host: number %d is empty", i+1)
		}
		one, err := url.Parse("store://" + h)
		if err != nil || one.Host != h || strings.ContainsAny(one.Hostname(), "[]") || h[0] != '[' && strings.Count(h, ":") > 1 {
			return nil, fmt.Errorf("host %d of the URL is malformed; want a name or an address, and :port; IPv6 in []", i+1)
		}
		host, port := one.Hostname(), one.Port()
		if host == "" {
			return nil, fmt.Errorf("the URL names no host: number %d is empty", i+1)
		}
		if port == "" {
			port = defaultPort
		}
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return nil, fmt.Errorf("port %s: want 1 to 65535", port)
		}
		addr := net.JoinHostPort(host, port)
		if slices.Contains(addrs, addr) {
			return nil, fmt.Errorf("host %s is given twice", addr)
		}
		addrs = append(addrs, addr)
	}
	return addrs, nil
}

// Options calls the function that each option of the URL has in known. Its error names everything that is wrong.
func (u URL) Options(known map[string]func(value string) error) error {
	return Options(u.Query, known)
}

// Options calls the function that each option in query has in known, in the order of their names. Its error names
// everything that is wrong, each on a line of its own.
func Options(query url.Values, known map[string]func(value string) error) error {
	var wrong []error
	for _, name := range slices.Sorted(maps.Keys(query)) {
		set, ok := known[name]
		switch {
		case !ok && len(known) == 0:
			wrong = append(wrong, fmt.Errorf("option %q unknown: there are none", name))
		case !ok:
			names := slices.Sorted(maps.Keys(known))
			wrong = append(wrong, fmt.Errorf("option %q unknown, did you mean %q? (want %s)", name, Nearest(name, names), strings.Join(names, ", ")))
		case len(query[name]) > 1:
			wrong = append(wrong, fmt.Errorf("option %s is given %d times", name, len(query[name])))
		default:
			if err := set(query[name][0]); err != nil {
				wrong = append(wrong, fmt.Errorf("option %s: %w", name, err))
			}
		}
	}
	return errors.Join(wrong...)
}

// Nearest returns the one of names that takes the fewest edits to write instead of name, or "" if there are none.
func Nearest(name string, names []string) string {
	if len(names) == 0 {
		return ""
	}
	return slices.MinFunc(names, func(a, b string) int { return edits(name, a) - edits(name, b) })
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
