package postgres_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/internal/testserver"
	"github.com/holdfast-sessions/holdfast/internal/testsql"
	"github.com/holdfast-sessions/holdfast/store/sqlstore/postgres"
)

// TestRestart kills the server: calls say ErrUnavailable at once, the first after it is back works, and what was
// acknowledged is there.
func TestRestart(t *testing.T) {
	srv := testserver.Postgres(t)
	s := mustOpen(t, address(srv)+"?sweep=1s")
	rec := testsql.Record("ada", "a", "1")
	next := testsql.After(rec, testsql.Set("a", "2"))
	testsql.MustSave(t, s, testsql.ID(1), rec, 0)
	srv.Stop()
	if _, err := s.Load(t.Context(), testsql.ID(1)); !errors.Is(err, driver.ErrUnavailable) || !strings.Contains(err.Error(), "is postgres running there?") {
		t.Errorf("Load = %v, want ErrUnavailable that asks whether the server runs", err)
	}
	for name, err := range map[string]error{
		"Save": s.Save(t.Context(), testsql.ID(1), next, rec.Revision), "Touch": s.Touch(t.Context(), testsql.ID(1), next, rec.Revision),
		"Delete": s.Delete(t.Context(), testsql.ID(2)),
	} {
		if !errors.Is(err, driver.ErrUnavailable) {
			t.Errorf("%s = %v, want ErrUnavailable", name, err)
		}
	}
	srv.Restart()
	testsql.MustSave(t, s, testsql.ID(1), next, rec.Revision)
	srv.Restart() // while connections are idle
	testsql.WantStored(t, s, testsql.ID(1), next)
	srv.Restart()
	testsql.MustSave(t, s, testsql.ID(1), testsql.After(next), next.Revision)
}

