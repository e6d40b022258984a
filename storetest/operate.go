package storetest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/holdfast-sessions/holdfast/driver"
)

// operateCases are what operators call: driver.Sweeper and driver.Stater.
var operateCases = []Case{
	{
		Name:   "sweep/removes",
		Proves: "Sweep removes what has expired and nothing else, and says how many after each portion and at the end",
		lacks:  noSweeper, run: sweepRemoves,
	},
	{
		Name:   "sweep/among-writes",
		Proves: "Sweep takes no record that lives, also not one that is made anew or extended while it runs, and holds up nobody",
		lacks:  noSweeper, run: sweepAmongWrites,
	},
	{
		Name:   "sweep/cancelled",
		Proves: "Sweep with a context that ends says so, and a later one removes the rest",
		lacks:  noSweeper, run: sweepCancelled,
	},
	{
		Name:   "stat/counts",
		Proves: "Stat counts the records that live and those that wait to be removed, or says that it cannot",
		lacks:  noStater, run: statCounts,
	},
}

func noSweeper(t *T) string {
	if _, ok := t.stores[0].(driver.Sweeper); !ok {
		return "the store has no Sweep"
	}
	return ""
}

func noStater(t *T) string {
	if _, ok := t.stores[0].(driver.Stater); !ok {
		return "the store has no Stat"
	}
	return ""
}

// sweep sweeps and checks what it says of its progress.
func (t *T) sweep(ctx context.Context) (removed int) {
	last, calls := 0, 0
	removed, err := t.store().(driver.Sweeper).Sweep(ctx, func(n int) {
		if n < last {
			t.Errorf("progress of Sweep falls from %d to %d", last, n)
		}
		last, calls = n, calls+1
	})
	if err != nil {
		t.Fatalf("Sweep = %v, want nil", err)
	}
	if removed != last {
		t.Errorf("Sweep removed %d in all, and %d by its last call of progress, of %d", removed, last, calls)
	}
	return removed
}

// stat returns what the store says of itself.
func (t *T) stat(ctx context.Context) driver.Stat {
	st, err := t.store().(driver.Stater).Stat(ctx)
	if err != nil {
		t.Fatalf("Stat = %v, want nil", err)
	}
	return st
}

const (
	sweepCount = 120 // records that a case lets expire
	sweepTTL   = 60 * time.Millisecond

	// sweepLate is how much later a server may count a record as expired that goes by a clock of seconds.
	sweepLate = 1100 * time.Millisecond

	// sweepSlack is how many records of other cases may come, expire and be removed during one.
	sweepSlack = 40
)

// expire stores n records with the fields, lets them expire, and returns their IDs.
func (t *T) expire(ctx context.Context, n int, pairs ...string) []driver.ID {
	ids := make([]driver.ID, n)
	var end time.Time
	for i := range ids {
		ids[i] = t.newID()
		rec := newRecord(sweepTTL, pairs...)
		t.save(ctx, ids[i], rec, 0)
		end = rec.Expires
	}
	waitUntil(end.Add(t.about.ExpiryPrecision))
	return ids
}

func sweepRemoves(ctx context.Context, t *T) {
	live := make(map[driver.ID]driver.Record)
	for i := range 50 {
		id := t.newID()
		live[id] = t.create(ctx, id, newRecord(longTTL, "n", fmt.Sprint(i)))
	}
	gone := t.expire(ctx, sweepCount)
	anew := gone[0]
	live[anew] = newRecord(longTTL, "made", "anew")
	t.save(ctx, anew, live[anew], 0)

	time.Sleep(sweepLate)
	t.sweep(ctx)
	if noStater(t) == "" {
		if st := t.stat(ctx); st.Expired > sweepSlack {
			t.Errorf("after Sweep, Stat says that %d records have expired and wait to be removed, want none", st.Expired)
		}
	}
	if again := t.sweep(ctx); again > sweepSlack {
		t.Errorf("a second Sweep removes %d records, want none: the first was to remove them", again)
	}
	if removed, err := t.store().(driver.Sweeper).Sweep(ctx, nil); err != nil || removed > sweepSlack {
		t.Errorf("a third Sweep, without progress, = %d, %v, want 0", removed, err)
	}
	for id, rec := range live {
		t.wantStored(ctx, "after Sweep", id, rec)
	}
	for _, id := range gone[1:] {
		t.wantGone(ctx, "after Sweep", id)
	}
}

