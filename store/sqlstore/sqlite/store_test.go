package sqlite_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/store/sqlstore"
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
	lock := &locker{path: path + "-shm"}
	t.Cleanup(lock.close)
	storetest.Run(t, open, storetest.Options{
		Peer: func(t testing.TB, _ driver.Store) driver.Store { return open(t) },
		Reopen: func(t testing.TB, s driver.Store) driver.Store {
			if err := s.Close(); err != nil {
				t.Errorf("Close = %v", err)
			}
			return open(t)
		},
		Outage: func(t testing.TB, _ driver.Store) func() { return lock.hold(t) },
	})
}

// locker holds every lock of a database in WAL mode, as another process could: SQLite's readers and writers lock bytes
// 120 to 127 of the -shm file (wal.c). Locks of an open file description exclude this process's own, too. The files
// stay open until the test ends, as closing one drops the locks of the process.
type locker struct {
	path string
	open []*os.File
}

func (l *locker) hold(t testing.TB) (end func()) {
	t.Helper()
	f, err := os.OpenFile(l.path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	l.open = append(l.open, f)
	set := func(kind int16) {
		t.Helper()
		lock := unix.Flock_t{Type: kind, Start: 120, Len: 8}
		if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLKW, &lock); err != nil {
			t.Errorf("lock %s: %v", l.path, err)
		}
	}
	set(unix.F_WRLCK)
	return func() { set(unix.F_UNLCK) }
}

func (l *locker) close() {
	for _, f := range l.open {
		_ = f.Close() // nothing was written
	}
}

func mustOpen(t testing.TB, url string) *sqlstore.Store {
	t.Helper()
	s, err := sqlite.Open(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("Close = %v", err)
		}
	})
	return s
}