// TestAnswerLost cuts connections in mid-answer: a write is never sent twice, a read is.
func TestAnswerLost(t *testing.T) {
	srv, admin := counted(t)
	proxy := testsql.NewProxy(t, srv.Addr)
	s := mustOpen(t, strings.Replace(address(srv), srv.Addr, proxy.Addr, 1)+"?sweep=never&max_conns=1")
	rec := testsql.Record("ada", "a", "1")
	next := testsql.After(rec, testsql.Set("a", "2"))
	lose := func(name, like string, f func() error) {
		t.Helper()
		for _, c := range testsql.Calls(s) { // so that the connection has all statements
			if err := c.Do(t.Context()); err != nil && err != c.Want {
				t.Errorf("%s: %v", c.Name, err)
			}
		}
		testsql.MustExec(t, admin, "SELECT pg_stat_statements_reset()")
		proxy.Cut.Store(true)
		err := f()
		proxy.Cut.Store(false)
		if !errors.Is(err, driver.ErrUnavailable) {
			t.Errorf("%s, answer lost: %v, want ErrUnavailable", name, err)
		}
		if n := testsql.MustInt(t, admin, "SELECT COALESCE(SUM(calls), 0)::bigint FROM pg_stat_statements WHERE query LIKE '"+like+"'"); n != 1 {
			t.Errorf("%s was carried out %d times, want once", name, n)
		}
	}
	lose("create", "INSERT %", func() error { return s.Save(t.Context(), testsql.ID(3), rec, 0) })
	testsql.WantStored(t, s, testsql.ID(3), rec)
	lose("save", "UPDATE %", func() error { return s.Save(t.Context(), testsql.ID(3), next, rec.Revision) })
	testsql.WantStored(t, s, testsql.ID(3), next)
	lose("delete", "DELETE %", func() error { return s.Delete(t.Context(), testsql.ID(3)) })
	if err := s.Save(t.Context(), testsql.ID(3), testsql.After(next), next.Revision); !errors.Is(err, driver.ErrConflict) {
		t.Errorf("after Delete: Save = %v, want ErrConflict", err)
	}
	testsql.MustSave(t, s, testsql.ID(2), rec, 0)
	testsql.MustExec(t, admin, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'holdfast'")
	testsql.WantStored(t, s, testsql.ID(2), rec)
}

// TestCloseFrozen closes a store whose server does not answer.
func TestCloseFrozen(t *testing.T) {
	srv := testserver.Postgres(t)
	s := mustOpen(t, address(srv)+"?sweep=1s")
	rec := testsql.Record("ada")
	testsql.MustSave(t, s, testsql.ID(1), rec, 0)
	srv.Freeze()
	defer srv.Thaw()
	waiting := make(chan error, 1)
	go func() { // received below
		_, err := s.Load(context.Background(), testsql.ID(1))
		waiting <- err
	}()
	start := time.Now()
	for range 2 {
		if err := s.Close(); err != nil {
			t.Errorf("Close = %v", err)
		}
	}
	if d := time.Since(start); d > 20*time.Second {
		t.Errorf("Close took %v with a server that does not answer", d)
	}
	if err := <-waiting; !errors.Is(err, driver.ErrUnavailable) {
		t.Errorf("a call under way: %v, want ErrUnavailable", err)
	}
}

// TestFailover names two hosts, a primary and its standby: the store uses the one that takes writes, wherever it stands
// in the URL, and finds the other when that is promoted.
func TestFailover(t *testing.T) {
	t.Parallel()
	a := testserver.Postgres(t, testserver.PostgresOptions{Config: []string{"wal_level = replica", "max_wal_senders = 4"}})
	mustOpen(t, address(a))
	b := testserver.Postgres(t, testserver.PostgresOptions{Primary: a})
	adminB := mustAdmin(t, b)
	both := func(hosts string) string { return strings.Replace(address(a), a.Addr, hosts, 1) + "?sweep=never" }
	rec := testsql.Record("ada")
	s := mustOpen(t, both(b.Addr+","+a.Addr)) // the standby first
	testsql.MustSave(t, s, testsql.ID(1), rec, 0)
	testsql.Eventually(t, "the standby has the row", func() bool {
		return testsql.MustInt(t, adminB, "SELECT COUNT(*) FROM "+testsql.Table) == 1
	})

	// A single host is used though it is read-only.
	alone := mustOpen(t, address(b)+"?sweep=never")
	testsql.WantStored(t, alone, testsql.ID(1), rec)
	for call, err := range map[string]error{
		"Save": alone.Save(t.Context(), testsql.ID(1), testsql.After(rec), rec.Revision), "create": alone.Save(t.Context(), testsql.ID(2), rec, 0),
		"Touch": alone.Touch(t.Context(), testsql.ID(1), testsql.After(rec), rec.Revision), "Delete": alone.Delete(t.Context(), testsql.ID(1)),
	} {
		if !errors.Is(err, driver.ErrReadOnly) {
			t.Errorf("standby: %s = %v, want ErrReadOnly", call, err)
		}
	}

	a.Stop()
	if _, err := s.Load(t.Context(), testsql.ID(1)); !errors.Is(err, driver.ErrUnavailable) {
		t.Errorf("primary down, standby not promoted: Load = %v, want ErrUnavailable", err)
	}
	_, err := postgres.Open(t.Context(), both(a.Addr+","+b.Addr))
	testsql.WantOpenError(t, "no primary", err, "no host takes writes: "+a.Addr+": ", true)
	testsql.MustExec(t, adminB, "SELECT pg_promote()")
	testsql.MustSave(t, s, testsql.ID(2), rec, 0)
	testsql.WantStored(t, s, testsql.ID(1), rec)
	s2 := mustOpen(t, both(a.Addr+","+b.Addr)) // the first host is down
	testsql.WantStored(t, s2, testsql.ID(2), rec)
	testsql.Eventually(t, "the store on b alone writes", func() bool { return alone.Save(t.Context(), testsql.ID(3), rec, 0) == nil })

	// A server that is made read-only while connections to it are open.
	testsql.MustExec(t, adminB, "ALTER SYSTEM SET default_transaction_read_only = on")
	testsql.MustExec(t, adminB, "SELECT pg_reload_conf()")
	testsql.Eventually(t, "no host takes writes", func() bool { return errors.Is(s.Save(t.Context(), testsql.ID(4), rec, 0), driver.ErrUnavailable) })

	b.Freeze()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if _, err := s.Load(ctx, testsql.ID(1)); !errors.Is(err, driver.ErrUnavailable) {
		t.Errorf("one host down, one frozen: Load = %v, want ErrUnavailable", err)
	}
	b.Thaw()
}
