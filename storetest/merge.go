package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/holdfast-sessions/holdfast/driver"
)

var mergeCases = []Case{
	{
		Name:   "merge/from-base",
		Proves: "Merge over the revision it started from stores and returns next",
		lacks:  noMerger, run: mergeFromBase,
	},
	{
		Name:   "merge/from-earlier",
		Proves: "Merge over a later state lays its changes over that, raises Seen and Expires, and gives a larger revision",
		lacks:  noMerger, run: mergeFromEarlier,
	},
	{
		Name:   "merge/changes",
		Proves: "changes set, remove, and count in their order; none at all extends the record only",
		lacks:  noMerger, run: mergeChanges,
	},
	{
		Name:   "merge/revisions",
		Proves: "Merge tells revisions apart, compares and adds to them in all 64 bits",
		lacks:  noMerger, run: mergeRevisions,
	},
	{
		Name:   "merge/never-creates",
		Proves: "Merge of a record that is absent or was deleted is ErrNotFound and stores nothing",
		lacks:  noMerger, run: mergeNeverCreates,
	},
	{
		Name:   "merge/another-life",
		Proves: "Merge over a record with another Created or User is ErrConflict and changes nothing",
		lacks:  noMerger, run: mergeAnotherLife,
	},
	{
		Name:   "merge/different-fields",
		Proves: "100 parallel Merges of different fields from one base all win, without a conflict",
		lacks:  noMerger, run: mergeDifferentFields,
	},
	{
		Name:   "merge/one-field",
		Proves: "parallel Merges of one field leave the value of one of them, and each a revision of its own",
		lacks:  noMerger, run: mergeOneField,
	},
	{
		Name:   "merge/among-saves",
		Proves: "Merges and Saves of different fields at the same time all win",
		lacks:  noMerger, run: mergeAmongSaves,
	},
	{
		Name:   "merge/slices",
		Proves: "Merge neither modifies nor keeps the changes it was given",
		lacks:  noMerger, run: mergeSlices,
	},
}

func mergeFromBase(ctx context.Context, t *T) {
	id := t.newID()
	base := t.create(ctx, id, newRecord(longTTL, "a", "1", "b", "1", "c", "1"))
	for i := range 5 {
		changes := append(sets("a", fmt.Sprint(i), fmt.Sprint("new", i), "1"), remove("c"))
		next := after(base, changes...)
		next.Tag = base.Tag
		got, err := t.merge(ctx, id, base, next, changes)
		if err != nil {
			t.Fatalf("Merge = %v, want nil", err)
		}
		t.wantRecord("Merge returns", got, next)
		t.wantStored(ctx, "merged", id, next)
		base = got
	}
	t.save(ctx, id, after(base, sets("a", "saved")...), base.Revision)
}

func mergeFromEarlier(ctx context.Context, t *T) {
	tests := []struct {
		name          string
		seen, expires time.Duration // by how much the record stored is later than the one merged
	}{
		{"the stored one was seen earlier", -time.Second, -time.Second},
		{"the stored one was seen later", time.Second, time.Second},
		{"the stored one was seen later and ends earlier", time.Second, -time.Second},
		{"both alike", 0, 0},
	}
	for _, tt := range tests {
		id := t.newID()
		base := t.create(ctx, id, newRecord(longTTL, "mine", "0", "theirs", "0", "gone", "0", "both", "0"))
		changes := append(sets("mine", "1", "both", "mine"), remove("gone"))
		next := after(base, changes...)

		stored := after(base, sets("theirs", "1", "both", "theirs")...)
		stored.Seen, stored.Expires = next.Seen.Add(tt.seen), next.Expires.Add(tt.expires)
		t.save(ctx, id, stored, base.Revision)

		next.Tag = base.Tag
		got, err := t.merge(ctx, id, base, next, changes)
		if err != nil {
			t.Fatalf("%s: Merge = %v, want nil", tt.name, err)
		}
		want := stored
		want.Fields = stored.Fields.With(changes...)
		want.Seen, want.Expires = later(stored.Seen, next.Seen), later(stored.Expires, next.Expires)
		want.Revision = got.Revision
		t.wantRecord(tt.name+": Merge returns", got, want)
		if got.Revision <= stored.Revision || got.Revision < next.Revision {
			t.Errorf("%s: Merge of revision %d over %d gave %d, want at least the one and more than the other", tt.name, next.Revision, stored.Revision, got.Revision)
		}
		t.wantStored(ctx, tt.name+": merged", id, got)
		t.wantErr("Save from before the Merge", t.store().Save(ctx, id, after(stored), stored.Revision), driver.ErrConflict)
		t.save(ctx, id, after(got), got.Revision)
	}
}

