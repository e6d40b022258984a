package redisstore_test

import (
	"testing"

	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/internal/testserver"
	"github.com/holdfast-sessions/holdfast/storetest"
)

// TestStore proves the contract, with two clients too, while the server is up and while it is frozen.
func TestStore(t *testing.T) {
	srv := testserver.Redis(t)
	open := func(t testing.TB) driver.Store { return mustOpen(t, "redis://"+srv.Addr) }
	storetest.Run(t, open, storetest.Options{
		Peer: func(t testing.TB, _ driver.Store) driver.Store { return open(t) },
		Reopen: func(t testing.TB, s driver.Store) driver.Store {
			if err := s.Close(); err != nil {
				t.Errorf("Close = %v", err)
			}
			return open(t)
		},
		Outage: func(testing.TB, driver.Store) func() {
			srv.Freeze()
			return srv.Thaw
		},
	})
}
