package storetest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/holdfast-sessions/holdfast/driver"
)

var watchCases = []Case{
	{
		Name:   "watch/changes",
		Proves: "Watch tells of every Save, Merge and Delete, whoever makes it, by the whole ID",
		lacks:  noWatcher, run: watchChanges,
	},
	{
		Name:   "watch/loads",
		Proves: "a Load that begins when a change is told finds it",
		lacks:  noWatcher, run: watchLoads,
	},
	{
		Name:   "watch/among-writes",
		Proves: "a cache that drops what Watch tells of ends up with nothing that is out of date, however loads and changes meet",
		lacks:  noWatcher, run: watchAmongWrites,
	},
	{
		Name:   "watch/ends",
		Proves: "Watch ends with its context, and with Close, says which, and calls nothing afterwards; others go on",
		lacks:  noWatcher, run: watchEnds,
	},
	{
		Name:   "watch/outage",
		Proves: "Watch tells in time that changes may be missed, and when that is over tells of them again",
		lacks: func(t *T) string {
			if t.outage == nil {
				return "no Outage was given"
			}
			return noWatcher(t)
		},
		run: watchOutage,
	},
}

func noWatcher(t *T) string {
	if _, ok := t.stores[0].(driver.Watcher); !ok {
		return "the store has no Watch"
	}
	return ""
}

// watchSlack is for a busy machine: how much later than Description.WatchDelay something may be told.
const watchSlack = 5 * time.Second

func (t *T) watchPatience() time.Duration { return t.about.WatchDelay + watchSlack }

// watch is a call of Watch, and what it has told.
type watch struct {
	t      *T
	cancel context.CancelFunc
	ended  chan struct{} // closed when Watch has returned
	err    error         // what it returned

	mu sync.Mutex

	// mu guards the fields below.
	told    map[driver.ID]int
	wholes  []bool
	news    chan struct{} // closed, and replaced, at each call
	changed func(driver.ID)
}

// watch begins to watch a store, and returns when that says that it has begun. Each change is also told to changed, which
// may be nil.
func (t *T) watch(ctx context.Context, s driver.Store, changed func(driver.ID)) *watch {
	w := t.startWatch(ctx, s, changed)
	if err := w.refused(); err != nil && t.live {
		t.skip(fmt.Sprintf("the store cannot watch: %v", err))
	}
	t.wantNews(w, "whole(true), at the beginning", func() bool { return slices.Equal(w.wholes, []bool{true}) })
	return w
}

// refused waits until Watch has called whole, or returned, and returns why if that is because the store cannot watch, as
// when a right is missing. It may wait for no longer than wantNews would.
func (w *watch) refused() error {
	w.mu.Lock()
	news := w.news
	w.mu.Unlock()
	late := time.NewTimer(w.t.watchPatience())
	defer late.Stop()
	select {
	case <-news:
	case <-late.C:
	case <-w.ended:
		w.mu.Lock()
		defer w.mu.Unlock()
		if len(w.wholes) == 0 && !errors.Is(w.err, driver.ErrUnavailable) && !errors.Is(w.err, context.Canceled) {
			return w.err
		}
	}
	return nil
}

func (t *T) startWatch(ctx context.Context, s driver.Store, changed func(driver.ID)) *watch {
	w := &watch{t: t, ended: make(chan struct{}), told: make(map[driver.ID]int), news: make(chan struct{}), changed: changed}
	ctx, w.cancel = context.WithCancel(ctx)
	go func() { // stop waits for it
		defer close(w.ended)
		w.err = s.(driver.Watcher).Watch(ctx, w.hear, w.hearWhole)
	}()
	return w
}

