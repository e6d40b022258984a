package postgres_test

import (
	"database/sql"
	"errors"
	"strings"
	"testing"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib" // the administrator's connection

	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/internal/testserver"
	"github.com/holdfast-sessions/holdfast/internal/testsql"
	"github.com/holdfast-sessions/holdfast/store/sqlstore"
	"github.com/holdfast-sessions/holdfast/store/sqlstore/postgres"
	"github.com/holdfast-sessions/holdfast/storetest"
)

func mustAdmin(t testing.TB, srv *testserver.Server) *sql.DB {
	t.Helper()
	db, err := sql.Open("pgx", "postgres://"+testserver.DatabaseUser+":"+testserver.DatabasePassword+"@"+srv.Addr+"/"+testserver.Database+"?sslmode=disable")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

// cutAll has a server end all connections of stores.
func cutAll(t testing.TB, admin *sql.DB) {
	t.Helper()
	testsql.MustExec(t, admin, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'holdfast'")
}

// counted is a server that counts statements.
func counted(t testing.TB) (*testserver.Server, *sql.DB) {
	t.Helper()
	srv := testserver.Postgres(t, testserver.PostgresOptions{Config: []string{
		"shared_preload_libraries = 'pg_stat_statements'", "deadlock_timeout = 100ms", "log_lock_waits = on"}})
	admin := mustAdmin(t, srv)
	testsql.MustExec(t, admin, "CREATE EXTENSION pg_stat_statements")
	return srv, admin
}

func database(t testing.TB, srv *testserver.Server, admin *sql.DB, options string) testsql.Database {
	return testsql.Database{
		Open: func(t testing.TB, more string) *sqlstore.Store {
			t.Helper()
			return mustOpen(t, address(srv)+"?max_conns=16"+options+more)
		},
		Admin: admin,
		Usual: 20_000,
		Fill: "INSERT INTO " + testsql.Table + " (id, revision, seen, expires, sweep, data)" +
			" SELECT sha256((random()::text || g)::bytea), g, 0, %[2]d, %[3]d, decode(repeat('78', 500), 'hex') FROM generate_series(1, %[1]d) g",
		Deadlocks: func(t testing.TB) int64 {
			return testsql.MustInt(t, admin, "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
		},
		// The server logs a wait that is longer than deadlock_timeout.
		LockWaits: func(t testing.TB) int64 { return int64(strings.Count(srv.Log(), "still waiting for")) },
		Deletes: func(t testing.TB) (statements, rows int64) {
			const q = " FROM pg_stat_statements WHERE query LIKE 'DELETE FROM " + testsql.Table + " WHERE id = ANY%'"
			return testsql.MustInt(t, admin, "SELECT COALESCE(SUM(calls), 0)::bigint"+q), testsql.MustInt(t, admin, "SELECT COALESCE(SUM(rows), 0)::bigint"+q)
		},
	}
}

// TestOneStatement counts what the server is sent, and how often: one statement and one round trip a call, whatever
// becomes of it.
func TestOneStatement(t *testing.T) {
	t.Parallel()
	srv, admin := counted(t)
	for name, options := range map[string]string{"prepared": "", "unprepared": "&prepare=false", "unlogged": "&unlogged=true&table=u"} {
		t.Run(name, func(t *testing.T) {
			proxy := testsql.NewProxy(t, srv.Addr)
			s := mustOpen(t, strings.Replace(address(srv), srv.Addr, proxy.Addr, 1)+"?sweep=never&max_conns=1"+options)
			// The first call of each kind prepares its statement on the connection.
			for i, c := range append(testsql.Calls(s), testsql.Calls(s)...) {
				testsql.MustExec(t, admin, "SELECT pg_stat_statements_reset()")
				trips := proxy.Trips.Load()
				if err := c.Do(t.Context()); !errors.Is(err, c.Want) {
					t.Errorf("%s: %v, want %v", c.Name, err, c.Want)
				}
				if n := proxy.Trips.Load() - trips; n != 1 && (i >= len(testsql.Calls(s)) || n > 2) {
					t.Errorf("%s: %d round trips, want 1", c.Name, n)
				}
				const q = " FROM pg_stat_statements WHERE query NOT LIKE '%pg_stat_statements%'"
				if n := testsql.MustInt(t, admin, "SELECT COALESCE(SUM(calls), 0)::bigint"+q); n != 1 {
					t.Errorf("%s: %d statements, want 1", c.Name, n)
				}
				if n := testsql.MustInt(t, admin, "SELECT COUNT(*)"+q+" AND query ILIKE '%"+c.Kind+"%'"); n != 1 {
					t.Errorf("%s: it is not the one that has %s", c.Name, c.Kind)
				}
			}
		})
	}
}

// An idle connection is used again without asking the server whether it is alive.
func TestNoPing(t *testing.T) {
	t.Parallel()
	srv := testserver.Postgres(t)
	proxy := testsql.NewProxy(t, srv.Addr)
	s := mustOpen(t, strings.Replace(address(srv), srv.Addr, proxy.Addr, 1)+"?sweep=never&max_conns=1")
	load := func() { _, _ = s.Load(t.Context(), testsql.ID(1)) } // not found
	load()
	<-time.After(1100 * time.Millisecond) // after a second pgx would ask
	before := proxy.Trips.Load()
	load()
	if n := proxy.Trips.Load() - before; n != 1 {
		t.Errorf("Load on a connection that was idle: %d round trips, want 1", n)
	}
}

func TestShared(t *testing.T) {
	srv, admin := counted(t)
	db := database(t, srv, admin, "")
	unprepared := database(t, srv, admin, "&prepare=false")
	t.Run("quotes", func(t *testing.T) { testsql.Quotes(t, db) })
	t.Run("quotes unprepared", func(t *testing.T) { testsql.Quotes(t, unprepared) })
	t.Run("foreign bytes", func(t *testing.T) { testsql.Foreign(t, db) })
	t.Run("sweep margin", func(t *testing.T) { testsql.SweepMargin(t, db) })
	t.Run("clean-up", func(t *testing.T) { testsql.CleanUp(t, db) })
}

func TestElected(t *testing.T) {
	t.Parallel()
	srv := testserver.Postgres(t)
	testsql.Elected(t, database(t, srv, mustAdmin(t, srv), ""))
}

// TestTouchIsHOT proves that a touch changes no index, as long as the page has room: that is what the sweep column and
// the fill factor are for.
func TestTouchIsHOT(t *testing.T) {
	t.Parallel()
	srv := testserver.Postgres(t)
	admin := mustAdmin(t, srv)
	s := mustOpen(t, address(srv)+"?sweep=never")
	rec := testsql.TenFields(1000)
	testsql.MustSave(t, s, testsql.ID(1), rec, 0)
	const touches = 100
	for range touches {
		next := testsql.After(rec)
		next.Seen, next.Expires = rec.Seen.Add(time.Second), rec.Expires.Add(time.Second)
		if err := s.Touch(t.Context(), testsql.ID(1), next, rec.Revision); err != nil {
			t.Fatal(err)
		}
		rec = next
	}
	if err := s.Close(); err != nil { // statistics are written by the end of a session
		t.Fatal(err)
	}
	counters := func(column string) int64 {
		return testsql.MustInt(t, admin, "SELECT "+column+" FROM pg_stat_user_tables WHERE relname = '"+testsql.Table+"'")
	}
	testsql.Eventually(t, "the server has counted", func() bool { return counters("n_tup_upd") >= touches })
	if hot := counters("n_tup_hot_upd"); hot < touches*9/10 {
		t.Errorf("%d of %d touches left the indexes alone, want nearly all", hot, touches)
	}
}

func TestUnlogged(t *testing.T) {
	t.Parallel()
	srv := testserver.Postgres(t)
	s := mustOpen(t, address(srv)+"?sweep=never&unlogged=true")
	if d := s.Describe(); !strings.Contains(d.Durable, "UNLOGGED") {
		t.Errorf("Describe = %+v", d)
	}
	rec := testsql.Record("ada")
	testsql.MustSave(t, s, testsql.ID(1), rec, 0)
	srv.Restart() // a crash
	if _, err := s.Load(t.Context(), testsql.ID(1)); !errors.Is(err, driver.ErrNotFound) {
		t.Errorf("after a crash Load = %v, want ErrNotFound", err)
	}
	testsql.MustSave(t, s, testsql.ID(1), rec, 0)
	_, err := postgres.Open(t.Context(), address(srv)+"?unlogged=false")
	testsql.WantOpenError(t, "unlogged=false", err, "ALTER TABLE holdfast_sessions SET LOGGED", false)
	if d := mustOpen(t, address(srv)).Describe(); !strings.Contains(d.Durable, "UNLOGGED") {
		t.Errorf("found without unlogged=true: Describe = %+v, want it taken for what it is", d)
	}
	if d := mustOpen(t, address(srv)+"?table=logged").Describe(); strings.Contains(d.Durable, "UNLOGGED") {
		t.Errorf("Describe = %+v", d)
	}
}

// TestPgBouncer is PgBouncer in transaction mode, of a version that knows no prepared statements: with prepare=false
// everything works, and without it the error says so.
func TestPgBouncer(t *testing.T) {
	t.Parallel()
	srv := testserver.Postgres(t)
	bouncer := testserver.PgBouncer(t, srv)
	url := strings.Replace(address(srv), srv.Addr, bouncer.Addr, 1)
	open := func(t testing.TB) driver.Store { return mustOpen(t, url+"?prepare=false&sweep=1s") }
	db := testsql.Database{Admin: mustAdmin(t, srv), Open: func(t testing.TB, _ string) *sqlstore.Store { return open(t).(*sqlstore.Store) }}
	t.Run("quotes", func(t *testing.T) { testsql.Quotes(t, db) })
	t.Run("foreign bytes", func(t *testing.T) { testsql.Foreign(t, db) })
	s := mustOpen(t, url+"?prepare=false&sweep=never&max_conns=16")
	t.Run("parallel", func(t *testing.T) { testsql.Parallel(t, s) })
	if testserver.Scale(0, 1) == 1 {
		storetest.Run(t, open)
	}

	var err error
	for range 100 { // until a statement meets another connection to the server
		var s *sqlstore.Store
		if s, err = postgres.Open(t.Context(), url); err != nil {
			break
		}
		_, err = s.Load(t.Context(), testsql.ID(1))
		_ = s.Close() // always nil
		if !errors.Is(err, driver.ErrNotFound) {
			break
		}
	}
	if err == nil || !strings.Contains(err.Error(), "prepare=false") {
		t.Errorf("without prepare=false: %v, want an error that names it", err)
	}
}
