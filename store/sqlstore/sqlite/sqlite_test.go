package sqlite_test

import (
	"context"
	"database/sql"
	sqldriver "database/sql/driver"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	_ "modernc.org/sqlite" // the administrator's connection

	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/internal/testsql"
	"github.com/holdfast-sessions/holdfast/store/sqlstore"
	"github.com/holdfast-sessions/holdfast/store/sqlstore/sqlite"
)

func mustAdmin(t testing.TB, path string) *sql.DB {
	t.Helper()
	db, err := sql.Open("sqlite", "file:"+path+"?_pragma=busy_timeout(10000)")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

// statements notes what the client library is asked to run.
type statements struct {
	sqldriver.Connector

	mu  sync.Mutex
	ran []string // guarded by mu
}

func (s *statements) Connect(ctx context.Context) (sqldriver.Conn, error) {
	c, err := s.Connector.Connect(ctx)
	if err != nil {
		return nil, err
	}
	return &conn{c.(fullConn), s}, nil
}

func (s *statements) note(query string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ran = append(s.ran, query)
}

func (s *statements) take() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	ran := s.ran
	s.ran = nil
	return ran
}

type fullConn interface {
	sqldriver.Conn
	sqldriver.ConnPrepareContext
	sqldriver.ConnBeginTx
	sqldriver.ExecerContext
	sqldriver.QueryerContext
}

type conn struct {
	fullConn
	s *statements
}

func (c *conn) PrepareContext(ctx context.Context, query string) (sqldriver.Stmt, error) {
	stmt, err := c.fullConn.PrepareContext(ctx, query)
	if err != nil {
		return nil, err
	}
	return &prepared{stmt, query, c.s}, nil
}

func (c *conn) ExecContext(ctx context.Context, query string, args []sqldriver.NamedValue) (sqldriver.Result, error) {
	c.s.note(query)
	return c.fullConn.ExecContext(ctx, query, args)
}

func (c *conn) QueryContext(ctx context.Context, query string, args []sqldriver.NamedValue) (sqldriver.Rows, error) {
	c.s.note(query)
	return c.fullConn.QueryContext(ctx, query, args)
}

type prepared struct {
	sqldriver.Stmt
	query string
	s     *statements
}

func (p *prepared) ExecContext(ctx context.Context, args []sqldriver.NamedValue) (sqldriver.Result, error) {
	p.s.note(p.query)
	return p.Stmt.(sqldriver.StmtExecContext).ExecContext(ctx, args)
}

func (p *prepared) QueryContext(ctx context.Context, args []sqldriver.NamedValue) (sqldriver.Rows, error) {
	p.s.note(p.query)
	return p.Stmt.(sqldriver.StmtQueryContext).QueryContext(ctx, args)
}

// TestOneStatement counts what the library is asked to run: one statement a call. A touch that changed nothing takes a
// second one, to tell a lost race from an absent record.
func TestOneStatement(t *testing.T) {
	between := &statements{}
	s, err := sqlite.OpenWith(t.Context(), "sqlite:"+filepath.Join(t.TempDir(), "sessions.db")+"?sweep=never", func(c sqldriver.Connector) sqldriver.Connector {
		between.Connector = c
		return between
	})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for _, c := range testsql.Calls(s) {
		between.take()
		if err := c.Do(t.Context()); !errors.Is(err, c.Want) {
			t.Errorf("%s: %v, want %v", c.Name, err, c.Want)
		}
		want := 1
		if strings.HasPrefix(c.Name, "touch, ") {
			want = 2
		}
		if ran := between.take(); len(ran) != want || !strings.HasPrefix(strings.ToLower(ran[0]), c.Kind) {
			t.Errorf("%s: %q, want %d, the first of them %s", c.Name, ran, want, c.Kind)
		}
	}
}

func TestShared(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sessions.db")
	mustOpen(t, "sqlite:"+path+"?sweep=never")
	db := testsql.Database{
		Open: func(t testing.TB, options string) *sqlstore.Store {
			t.Helper()
			return mustOpen(t, "sqlite:"+path+"?max_conns=8"+options)
		},
		Admin: mustAdmin(t, path),
		Fill: "WITH RECURSIVE g(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM g WHERE n < %[1]d)" +
			" INSERT INTO " + testsql.Table + " (id, revision, seen, expires, sweep, data) SELECT randomblob(32), n, 0, %[2]d, %[3]d, randomblob(500) FROM g",
	}
	t.Run("quotes", func(t *testing.T) { testsql.Quotes(t, db) })
	t.Run("foreign bytes", func(t *testing.T) { testsql.Foreign(t, db) })
	t.Run("sweep margin", func(t *testing.T) { testsql.SweepMargin(t, db) })
	t.Run("elected", func(t *testing.T) { testsql.Elected(t, db) })
	t.Run("clean-up", func(t *testing.T) { testsql.CleanUp(t, db) })
}

