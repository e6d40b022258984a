package redisstore_test

import (
	"testing"

	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/internal/testserver"
	"github.com/holdfast-sessions/holdfast/storetest"
)

// TestStore proves the contract, with two clients too, while the server is up and while it is frozen.
func TestStore(t *testing.T) {
	t.Parallel()
	srv := testserver.Redis(t)
	prove(t, "redis://"+srv.Addr, func() func() {
		srv.Freeze()
		return srv.Thaw
	})
}

// TestStoreOnSentinel proves it on a primary that Sentinel names, with a replica that confirms every write.
func TestStoreOnSentinel(t *testing.T) {
	t.Parallel()
	set := testserver.RedisSentinel(t)
	open := func(t testing.TB) driver.Store {
		return mustOpen(t, "redis-sentinel://"+set.Addrs()+"?wait=1&wait_timeout=5s&master="+set.Name)
	}
	var o storetest.Options
	if testserver.Scale(0, 1) == 1 { // to the server it is no other than TestStore's
		o.Peer = func(t testing.TB, _ driver.Store) driver.Store { return open(t) }
	}
	storetest.Run(t, open, o)
}

// TestStoreOnCluster proves it on a cluster.
func TestStoreOnCluster(t *testing.T) {
	t.Parallel()
	set := testserver.RedisCluster(t)
	url := "redis-cluster://" + set.Addrs()
	if testserver.Scale(0, 1) == 0 {
		// Two clients of a node are no other than TestStore's, and TestWaitInCluster and TestClusterSlotsMove are about what is
		// different with wait.
		storetest.Run(t, func(t testing.TB) driver.Store { return mustOpen(t, url) }, storetest.Options{Reopen: reopen(url)})
		return
	}
	prove(t, url, nil)
	t.Run("wait", func(t *testing.T) { // with replicas that confirm every write
		storetest.Run(t, func(t testing.TB) driver.Store {
			return mustOpen(t, "redis-cluster://"+set.Nodes[4].Addr+"?wait=1&wait_timeout=5s")
		})
	})
}

// TestStoreWithCache proves it with a cache, for one client: another sees a change a moment later.
func TestStoreWithCache(t *testing.T) {
	t.Parallel()
	srv := testserver.Redis(t)
	storetest.Run(t, func(t testing.TB) driver.Store { return mustOpen(t, "redis://"+srv.Addr+"?cache=64MB&cache_ttl=1m") })
}

func prove(t *testing.T, url string, outage func() func()) {
	open := func(t testing.TB) driver.Store { return mustOpen(t, url) }
	o := storetest.Options{
		Peer:   func(t testing.TB, _ driver.Store) driver.Store { return open(t) },
		Reopen: reopen(url),
	}
	if outage != nil {
		o.Outage = func(testing.TB, driver.Store) func() { return outage() }
	}
	storetest.Run(t, open, o)
}

// reopen returns how a store is closed and opened again.
func reopen(url string) func(testing.TB, driver.Store) driver.Store {
	return func(t testing.TB, s driver.Store) driver.Store {
		if err := s.Close(); err != nil {
			t.Errorf("Close = %v", err)
		}
		return mustOpen(t, url)
	}
}
