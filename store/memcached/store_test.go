package memcached_test

import (
	"testing"

	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/storetest"
)

// TestStore proves the contract over three servers, with two clients too, while they are up and while they are frozen.
func TestStore(t *testing.T) { prove(t, "") }

// TestStoreWithCopies proves the contract with a second copy of each record.
func TestStoreWithCopies(t *testing.T) { prove(t, "?copies=2") }

func prove(t *testing.T, options string) {
	t.Parallel()
	srvs, url := mustServers(t, 3)
	url += options
	open := func(t testing.TB) driver.Store { return mustOpen(t, url) }
	storetest.Run(t, open, storetest.Options{
		Peer: func(t testing.TB, _ driver.Store) driver.Store { return open(t) },
		Reopen: func(t testing.TB, s driver.Store) driver.Store {
			if err := s.Close(); err != nil {
				t.Errorf("Close = %v", err)
			}
			return open(t)
		},
		Outage: func(testing.TB, driver.Store) func() {
			for _, srv := range srvs {
				srv.Freeze()
			}
			return func() {
				for _, srv := range srvs {
					srv.Thaw()
				}
			}
		},
	})
}
