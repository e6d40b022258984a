package mysql_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/internal/testserver"
	"github.com/holdfast-sessions/holdfast/internal/testsql"
)

// TestFormerPrimary brings a primary back after its replica was promoted. Read-only, as its configuration should have it,
// nobody uses it, wherever it stands in the URL, not even while the new primary is down. One that takes writes cannot be
// told from the new primary; who is connected to that stays with it.
func TestFormerPrimary(t *testing.T) {
	t.Parallel()
	pair := testserver.MariaDBPair(t)
	both := address(pair.Primary, pair.Replica) + "?sweep=never"
	l := kind.Promoted(t, pair)
	replicaOnly := address(pair.Replica) + "?sweep=never"

	pair.Primary.Restart() // read-only
	after := mustOpen(t, both)
	rec := testsql.Record("ada")
	testsql.MustSave(t, after, testsql.ID(1), rec, 0)
	testsql.WantStored(t, mustOpen(t, replicaOnly), testsql.ID(1), rec)
	pair.Replica.Stop()
	if _, err := after.Load(t.Context(), testsql.ID(1)); !errors.Is(err, driver.ErrUnavailable) || !strings.Contains(err.Error(), "is read-only") {
		t.Errorf("only the former primary is there: Load = %v, want ErrUnavailable that says what it is", err)
	}
	l.Visits(testserver.Scale(200, 2000))
	pair.Replica.Restart()
	testsql.MustExec(t, mustAdmin(t, pair.Replica), "SET GLOBAL read_only = OFF")
	l.Recovered(testserver.Scale(100, 2000))
	testsql.WantStored(t, after, testsql.ID(1), rec)

	pair.Return() // takes writes
	admin := mustAdmin(t, pair.Replica)
	for range testserver.Scale(5, 50) {
		cutAll(t, admin)
		l.Acked(testserver.Scale(50, 500))
	}
	testsql.WantStored(t, after, testsql.ID(1), rec)

	testsql.WantRight(t, l, mustOpen(t, replicaOnly))
}
