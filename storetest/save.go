package storetest

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync/atomic"
	"time"

	"github.com/holdfast-sessions/holdfast/driver"
)

var saveCases = []Case{
	{
		Name:   "load/absent",
		Proves: "Load of an ID that was never saved is ErrNotFound",
		run: func(ctx context.Context, t *T) {
			t.wantGone(ctx, "never saved", t.newID())
		},
	},
	{
		Name:   "save/round-trip",
		Proves: "Load returns all of a record as it was saved, times to the millisecond",
		run:    saveRoundTrip,
	},
	{
		Name:   "save/replaces",
		Proves: "Save over the revision it names replaces the whole record, also by one that expires earlier",
		run:    saveReplaces,
	},
	{
		Name:   "save/tag",
		Proves: "a record is saved with the Tag it was loaded with, and also with an older one or none: prev alone decides",
		run:    saveTag,
	},
	{
		Name:   "save/revisions",
		Proves: "revisions keep all 64 bits: those that differ in the last bit are told apart",
		run:    saveRevisions,
	},
	{
		Name:   "save/conflict",
		Proves: "Save with any prev but the stored revision changes nothing and is ErrConflict; prev 0 means absent",
		run:    saveConflict,
	},
	{
		Name:   "save/one-winner",
		Proves: "of writers that start from the same revision, or from none, exactly one saves",
		run:    saveOneWinner,
	},
	{
		Name:   "save/counter",
		Proves: "100 writers that load, add 1, save, and repeat on conflict lose no addition",
		run:    saveCounter,
	},
	{
		Name:   "save/different-fields",
		Proves: "100 writers that each lay another field over the latest record all win",
		run:    saveDifferentFields,
	},
	{
		Name:   "save/slices",
		Proves: "records that were saved or loaded stay as they are while the store saves others in their place",
		run:    saveSlices,
	},
}

func saveRoundTrip(ctx context.Context, t *T) {
	at := now()
	base := newRecord(longTTL, "name", "value", "n", "1", "empty", "")
	tests := []struct {
		name   string
		change func(*driver.Record)
	}{
		{"ordinary", func(r *driver.Record) {}},
		{"no fields", func(r *driver.Record) { r.Fields = driver.Fields{} }},
		{"no user", func(r *driver.Record) { r.User = "" }},
		{"zero Created", func(r *driver.Record) { r.Created = time.Time{} }},
		{"Created last year", func(r *driver.Record) { r.Created = at.AddDate(-1, 0, 0) }},
		{"times in another zone", func(r *driver.Record) {
			zone := time.FixedZone("", -5*3600)
			r.Created, r.Seen, r.Expires = r.Created.In(zone), r.Seen.In(zone), r.Expires.In(zone)
		}},
		{"milliseconds", func(r *driver.Record) {
			second := at.Truncate(time.Second)
			r.Created, r.Seen, r.Expires = second.Add(1e6), second.Add(999e6), second.Add(longTTL+501e6)
		}},
		{"expires after 400 days", func(r *driver.Record) { r.Expires = at.AddDate(0, 0, 400) }},
		{"expires after 31 days", func(r *driver.Record) { r.Expires = at.AddDate(0, 0, 31) }},
		{"every byte", func(r *driver.Record) {
			all := make([]byte, 256)
			for i := range all {
				all[i] = byte(i)
			}
			r.Fields = r.Fields.With(driver.Change{Name: string(all), Value: all})
		}},
	}
	for _, tt := range tests {
		id, rec := t.newID(), base
		tt.change(&rec)
		t.save(ctx, id, rec, 0)
		t.wantStored(ctx, tt.name, id, rec)
		t.wantStored(ctx, tt.name+", again", id, rec)
	}
}

