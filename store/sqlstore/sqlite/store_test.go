package sqlite_test

import (
	"errors"
	"path/filepath"
	"testing"

	"go.uber.org/goleak"

	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/internal/testsql"
	"github.com/holdfast-sessions/holdfast/store/sqlstore/sqlite"
	"github.com/holdfast-sessions/holdfast/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestStore proves the contract, with two stores on one file too, and while another process would hold all locks.
func TestStore(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sessions.db")
	open := func(t testing.TB) driver.Store { return mustOpen(t, "sqlite:"+path) }
	// As long as somebody has the database open, its -shm file stays.
	if _, err := mustOpen(t, "sqlite:"+path).Load(t.Context(), driver.ID{}); !errors.Is(err, driver.ErrNotFound) {
		t.Fatal(err)
	}
	admin := mustAdmin(t, path)
	storetest.Run(t, func(t testing.TB) driver.Store {
		// Each case lists what the ones before it have left.
		testsql.MustExec(t, admin, "DELETE FROM "+testsql.Table)
		return open(t)
	}, storetest.Options{
		Peer:   func(t testing.TB, _ driver.Store) driver.Store { return open(t) },
		Reopen: testsql.Reopen(open),
		Outage: outage(t, path),
	})
}

var mustOpen = testsql.Kind{Open: sqlite.Open}.MustOpen
