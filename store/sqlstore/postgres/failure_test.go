package postgres_test

import (
	"context"
	"errors"
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
	t.Parallel()
	kind.Restart(t, "is postgres running there?")
}

// TestAnswerLost cuts connections in mid-answer: a write is never sent twice, a read is.
func TestAnswerLost(t *testing.T) {
	t.Parallel()
	srv, admin := counted(t)
	kind.AnswerLost(t, srv, admin, func(statement string) int64 {
		return testsql.MustInt(t, admin, "SELECT COALESCE(SUM(calls), 0)::bigint FROM pg_stat_statements WHERE query ILIKE '"+statement+" %'")
	})
}

// TestCloseFrozen closes a store whose server does not answer.
func TestCloseFrozen(t *testing.T) {
	t.Parallel()
	kind.CloseFrozen(t)
}

// TestFailover names two hosts, a primary and its standby: the store uses the one that takes writes, wherever it stands
// in the URL, and finds the other when that is promoted.
func TestFailover(t *testing.T) {
	t.Parallel()
	a := testserver.Postgres(t, testserver.PostgresOptions{Config: []string{"wal_level = replica", "max_wal_senders = 4"}})
	mustOpen(t, address(a))
	b := testserver.Postgres(t, testserver.PostgresOptions{Primary: a})
	adminB := mustAdmin(t, b)
	rec := testsql.Record("ada")
	s := mustOpen(t, address(b, a)+"?sweep=never") // the standby first
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
	_, err := postgres.Open(t.Context(), address(a, b)+"?sweep=never")
	testsql.WantOpenError(t, "no primary", err, "no host takes writes: "+a.Addr+": ", true)
	testsql.MustExec(t, adminB, "SELECT pg_promote()")
	testsql.MustSave(t, s, testsql.ID(2), rec, 0)
	testsql.WantStored(t, s, testsql.ID(1), rec)
	s2 := mustOpen(t, address(a, b)+"?sweep=never") // the first host is down
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