func (w *watch) hear(id driver.ID) {
	if w.changed != nil { // before anybody is woken who looks at what it does
		w.changed(id)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.told[id]++
	w.wake()
}

func (w *watch) hearWhole(whole bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if n := len(w.wholes); n == 0 && !whole || n > 0 && w.wholes[n-1] == whole {
		w.t.Errorf("Watch calls whole(%v) after %v, want true and false in turn", whole, w.wholes)
	}
	w.wholes = append(w.wholes, whole)
	w.wake()
}

func (w *watch) wake() {
	close(w.news)
	w.news = make(chan struct{})
}

// wantNews waits until ok, which is called under w.mu, holds of what was told.
func (t *T) wantNews(w *watch, what string, ok func() bool) {
	late := time.NewTimer(t.watchPatience())
	defer late.Stop()
	for {
		w.mu.Lock()
		done, news, told := ok(), w.news, fmt.Sprintf("%d IDs, whole %v", len(w.told), w.wholes)
		w.mu.Unlock()
		if done {
			return
		}
		select {
		case <-news:
		case <-w.ended:
			t.Fatalf("Watch ended with %v, want it to tell of %s", w.err, what)
		case <-late.C:
			t.Fatalf("Watch does not tell of %s within %v; it has told of %s", what, t.watchPatience(), told)
		}
	}
}

func (w *watch) count(id driver.ID) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.told[id]
}

// stop ends the watch and waits for it, unless that has been done, and returns what Watch returned.
func (w *watch) stop() error {
	w.cancel()
	return w.wait("its context")
}

func (w *watch) wait(ending string) error {
	late := time.NewTimer(w.t.watchPatience())
	defer late.Stop()
	select {
	case <-w.ended:
		return w.err
	case <-late.C:
		w.t.Fatalf("Watch still runs %v after the end of %s", w.t.watchPatience(), ending)
		return nil
	}
}

func watchChanges(ctx context.Context, t *T) {
	var watches []*watch
	for _, s := range t.stores {
		w := t.watch(ctx, s, nil)
		defer w.stop()
		watches = append(watches, w)
	}
	id, other := t.newID(), t.newID()
	for i := range 4 { // IDs that differ in a byte
		near := id
		near[len(near)*i/4] ^= 1
		t.save(ctx, t.use(near), newRecord(longTTL), 0)
	}
	var rec driver.Record
	changes := sets("a", "2")
	steps := []struct {
		name string
		f    func()
	}{
		{"Save of a new record", func() { rec = t.create(ctx, id, newRecord(longTTL, "a", "1")) }},
		{"Save", func() { t.save(ctx, id, after(rec, changes...), rec.Revision); rec = t.load(ctx, id) }},
		{"Merge", func() {
			if noMerger(t) == "" {
				t.mustMerge(ctx, id, rec, changes)
			} else {
				t.save(ctx, id, after(rec), rec.Revision)
			}
		}},
		{"Merge into a later state", func() {
			if noMerger(t) == "" {
				t.mustMerge(ctx, id, rec, sets("b", "3"))
			} else {
				rec = t.load(ctx, id)
				t.save(ctx, id, after(rec), rec.Revision)
			}
		}},
		{"Delete", func() { t.delete(ctx, id) }},
		{"Save of a record made anew", func() { t.save(ctx, id, newRecord(longTTL), 0) }},
	}
	for _, step := range steps {
		before := make([]int, len(watches))
		for i, w := range watches {
			before[i] = w.count(id)
		}
		step.f()
		for i, w := range watches {
			t.wantNews(w, step.name, func() bool { return w.told[id] > before[i] })
		}
	}
	for _, w := range watches {
		if n := w.count(other); n > 0 {
			t.Errorf("Watch tells %d times of an ID that nobody used", n)
		}
		if err := w.stop(); !errors.Is(err, context.Canceled) {
			t.Errorf("Watch whose context was cancelled = %v, want its error", err)
		}
	}
}

// mustMerge lays changes over the record, of which base was a state.
func (t *T) mustMerge(ctx context.Context, id driver.ID, base driver.Record, changes []driver.Change) {
	if _, err := t.merge(ctx, id, base, after(base, changes...), changes); err != nil {
		t.Fatalf("Merge = %v, want nil", err)
	}
}

