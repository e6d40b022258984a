package storetest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"runtime"
	"runtime/pprof"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-sessions/holdfast/driver"
)

var lifecycleCases = []Case{
	{
		Name:   "describe",
		Proves: "Describe names the store and says the same each time",
		lacks: func(t *T) string {
			if _, ok := t.stores[0].(driver.Describer); !ok {
				return "the store has no Describe"
			}
			return ""
		},
		run: describe,
	},
	{
		Name:   "close/closed",
		Proves: "after Close every call is ErrClosed, and closing again is nil",
		run:    closeClosed,
	},
	{
		Name:   "close/among-calls",
		Proves: "calls that are under way when the store is closed end, with an error of the contract",
		run:    closeAmongCalls,
	},
	{
		Name:   "close/goroutines",
		Proves: "no goroutine that a store started outlives its Close",
		run:    closeGoroutines,
	},
	{
		Name:   "reopen/keeps",
		Proves: "a store that is closed and opened again has what was saved, merged and touched, and not what was deleted",
		lacks: func(t *T) string {
			if t.reopen == nil {
				return "no Reopen was given"
			}
			return ""
		},
		run: reopenKeeps,
	},
	{
		Name:   "outage/unavailable",
		Proves: "a store that cannot answer says ErrUnavailable by the deadline, never ErrNotFound, and recovers by itself",
		lacks: func(t *T) string {
			if t.outage == nil {
				return "no Outage was given"
			}
			return ""
		},
		run: outageUnavailable,
	},
}

func describe(_ context.Context, t *T) {
	d := t.about
	if d.Name == "" || d.MaxBytes < 0 || d.ExpiryPrecision < 0 || d.WatchDelay < 0 {
		t.Errorf("Describe = %+v, want a Name, and no negative number", d)
	}
	for _, s := range t.stores {
		if again := s.(driver.Describer).Describe(); again != d {
			t.Errorf("Describe = %+v, and then %+v", d, again)
		}
	}
}

// call is one kind of call on a store.
type call struct {
	name string
	f    func(ctx context.Context, s driver.Store, id driver.ID) error
}

// allCalls returns a call of each kind that the store has. They write over base.
func (t *T) allCalls(base driver.Record) []call {
	changes := sets("a", "2")
	next := after(base, changes...)
	next.Tag = base.Tag
	calls := []call{
		{"Load", func(ctx context.Context, s driver.Store, id driver.ID) error { _, err := s.Load(ctx, id); return err }},
		{"Save", func(ctx context.Context, s driver.Store, id driver.ID) error {
			return s.Save(ctx, id, next, base.Revision)
		}},
		{"Save of a new record", func(ctx context.Context, s driver.Store, id driver.ID) error { return s.Save(ctx, id, next, 0) }},
		{"Delete", func(ctx context.Context, s driver.Store, id driver.ID) error { return s.Delete(ctx, id) }},
	}
	if noMerger(t) == "" {
		calls = append(calls, call{"Merge", func(ctx context.Context, s driver.Store, id driver.ID) error {
			_, err := s.(driver.Merger).Merge(ctx, id, base, next, changes)
			return err
		}})
	}
	if noToucher(t) == "" {
		calls = append(calls, call{"Touch", func(ctx context.Context, s driver.Store, id driver.ID) error {
			return s.(driver.Toucher).Touch(ctx, id, after(base), base.Revision)
		}})
	}
	if noSweeper(t) == "" {
		calls = append(calls, call{"Sweep", func(ctx context.Context, s driver.Store, _ driver.ID) error {
			_, err := s.(driver.Sweeper).Sweep(ctx, nil)
			return err
		}})
	}
	if noStater(t) == "" {
		calls = append(calls, call{"Stat", func(ctx context.Context, s driver.Store, _ driver.ID) error {
			_, err := s.(driver.Stater).Stat(ctx)
			return err
		}})
	}
	return calls
}

