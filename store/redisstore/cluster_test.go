package redisstore_test

import (
	"errors"
	"maps"
	"strings"
	"testing"

	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/internal/testserver"
	"github.com/holdfast-sessions/holdfast/store/redisstore"
)

// A primary of a cluster dies, or freezes and wakes up after its replica took over, while applications are at work.
func TestClusterFailover(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, options string
		frozen        bool
	}{
		{"killed", "", false},
		{"killed, wait", "?wait=1", false},
		{"frozen", "", true},
		{"frozen, wait", "?wait=1", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			set := testserver.RedisCluster(t)
			url := "redis-cluster://" + set.Nodes[0].Addr + "," + set.Nodes[2].Addr + tt.options
			l := mustLoad(t, url)
			l.progress(500)
			old, heir := set.Nodes[0], set.Nodes[3]
			if tt.frozen {
				old.Freeze()
			} else {
				old.Stop()
			}
			eventually(t, "the replica takes over", func() error {
				role, err := heir.Command("ROLE")
				if err == nil && !strings.HasPrefix(role, "master") {
					err = errors.New("not yet")
				}
				return err
			})
			if tt.frozen {
				old.Thaw() // it takes itself for the primary until another node tells it
			} else {
				old.Restart()
			}
			l.recover()
			wantReplica(t, old)
			l.progress(200)
			set.Settle()
			l.check(url)
			if tt.options != "" {
				l.wantNothingLost()
			}
		})
	}
}

// Slots move between primaries while applications are at work: nothing is refused, lost, or carried out twice. A write
// that was carried out twice would be refused the second time, as its record has changed since it was read.
func TestClusterSlotsMove(t *testing.T) {
	t.Parallel()
	for name, options := range map[string]string{"plain": "", "wait": "?wait=1&wait_timeout=5s", "cache": "?cache=64MB&cache_ttl=100ms"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			set := testserver.RedisCluster(t)
			url := "redis-cluster://" + set.Addrs() + options
			l := mustLoad(t, url)
			slots := make(map[int]bool)
			for _, x := range l.sessions {
				slots[redisstore.SlotOf(key(x.n))] = true
			}
			moves := 0
			for slot := range maps.Keys(slots) {
				from := set.Owner(slot)
				for _, to := range set.Primaries() {
					if to != from && moves < testserver.Scale(40, 2000) {
						set.MoveSlot(slot, from, to)
						from = to
						moves++
					}
				}
			}
			l.progress(200)
			l.check(url)
			l.wantNothingLost()
			if l.refused.Load() > 0 || l.conflicts.Load() > 0 {
				t.Errorf("%d moves: want no call refused, and none carried out twice: %v", moves, l)
			}
			t.Logf("%d slots moved", moves)
		})
	}
}

// A list made while slots move has every record once.
func TestClusterListWhileSlotsMove(t *testing.T) {
	t.Parallel()
	set := testserver.RedisCluster(t)
	s := mustOpen(t, "redis-cluster://"+set.Addrs())
	n := testserver.Scale(1500, 20000)
	for i := range n {
		mustSave(t, s, idOf(i), record("ada"), 0)
	}
	for i := range 20 {
		if got, want := redisstore.SlotOf(key(i)), mustInt(t, set.Nodes[0].MustCommand("CLUSTER", "KEYSLOT", key(i))); got != want {
			t.Errorf("slotOf(%s) = %d, want %d", key(i), got, want)
		}
	}
	moved := make(chan struct{})
	move := func() { // from the last to be seen to the first
		defer close(moved)
		to, from := set.Nodes[0], set.Nodes[0]
		for _, p := range set.Primaries() {
			if p.Addr < to.Addr {
				to = p
			}
			if p.Addr > from.Addr {
				from = p
			}
		}
		count := 0
		for i := 0; i < n && count < 30; i++ {
			if slot := redisstore.SlotOf(key(i)); set.Owner(slot) == from {
				set.MoveSlot(slot, from, to)
				count++
			}
		}
	}
	seen := make(map[driver.ID]bool)
	for item, err := range s.List(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		if seen[item.ID] {
			t.Errorf("%s is listed twice", item.ID)
		}
		seen[item.ID] = true
		if len(seen) == n/2 {
			move()
		}
	}
	<-moved
	if len(seen) != n {
		t.Errorf("%d of %d records are listed", len(seen), n)
	}

	set.Nodes[1].Stop()
	for _, err := range s.List(t.Context()) {
		if err != nil && !errors.Is(err, driver.ErrUnavailable) {
			t.Errorf("a primary is down: List = %v, want ErrUnavailable", err)
		}
		if err != nil {
			return
		}
	}
	t.Error("a primary is down: List says nothing of it")
}