func sweepAmongWrites(ctx context.Context, t *T) {
	const writers, perWriter, rounds = 4, 10, 3
	done := make(chan struct{})
	var sweeping sync.WaitGroup
	sweeping.Go(func() {
		t.protect(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				t.sweep(ctx)
				time.Sleep(5 * time.Millisecond)
			}
		})
	})
	t.parallel(writers, func(w int) {
		for round := range rounds {
			ids := t.expire(ctx, perWriter, "round", fmt.Sprint(round))
			for i, id := range ids {
				// Whether the sweep has been there or comes now, a record that is made anew stays.
				anew := newRecord(longTTL, "round", fmt.Sprint(round), "writer", fmt.Sprint(w))
				t.save(ctx, id, anew, 0)

				// And so does one that is extended in time.
				other := t.newID()
				short := newRecord(2*time.Second, "n", fmt.Sprint(i))
				t.save(ctx, other, short, 0)
				next := after(short)
				next.Expires = short.Expires.Add(longTTL)
				t.save(ctx, other, next, short.Revision)
				t.wantStored(ctx, "extended while Sweep runs", other, next)
				t.wantStored(ctx, "made anew while Sweep runs", id, anew)
			}
			time.Sleep(10 * time.Millisecond)
			for _, id := range ids {
				if _, err := t.store().Load(ctx, id); err != nil {
					t.Errorf("made anew, and some sweeps later: Load = %v, want the record", err)
				}
			}
		}
	})
	close(done)
	sweeping.Wait()
}

func sweepCancelled(ctx context.Context, t *T) {
	id := t.newID()
	rec := t.create(ctx, id, newRecord(longTTL, "a", "1"))
	gone := t.expire(ctx, sweepCount)
	time.Sleep(sweepLate)
	over, cancel := context.WithCancel(ctx)
	cancel()
	removed, err := t.store().(driver.Sweeper).Sweep(over, nil)
	t.wantCancelled("Sweep cancelled before", err)
	if removed != 0 {
		t.Errorf("Sweep cancelled before it began removed %d records", removed)
	}
	midway, cancel := context.WithCancel(ctx)
	defer cancel()
	removed, err = t.store().(driver.Sweeper).Sweep(midway, func(int) { cancel() })
	switch {
	case err != nil && !errors.Is(err, context.Canceled):
		t.Errorf("Sweep cancelled after its first portion = %v, want nil or an error that matches context.Canceled", err)
	case removed < 0:
		t.Errorf("Sweep cancelled after its first portion removed %d records", removed)
	}
	t.sweep(ctx)
	if again := t.sweep(ctx); again > sweepSlack {
		t.Errorf("after sweeps that were cancelled, and a whole one, another removes %d records, want none", again)
	}
	for _, id := range gone {
		t.wantGone(ctx, "after Sweep", id)
	}
	t.wantStored(ctx, "after Sweep", id, rec)
}

func statCounts(ctx context.Context, t *T) {
	const n = 100
	near := func(what string, got, want int64) {
		if got < want-sweepSlack || got > want+sweepSlack {
			t.Errorf("%s: %d, want %d", what, got, want)
		}
	}
	before := t.stat(ctx)
	ids := make([]driver.ID, n)
	for i := range ids {
		ids[i] = t.newID()
		t.save(ctx, ids[i], newRecord(longTTL, "fill", filler(1000)), 0)
	}
	st := t.stat(ctx)
	if before.Records >= 0 {
		near(fmt.Sprintf("Stat.Records with %d records more than the %d before", n, before.Records), st.Records, before.Records+n)
	}
	if (before.Records < 0) != (st.Records < 0) || (before.Expired < 0) != (st.Expired < 0) || (before.Bytes < 0) != (st.Bytes < 0) {
		t.Errorf("Stat = %+v, and then %+v: a store can tell a number or it cannot", before, st)
	}
	if st.Bytes == 0 {
		t.Errorf("Stat.Bytes is 0 with %d records of 1,000 bytes; what the store cannot tell is negative", n)
	}
	t.expire(ctx, sweepCount, "fill", filler(1000))
	after := t.stat(ctx)
	if before.Records >= 0 {
		near(fmt.Sprintf("Stat.Records when %d records more have expired", sweepCount), after.Records, before.Records+n)
	}
	if before.Expired >= 0 && after.Expired > before.Expired+sweepCount+sweepSlack {
		t.Errorf("Stat.Expired went from %d to %d when %d records had expired", before.Expired, after.Expired, sweepCount)
	}
	for _, id := range ids {
		t.delete(ctx, id)
	}
	if before.Records >= 0 {
		near("Stat.Records when they are deleted", t.stat(ctx).Records, before.Records)
	}
	names := make(map[string]bool)
	for _, f := range after.Facts {
		if f.Name == "" || f.Value == "" || names[f.Name] {
			t.Errorf("Stat has the fact %q: %q, want a name of its own and a value", f.Name, f.Value)
		}
		names[f.Name] = true
	}
}