func later(a, b time.Time) time.Time {
	if a.Before(b) {
		return b
	}
	return a
}

func mergeChanges(ctx context.Context, t *T) {
	tests := []struct {
		name    string
		changes []driver.Change
	}{
		{"none", nil},
		{"set", sets("a", "2")},
		{"set a new one", sets("new", "1")},
		{"set to nothing", sets("a", "")},
		{"set nil", []driver.Change{{Name: "a"}}},
		{"remove", []driver.Change{remove("a")}},
		{"remove an absent one", []driver.Change{remove("absent")}},
		{"remove with a value", []driver.Change{{Name: "a", Value: []byte("x"), Delete: true}}},
		{"remove all", []driver.Change{remove("a"), remove("b"), remove("c")}},
		{"set twice", sets("a", "2", "a", "3")},
		{"set, then remove", append(sets("a", "2"), remove("a"))},
		{"remove, then set", append([]driver.Change{remove("a")}, sets("a", "2")...)},
		{"longer and shorter", sets("a", strings.Repeat("long", 1000), "b", "")},
		{"a name that starts like another", sets("aa", "1", "", "2")},
		{"many", func() (many []driver.Change) {
			for i := range 100 {
				many = append(many, sets(fmt.Sprint("f", i), fmt.Sprint(i))...)
			}
			return many
		}()},
	}
	for _, tt := range tests {
		id := t.newID()
		rec := t.create(ctx, id, newRecord(longTTL, "a", "1", "b", "value", "c", "1"))
		for _, from := range []struct {
			name string
			base driver.Record
		}{{"from an earlier state", before(rec)}, {"from the stored state", rec}} {
			what := tt.name + ", " + from.name
			next := after(from.base, tt.changes...)
			got, err := t.merge(ctx, id, from.base, next, tt.changes)
			if err != nil {
				t.Errorf("%s: Merge = %v, want nil", what, err)
				continue
			}
			if want := rec.Fields.With(tt.changes...); !got.Fields.Equal(want) {
				t.Errorf("%s: Merge returns: %s", what, fieldDifference(got.Fields, want))
			}
			t.wantStored(ctx, what, id, got)
			t.delete(ctx, id)
			t.save(ctx, id, rec, 0)
		}
	}
}

func mergeRevisions(ctx context.Context, t *T) {
	carries := []uint64{0xff, 0xffff, 1<<24 - 1, 1<<32 - 1, 1<<40 - 1, 1<<48 - 1, 1<<56 - 1, 1<<63 - 1}
	for _, stored := range append(carries, revisions...) {
		if stored > math.MaxUint64-2 || stored < 4 {
			continue
		}
		for _, gap := range []int64{-1, 0, 1, 2} { // next's revision against the stored one's
			id := t.newID()
			base := newRecord(longTTL, "theirs", "0")
			base.Revision = stored - 2
			saved := base
			saved.Revision, saved.Fields = stored, base.Fields.With(sets("theirs", "1")...)
			t.save(ctx, id, saved, 0)

			changes := sets("mine", "1")
			next := base
			next.Revision, next.Fields = stored+uint64(gap), base.Fields.With(changes...)
			got, err := t.merge(ctx, id, base, next, changes)
			if err != nil {
				t.Errorf("Merge from revision %d over %d = %v, want nil", base.Revision, stored, err)
				continue
			}
			if got.Revision <= stored || got.Revision < next.Revision {
				t.Errorf("Merge of revision %d over %d gave %d, want at least the one and more than the other", next.Revision, stored, got.Revision)
			}
			if want := saved.Fields.With(changes...); !got.Fields.Equal(want) {
				t.Errorf("Merge from revision %d over %d: %s", base.Revision, stored, fieldDifference(got.Fields, want))
			}
			t.wantStored(ctx, fmt.Sprintf("merged from revision %d over %d", base.Revision, stored), id, got)
		}
	}
}

