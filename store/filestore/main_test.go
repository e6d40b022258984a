//go:build unix

package filestore_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/internal/testserver"
	"github.com/holdfast-sessions/holdfast/store/filestore"
	"github.com/holdfast-sessions/holdfast/storetest"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(workerEnv); dir != "" {
		os.Exit(worker(dir))
	}
	goleak.VerifyTestMain(m)
}

func TestStore(t *testing.T) {
	t.Run("sync=none", func(t *testing.T) {
		testStore(t, filestore.Config{SweepEvery: 20 * time.Millisecond}, true)
	})
	t.Run("sync=data", func(t *testing.T) { testStore(t, filestore.Config{SyncData: true}, false) })
	t.Run("layout=hashed", func(t *testing.T) {
		soak := testserver.Scale(0, 1) == 1 // it differs in names only
		testStore(t, filestore.Config{Layout: filestore.Hashed, SweepEvery: 20 * time.Millisecond}, soak)
	})
	t.Run("network=nfs", func(t *testing.T) {
		testStore(t, filestore.Config{Network: filestore.NFS, SweepEvery: 20 * time.Millisecond}, true)
	})
}

func testStore(t *testing.T, c filestore.Config, peers bool) {
	dirs := make(map[driver.Store]string)
	openAt := func(t testing.TB, dir string) driver.Store {
		s := mustOpen(t, dir, c)
		dirs[s] = dir
		return s
	}
	o := storetest.Options{
		Reopen: func(t testing.TB, s driver.Store) driver.Store {
			must(t, s.Close())
			return openAt(t, dirs[s])
		},
		Outage: func(t testing.TB, s driver.Store) func() {
			must(t, os.Rename(dirs[s], dirs[s]+".away"))
			end := noFiles(t)
			return func() {
				end()
				must(t, os.Rename(dirs[s]+".away", dirs[s]))
			}
		},
	}
	if peers {
		o.Peer = func(t testing.TB, s driver.Store) driver.Store { return openAt(t, dirs[s]) }
	}
	storetest.Run(t, func(t testing.TB) driver.Store { return openAt(t, fastDir(t)) }, o)
}

func mustOpen(t testing.TB, dir string, c filestore.Config) *filestore.Store {
	t.Helper()
	if err := os.Chmod(dir, 0o700); err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	s, err := filestore.Open(context.Background(), dir, c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// noFiles leaves this process no file to open until the function it returns is called.
func noFiles(t testing.TB) (end func()) {
	t.Helper()
	var before syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &before); err != nil {
		t.Fatal(err)
	}
	none := before
	none.Cur = 0
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &none); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &before); err != nil {
			t.Fatal(err)
		}
	}
}

// bothLayouts runs a test with each layout.
func bothLayouts(t *testing.T, f func(t *testing.T, l filestore.Layout)) {
	for _, l := range []filestore.Layout{filestore.Flat, filestore.Hashed} {
		t.Run("layout="+string(l), func(t *testing.T) { f(t, l) })
	}
}

// place is where a record is in the directory of its store.
func place(l filestore.Layout, id driver.ID) string {
	if l == filestore.Hashed {
		return filepath.Join(id.Hex()[:2], id.Hex())
	}
	return id.Hex()
}

// fastDir returns a directory in memory if there is such a place, as tests of the order of calls do not need a disk.
func fastDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "filestore")
	if err != nil {
		return filepath.Join(t.TempDir(), "sessions")
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// newRecord returns a record with one field, n.
func newRecord(n string, ttl time.Duration) driver.Record {
	now := time.Now().Truncate(time.Millisecond)
	return driver.Record{
		Created:  now,
		Seen:     now,
		Expires:  now.Add(ttl),
		Revision: driver.NewRevision(0),
		Fields:   driver.Fields{}.With(driver.Change{Name: "n", Value: []byte(n)}),
	}
}

// next returns the record that replaces rec, with n.
func next(rec driver.Record, n string) driver.Record {
	rec.Revision = driver.NewRevision(rec.Revision)
	rec.Fields = rec.Fields.With(driver.Change{Name: "n", Value: []byte(n)})
	return rec
}

func mustSave(t testing.TB, s driver.Store, id driver.ID, rec driver.Record, prev uint64) {
	t.Helper()
	if err := s.Save(t.Context(), id, rec, prev); err != nil {
		t.Fatalf("Save: %v", err)
	}
}

func wantN(t testing.TB, s driver.Store, id driver.ID, want string) driver.Record {
	t.Helper()
	rec, err := s.Load(t.Context(), id)
	if err != nil {
		t.Fatalf("Load: %v", err)
	}
	if n, _ := rec.Fields.Get("n"); string(n) != want {
		t.Fatalf("n = %s, want %s", n, want)
	}
	return rec
}

func wantErr(t testing.TB, what string, got, want error) {
	t.Helper()
	if !errors.Is(got, want) {
		t.Fatalf("%s: %v, want %v", what, got, want)
	}
}
