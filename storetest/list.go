package storetest

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/holdfast-sessions/holdfast/driver"
)

var listCases = []Case{
	{
		Name:   "list/complete",
		Proves: "List yields every record once, as it is, and none that expired or was deleted",
		lacks:  noLister, run: listComplete,
	},
	{
		Name:   "list/among-writes",
		Proves: "while others write, List yields each record that is there all the time once, and any other at most once",
		lacks:  noLister, run: listAmongWrites,
	},
	{
		Name:   "list/body",
		Proves: "the body of a loop over List may call the store, and leave the loop, and the store works on",
		lacks:  noLister, run: listBody,
	},
	{
		Name:   "list/cancelled",
		Proves: "List with a context that ends yields an error that matches it, and nothing after it",
		lacks:  noLister, run: listCancelled,
	},
}

func noLister(t *T) string {
	if _, ok := t.stores[0].(driver.Lister); !ok {
		return "the store has no List"
	}
	return ""
}

// list lists the store and returns the records whose IDs are in ours, and how often each was yielded.
func (t *T) list(ctx context.Context, ours func(driver.ID) bool) (recs map[driver.ID]driver.Record, times map[driver.ID]int) {
	recs, times = make(map[driver.ID]driver.Record), make(map[driver.ID]int)
	for item, err := range t.store().(driver.Lister).List(ctx) {
		if err != nil {
			t.Fatalf("List yields %v", err)
		}
		if ours(item.ID) {
			recs[item.ID] = item.Record
			times[item.ID]++
		}
	}
	return recs, times
}

func listComplete(ctx context.Context, t *T) {
	want := make(map[driver.ID]driver.Record)
	for i := range 300 {
		id, rec := t.newID(), newRecord(longTTL, "n", fmt.Sprint(i), "fill", filler(i*7))
		t.save(ctx, id, rec, 0)
		want[id] = rec
	}
	first := t.newID() // IDs that share 31 bytes
	for i := range byte(50) {
		id, rec := first, newRecord(longTTL, "n", fmt.Sprint("shared", i))
		id[31] += i
		t.save(ctx, t.use(id), rec, 0)
		want[id] = rec
	}
	gone := make(map[driver.ID]string)
	for range 20 {
		id := t.newID()
		t.save(ctx, id, newRecord(longTTL), 0)
		t.delete(ctx, id)
		gone[id] = "deleted"

		id = t.newID()
		rec := newRecord(60 * time.Millisecond)
		t.save(ctx, id, rec, 0)
		gone[id] = "expired"
	}
	waitUntil(now().Add(60*time.Millisecond + t.about.ExpiryPrecision))
	recs, times := t.list(ctx, func(driver.ID) bool { return true })
	for id, rec := range want {
		if times[id] != 1 {
			t.Errorf("List yields a record %d times, want once", times[id])
			continue
		}
		t.wantRecord("listed", recs[id], rec)
	}
	for id, how := range gone {
		if times[id] > 0 {
			t.Errorf("List yields a record that is %s", how)
		}
	}
	for id, n := range times {
		if n > 1 {
			t.Errorf("List yields %s %d times", id, n)
		}
	}
}

