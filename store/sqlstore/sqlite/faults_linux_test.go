package sqlite_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/internal/testsql"
	"github.com/holdfast-sessions/holdfast/store/sqlstore/sqlite"
)

// outage returns how to lock a database for everybody.
func outage(t *testing.T, path string) func(testing.TB, driver.Store) (end func()) {
	lock := &locker{path: path + "-shm"}
	t.Cleanup(lock.close)
	return func(t testing.TB, _ driver.Store) func() { return lock.hold(t) }
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

// TestDiskFull fills the file system: writes say ErrUnavailable that names the disk, reads and, once there is room again,
// writes work, and nothing that was acknowledged is lost.
func TestDiskFull(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=4m,mode=700"); err != nil {
		t.Skipf("NOT RUN: mounting a tmpfs needs root: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	s, err := sqlite.Open(t.Context(), "sqlite:"+filepath.Join(dir, "sessions.db")+"?sweep=never")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close() // before the unmount
	rec := testsql.TenFields(20_000)
	n := 0
	for ; n < 1000 && err == nil; n++ {
		err = s.Save(t.Context(), testsql.ID(n), rec, 0)
	}
	if !errors.Is(err, driver.ErrUnavailable) || !strings.Contains(err.Error(), "disk is full") {
		t.Fatalf("Save number %d = %v, want ErrUnavailable that says that the disk is full", n, err)
	}
	n--
	for i := range n {
		testsql.WantStored(t, s, testsql.ID(i), rec)
	}
	if _, err := s.Load(t.Context(), testsql.ID(n)); !errors.Is(err, driver.ErrNotFound) {
		t.Errorf("Load of what was refused = %v, want ErrNotFound", err)
	}
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT, "size=8m"); err != nil {
		t.Fatal(err)
	}
	testsql.MustSave(t, s, testsql.ID(n), rec, 0)
}

// TestReadOnly is a database that somebody else owns.
func TestReadOnly(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sessions.db")
	s := mustOpen(t, "sqlite:"+path+"?sweep=never&max_conns=1")
	rec := testsql.Record("ada")
	testsql.MustSave(t, s, testsql.ID(1), rec, 0)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := unix.Mount(filepath.Dir(path), dir, "", unix.MS_BIND, ""); err != nil {
		t.Skipf("NOT RUN: a bind mount needs root: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	_, err := sqlite.Open(t.Context(), "sqlite:"+filepath.Join(dir, "sessions.db"))
	if err == nil || errors.Is(err, driver.ErrNotFound) {
		t.Errorf("Open = %v, want an error", err)
	}
	t.Logf("Open on a read-only file system: %v", err)
}
