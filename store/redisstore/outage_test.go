package redisstore_test

import (
	"testing"

	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/internal/testfault"
	"github.com/holdfast-sessions/holdfast/internal/testserver"
)

// TestOutages causes everything that can happen to one server, while visitors are at work: one that writes to disk and one
// that does not.
func TestOutages(t *testing.T) {
	srv := testserver.Redis(t, testserver.RedisOptions{Config: []string{"appendonly yes", "appendfsync always"}})
	admin := mustAdmin(t, srv)
	set := func(t testing.TB, name, value string) {
		t.Helper()
		mustDo(t, admin, "CONFIG", "SET", name, value)
	}
	testfault.Outages(t, testfault.Target{
		Server: srv, Addr: srv.Addr, Keeps: true, Multiplexed: true,
		Open: func(t testing.TB, addr string) driver.Store { return mustOpen(t, "redis://"+addr) },
		Faults: []testfault.Fault{
			{
				Name: "memory full", Create: driver.ErrUnavailable, Write: driver.ErrUnavailable,
				Cause: func(t testing.TB) func() {
					set(t, "maxmemory", "1mb") // less than it has already
					return func() { set(t, "maxmemory", "0") }
				},
			},
			{
				Name: "read-only replica", Create: driver.ErrReadOnly, Write: driver.ErrReadOnly, Delete: driver.ErrReadOnly,
				Cause: func(t testing.TB) func() {
					mustDo(t, admin, "REPLICAOF", "127.0.0.1", "1") // where nobody is
					return func() { mustDo(t, admin, "REPLICAOF", "NO", "ONE") }
				},
			},
			{
				Name: "rights withdrawn", Load: driver.ErrUnavailable, Create: driver.ErrUnavailable, Write: driver.ErrUnavailable, Delete: driver.ErrUnavailable,
				Cause: func(t testing.TB) func() {
					mustDo(t, admin, "ACL", "SETUSER", "default", "resetkeys", "~other:*")
					return func() { mustDo(t, admin, "ACL", "SETUSER", "default", "allkeys") }
				},
			},
		},
	})
	t.Run("no disk", func(t *testing.T) {
		srv := testserver.Redis(t)
		testfault.Outages(t, testfault.Target{
			Server: srv, Addr: srv.Addr, Multiplexed: true, NoProxy: true,
			Open: func(t testing.TB, addr string) driver.Store { return mustOpen(t, "redis://"+addr) },
		})
	})
}