func saveReplaces(ctx context.Context, t *T) {
	id := t.newID()
	rec := t.create(ctx, id, newRecord(longTTL, "old", "1", "kept", "1"))
	next := after(rec, sets("kept", "2", "new", "2")...)
	next.Fields = next.Fields.With(remove("old"))
	t.save(ctx, id, next, rec.Revision)
	t.wantStored(ctx, "replaced", id, next)

	marker := driver.Record{Seen: next.Seen, Expires: now().Add(longTTL / 2), Revision: driver.NewRevision(next.Revision)}
	t.save(ctx, id, marker, next.Revision)
	t.wantStored(ctx, "replaced by a record of no user, no Created and no fields that expires earlier", id, marker)
}

func saveTag(ctx context.Context, t *T) {
	id := t.newID()
	rec := t.create(ctx, id, newRecord(longTTL, "n", "0"))
	for i := range 5 {
		next := after(rec, sets("n", fmt.Sprint(i))...)
		next.Tag = rec.Tag
		t.save(ctx, id, next, rec.Revision)
		rec = t.load(ctx, id)
		t.wantRecord("saved with the Tag it was loaded with", rec, next)
	}
	old := rec.Tag
	for i := range 3 { // one request saves twice without loading in between
		next := after(rec, sets("n", fmt.Sprint("again", i))...)
		next.Tag = old
		t.save(ctx, id, next, rec.Revision)
		rec = next
	}
	t.wantStored(ctx, "saved with the Tag of an earlier load", id, rec)

	next := after(rec)
	next.Tag = 0
	t.save(ctx, id, next, rec.Revision)
	t.wantStored(ctx, "saved without a Tag", id, next)

	stale := after(rec)
	stale.Tag = t.load(ctx, id).Tag
	t.wantErr("Save with the right Tag over another revision", t.store().Save(ctx, id, stale, rec.Revision), driver.ErrConflict)
	t.wantStored(ctx, "after that conflict", id, next)
}

// revisions are where floats, signed integers and numbers in scripts go wrong.
var revisions = []uint64{
	1, 1<<31 - 1, 1 << 32, 1<<53 - 1, 1 << 53, 1<<53 + 1, 1<<60 + 1, 1<<62 - 1, math.MaxInt64, 1 << 63, 1<<63 + 1,
	0xfffffffffffff800, math.MaxUint64 - 1, math.MaxUint64,
}

func saveRevisions(ctx context.Context, t *T) {
	each(t, revisions, func(r uint64) string { return fmt.Sprintf("revision %d", r) }, func(r uint64) {
		id, rec := t.newID(), newRecord(longTTL, "a", "1")
		rec.Revision = r
		t.save(ctx, id, rec, 0)
		t.wantStored(ctx, "saved", id, rec)
		for _, prev := range []uint64{r - 1, r + 1, r ^ 1<<63, r ^ 1<<10} {
			next := rec
			next.Fields = rec.Fields.With(sets("a", "2")...)
			t.wantErr(fmt.Sprintf("Save with prev %d", prev), t.store().Save(ctx, id, next, prev), driver.ErrConflict)
		}
		t.wantStored(ctx, "after conflicts", id, rec)

		before := rec
		before.Revision = r - 1
		if r == 1 {
			return
		}
		id = t.newID()
		t.save(ctx, id, before, 0)
		t.save(ctx, id, rec, r-1)
		t.wantStored(ctx, "saved over its neighbour", id, rec)
	})
}

func saveConflict(ctx context.Context, t *T) {
	id, absent, gone := t.newID(), t.newID(), t.newID()
	rec := t.create(ctx, id, newRecord(longTTL, "a", "1"))
	other := after(rec, sets("a", "2")...)
	for _, prev := range []uint64{0, 1, rec.Revision - 1, rec.Revision + 1, other.Revision} {
		t.wantErr(fmt.Sprintf("Save with prev %d over revision %d", prev, rec.Revision), t.store().Save(ctx, id, other, prev), driver.ErrConflict)
		t.wantStored(ctx, "after the conflict", id, rec)
	}

	t.wantErr("Save with a prev over nothing", t.store().Save(ctx, absent, other, rec.Revision), driver.ErrConflict)
	t.wantGone(ctx, "after the conflict", absent)

	t.save(ctx, gone, rec, 0)
	t.delete(ctx, gone)
	t.wantErr("Save with the revision of a deleted record", t.store().Save(ctx, gone, other, rec.Revision), driver.ErrConflict)
	t.wantGone(ctx, "after the conflict", gone)
	t.save(ctx, gone, other, 0)
	t.wantStored(ctx, "saved anew after Delete", gone, other)
}

