package storetest

import (
	"context"
	"errors"
	"fmt"
	"runtime"

	"github.com/holdfast-sessions/holdfast/driver"
)

var deleteCases = []Case{
	{
		Name:   "delete/ends",
		Proves: "Delete ends a record, is idempotent, and ends nothing else",
		run:    deleteEnds,
	},
	{
		Name:   "delete/stale-writes",
		Proves: "after Delete, a Save, Merge or Touch that started from the ended record fails and brings nothing back",
		run:    deleteStaleWrites,
	},
	{
		Name:   "delete/anew-stale-writes",
		Proves: "an ID that was deleted and made anew takes no write that started from the record before",
		run:    deleteAnew,
	},
	{
		Name:   "delete/wins-over-save",
		Proves: "a Delete among slow and repeated Saves is final: logout wins",
		run: func(ctx context.Context, t *T) {
			deleteWins(ctx, t, func(id driver.ID, base driver.Record) error {
				next := after(base, sets("late", "1")...)
				next.Tag = base.Tag
				return t.store().Save(ctx, id, next, base.Revision)
			})
		},
	},
	{
		Name:   "delete/wins-over-merge",
		Proves: "a Delete among slow and repeated Merges is final",
		lacks:  noMerger,
		run: func(ctx context.Context, t *T) {
			deleteWins(ctx, t, func(id driver.ID, base driver.Record) error {
				changes := sets("late", "1")
				_, err := t.merge(ctx, id, base, after(base, changes...), changes)
				return err
			})
		},
	},
	{
		Name:   "delete/wins-over-touch",
		Proves: "a Delete among slow and repeated Touches is final",
		lacks:  noToucher,
		run: func(ctx context.Context, t *T) {
			deleteWins(ctx, t, func(id driver.ID, base driver.Record) error {
				return t.touch(ctx, id, after(base), base.Revision)
			})
		},
	},
}

func deleteEnds(ctx context.Context, t *T) {
	id, other := t.newID(), t.newID()
	rec := newRecord(longTTL, "a", "1")
	t.delete(ctx, id)
	t.wantGone(ctx, "absent, deleted", id)
	t.save(ctx, id, rec, 0)
	t.save(ctx, other, rec, 0)
	t.wantStored(ctx, "saved", id, rec)
	for range 3 {
		t.delete(ctx, id)
		t.wantGone(ctx, "deleted", id)
	}
	t.wantStored(ctx, "another record", other, rec)
}

func deleteStaleWrites(ctx context.Context, t *T) {
	id := t.newID()
	first := t.create(ctx, id, newRecord(longTTL, "a", "1"))
	t.save(ctx, id, after(first, sets("a", "2")...), first.Revision)
	last := t.load(ctx, id)
	t.delete(ctx, id)
	for _, base := range []driver.Record{first, last} {
		changes := sets("late", "1")
		next := after(base, changes...)
		next.Tag = base.Tag
		t.wantErr("Save after Delete", t.store().Save(ctx, id, next, base.Revision), driver.ErrConflict)
		t.wantGone(ctx, "Save after Delete", id)
		if noMerger(t) == "" {
			_, err := t.merge(ctx, id, base, next, changes)
			t.wantErr("Merge after Delete", err, driver.ErrNotFound)
			t.wantGone(ctx, "Merge after Delete", id)
		}
		if noToucher(t) == "" {
			t.wantErr("Touch after Delete", t.touch(ctx, id, after(base), base.Revision), driver.ErrNotFound)
			t.wantGone(ctx, "Touch after Delete", id)
		}
	}
}

func deleteAnew(ctx context.Context, t *T) {
	id := t.newID()
	old := newRecord(longTTL, "a", "old")
	old.Created = old.Created.Add(-longTTL)
	old = t.create(ctx, id, old)
	t.delete(ctx, id)
	anew := t.create(ctx, id, newRecord(longTTL, "a", "new"))
	t.wantNoStaleWrites(ctx, id, old, anew)
}

// wantNoStaleWrites checks that writes which started from old, a record that ended, leave its successor alone.
func (t *T) wantNoStaleWrites(ctx context.Context, id driver.ID, old, anew driver.Record) {
	changes := sets("late", "1")
	next := after(old, changes...)
	next.Tag = old.Tag
	t.wantErr("Save over the record's successor", t.store().Save(ctx, id, next, old.Revision), driver.ErrConflict)
	t.wantErr("Save of a new record over one made anew", t.store().Save(ctx, id, next, 0), driver.ErrConflict)
	t.wantStored(ctx, "stale Save", id, anew)
	if noMerger(t) == "" {
		_, err := t.merge(ctx, id, old, next, changes)
		t.wantErr("Merge over the record's successor", err, driver.ErrConflict)
		t.wantStored(ctx, "stale Merge", id, anew)
	}
	if noToucher(t) == "" {
		t.wantErr("Touch of the record's successor", t.touch(ctx, id, after(old), old.Revision), driver.ErrConflict)
		t.wantStored(ctx, "stale Touch", id, anew)
	}
}

// deleteWins deletes records while writers, each of which goes on with the last state it saw, write them.
func deleteWins(ctx context.Context, t *T, write func(driver.ID, driver.Record) error) {
	const (
		rounds  = 20
		perID   = 4
		atMost  = 200 // writes of one writer before the Delete
		andThen = 20  // after it
	)
	t.parallel(rounds, func(int) {
		id := t.newID()
		t.save(ctx, id, newRecord(longTTL, "n", "0"), 0)
		deleted, begun := make(chan struct{}), make(chan struct{}, perID)
		t.parallel(perID+1, func(i int) {
			if i == perID {
				defer close(deleted)
				for range perID {
					<-begun
				}
				t.delete(ctx, id)
				t.wantGone(ctx, "deleted among writes", id)
				return
			}
			base, err := t.store().Load(ctx, id)
			begun <- struct{}{}
			if err != nil {
				t.Fatalf("Load(%s) = %v", id, err)
			}
			left := atMost
			for left > 0 {
				err := write(id, base)
				switch {
				case err == nil, errors.Is(err, driver.ErrConflict):
				case errors.Is(err, driver.ErrNotFound):
					left = min(left, andThen)
				default:
					t.Fatalf("a write among others = %v, want nil, ErrConflict or ErrNotFound", err)
				}
				select {
				case <-deleted:
					left = min(left, andThen)
				default:
					if rec, err := t.store().Load(ctx, id); err == nil {
						base = rec
					}
				}
				left--
				runtime.Gosched()
			}
			<-deleted
			if err := write(id, base); err == nil {
				t.Errorf("a write that began after Delete returned succeeded")
			}
		})
		t.wantGone(ctx, fmt.Sprintf("after the last of %d writers", perID), id)
	})
}
