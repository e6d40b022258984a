package postgres_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/internal/testserver"
	"github.com/holdfast-sessions/holdfast/internal/testsql"
)

// TestFormerPrimary brings a primary back, as it was, after its standby was promoted: it takes writes, and what it has is
// old. Nobody uses it, wherever it stands in the URL, not even while the new primary is down.
func TestFormerPrimary(t *testing.T) {
	t.Parallel()
	pair := testserver.PostgresPair(t)
	both := address(pair.Primary, pair.Replica) + "?sweep=never"
	// The load's stores know of the promotion as they were there. The others are opened after it.
	l := kind.Promoted(t, pair)

	pair.Return()
	if n := testsql.MustInt(t, mustAdmin(t, pair.Primary), "SELECT CASE WHEN pg_is_in_recovery() THEN 1 ELSE 0 END"); n != 0 {
		t.Fatal("the former primary takes no writes: nothing is shown")
	}
	after := mustOpen(t, both)
	rec := testsql.Record("ada")
	testsql.MustSave(t, after, testsql.ID(1), rec, 0)
	alone := mustOpen(t, address(pair.Replica)+"?sweep=never")
	testsql.WantStored(t, alone, testsql.ID(1), rec)
	admin := mustAdmin(t, pair.Replica)
	for range testserver.Scale(5, 50) {
		cutAll(t, admin)
		l.Acked(testserver.Scale(50, 500))
	}

	pair.Replica.Stop()
	if _, err := after.Load(t.Context(), testsql.ID(1)); !errors.Is(err, driver.ErrUnavailable) || !strings.Contains(err.Error(), "is a former primary") {
		t.Errorf("only the former primary is there: Load = %v, want ErrUnavailable that says what it is", err)
	}
	l.Visits(testserver.Scale(200, 2000))
	pair.Replica.Restart()
	l.Recovered(testserver.Scale(100, 2000))
	testsql.WantStored(t, after, testsql.ID(1), rec)

	admin = mustAdmin(t, pair.Replica) // the other's connection is broken
	// A user who may not ask for the timeline can use the store as ever.
	testsql.MustExec(t, admin, "REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC")
	testsql.MustExec(t, admin, "CREATE ROLE plain LOGIN PASSWORD 's3cret'")
	testsql.MustExec(t, admin, "GRANT SELECT, INSERT, UPDATE, DELETE ON holdfast_sessions TO plain")
	testsql.MustExec(t, admin, "GRANT SELECT, UPDATE ON holdfast_sessions_meta TO plain")
	plain := strings.Replace(address(pair.Replica), testserver.DatabaseUser+":", "plain:", 1)
	plain = strings.Replace(plain, pair.Replica.Addr, pair.Replica.Addr+","+testserver.FreeAddr(t), 1)
	if _, err := mustOpen(t, plain+"?sweep=never").Load(context.Background(), testsql.ID(1)); err != nil {
		t.Errorf("without the right to ask for the timeline: Load = %v", err)
	}

	testsql.WantRight(t, l, mustOpen(t, both))
}