func closeClosed(ctx context.Context, t *T) {
	id, absent := t.newID(), t.newID()
	rec := t.create(ctx, id, newRecord(longTTL, "a", "1"))
	calls := t.allCalls(rec)
	for _, s := range t.stores {
		for i := range 2 {
			if err := s.Close(); err != nil {
				t.Errorf("Close number %d = %v, want nil", i+1, err)
			}
		}
		for _, c := range calls {
			for what, id := range map[string]driver.ID{"stored": id, "absent": absent} {
				t.wantErr(c.name+" of an ID that is "+what+", after Close", c.f(ctx, s, id), driver.ErrClosed)
			}
		}
		if l, ok := s.(driver.Lister); ok {
			var got error
			for _, err := range l.List(ctx) {
				got = err
				break
			}
			t.wantErr("List after Close", got, driver.ErrClosed)
		}
	}
}

func closeAmongCalls(ctx context.Context, t *T) {
	const perStore = 8
	ids := make([]driver.ID, perStore)
	for i := range ids {
		ids[i] = t.newID()
	}
	for _, s := range t.stores {
		var begun sync.WaitGroup
		begun.Add(perStore)
		var closed atomic.Bool
		t.parallel(perStore+1, func(i int) {
			if i == perStore {
				begun.Wait()
				if err := s.Close(); err != nil {
					t.Errorf("Close among calls = %v, want nil", err)
				}
				closed.Store(true)
				return
			}
			for n := 0; ; n++ {
				late := closed.Load()
				_, err := s.Load(ctx, ids[i])
				if err == nil || errors.Is(err, driver.ErrNotFound) {
					err = s.Save(ctx, ids[i], newRecord(longTTL, "n", fmt.Sprint(n)), 0)
				}
				if n == 0 {
					begun.Done()
				}
				switch {
				case errors.Is(err, driver.ErrClosed):
					return
				case late:
					t.Fatalf("a call after Close returned = %v, want ErrClosed", err)
				case err == nil, errors.Is(err, driver.ErrConflict), errors.Is(err, driver.ErrUnavailable):
				default:
					t.Fatalf("a call while the store is closed = %v, want what it is without, or ErrUnavailable", err)
				}
				runtime.Gosched()
			}
		})
	}
}

// closeGoroutines finds a store's goroutines by a profiler label, which every goroutine inherits from the one that
// starts it.
func closeGoroutines(ctx context.Context, t *T) {
	const key = "storetest"
	value := rand.Text()
	pprof.Do(ctx, pprof.Labels(key, value), func(ctx context.Context) {
		s := t.open(t)
		id := t.newID()
		rec := newRecord(longTTL, "a", "1")
		if err := s.Save(ctx, id, rec, 0); err != nil {
			t.Errorf("Save = %v, want nil", err)
		}
		for _, c := range t.allCalls(rec) {
			if err := c.f(ctx, s, id); err != nil && !errors.Is(err, driver.ErrConflict) && !errors.Is(err, driver.ErrNotFound) {
				t.Errorf("%s = %v", c.name, err)
			}
		}
		if l, ok := s.(driver.Lister); ok {
			for range l.List(ctx) {
				break
			}
		}
		var w *watch
		if noWatcher(t) == "" {
			if w = t.startWatch(ctx, s, nil); w.refused() != nil {
				w = nil
			}
		}
		if err := s.Close(); err != nil {
			t.Errorf("Close = %v, want nil", err)
		}
		if w != nil {
			t.wantErr("Watch of a store that is closed meanwhile", w.wait("the store"), driver.ErrClosed)
		}
	})
	var left []string
	for deadline := time.Now().Add(2 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if left = labelled(fmt.Sprintf("%q:%q", key, value)); len(left) == 0 {
			return
		}
	}
	for _, g := range left {
		t.Errorf("still running after Close:\n%s", g)
	}
}

// labelled returns the stacks of the goroutines that have a profiler label.
func labelled(label string) []string {
	var b strings.Builder
	if err := pprof.Lookup("goroutine").WriteTo(&b, 1); err != nil {
		panic(err) // a strings.Builder takes everything
	}
	var found []string
	for stack := range strings.SplitSeq(b.String(), "\n\n") {
		if strings.Contains(stack, label) {
			found = append(found, stack)
		}
	}
	return found
}

