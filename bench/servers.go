package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"

	_ "github.com/go-sql-driver/mysql"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"

	"github.com/holdfast-sessions/holdfast/internal/testserver"
)

// A server is what keeps the sessions. The zero value is this process's memory.
type server struct {
	kind string // "redis", "mysql", "postgres"
	addr string
}

// title is what the tables call a kind of server.
var titles = map[string]string{"memory": "Memory", "redis": "Redis", "mysql": "MariaDB", "postgres": "PostgreSQL"}

var allStores = []string{"memory", "redis", "mysql", "postgres"}

// connections is how many every library may have to a database: as many as there are requests at a time. (By default
// database/sql keeps two, and connects anew for the others.)
const connections = 16

// A host stands in for a test, of which a program has none, so that it can start the servers that tests use.
type host struct {
	testing.TB // nil: what is not below is not used

	dir     string
	cleanup []func()
	failure string
}

func (h *host) Helper()          {}
func (h *host) Name() string     { return "the benchmark" }
func (h *host) TempDir() string  { return h.dir }
func (h *host) Cleanup(f func()) { h.cleanup = append(h.cleanup, f) }
func (h *host) Skip(a ...any)    { h.fail(fmt.Sprint(a...)) }
func (h *host) Fatal(a ...any)   { h.fail(fmt.Sprint(a...)) }

func (h *host) Fatalf(format string, a ...any) { h.fail(fmt.Sprintf(format, a...)) }

func (h *host) fail(text string) {
	h.failure = text
	runtime.Goexit()
}

// startServer starts a server and returns what stops it.
func startServer(kind string) (at server, stop func(), err error) {
	dir, err := os.MkdirTemp("", "holdfast-bench-")
	if err != nil {
		return server{}, nil, err
	}
	h := &host{dir: dir, failure: "not started"}
	stop = func() {
		for i := len(h.cleanup) - 1; i >= 0; i-- {
			h.cleanup[i]()
		}
		_ = os.RemoveAll(dir) // what stays is small and in the temporary directory
	}
	done := make(chan struct{})
	go func() { // it may end by Goexit
		defer close(done)
		switch kind {
		case "redis":
			at = server{kind, testserver.Redis(h).Addr}
		case "mysql":
			at = server{kind, testserver.MariaDB(h).Addr}
		case "postgres":
			at = server{kind, testserver.Postgres(h).Addr}
		default:
			h.fail("no such store: " + kind)
		}
		h.failure = ""
	}()
	<-done
	if h.failure == "" {
		if err = prepare(at); err == nil {
			return at, stop, nil
		}
	} else {
		err = errors.New(h.failure)
	}
	stop()
	return server{}, nil, err
}

// The tables that the peers' documentation says to make.
var tables = map[string]string{
	"mysql": `CREATE TABLE sessions (token CHAR(43) PRIMARY KEY, data BLOB NOT NULL, expiry TIMESTAMP(6) NOT NULL);
		CREATE INDEX sessions_expiry_idx ON sessions (expiry)`,
	"postgres": `CREATE TABLE sessions (token TEXT PRIMARY KEY, data BYTEA NOT NULL, expiry TIMESTAMPTZ NOT NULL);
		CREATE INDEX sessions_expiry_idx ON sessions (expiry)`,
}

// prepare makes the peers' tables.
func prepare(at server) error {
	for _, statement := range strings.Split(tables[at.kind], ";") {
		if err := execute(at, statement); err != nil {
			return err
		}
	}
	return nil
}

// empty removes everything that a server keeps.
func empty(at server) error {
	if at.kind == "redis" {
		client := redis.NewClient(&redis.Options{Addr: at.addr})
		defer client.Close()
		return client.FlushAll(context.Background()).Err()
	}
	for _, table := range []string{"sessions", "holdfast_sessions"} {
		// Ours is not there before our store was opened.
		if err := execute(at, "TRUNCATE TABLE "+table); err != nil && table == "sessions" {
			return err
		}
	}
	return nil
}

func execute(at server, statement string) error {
	ctx := context.Background()
	switch {
	case strings.TrimSpace(statement) == "":
		return nil
	case at.kind == "mysql":
		db, err := openMySQL(at.addr)
		if err != nil {
			return err
		}
		defer db.Close()
		_, err = db.ExecContext(ctx, statement)
		return err
	}
	pool, err := openPostgres(at.addr)
	if err != nil {
		return err
	}
	defer pool.Close()
	_, err = pool.Exec(ctx, statement)
	return err
}

// openMySQL opens the database for a peer. Without interpolateParams each of its statements would take two round trips.
func openMySQL(addr string) (*sql.DB, error) {
	db, err := sql.Open("mysql", testserver.DatabaseUser+":"+testserver.DatabasePassword+"@tcp("+addr+")/"+testserver.Database+
		"?parseTime=true&interpolateParams=true")
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(connections)
	db.SetMaxIdleConns(connections)
	return db, nil
}

// openPostgres opens the database for a peer.
func openPostgres(addr string) (*pgxpool.Pool, error) {
	return pgxpool.New(context.Background(), fmt.Sprintf("postgres://%s:%s@%s/%s?sslmode=disable&pool_max_conns=%d",
		testserver.DatabaseUser, testserver.DatabasePassword, addr, testserver.Database, connections))
}
