//go:build linux

package nfstest

import (
	"path/filepath"
	"strconv"
	"sync/atomic"
	"testing"

	"github.com/holdfast-sessions/holdfast/driver"
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

// TestFilestore is the suite of all stores, over one machine and over two that take turns.
func TestFilestore(t *testing.T) {
	for _, version := range []int{3, 4} {
		t.Run("v"+strconv.Itoa(version), func(t *testing.T) {
			m := newMachines(t, ClientOptions{Version: version})
			at := make(map[driver.Store]string)
			open := func(t testing.TB, c *Client, name string) driver.Store {
				s := openStore(t, c, name, filestore.Config{})
				at[s] = name
				return s
			}
			storetest.Run(t, func(t testing.TB) driver.Store { return open(t, m.a, m.newDir()) }, storetest.Options{
				Reopen: func(t testing.TB, s driver.Store) driver.Store {
					if err := s.Close(); err != nil {
						t.Error(err)
					}
					return open(t, m.b, at[s])
				},
				Peer: func(t testing.TB, s driver.Store) driver.Store { return open(t, m.b, at[s]) },
				Outage: func(t testing.TB, s driver.Store) func() {
					m.server.Crash()
					return m.server.Recover
				},
			})
		})
	}
}