func reopenKeeps(ctx context.Context, t *T) {
	want := make(map[driver.ID]driver.Record)
	var deleted, expired []driver.ID
	for i := range 50 {
		id := t.newID()
		rec := t.create(ctx, id, newRecord(longTTL, "n", fmt.Sprint(i), "fill", filler(min(i*100, t.largest()/2))))
		changes := sets("changed", fmt.Sprint(i))
		next := after(rec, changes...)
		next.Tag = rec.Tag
		switch {
		case i%5 == 1:
			t.save(ctx, id, next, rec.Revision)
		case i%5 == 2:
			t.delete(ctx, id)
			deleted = append(deleted, id)
			continue
		case i%5 == 3 && noMerger(t) == "":
			if _, err := t.merge(ctx, id, rec, next, changes); err != nil {
				t.Fatalf("Merge = %v", err)
			}
		case i%5 == 4 && noToucher(t) == "":
			if err := t.touch(ctx, id, after(rec), rec.Revision); err != nil {
				t.Fatalf("Touch = %v", err)
			}
		}
		want[id] = t.load(ctx, id)
	}
	ttl := 200 * time.Millisecond
	for range 5 {
		id := t.newID()
		t.save(ctx, id, newRecord(ttl), 0)
		expired = append(expired, id)
	}
	end := now().Add(ttl)
	for round := range 2 {
		t.stores[0] = t.reopen(t, t.stores[0])
		for id, rec := range want {
			t.wantStored(ctx, "after reopening", id, rec)
		}
		for _, id := range deleted {
			t.wantGone(ctx, "deleted, after reopening", id)
		}
		waitUntil(end.Add(t.about.ExpiryPrecision))
		for _, id := range expired {
			t.wantGone(ctx, "expired, after reopening", id)
		}
		for id, rec := range want {
			next := after(rec, sets("round", fmt.Sprint(round))...)
			t.save(ctx, id, next, rec.Revision)
			want[id] = next
		}
	}
	if noLister(t) == "" {
		_, times := t.list(ctx, func(id driver.ID) bool { _, ok := want[id]; return ok })
		if len(times) != len(want) {
			t.Errorf("after reopening List yields %d of %d records", len(times), len(want))
		}
	}
}

func outageUnavailable(ctx context.Context, t *T) {
	const patience = 500 * time.Millisecond
	id, absent := t.newID(), t.newID()
	rec := t.create(ctx, id, newRecord(longTTL, "a", "1"))
	end := t.outage(t, t.stores[0])
	down := true
	defer func() {
		if down {
			end()
		}
	}()
	calls := slices.DeleteFunc(t.allCalls(rec), func(c call) bool {
		return c.name == "Delete" // may yet be carried out, and then there is nothing to come back to
	})
	ids := []driver.ID{id, absent}
	for range 2 { // a store that has found out may answer otherwise
		t.parallel(len(calls)*len(ids), func(i int) {
			c, id := calls[i/len(ids)], ids[i%len(ids)]
			ctx, cancel := context.WithTimeout(ctx, patience)
			defer cancel()
			start := time.Now()
			err := c.f(ctx, t.store(), id)
			if took := time.Since(start); took > 4*patience {
				t.Errorf("%s took %v during an outage, with a deadline after %v", c.name, took, patience)
			}
			if !errors.Is(err, driver.ErrUnavailable) && !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%s during an outage = %v, want ErrUnavailable", c.name, err)
			}
			if errors.Is(err, driver.ErrNotFound) || errors.Is(err, driver.ErrConflict) {
				t.Errorf("%s during an outage = %v, which the store cannot know", c.name, err)
			}
		})
	}
	end()
	down = false
	var err error
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		tryCtx, cancel := context.WithTimeout(ctx, patience)
		var got driver.Record
		got, err = t.store().Load(tryCtx, id)
		cancel()
		if err == nil {
			if got.User != rec.User || !got.Created.Equal(rec.Created) {
				t.Errorf("after the outage: %s", difference(got, rec))
			}
			return
		}
		if errors.Is(err, driver.ErrNotFound) {
			break
		}
	}
	t.Errorf("after the outage Load = %v, want the record", err)
}
