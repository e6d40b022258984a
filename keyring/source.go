package keyring

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"
)

// source is where a key ring is read from.
type source interface {
	read(ctx context.Context) ([]byte, error)
	name() string  // without secrets
	watched() bool // it can change
	close()
}

const wantURL = "want file:/path, env:NAME or https://host/path"

// parseURL returns the source that a URL names. No error quotes the URL, which may hold a password.
func (c Config) parseURL(raw string) (source, error) {
	scheme, rest, ok := strings.Cut(raw, ":")
	switch scheme = strings.ToLower(scheme); {
	case !ok:
		return nil, errors.New("the URL has no scheme: " + wantURL)
	case scheme == "file":
		path, err := filePath(rest)
		return fileSource(path), err
	case scheme == "env":
		if rest == "" || strings.ContainsAny(rest, "=/? ") {
			return nil, errors.New("env: is not followed by the name of an environment variable: want env:NAME")
		}
		return envSource(rest), nil
	case scheme == "http", scheme == "https":
		return c.newURLSource(raw)
	}
	return nil, fmt.Errorf("scheme %q unknown: %s", scheme, wantURL)
}

// filePath returns the path in what follows file:.
func filePath(rest string) (string, error) {
	if after, ok := strings.CutPrefix(rest, "//"); ok {
		if rest = after; !strings.HasPrefix(rest, "/") {
			return "", errors.New("file:// is followed by a host: write file:///path for an absolute path, or file:path for a relative one")
		}
	}
	if strings.ContainsAny(rest, "?#") {
		return "", errors.New("file: has no options; write ? and # in a path as %3F and %23")
	}
	path, err := url.PathUnescape(rest)
	if err != nil || path == "" || strings.ContainsRune(path, 0) {
		return "", errors.New("file: is not followed by a path: want file:/path, with % written as %25")
	}
	return path, nil
}

type envSource string

func (e envSource) name() string { return "env:" + string(e) }
func (envSource) watched() bool  { return false }
func (envSource) close()         {}

func (e envSource) read(context.Context) ([]byte, error) {
	v, ok := os.LookupEnv(string(e))
	if !ok {
		return nil, errors.New(`it is not set: set it to the content of a key ring file, as "$(cat FILE)"`)
	}
	return []byte(v), nil
}

type fileSource string

func (f fileSource) name() string { return "file:" + string(f) }
func (fileSource) watched() bool  { return true }
func (fileSource) close()         {}

func (f fileSource) read(context.Context) ([]byte, error) {
	file, err := openPrivate(string(f), os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return readAll(file)
}

// readAll reads a little more than a key ring may have.
func readAll(r io.Reader) ([]byte, error) { return io.ReadAll(io.LimitReader(r, maxBytes+1)) }

// urlSource asks for a URL.
type urlSource struct {
	url    func() string // a function, as in material: there may be a password in it
	shown  string        // without user, password and query
	client *http.Client
	own    *http.Transport // nil if the client is the caller's
}

func (c Config) newURLSource(raw string) (source, error) {
	u, err := url.Parse(raw)
	switch {
	case err != nil || u.Hostname() == "":
		return nil, errors.New("the URL is malformed; in a user name or a password, write characters other than letters and digits as %XX")
	case u.Fragment != "":
		return nil, errors.New("write # in the URL as %23")
	case u.Scheme == "http" && !loopback(u.Hostname()):
		return nil, errors.New("http:// would show the keys to the network: use https://, or http:// to this machine (127.0.0.1, ::1, localhost)")
	}
	s := &urlSource{url: u.String, shown: u.Scheme + "://" + u.Host + u.EscapedPath(), client: c.Client}
	if s.client == nil {
		s.own = http.DefaultTransport.(*http.Transport).Clone()
		s.client = &http.Client{Transport: s.own, Timeout: 10 * time.Second, CheckRedirect: func(*http.Request, []*http.Request) error {
			return http.ErrUseLastResponse
		}}
	}
	return s, nil
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

func (s *urlSource) name() string  { return s.shown }
func (s *urlSource) watched() bool { return true }

func (s *urlSource) close() {
	if s.own != nil {
		s.own.CloseIdleConnections()
	}
}

func (s *urlSource) read(ctx context.Context) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url(), nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", "application/json")
	req.Header.Set("Cache-Control", "no-cache")
	resp, err := s.client.Do(req)
	if err != nil {
		var u *url.Error
		if errors.As(err, &u) {
			err = u.Err // the URL is said already, and may hold a password
		}
		return nil, err
	}
	defer resp.Body.Close()
	switch {
	case resp.StatusCode >= 300 && resp.StatusCode < 400:
		return nil, fmt.Errorf("it answers %s, a redirect, which is not followed: give the URL that it leads to", resp.Status)
	case resp.StatusCode != http.StatusOK:
		return nil, fmt.Errorf("it answers %s, want 200 OK with a key ring", resp.Status)
	}
	return readAll(resp.Body)
}