func listAmongWrites(ctx context.Context, t *T) {
	var stable, changing []driver.ID
	for range 100 {
		id := t.newID()
		t.save(ctx, id, newRecord(longTTL, "n", "0"), 0)
		stable = append(stable, id)
		changing = append(changing, t.newID())
	}
	var own []driver.ID // of the loop over List
	for range 20 {
		id := t.newID()
		t.save(ctx, id, newRecord(longTTL, "n", "0"), 0)
		own = append(own, id)
	}
	ids := slices.Concat(stable, changing, own)
	// While a list goes on, writers make 60 rounds, and one more for every fourth record that it yields. Without an end to them
	// a list that is slow on a busy machine would become slower with every record they write.
	const ahead = 60
	rounds, done := make(chan struct{}, ahead), make(chan struct{})
	allow := func() {
		select {
		case rounds <- struct{}{}:
		default:
		}
	}
	var writers sync.WaitGroup
	for w := range 4 {
		writers.Go(func() {
			t.protect(func() {
				for i := w; ; i += 4 {
					select {
					case <-done:
						return
					case <-rounds:
					}
					n := i / 4 % 25 * 4
					id := stable[n+w] // each writer has IDs of its own
					rec := t.load(ctx, id)
					t.save(ctx, id, after(rec, sets("n", fmt.Sprint(i), "fill", filler(i%300))...), rec.Revision)
					id = changing[n+w]
					t.delete(ctx, id)
					t.save(ctx, id, newRecord(longTTL, "n", "0"), 0)
				}
			})
		})
	}
	t.protect(func() {
		for range 5 {
			for range ahead {
				allow()
			}
			times := make(map[driver.ID]int)
			for item, err := range t.store().(driver.Lister).List(ctx) {
				if err != nil {
					t.Fatalf("List yields %v", err)
				}
				if item.Record.Fields.Len() == 0 && slices.Contains(ids, item.ID) {
					t.Errorf("List yields a record without its fields")
				}
				times[item.ID]++
				n := len(times)
				if n%4 == 0 {
					allow()
				}
				// Some that were yielded and some that were not move on, whatever the others come to do.
				if n%5 == 0 {
					id := own[n/5%len(own)]
					rec := t.load(ctx, id)
					t.save(ctx, id, after(rec, sets("fill", filler(n))...), rec.Revision)
				}
			}
			for _, id := range slices.Concat(stable, own) {
				if times[id] != 1 {
					t.Errorf("List yields a record that is there all the time %d times, want once", times[id])
				}
			}
			for _, id := range changing {
				if times[id] > 1 {
					t.Errorf("List yields a record that comes and goes %d times, want at most once", times[id])
				}
			}
		}
	})
	close(done)
	writers.Wait()
}

func listBody(ctx context.Context, t *T) {
	mine := make(map[driver.ID]bool)
	for range 50 {
		id := t.newID()
		t.save(ctx, id, newRecord(longTTL), 0)
		mine[id] = true
	}
	lister := t.store().(driver.Lister)
	for item, err := range lister.List(ctx) {
		if err != nil {
			t.Fatalf("List yields %v", err)
		}
		if mine[item.ID] {
			t.load(ctx, item.ID)
			t.save(ctx, item.ID, after(item.Record), item.Record.Revision)
			t.delete(ctx, item.ID)
		}
	}
	if _, times := t.list(ctx, func(id driver.ID) bool { return mine[id] }); len(times) > 0 {
		t.Errorf("%d records are listed after a loop over List deleted them", len(times))
	}
	id := t.newID()
	t.save(ctx, id, newRecord(longTTL), 0)
	for range 20 {
		for _, err := range lister.List(ctx) {
			if err != nil {
				t.Fatalf("List yields %v", err)
			}
			break
		}
		t.load(ctx, id)
	}
}

func listCancelled(ctx context.Context, t *T) {
	for range 50 {
		t.save(ctx, t.newID(), newRecord(longTTL), 0)
	}
	for _, n := range []int{0, 1, 10} {
		listCtx, cancel := context.WithCancel(ctx)
		if n == 0 {
			cancel()
		}
		var yielded int
		var last error
		for _, err := range t.store().(driver.Lister).List(listCtx) {
			if last != nil {
				t.Errorf("List goes on after it yielded %v", last)
				break
			}
			if last = err; err == nil {
				if yielded++; yielded == n {
					cancel()
				}
			}
		}
		cancel()
		// A portion that was loaded before the end may still be yielded, and may be the last.
		if last != nil || n == 0 {
			t.wantCancelled(fmt.Sprintf("List cancelled after %d records", n), last)
		}
	}
}
