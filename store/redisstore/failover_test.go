package redisstore_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/internal/testserver"
	"github.com/holdfast-sessions/holdfast/store/redisstore"
)

// A primary dies, or freezes and wakes up after it was replaced, while applications are at work. They go on by
// themselves. What was acknowledged and is lost is counted; with wait=1 and one replica it is nothing.
func TestSentinelFailover(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, options string
		frozen        bool
	}{
		{"killed", "", false},
		{"killed, wait", "&wait=1", false},
		{"frozen", "", true},
		{"frozen, wait", "&wait=1", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			set := testserver.RedisSentinel(t)
			url := "redis-sentinel://" + set.Addrs() + "?master=" + set.Name + tt.options
			l := mustLoad(t, url)
			l.progress(500)
			old := set.Primary()
			if tt.frozen {
				old.Freeze()
			} else {
				old.Stop()
			}
			for set.Primary() == old {
			}
			// There has to be a replica again before anything can be confirmed by one.
			switch {
			case tt.frozen:
				old.Thaw() // it takes itself for the primary until a Sentinel tells it
			case tt.options != "":
				old.Restart()
				old.MustCommand("REPLICAOF", "127.0.0.1", set.Primary().Port())
			}
			l.recover()
			if tt.frozen {
				wantReplica(t, old)
				l.progress(200)
			}
			l.check(url)
			if tt.options != "" {
				l.wantNothingLost()
			}
		})
	}
}

// wantReplica waits until a server says that it is a replica.
func wantReplica(t *testing.T, srv *testserver.Server) {
	t.Helper()
	eventually(t, "the former primary", func() error {
		role, err := srv.Command("ROLE")
		if err == nil && !strings.HasPrefix(role, "slave") {
			err = errors.New("says that it is a primary")
		}
		return err
	})
}

// What a replica did not get before it is promoted is undone, a logout too. Without wait it was acknowledged; with, the
// caller was told that it may not last.
func TestWhatReplicasDoNotHave(t *testing.T) {
	t.Parallel()
	for _, wait := range []string{"", "&wait=1&wait_timeout=100ms"} {
		t.Run("wait"+wait, func(t *testing.T) {
			t.Parallel()
			set := testserver.RedisSentinel(t)
			url := "redis-sentinel://" + set.Addrs() + "?master=" + set.Name
			s, confirmed := mustOpen(t, url), mustOpen(t, url+"&wait=1&wait_timeout=10s")
			w := mustOpen(t, url+wait)
			rec := record("ada", "n", "1")
			mustSave(t, confirmed, idOf(1), rec, 0)
			mustSave(t, confirmed, idOf(2), rec, 0)

			replica := set.Servers[1]
			replica.Freeze() // and what was sent to it would wait for it in the system, so:
			set.Servers[0].MustCommand("CLIENT", "KILL", "TYPE", "replica")
			changes := []driver.Change{driver.Change{Name: "n", Value: []byte("2")}}
			next := after(rec, changes...)
			_, mergeErr := w.Merge(t.Context(), idOf(2), rec, next, changes)
			for name, err := range map[string]error{
				"Save":   w.Save(t.Context(), idOf(3), rec, 0),
				"Merge":  mergeErr,
				"Delete": w.Delete(t.Context(), idOf(1)),
				"again":  w.Delete(t.Context(), idOf(1)), // no longer there, and still not confirmed
			} {
				switch {
				case wait == "" && err != nil:
					t.Errorf("%s = %v", name, err)
				case wait != "" && (!errors.Is(err, driver.ErrUnavailable) || !strings.Contains(err.Error(), "written, but not confirmed by 1 replicas")):
					t.Errorf("%s = %v, want ErrUnavailable that says that it was written", name, err)
				}
			}
			if err := w.Touch(t.Context(), idOf(2), after(next), next.Revision); err != nil {
				t.Errorf("Touch = %v, want it not to wait", err)
			}
			if _, err := w.Load(t.Context(), idOf(1)); !errors.Is(err, driver.ErrNotFound) {
				t.Errorf("Load of what was deleted = %v", err)
			}
			set.Servers[0].Stop()
			replica.Thaw()
			for set.Primary() != replica {
			}
			eventually(t, "after the failover", func() error {
				_, err := s.Load(t.Context(), idOf(1))
				return err // it is back
			})
			wantStored(t, s, idOf(2), rec)
			if _, err := s.Load(t.Context(), idOf(3)); !errors.Is(err, driver.ErrNotFound) {
				t.Errorf("Load of what the replica never had = %v, want ErrNotFound", err)
			}
		})
	}
}

