package learned_test

import (
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/holdfast-sessions/holdfast/gateway/internal/learned"
	"github.com/holdfast-sessions/holdfast/internal/testserver"
)

func wantHome(t testing.TB, table *learned.Table, id, want string) {
	t.Helper()
	if got := table.Get(id); got != want {
		t.Errorf("home of %s: %q, want %q", id, got, want)
	}
}

func TestTable(t *testing.T) {
	table := learned.New(100, time.Hour)
	wantHome(t, table, "x", "")
	table.Put("x", "a")
	wantHome(t, table, "x", "a")
	table.Put("x", "b")
	wantHome(t, table, "x", "b")
	if got := table.Peek("x"); got != "b" {
		t.Errorf("Peek: %q, want b", got)
	}
	table.Put("y", "c")
	table.Delete("x")
	table.Delete("x")
	wantHome(t, table, "x", "")
	wantHome(t, table, "y", "c")
	want := learned.Stats{Entries: 1, Hits: 3, Misses: 2}
	if d := cmp.Diff(want, table.Stats()); d != "" {
		t.Errorf("stats (-want +got):\n%s", d)
	}
}

func TestIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := learned.New(1000, time.Hour)
		table.Put("used", "a")
		table.Put("unused", "a")
		time.Sleep(time.Hour)
		wantHome(t, table, "used", "a") // and is used with that
		time.Sleep(time.Nanosecond)
		wantHome(t, table, "unused", "")
		time.Sleep(time.Hour - 1)
		wantHome(t, table, "used", "a")
		for i := range 100 {
			table.Put(fmt.Sprint(i), "a")
		}
		time.Sleep(time.Hour + 1)
		want := learned.Stats{Hits: 2, Misses: 1, Expirations: 102}
		if d := cmp.Diff(want, table.Stats()); d != "" {
			t.Errorf("stats (-want +got):\n%s", d)
		}
		table.Put("used", "b")
		wantHome(t, table, "used", "b")
	})
}

// Sessions in use survive a flood of ten times the table's size of IDs that are used once.
func TestFlood(t *testing.T) {
	const size = 3200
	table := learned.New(size, time.Hour)
	for i := range size / 2 {
		table.Put(fmt.Sprint("user", i), "a")
	}
	for i := range size / 2 {
		wantHome(t, table, fmt.Sprint("user", i), "a")
	}
	for i := range size * 10 {
		table.Put(fmt.Sprint("flood", i), "b")
	}
	for i := range size / 2 {
		wantHome(t, table, fmt.Sprint("user", i), "a")
	}
	if s := table.Stats(); s.Entries > size || s.Evictions < size*9 {
		t.Errorf("stats %+v, want at most %d entries and at least %d evictions", s, size, size*9)
	}
}

// Attack 37: IDs chosen so that their hashes begin alike fill all parts of the table.
func TestChosenIDs(t *testing.T) {
	table := learned.New(1<<20, time.Hour)
	const count = 2000
	for i, n := 0, 0; n < count; i++ {
		id := fmt.Sprint(i)
		if sum := sha256.Sum256([]byte(id)); sum[0]&15 == 0 && sum[15]&3 == 0 {
			table.Put(id, "a")
			n++
		}
	}
	sizes := table.ShardSizes()
	if mean := count / len(sizes); slices.Min(sizes) < mean/2 || slices.Max(sizes) > mean*2 {
		t.Errorf("entries by shard %v, want about %d each", sizes, mean)
	}
}

func TestMemory(t *testing.T) {
	const size = 100_000
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	table := learned.New(size, time.Hour)
	for i := range size * 2 {
		id := fmt.Sprint(i)
		table.Put(id, "a")
		if i%2 == 0 {
			table.Get(id)
		}
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	entries := table.Stats().Entries
	each := int(after.HeapAlloc-before.HeapAlloc) / entries
	t.Logf("%d entries, %d bytes each", entries, each)
	if each > learned.BytesPerEntry {
		t.Errorf("%d bytes an entry, want at most %d", each, learned.BytesPerEntry)
	}
	runtime.KeepAlive(table)
}

// Against a map: while the table is not full, it knows exactly what was put in.
func TestModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		table, model := learned.New(10_000, time.Hour), map[string]string{}
		id := rapid.SampledFrom([]string{"", "a", "b", "c", "d", "e", "f"})
		home := rapid.SampledFrom([]string{"x", "y", "z"})
		t.Repeat(map[string]func(*rapid.T){
			"put": func(t *rapid.T) {
				k, v := id.Draw(t, "id"), home.Draw(t, "home")
				table.Put(k, v)
				model[k] = v
			},
			"delete": func(t *rapid.T) {
				k := id.Draw(t, "id")
				table.Delete(k)
				delete(model, k)
			},
			"get": func(t *rapid.T) {
				k := id.Draw(t, "id")
				if got := table.Get(k); got != model[k] {
					t.Errorf("home of %q: %q, want %q", k, got, model[k])
				}
			},
			"": func(t *rapid.T) {
				if n := table.Stats().Entries; n != len(model) {
					t.Errorf("%d entries, want %d", n, len(model))
				}
			},
		})
	})
}

// However it is used, a full table keeps its bound, and what it answers was put in.
func TestConcurrently(t *testing.T) {
	table := learned.New(160, time.Hour)
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			random := rand.New(rand.NewPCG(uint64(g), 0))
			for range testserver.Scale(20_000, 1_000_000) {
				n := random.IntN(500)
				id, home := fmt.Sprint(n), fmt.Sprint("home", n)
				switch random.IntN(6) {
				case 0, 1:
					table.Put(id, home)
				case 2:
					table.Delete(id)
				default:
					if got := table.Get(id); got != "" && got != home {
						t.Errorf("home of %s: %q", id, got)
						return
					}
				}
			}
		})
	}
	wg.Wait()
	if s := table.Stats(); s.Entries > 160 || s.Evictions == 0 {
		t.Errorf("stats %+v, want at most 160 entries, and evictions", s)
	}
}

func BenchmarkGet(b *testing.B) {
	table := learned.New(100_000, time.Hour)
	ids := make([]string, 1024)
	for i := range ids {
		ids[i] = fmt.Sprintf("%032x", i)
		table.Put(ids[i], "a")
	}
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for i := 0; pb.Next(); i++ {
			table.Get(ids[i%len(ids)])
		}
	})
}