func mergeNeverCreates(ctx context.Context, t *T) {
	absent, deleted := t.newID(), t.newID()
	rec := newRecord(longTTL, "a", "1")
	t.save(ctx, deleted, rec, 0)
	t.delete(ctx, deleted)
	changes := sets("a", "2")
	for what, id := range map[string]driver.ID{"absent": absent, "deleted": deleted} {
		for _, base := range []driver.Record{rec, {Expires: rec.Expires}} {
			_, err := t.merge(ctx, id, base, after(base, changes...), changes)
			t.wantErr("Merge over a record that is "+what, err, driver.ErrNotFound)
			t.wantGone(ctx, "Merge over a record that is "+what, id)
		}
	}
}

func mergeAnotherLife(ctx context.Context, t *T) {
	rec := newRecord(longTTL, "a", "1")
	tests := []struct {
		name   string
		change func(*driver.Record) // makes the stored record another life of rec
	}{
		{"created later", func(r *driver.Record) { r.Created = r.Created.Add(time.Millisecond) }},
		{"created earlier", func(r *driver.Record) { r.Created = r.Created.Add(-time.Millisecond) }},
		{"created at the zero Time", func(r *driver.Record) { r.Created = time.Time{} }},
		{"no user", func(r *driver.Record) { r.User = "" }},
		{"a marker", func(r *driver.Record) { *r = driver.Record{Seen: r.Seen, Expires: r.Expires, Revision: r.Revision} }},
		{"user in capitals", func(r *driver.Record) { r.User = "ADA" }},
		{"user with a space after it", func(r *driver.Record) { r.User = "ada " }},
		{"user with a NUL after it", func(r *driver.Record) { r.User = "ada\x00" }},
		{"longer user", func(r *driver.Record) { r.User = "adam" }},
		{"other user of the same length", func(r *driver.Record) { r.User = "bob" }},
	}
	for _, tt := range tests {
		id, stored := t.newID(), after(rec)
		tt.change(&stored)
		t.save(ctx, id, stored, 0)
		changes := sets("late", "1")
		_, err := t.merge(ctx, id, rec, after(rec, changes...), changes)
		t.wantErr("Merge over "+tt.name, err, driver.ErrConflict)
		t.wantStored(ctx, "Merge over "+tt.name, id, stored)
	}

	id := t.newID() // no user and no Created are a life of their own
	anonymous := newRecord(longTTL, "a", "1")
	anonymous.User, anonymous.Created = "", time.Time{}
	t.save(ctx, id, after(anonymous), 0)
	changes := sets("b", "1")
	if _, err := t.merge(ctx, id, anonymous, after(anonymous, changes...), changes); err != nil {
		t.Errorf("Merge over a later state of a record with no user and no Created = %v, want nil", err)
	}
}

func mergeDifferentFields(ctx context.Context, t *T) {
	id := t.newID()
	base := t.create(ctx, id, newRecord(longTTL, "first", "1"))
	t.parallel(writers, func(i int) {
		changes := sets(fmt.Sprint("field", i), fmt.Sprint(i))
		next := after(base, changes...)
		next.Tag = base.Tag
		got, err := t.merge(ctx, id, base, next, changes)
		if err != nil {
			t.Fatalf("Merge by one of %d writers = %v, want nil", writers, err)
		}
		if v, ok := got.Fields.Get(fmt.Sprint("field", i)); !ok || string(v) != fmt.Sprint(i) {
			t.Errorf("Merge by writer %d returns a record where its field is %q (there: %v)", i, v, ok)
		}
	})
	rec := t.load(ctx, id)
	t.wantWriters(rec)
	if _, ok := rec.Fields.Get("first"); !ok {
		t.Errorf("the field that nobody changed is gone")
	}
}