// A primary that was demoted is left at once, also when nothing but its answers says so, and is not taken for the
// primary when it comes back from the dead with what it had.
func TestDemotedPrimary(t *testing.T) {
	t.Parallel()
	set := testserver.RedisSentinel(t, testserver.SentinelOptions{Redis: testserver.RedisOptions{
		Config: []string{"appendonly yes", "appendfsync always"},
	}})
	url := "redis-sentinel://" + set.Addrs() + "?master=" + set.Name
	s := mustOpen(t, url+"&wait=1&wait_timeout=10s")
	rec := record("ada", "n", "1")
	mustSave(t, s, idOf(1), rec, 0)

	// Behind the Sentinels' backs: they still name it, and it says itself that it is a replica.
	old, other := set.Servers[0], set.Servers[1]
	old.MustCommand("REPLICAOF", "127.0.0.1", other.Port())
	if err := s.Save(t.Context(), idOf(1), after(rec), rec.Revision); !errors.Is(err, driver.ErrReadOnly) && !errors.Is(err, driver.ErrUnavailable) {
		t.Errorf("Save at a demoted primary = %v, want ErrReadOnly or ErrUnavailable", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if _, err := s.Load(ctx, idOf(1)); !errors.Is(err, driver.ErrUnavailable) || !strings.Contains(err.Error(), "says that it is a replica") {
		t.Errorf("Load = %v, want ErrUnavailable that says why", err)
	}
	old.MustCommand("REPLICAOF", "NO", "ONE")
	eventually(t, "it is the primary again", func() error { _, err := s.Load(t.Context(), idOf(1)); return err })

	old.Stop()
	for set.Primary() == old {
	}
	next := after(rec, driver.Change{Name: "n", Value: []byte("2")})
	single := mustOpen(t, "redis://"+set.Primary().Addr)
	mustSave(t, single, idOf(1), next, rec.Revision)
	old.Restart() // says that it is a primary, and has the old record, until a Sentinel tells it
	if stale := old.MustCommand("ROLE"); !strings.HasPrefix(stale, "master") {
		t.Errorf("the old primary is %q already: nothing is shown", stale)
	}
	fresh := mustOpen(t, url)
	for _, c := range []*redisstore.Store{s, fresh} {
		eventually(t, "after the failover", func() error { _, err := c.Load(t.Context(), idOf(1)); return err })
		wantStored(t, c, idOf(1), next)
	}
}

// A Sentinel that is frozen, or cut off with what it knew, does not hold anything up or lead anybody astray.
func TestSentinelsFail(t *testing.T) {
	t.Parallel()
	set := testserver.RedisSentinel(t)
	url := "redis-sentinel://" + set.Addrs() + "?master=" + set.Name
	s := mustOpen(t, url)
	rec := record("ada")
	mustSave(t, s, idOf(1), rec, 0)

	old := set.Primary()
	set.Sentinels[0].Freeze() // knows the old primary only, when it wakes up
	old.CatchUp(1)
	if _, err := set.Sentinels[1].Command("SENTINEL", "FAILOVER", set.Name); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the others agree", func() error {
		for _, one := range set.Sentinels[1:] {
			addr, err := one.Command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", set.Name)
			if err != nil || strings.HasSuffix(addr, old.Port()) {
				return errors.Join(err, errors.New("not yet"))
			}
		}
		return nil
	})
	eventually(t, "one Sentinel is frozen", func() error { _, err := s.Load(t.Context(), idOf(1)); return err })
	mustOpen(t, url)

	set.Sentinels[0].Thaw()
	for range 100 { // over each of its connections
		wantStored(t, s, idOf(1), rec)
	}
	for _, one := range set.Sentinels {
		one.Stop()
	}
	for range 100 { // they go on
		wantStored(t, s, idOf(1), rec)
	}
	_, err := redisstore.Open(t.Context(), url)
	wantOpenError(t, url, err, "no Sentinel names the primary")
	if !errors.Is(err, driver.ErrUnavailable) {
		t.Errorf("Open = %v, want ErrUnavailable", err)
	}
}
