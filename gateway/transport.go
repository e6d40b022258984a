package gateway

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/holdfast-sessions/holdfast/gateway/internal/h1"
)

// transport sends requests to one upstream.
type transport struct {
	*http.Transport
	plain *h1.Transport // for what it takes, as it costs less; nil with TLS
}

// send makes an attempt at r.
func (t *transport) send(r *http.Request, a *attempt) (*http.Response, error) {
	if t.plain != nil && h1.Takes(r) {
		a.ask()
		return t.plain.Send(r, a.got)
	}
	// ReverseProxy adds a trace of its own; to join the two takes microseconds, which the others are spared.
	return t.RoundTrip(r.WithContext(httptrace.WithClientTrace(r.Context(), a.trace())))
}

func (t *transport) CloseIdleConnections() {
	t.Transport.CloseIdleConnections()
	if t.plain != nil {
		t.plain.CloseIdleConnections()
	}
}

const (
	maxIdlePerUpstream     = 256
	idlePerUpstream        = time.Minute
	maxResponseHeaderBytes = 1 << 20
)

// newTransport returns the transport to an upstream at the given URL, whose certificate is for name if that is given. It
// speaks HTTP/1.1, and HTTP/2 if that is allowed and the upstream offers it. It does not use a proxy.
func newTransport(c *Config, l *live, to *url.URL, name string, http2 bool) *transport {
	t := newHTTPTransport(c, l, name, http2)
	if to.Scheme != "http" {
		return &transport{Transport: t}
	}
	return &transport{t, &h1.Transport{
		Dial:                  func(ctx context.Context) (net.Conn, error) { return t.DialContext(ctx, "tcp", addressOf(to)) },
		Stale:                 func(nc net.Conn) bool { c, secure := trackedConn(nc); return stale(c.Conn, secure) },
		ResponseHeaderTimeout: t.ResponseHeaderTimeout, MaxIdle: maxIdlePerUpstream, IdleTimeout: idlePerUpstream,
		MaxResponseHeaderBytes: maxResponseHeaderBytes,
	}}
}

func newHTTPTransport(c *Config, l *live, name string, http2 bool) *http.Transport {
	t := &http.Transport{
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			if path, ok := socketPath(address); ok {
				network, address = "unix", path
			}
			return l.dial(ctx, c, network, address)
		},
		TLSClientConfig:        clientTLS(c.UpstreamTLS, name),
		TLSHandshakeTimeout:    c.DialTimeout,
		ResponseHeaderTimeout:  c.ResponseHeaderTimeout,
		ExpectContinueTimeout:  time.Second,
		IdleConnTimeout:        idlePerUpstream,
		MaxIdleConnsPerHost:    maxIdlePerUpstream,
		MaxResponseHeaderBytes: maxResponseHeaderBytes,
		DisableCompression:     true,
		Protocols:              new(http.Protocols),
		// Many requests share a connection of HTTP/2, and nothing else would tell that it is dead.
		HTTP2: &http.HTTP2Config{SendPingTimeout: 10 * time.Second, PingTimeout: 5 * time.Second},
	}
	t.Protocols.SetHTTP1(true)
	t.Protocols.SetHTTP2(http2)
	return t
}

// A Unix socket is kept in an http URL whose host is its path: no host of another URL can begin with a slash.

// maxSocketPath is what the system takes (sun_path on Linux, without its last byte).
const maxSocketPath = 107

// parseSocket reads unix:/path/to/socket.
func parseSocket(s string) (*url.URL, error) {
	path := strings.TrimPrefix(s, "unix:")
	switch {
	case !strings.HasPrefix(path, "/") || strings.HasPrefix(path, "//"):
		return nil, fmt.Errorf("URL %q: want unix:/path/to/socket", s)
	case strings.ContainsAny(path, ":?#%\x00 "):
		return nil, fmt.Errorf("URL %q: a path with a colon, ?, #, %% or space cannot be used: choose another for the socket", s)
	case len(path) > maxSocketPath:
		return nil, errors.New("path of the socket is longer than 107 bytes, which is all that the system takes")
	}
	return &url.URL{Scheme: "http", Host: path}, nil
}

// addressOf returns the host and port of u, for DialContext of its transport.
func addressOf(u *url.URL) string {
	return net.JoinHostPort(u.Hostname(), strconv.Itoa(int(portOf(u))))
}

// socketPath returns the path of the Unix socket that address, a host and port, stands for.
func socketPath(address string) (string, bool) {
	if !strings.HasPrefix(address, "/") {
		return "", false
	}
	path, _, _ := strings.Cut(address, ":")
	return path, true
}

// hostOf returns the Host of requests to u that have no other.
func hostOf(u *url.URL) string {
	if _, ok := socketPath(u.Host); ok {
		return "localhost"
	}
	return u.Host
}

// urlText returns u as it was configured.
func urlText(u *url.URL) string {
	if path, ok := socketPath(u.Host); ok {
		return "unix:" + path
	}
	return u.String()
}