func mergeOneField(ctx context.Context, t *T) {
	id := t.newID()
	base := t.create(ctx, id, newRecord(longTTL, "a", "none"))
	var mu sync.Mutex
	byRevision := make(map[uint64]string)
	t.parallel(50, func(i int) {
		changes := sets("a", fmt.Sprint(i))
		next := after(base, changes...)
		got, err := t.merge(ctx, id, base, next, changes)
		if err != nil {
			t.Fatalf("Merge = %v, want nil", err)
		}
		mu.Lock()
		defer mu.Unlock()
		if other, taken := byRevision[got.Revision]; taken {
			t.Errorf("the Merges of %s and %d both returned revision %d", other, i, got.Revision)
		}
		byRevision[got.Revision] = fmt.Sprint(i)
	})
	rec := t.load(ctx, id)
	v, _ := rec.Fields.Get("a")
	if want, ok := byRevision[rec.Revision]; !ok || string(v) != want {
		t.Errorf("the record of revision %d holds %q; the Merge that returned this revision wrote %q", rec.Revision, v, want)
	}
	for revision := range byRevision {
		if revision > rec.Revision {
			t.Errorf("a Merge returned revision %d; the record has %d", revision, rec.Revision)
		}
	}
}

func mergeAmongSaves(ctx context.Context, t *T) {
	id := t.newID()
	base := t.create(ctx, id, newRecord(longTTL))
	t.parallel(writers, func(i int) {
		changes := sets(fmt.Sprint("field", i), fmt.Sprint(i))
		switch {
		case i%2 == 0:
			if _, err := t.merge(ctx, id, base, after(base, changes...), changes); err != nil {
				t.Errorf("Merge = %v, want nil", err)
			}
		default:
			t.update(ctx, id, base, func(rec driver.Record) driver.Record { return after(rec, changes...) })
		}
		if i%5 == 0 && noToucher(t) == "" {
			rec := t.load(ctx, id)
			if err := t.touch(ctx, id, after(rec), rec.Revision); err != nil && !errors.Is(err, driver.ErrConflict) {
				t.Errorf("Touch = %v, want nil or ErrConflict", err)
			}
		}
	})
	t.wantWriters(t.load(ctx, id))
}

func mergeSlices(ctx context.Context, t *T) {
	for _, stale := range []bool{false, true} {
		id := t.newID()
		base := t.create(ctx, id, newRecord(longTTL, "z", "1"))
		if stale {
			t.save(ctx, id, after(base), base.Revision)
		}
		changes := append(sets("z", "22", "a", "22"), remove("absent"))
		given := slices.Clone(changes)
		for i := range given {
			given[i].Value = bytes.Clone(changes[i].Value)
		}
		got, err := t.merge(ctx, id, base, after(base, changes...), given)
		if err != nil {
			t.Fatalf("Merge = %v, want nil", err)
		}
		for i, c := range changes {
			if given[i].Name != c.Name || !bytes.Equal(given[i].Value, c.Value) || given[i].Delete != c.Delete {
				t.Errorf("Merge modified change %d", i)
			}
			copy(given[i].Value, "xx")
			given[i] = driver.Change{Name: "kept", Value: given[i].Value}
		}
		if want := base.Fields.With(changes...); !got.Fields.Equal(want) {
			t.Errorf("the record that Merge returned changed with the caller's slice: %s", fieldDifference(got.Fields, want))
		}
		want := got
		want.Fields = base.Fields.With(changes...)
		t.wantStored(ctx, "after the caller used its slices again", id, want)
	}
}