// watchLoads loads a record at once whenever a change is told. What is told once may be told again later, so what counts is
// that nothing out of date is loaded after the last time.
func watchLoads(ctx context.Context, t *T) {
	const changes = 100
	id, s, c := t.newID(), t.stores[0], newCache()
	told, settle := make(chan struct{}, 1), make(chan chan struct{})
	w := t.watch(ctx, s, func(changed driver.ID) {
		c.drop(changed)
		select {
		case told <- struct{}{}:
		default: // a load is due already
		}
	})
	defer w.stop()
	var loading sync.WaitGroup
	defer loading.Wait()
	defer close(settle)
	loading.Go(func() {
		t.protect(func() {
			for {
				select {
				case <-told:
					c.load(ctx, t, s, id)
				case done, ok := <-settle:
					if !ok {
						return
					}
					for len(told) > 0 {
						<-told
						c.load(ctx, t, s, id)
					}
					close(done)
				}
			}
		})
	})
	rec := newRecord(longTTL)
	t.save(ctx, id, rec, 0)
	for n := range changes {
		rec = t.load(ctx, id)
		c.load(ctx, t, s, id)
		before := w.count(id)
		next := after(rec, sets("n", fmt.Sprint(n))...)
		t.save(ctx, id, next, rec.Revision)
		t.wantNews(w, fmt.Sprintf("change %d", n+1), func() bool { return w.told[id] > before })
		done := make(chan struct{})
		settle <- done
		<-done
		t.wantNews(w, fmt.Sprintf("change %d once it can be loaded: a load that began when it was told found the state before", n+1),
			func() bool { return c.fresh(id, next.Revision) })
	}
}

// cache is the simplest right one over a watched store.
type cache struct {
	mu sync.Mutex

	// mu guards the fields below.
	records map[driver.ID]uint64 // revisions; 0: absent
	changes map[driver.ID]int
}

func (c *cache) drop(id driver.ID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.changes[id]++
	delete(c.records, id)
}

func newCache() *cache {
	return &cache{records: make(map[driver.ID]uint64), changes: make(map[driver.ID]int)}
}

// fresh reports whether the cache has nothing but a revision of a record, or nothing at all.
func (c *cache) fresh(id driver.ID, revision uint64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	have, ok := c.records[id]
	return !ok || have == revision
}

