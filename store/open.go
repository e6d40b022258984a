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
	"github.com/holdfast-sessions/holdfast/internal/storeurl"
	"github.com/holdfast-sessions/holdfast/store/filestore"
	"github.com/holdfast-sessions/holdfast/store/memcached"
	"github.com/holdfast-sessions/holdfast/store/memory"
	"github.com/holdfast-sessions/holdfast/store/redisstore"
	"github.com/holdfast-sessions/holdfast/store/sqlstore/mysql"
	"github.com/holdfast-sessions/holdfast/store/sqlstore/postgres"
	"github.com/holdfast-sessions/holdfast/store/sqlstore/sqlite"
)

// ErrURL says that an address is not one of a store that Open knows: nothing was opened, nor could be.
var ErrURL = errors.New("not the URL of a store")

const known = "memory:, file:/directory, redis://host:port, redis-sentinel://host:port,...?master=name, redis-cluster://host:port,... " +
	"(rediss for TLS), memcached://host:port,..., mysql://user@host/database, postgres://user@host/database or sqlite:/file"

// Open opens the store that rawURL names: memory:, file:/directory, redis://…, redis-sentinel://… or redis-cluster://… (or
// the same with rediss), memcached://…, mysql://… (or mariadb://…), postgres://… (or postgresql://…) or sqlite:/file. What
// follows the scheme is for the store's package to read. The error matches ErrURL if there is no such store; it never shows
// a password.
func Open(ctx context.Context, rawURL string) (driver.Store, error) {
	switch scheme := schemeOf(rawURL); scheme {
	case "memory":
		if len(rawURL) != len("memory:") {
			return nil, fmt.Errorf("%w: memory: takes nothing after the colon", ErrURL)
		}
		return memory.New(), nil
	case "file":
		return filestore.OpenURL(ctx, rawURL)
	case "redis", "rediss", "redis-sentinel", "rediss-sentinel", "redis-cluster", "rediss-cluster":
		return redisstore.Open(ctx, rawURL)
	case "memcached":
		return memcached.Open(ctx, rawURL)
	case "mysql", "mariadb":
		return mysql.Open(ctx, rawURL)
	case "postgres", "postgresql":
		return postgres.Open(ctx, rawURL)
	case "sqlite":
		return sqlite.Open(ctx, rawURL)
	case "cookie", "jwt":
		return nil, fmt.Errorf("%w: %s: keeps sessions with the client, and no store has them: OpenManager opens it", ErrURL, scheme)
	default:
		return nil, unknown(scheme)
	}
}

func unknown(scheme string) error {
	if scheme == "" {
		return fmt.Errorf("%w: it has no scheme (want %s)", ErrURL, known)
	}
	return fmt.Errorf("%w: scheme %q unknown (want %s)", ErrURL, scheme, known)
}

// ErrNoSchema says that a store keeps its records in no table that would have to be made.
var ErrNoSchema = errors.New("this store needs no schema; it is ready to be opened")

// Schema returns the statements that make the tables of the store that rawURL names, for somebody who may run them, and
// the rights that the user in rawURL needs. It connects to nothing. The error matches ErrNoSchema if the store is not in a
// database.
func Schema(rawURL string) (string, error) {
	switch scheme := schemeOf(rawURL); scheme {
	case "mysql", "mariadb":
		return mysql.Schema(rawURL)
	case "postgres", "postgresql":
		return postgres.Schema(rawURL)
	case "sqlite":
		return sqlite.Schema(rawURL)
	default:
		return "", noSchema(scheme)
	}
}

// Migrate runs the statements that Schema returns: it makes what is missing, and checks what is there. The error matches
// ErrNoSchema if the store is not in a database.
func Migrate(ctx context.Context, rawURL string) error {
	switch scheme := schemeOf(rawURL); scheme {
	case "mysql", "mariadb":
		return mysql.Migrate(ctx, rawURL)
	case "postgres", "postgresql":
		return postgres.Migrate(ctx, rawURL)
	case "sqlite":
		return sqlite.Migrate(ctx, rawURL)
	default:
		return noSchema(scheme)
	}
}

func noSchema(scheme string) error {
	switch scheme {
	case "memory", "file", "redis", "rediss", "redis-sentinel", "rediss-sentinel", "redis-cluster", "rediss-cluster", "memcached":
		return fmt.Errorf("%s: %w", scheme, ErrNoSchema)
	}
	return unknown(scheme)
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
	switch scheme {
	case "":
		return ":…"
	case "memory":
		return "memory:"
	case "cookie", "jwt":
		u, err := url.Parse(rawURL)
		if err != nil {
			return scheme + ":…"
		}
		if users := u.Query().Get("users"); users != "" && users != "none" {
			return scheme + ": (users in " + Name(users) + ")"
		}
		return scheme + ":"
	case "file", "sqlite":
		path, _, _ := strings.Cut(rawURL, "?")
		return path
	}
	u, err := storeurl.Parse(rawURL)
	if err == nil {
		_, err = u.Addrs("1") // the port does not matter
	}
	if err != nil {
		return scheme + ":…"
	}
	return scheme + "://" + strings.Join(u.Hosts, ",") + (&url.URL{Path: u.Path}).EscapedPath()
}
