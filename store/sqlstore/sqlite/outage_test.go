package sqlite_test

import (
	"path/filepath"
	"testing"

	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/internal/testfault"
	"github.com/holdfast-sessions/holdfast/internal/testserver"
	"github.com/holdfast-sessions/holdfast/internal/testsql"
)

// TestOutages causes what can happen to a file, while visitors are at work. It has no server that could be killed, and no
// connections that could be cut.
func TestOutages(t *testing.T) {
	disk := testserver.SmallDisk(t, "32m", "")
	path := filepath.Join(disk.Dir, "sessions.db")
	s := mustOpen(t, "sqlite:"+path+"?sweep=never") // the -shm file stays as long as somebody has the database open
	if err := s.Delete(t.Context(), testsql.ID(1)); err != nil {
		t.Fatal(err)
	}
	admin := mustAdmin(t, path)
	fault := func(name string, f testfault.Fault, cause, end string) testfault.Fault {
		f.Name, f.Cause = name, func(t testing.TB) func() {
			testsql.MustExec(t, admin, cause)
			return func() { testsql.MustExec(t, admin, end) }
		}
		return f
	}
	lock := outage(t, path)
	locked := testfault.Down
	locked.Name, locked.Cause = "locked by another process", func(t testing.TB) func() { return lock(t, nil) }
	deletes := testfault.Down // names no other column
	deletes.Delete = nil
	testfault.Outages(t, testfault.Target{
		NoProxy: true, Keeps: true,
		Open: func(t testing.TB, _ string) driver.Store { return mustOpen(t, "sqlite:"+path) },
		Faults: []testfault.Fault{
			locked,
			fault("a writer that does not end", testfault.Fault{Create: driver.ErrUnavailable, Write: driver.ErrUnavailable, Delete: driver.ErrUnavailable},
				"BEGIN IMMEDIATE", "ROLLBACK"),
			fault("table gone", testfault.Down, "ALTER TABLE holdfast_sessions RENAME TO elsewhere", "ALTER TABLE elsewhere RENAME TO holdfast_sessions"),
			fault("wrong schema", deletes, "ALTER TABLE holdfast_sessions RENAME revision TO version", "ALTER TABLE holdfast_sessions RENAME version TO revision"),
			{Name: "disk full", Bytes: 8 << 20, Create: driver.ErrUnavailable, Write: testfault.ErrEither, Delete: testfault.ErrEither,
				Cause: func(testing.TB) func() {
					disk.Fill()
					return disk.Free
				}},
		},
	})
}
