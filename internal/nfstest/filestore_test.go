//go:build linux

package nfstest

import (
	"errors"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"testing"

	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/internal/testserver"
	"github.com/holdfast-sessions/holdfast/store/filestore"
	"github.com/holdfast-sessions/holdfast/storetest"
)

// The tests in these files run store/filestore with network=nfs on two machines that share a directory.

// machines are two clients of one server.
type machines struct {
	server *Server
	a, b   *Client
	dirs   atomic.Int64
}

func newMachines(t *testing.T, o ClientOptions) *machines {
	t.Helper()
	s, a, b := two(t, o)
	return &machines{server: s, a: a, b: b}
}

// newDir returns the name of a new directory.
func (m *machines) newDir() string { return "sessions" + strconv.FormatInt(m.dirs.Add(1), 10) }

func openStore(t testing.TB, c *Client, name string, config filestore.Config) *filestore.Store {
	t.Helper()
	config.Network = filestore.NFS
	if config.SweepEvery == 0 {
		config.SweepEvery = -1
	}
	s, err := filestore.Open(t.Context(), filepath.Join(c.dir, name), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() }) // most are closed by then
	return s
}

// TestFilestore is the suite of all stores, on one machine that is reopened on another, and over two that take turns. It
// takes minutes, so it runs in make soak; in other runs it is left to the tests beside it, and to store/filestore, where the
// suite runs with network=nfs on a local disk.
func TestFilestore(t *testing.T) {
	for _, version := range []int{3, 4}[:testserver.Scale(0, 2)] {
		t.Run("v"+strconv.Itoa(version), func(t *testing.T) {
			m := newMachines(t, ClientOptions{Version: version})
			at := make(map[driver.Store]string)
			open := func(t testing.TB, c *Client, name string) driver.Store {
				s := openStore(t, c, name, filestore.Config{})
				at[s] = name
				return s
			}
			storetest.Run(t, func(t testing.TB) driver.Store { return open(t, m.a, m.newDir()) }, storetest.Options{
				Peer: func(t testing.TB, s driver.Store) driver.Store { return open(t, m.b, at[s]) },
				Reopen: func(t testing.TB, s driver.Store) driver.Store {
					if err := s.Close(); err != nil {
						t.Error(err)
					}
					return open(t, m.b, at[s])
				},
				Outage: func(t testing.TB, s driver.Store) func() {
					m.server.Crash()
					return m.server.Recover
				},
			})
		})
	}
}

// TestFilestoreRequests counts what calls cost, in requests to the server, when the machine knows the directory and nobody
// else writes: docs/stores/file.md says so.
func TestFilestoreRequests(t *testing.T) {
	for _, tt := range []struct {
		version                                                int
		load, absent, save, lost, touch, after, delete, create int
	}{
		{3, 4, 5, 9, 4, 5, 6, 6, 20},
		{4, 4, 5, 8, 4, 5, 6, 6, 18},
	} {
		p := newPair(t, ClientOptions{Version: tt.version})
		id, rec := newID(), newRecord("1")
		must(t, p.onA.Save(t.Context(), id, rec, 0))
		must(t, p.onA.Save(t.Context(), id, rec, rec.Revision)) // all is known
		count := func(what string, want int, f func() error) {
			t.Helper()
			p.a.Calls()
			err := f()
			got, calls := 0, p.a.Calls()
			for _, n := range calls {
				got += n
			}
			if err != nil || got != want {
				t.Errorf("v%d %s: %v, %d requests %v, want %d", tt.version, what, err, got, calls, want)
			}
		}
		load := func() error { _, err := p.onA.Load(t.Context(), id); return err }
		_ = load()
		count("Load", tt.load, load)
		absent := newID()
		count("Load, absent", tt.absent, func() error {
			if _, err := p.onA.Load(t.Context(), absent); !errors.Is(err, driver.ErrNotFound) {
				return err
			}
			return nil
		})
		second := next(rec, "2")
		count("Save", tt.save, func() error { return p.onA.Save(t.Context(), id, second, rec.Revision) })
		count("Save, lost", tt.lost, func() error {
			if err := p.onA.Save(t.Context(), id, second, rec.Revision); !errors.Is(err, driver.ErrConflict) {
				return err
			}
			return nil
		})
		third := next(second, "2")
		count("Touch", tt.touch, func() error { return p.onA.Touch(t.Context(), id, third, second.Revision) })
		_ = load()
		fourth := next(third, "4")
		must(t, p.on.Save(t.Context(), id, fourth, third.Revision))
		count("Load, after another machine's Save", tt.after, load)
		count("Delete", tt.delete, func() error { return p.onA.Delete(t.Context(), id) })
		anew := newID()
		anew[0] = id[0]
		count("create", tt.create, func() error { return p.onA.Save(t.Context(), anew, rec, 0) })
	}
}