// TestWriterHolds has another process hold the write lock: reads go on, writes end by their deadlines, and those whose
// deadlines are far off succeed once the lock is free.
func TestWriterHolds(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sessions.db")
	s := mustOpen(t, "sqlite:"+path+"?sweep=never")
	rec := testsql.Record("ada")
	testsql.MustSave(t, s, testsql.ID(1), rec, 0)
	other, err := mustAdmin(t, path).Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if _, err := other.ExecContext(t.Context(), "BEGIN IMMEDIATE"); err != nil {
		t.Fatal(err)
	}
	testsql.WantStored(t, s, testsql.ID(1), rec)
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	next := testsql.After(rec)
	if err := s.Save(ctx, testsql.ID(1), next, rec.Revision); !errors.Is(err, driver.ErrUnavailable) {
		t.Errorf("Save = %v, want ErrUnavailable", err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Save(t.Context(), testsql.ID(1), next, rec.Revision) }() // received below
	<-time.After(1500 * time.Millisecond)                                          // longer than busy_timeout
	if _, err := other.ExecContext(t.Context(), "ROLLBACK"); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Errorf("Save that waited for the lock = %v", err)
	}
	testsql.WantStored(t, s, testsql.ID(1), next)
}

func TestURLAndFile(t *testing.T) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	mustWrite := func(name, content string, mode os.FileMode) {
		t.Helper()
		if err := os.WriteFile(path(name), []byte(content), mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path(name), mode); err != nil {
			t.Fatal(err)
		}
	}
	mustWrite("open.db", "", 0o666)
	mustWrite("text.db", strings.Repeat("no database ", 1000), 0o600)
	mustOpen(t, "sqlite:"+path("good.db"))
	for _, link := range []string{"link.db"} {
		if err := os.Symlink(path("good.db"), path(link)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(path("open"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path("open"), 0o777); err != nil {
		t.Fatal(err)
	}
	foreign := mustAdmin(t, path("foreign.db"))
	if err := os.WriteFile(path("foreign.db"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	testsql.MustExec(t, foreign, "CREATE TABLE orders (id INTEGER PRIMARY KEY)")
	newer := mustOpen(t, "sqlite:"+path("newer.db"))
	testsql.MustExec(t, mustAdmin(t, path("newer.db")), "UPDATE holdfast_sessions_meta SET value = 2 WHERE name = 'schema'")
	_ = newer
	for _, tt := range []struct {
		url, want   string
		unavailable bool
	}{
		{"", "want sqlite:", false},
		{"file:x", "want sqlite:", false},
		{"sqlite:", "no file", false},
		{"sqlite:?sync=full", "no file", false},
		{"sqlite://host/x", "names a host", false},
		{"sqlite::memory:", "memory:", false},
		{"sqlite:%zz", "malformed", false},
		{"sqlite:x%00y", "malformed", false},
		{"sqlite:x?%zz", "malformed", false},
		{"sqlite:x?syn=full", `did you mean "sync"`, false},
		{"sqlite:x?sync=off", "want normal or full", false},
		{"sqlite:x?sync=full&sync=full", "given 2 times", false},
		{"sqlite:" + path("missing/x.db"), "make it (mkdir -p", false},
		{"sqlite:" + path("open.db"), "chmod 0600", false},
		{"sqlite:" + path("open/x.db"), "chmod 0700", false},
		{"sqlite:" + path("link.db"), "symbolic link", false},
		{"sqlite:" + dir, "is not a file", false},
		{"sqlite:" + path("text.db"), "not an SQLite database", true},
		{"sqlite:" + path("foreign.db") + "?table=orders", "column id is INTEGER, want blob", false},
		{"sqlite:" + path("newer.db"), "schema version 2, this release knows 1", false},
	} {
		_, err := sqlite.Open(t.Context(), tt.url)
		testsql.WantOpenError(t, tt.url, err, tt.want, tt.unavailable)
	}
	for _, url := range []string{"sqlite://" + path("a b%25?.db")[0:0] + path("slashes.db"), "SQLITE:" + path("a%20b%3Fc%25.db") + "?sync=full"} {
		mustOpen(t, url)
	}
	for _, name := range []string{"slashes.db", "a b?c%.db", "slashes.db-wal", "slashes.db-shm"} {
		info, err := os.Stat(path(name))
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v, want a file of mode 0600", name, info, err)
		}
	}
	t.Chdir(dir)
	mustOpen(t, "sqlite:relative.db")
	if _, err := os.Stat(path("relative.db")); err != nil {
		t.Error(err)
	}
}

func TestPage(t *testing.T) {
	schema, err := sqlite.Schema("sqlite:x")
	if err != nil {
		t.Fatal(err)
	}
	testsql.Page(t, "sqlite.md", schema)
}
