package memory_test

import (
	"context"
	"encoding/binary"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/store/memory"
	"github.com/holdfast-sessions/holdfast/storetest"
)

var (
	_ driver.Store     = (*memory.Store)(nil)
	_ driver.Merger    = (*memory.Store)(nil)
	_ driver.Watcher   = (*memory.Store)(nil)
	_ driver.Lister    = (*memory.Store)(nil)
	_ driver.Sweeper   = (*memory.Store)(nil)
	_ driver.Stater    = (*memory.Store)(nil)
	_ driver.Describer = (*memory.Store)(nil)
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func open(testing.TB) driver.Store { return memory.New() }

func TestStore(t *testing.T) { storetest.Run(t, open) }

// TestStoreToTheMillisecond runs the suite under a clock of its own, where what expires does so on the dot.
func TestStoreToTheMillisecond(t *testing.T) {
	storetest.Run(t, open, storetest.Options{Synctest: true})
}

// TestChosenIDs is attack 37: IDs that an attacker chose spread over the shards as random ones would, and not in
// the same way in another process.
func TestChosenIDs(t *testing.T) {
	a, b := mustNew(t), mustNew(t)
	const n = 1_000_000
	for _, at := range []int{0, 24} { // the counter fills the first or the last 8 bytes, the rest is zero
		var sizes [memory.ShardCount]int
		same := 0
		for i := range uint64(n) {
			var id driver.ID
			binary.LittleEndian.PutUint64(id[at:], i)
			sizes[a.Index(id)]++
			if a.Index(id) == b.Index(id) {
				same++
			}
		}
		// A shard's share of random IDs is 3,906 with a standard deviation of 62: this allows six of them.
		if low, high := slices.Min(sizes[:]), slices.Max(sizes[:]); low < n/memory.ShardCount-375 || high > n/memory.ShardCount+375 {
			t.Errorf("counter at byte %d: shards hold %d to %d of %d IDs, want %d ± 375", at, low, high, n, n/memory.ShardCount)
		}
		if same > 2*n/memory.ShardCount {
			t.Errorf("counter at byte %d: %d of %d IDs share their shard's number in two stores, want about %d", at, same, n, n/memory.ShardCount)
		}
	}
}

func TestSweepForgetsExpired(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := mustNew(t)
		const n = 50_000
		for i := range uint64(n) {
			ttl := time.Second
			if i%10 == 0 {
				ttl = time.Hour
			}
			mustSave(t, s, counterID(i), record(ttl))
		}
		wantKept(t, s, n)
		time.Sleep(20 * time.Second) // a round of all shards takes 16
		wantKept(t, s, n/10)
		time.Sleep(time.Hour)
		wantKept(t, s, 0)
	})
}

func TestCloseForgetsEverything(t *testing.T) {
	s := memory.New()
	mustSave(t, s, counterID(1), record(time.Hour))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	wantKept(t, s, 0)
}

func TestLoadDoesNotAllocate(t *testing.T) {
	s := mustNew(t)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	mustSave(t, s, counterID(1), record(time.Hour))
	for _, id := range []driver.ID{counterID(1), counterID(2)} {
		if n := testing.AllocsPerRun(100, func() { _, _ = s.Load(ctx, id) }); n != 0 {
			t.Errorf("Load allocates %v times, want 0", n)
		}
	}
}

func BenchmarkLoad(b *testing.B) {
	s := mustNew(b)
	const n = 100_000
	for i := range uint64(n) {
		mustSave(b, s, counterID(i), record(time.Hour))
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	b.ReportAllocs()
	for i := uint64(0); b.Loop(); i++ {
		if _, err := s.Load(ctx, counterID(i*7919%n)); err != nil {
			b.Fatal(err)
		}
	}
}

func mustNew(t testing.TB) *memory.Store {
	s := memory.New()
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func mustSave(t testing.TB, s *memory.Store, id driver.ID, rec driver.Record) {
	t.Helper()
	if err := s.Save(context.Background(), id, rec, 0); err != nil {
		t.Fatal(err)
	}
}

func wantKept(t testing.TB, s *memory.Store, want int) {
	t.Helper()
	if got := s.Kept(); got != want {
		t.Errorf("the store keeps %d records, want %d", got, want)
	}
}

func counterID(i uint64) driver.ID {
	var id driver.ID
	binary.BigEndian.PutUint64(id[:], i)
	return id
}

func record(ttl time.Duration) driver.Record {
	now := time.Now().Truncate(time.Millisecond)
	return driver.Record{Created: now, Seen: now, Expires: now.Add(ttl), Revision: driver.NewRevision(0)}
}