func saveOneWinner(ctx context.Context, t *T) {
	id := t.newID()
	var prev uint64
	rec := newRecord(longTTL)
	for round := range 5 {
		var won atomic.Int32
		var winner atomic.Pointer[driver.Record]
		t.parallel(32, func(i int) {
			next := after(rec, sets("writer", fmt.Sprint(round, i))...)
			next.Revision += uint64(i) // revisions are unique
			switch err := t.store().Save(ctx, id, next, prev); {
			case err == nil:
				won.Add(1)
				winner.Store(&next)
			case !errors.Is(err, driver.ErrConflict):
				t.Errorf("Save(prev %d) = %v, want it saved or ErrConflict", prev, err)
			}
		})
		if won.Load() != 1 {
			t.Fatalf("%d of 32 writers over revision %d saved, want 1", won.Load(), prev)
		}
		rec = t.load(ctx, id)
		t.wantRecord("after the race", rec, *winner.Load())
		prev = rec.Revision
	}
}

const writers = 100

func saveCounter(ctx context.Context, t *T) {
	id := t.newID()
	base := t.create(ctx, id, newRecord(longTTL, "n", "0"))
	t.parallel(writers, func(int) {
		t.update(ctx, id, base, func(rec driver.Record) driver.Record {
			var n int
			v, _ := rec.Fields.Get("n")
			if _, err := fmt.Sscan(string(v), &n); err != nil {
				t.Fatalf("field n is %q, want a number", v)
			}
			return after(rec, sets("n", fmt.Sprint(n+1))...)
		})
	})
	if v, _ := t.load(ctx, id).Fields.Get("n"); string(v) != fmt.Sprint(writers) {
		t.Errorf("after %d additions of 1 the counter is %s", writers, v)
	}
}

func saveDifferentFields(ctx context.Context, t *T) {
	id := t.newID()
	base := t.create(ctx, id, newRecord(longTTL))
	t.parallel(writers, func(i int) {
		t.update(ctx, id, base, func(rec driver.Record) driver.Record {
			return after(rec, sets(fmt.Sprint("field", i), fmt.Sprint(i))...)
		})
	})
	t.wantWriters(t.load(ctx, id))
}

// wantWriters checks that every one of the writers' fields is there.
func (t *T) wantWriters(rec driver.Record) {
	for i := range writers {
		if v, ok := rec.Fields.Get(fmt.Sprint("field", i)); !ok || string(v) != fmt.Sprint(i) {
			t.Errorf("writer %d saved its field; afterwards it is %q (there: %v)", i, v, ok)
		}
	}
}

func saveSlices(ctx context.Context, t *T) {
	id := t.newID()
	rec := newRecord(longTTL, "a", "1111", "b", "2222")
	want := rec
	want.Fields = driver.Fields{}.With(sets("a", "1111", "b", "2222")...) // shares no memory with rec
	first := t.create(ctx, id, rec)
	loaded := t.load(ctx, id)
	next := after(want, sets("a", "3333", "b", "4444")...)
	next.Tag = first.Tag
	t.save(ctx, id, next, first.Revision)
	if m, ok := t.store().(driver.Merger); ok {
		changes := sets("a", "5555", "b", "6")
		if _, err := m.Merge(ctx, id, next, after(next, changes...), changes); err != nil {
			t.Fatalf("Merge = %v, want nil", err)
		}
	}
	t.delete(ctx, id)
	t.wantRecord("a record that was saved, after the store saved others over it", rec, want)
	t.wantRecord("a record that was loaded, after the store saved others over it", first, want)
	t.wantRecord("a record that was loaded twice, after the store saved others over it", loaded, want)
}