// load loads a record unless it is there.
func (c *cache) load(ctx context.Context, t *T, s driver.Store, id driver.ID) {
	c.mu.Lock()
	_, ok := c.records[id]
	changes := c.changes[id]
	c.mu.Unlock()
	if ok {
		return
	}
	rec, err := s.Load(ctx, id)
	if err != nil && !errors.Is(err, driver.ErrNotFound) {
		t.Fatalf("Load = %v, want a record, or ErrNotFound", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.changes[id] == changes {
		c.records[id] = rec.Revision
	}
}

func watchAmongWrites(ctx context.Context, t *T) {
	const perWriter, readers = 60, 2
	ids := []driver.ID{t.newID(), t.newID(), t.newID(), t.newID()}
	type watched struct {
		s driver.Store
		c *cache
		w *watch
	}
	var all []watched
	for _, s := range t.stores {
		c := newCache()
		w := t.watch(ctx, s, c.drop)
		defer w.stop()
		all = append(all, watched{s, c, w})
	}
	writing, stopReading := context.WithCancel(ctx)
	defer stopReading()
	var reading sync.WaitGroup
	for _, one := range all {
		for range readers {
			reading.Go(func() {
				t.protect(func() {
					for n := 0; writing.Err() == nil; n++ {
						one.c.load(ctx, t, one.s, ids[n%len(ids)])
						time.Sleep(100 * time.Microsecond)
					}
				})
			})
		}
	}
	t.parallel(len(ids), func(i int) {
		id := ids[i]
		var rec driver.Record
		for n := range perWriter {
			time.Sleep(rand.N(200 * time.Microsecond)) // so that loads come between
			switch {
			case n%6 == 0:
				rec = newRecord(longTTL)
				t.save(ctx, id, rec, 0)
				rec = t.load(ctx, id)
			case n%6 == 5:
				t.delete(ctx, id)
			case n%2 == 0 && noMerger(t) == "":
				t.mustMerge(ctx, id, rec, sets("n", fmt.Sprint(n)))
				rec = t.load(ctx, id)
			default:
				t.save(ctx, id, after(rec, sets("n", fmt.Sprint(n))...), rec.Revision)
				rec = t.load(ctx, id)
			}
		}
	})
	// The last states are read once more, after which nothing changes.
	stopReading()
	reading.Wait()
	for _, one := range all {
		for _, id := range ids {
			one.c.load(ctx, t, one.s, id)
			rec, err := one.s.Load(ctx, id)
			if err != nil && !errors.Is(err, driver.ErrNotFound) {
				t.Fatalf("Load = %v", err)
			}
			t.wantNews(one.w, fmt.Sprintf("the last change of %s, of which a cache has an earlier state", id),
				func() bool { return one.c.fresh(id, rec.Revision) })
		}
	}
}

func watchEnds(ctx context.Context, t *T) {
	s := t.stores[0]
	over, cancel := context.WithCancel(ctx)
	cancel()
	unheard := t.startWatch(over, s, nil)
	t.wantCancelled("Watch cancelled before", unheard.wait("its context"))
	if len(unheard.wholes) > 0 {
		t.Errorf("Watch that was cancelled before it began calls whole: %v", unheard.wholes)
	}

	id := t.newID()
	first, second := t.watch(ctx, s, nil), t.watch(ctx, s, nil)
	rec := t.create(ctx, id, newRecord(longTTL))
	for i, w := range []*watch{first, second} {
		t.wantNews(w, fmt.Sprintf("a change, by call %d of two", i+1), func() bool { return w.told[id] > 0 })
	}
	t.wantCancelled("Watch that was cancelled", first.stop())
	heard := func(w *watch) [2]int {
		w.mu.Lock()
		defer w.mu.Unlock()
		n := 0
		for _, times := range w.told {
			n += times
		}
		return [2]int{n, len(w.wholes)}
	}
	end := heard(first)
	told := second.count(id)
	t.save(ctx, id, after(rec), rec.Revision)
	t.wantNews(second, "a change, after another call was cancelled", func() bool { return second.told[id] > told })

	for _, s := range t.stores {
		if err := s.Close(); err != nil {
			t.Errorf("Close = %v, want nil", err)
		}
	}
	t.wantErr("Watch of a store that is closed meanwhile", second.wait("the store"), driver.ErrClosed)
	t.wantErr("Watch after Close", t.startWatch(ctx, s, nil).wait("the store"), driver.ErrClosed)
	if now := heard(first); now != end {
		t.Errorf("Watch that has returned calls changed and whole: %v times, and now %v", end, now)
	}
}

func watchOutage(ctx context.Context, t *T) {
	w := t.watch(ctx, t.stores[0], nil)
	defer w.stop()
	for round := range 2 {
		end := t.outage(t, t.stores[0])
		func() {
			defer end()
			t.wantNews(w, "whole(false), during an outage", func() bool { return !w.wholes[len(w.wholes)-1] })
		}()
		t.wantRestored(ctx, w)
		id := t.newID()
		t.saveSoon(ctx, id, newRecord(longTTL))
		t.wantNews(w, fmt.Sprintf("a change, after outage %d", round+1), func() bool { return w.told[id] > 0 })
	}
}

// wantRestored waits until a watch says that it is whole again. How long a server takes to answer again is not the store's.
func (t *T) wantRestored(ctx context.Context, w *watch) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	for {
		w.mu.Lock()
		whole, news := w.wholes[len(w.wholes)-1], w.news
		w.mu.Unlock()
		if whole {
			return
		}
		select {
		case <-news:
		case <-w.ended:
			t.Fatalf("Watch ended after an outage with %v, want it to go on", w.err)
		case <-ctx.Done():
			t.Fatalf("Watch does not call whole(true) after an outage")
		}
	}
}

// saveSoon saves a record as soon as the store can, after an outage.
func (t *T) saveSoon(ctx context.Context, id driver.ID, rec driver.Record) {
	var err error
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if err = t.store().Save(ctx, id, rec, 0); err == nil || errors.Is(err, driver.ErrConflict) {
			return // ErrConflict: an earlier try, whose answer was lost
		}
	}
	t.Fatalf("Save after an outage = %v, want it saved", err)
}
