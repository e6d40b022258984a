// Package store opens a store by its URL, as programs do whose users choose one: the holdfast binary, and yours if
// you like. A program that knows its store imports that store alone, and links nothing else.
//
//	s, err := store.Open(ctx, "redis://localhost:6379")
package store

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"

	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/store/filestore"
	"github.com/holdfast-sessions/holdfast/store/memcached"
	"github.com/holdfast-sessions/holdfast/store/memory"
	"github.com/holdfast-sessions/holdfast/store/redisstore"
)

// ErrURL says that an address is not one of a store that Open knows: nothing was opened, nor could be.
var ErrURL = errors.New("not the URL of a store")

const known = "memory:, file:/directory, redis://host:port, rediss://host:port or memcached://host:port,host:port"

// Open opens the store that rawURL names: memory:, file:/directory, redis://…, rediss://… or memcached://…. What follows
// the scheme is for the store's package to read. The error matches ErrURL if there is no such store; it never shows a
// password.
func Open(ctx context.Context, rawURL string) (driver.Store, error) {
	switch scheme := schemeOf(rawURL); scheme {
	case "memory":
		if len(rawURL) != len("memory:") {
			return nil, fmt.Errorf("%w: memory: takes nothing after the colon", ErrURL)
		}
		return memory.New(), nil
	case "file":
		return filestore.OpenURL(ctx, rawURL)
	case "redis", "rediss":
		return redisstore.Open(ctx, rawURL)
	case "memcached":
		return memcached.Open(ctx, rawURL)
	case "":
		return nil, fmt.Errorf("%w: it has no scheme (want %s)", ErrURL, known)
	default:
		return nil, fmt.Errorf("%w: scheme %q unknown (want %s)", ErrURL, scheme, known)
	}
}

// schemeOf returns what stands before the colon, in lower case, or "" if that cannot be a scheme. It does not need
// the rest to be a URL.
func schemeOf(rawURL string) string {
	scheme, _, ok := strings.Cut(rawURL, ":")
	if !ok || scheme == "" {
		return ""
	}
	for _, c := range scheme {
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '+' || c == '-' || c == '.') {
			return ""
		}
	}
	return strings.ToLower(scheme)
}

// Name returns the URL of a store as it may be shown: without user, password and options.
func Name(rawURL string) string {
	scheme := schemeOf(rawURL)
	u, err := url.Parse(rawURL)
	switch {
	case scheme == "" || err != nil:
		return scheme + ":…"
	case scheme == "file":
		path, _, _ := strings.Cut(rawURL, "?")
		return path
	case u.Opaque != "":
		return scheme + ":…"
	}
	return (&url.URL{Scheme: scheme, Host: u.Host, Path: u.Path, OmitHost: true}).String()
}
