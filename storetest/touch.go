package storetest

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/holdfast-sessions/holdfast/driver"
)

var touchCases = []Case{
	{
		Name:   "touch/extends",
		Proves: "Touch gives the record next's Seen, Expires and Revision, and leaves User, Created and fields as they are",
		lacks:  noToucher, run: touchExtends,
	},
	{
		Name:   "touch/conflict",
		Proves: "Touch from another revision changes nothing and is ErrConflict; of an absent record it is ErrNotFound",
		lacks:  noToucher, run: touchConflict,
	},
	{
		Name:   "touch/loses-no-field",
		Proves: "Touches among writers of fields lose none of the fields",
		lacks:  noToucher, run: touchLosesNoField,
	},
}

func touchExtends(ctx context.Context, t *T) {
	id := t.newID()
	rec := t.create(ctx, id, newRecord(longTTL, "a", "1", "b", filler(2000)))
	for range 3 {
		next := after(rec)
		next.Seen, next.Expires = rec.Seen.Add(time.Second+time.Millisecond), rec.Expires.Add(time.Hour)
		if err := t.touch(ctx, id, next, rec.Revision); err != nil {
			t.Fatalf("Touch = %v, want nil", err)
		}
		rec = t.load(ctx, id)
		t.wantRecord("touched", rec, next)
	}
	for _, r := range revisions[3 : len(revisions)-1] {
		id, rec := t.newID(), newRecord(longTTL, "a", "1")
		rec.Revision = r
		t.save(ctx, id, rec, 0)
		next := rec
		next.Revision = r + 1
		if err := t.touch(ctx, id, next, r); err != nil {
			t.Errorf("Touch of revision %d = %v, want nil", r, err)
			continue
		}
		t.wantStored(ctx, "touched", id, next)
		t.wantErr("Save from before the Touch", t.store().Save(ctx, id, rec, r), driver.ErrConflict)
		t.save(ctx, id, after(t.load(ctx, id)), r+1)
	}
}

func touchConflict(ctx context.Context, t *T) {
	id, absent, deleted := t.newID(), t.newID(), t.newID()
	base := t.create(ctx, id, newRecord(longTTL, "a", "1"))
	stored := after(base, sets("a", "2", "b", "2")...)
	t.save(ctx, id, stored, base.Revision)
	for _, prev := range []uint64{0, 1, base.Revision, stored.Revision - 1, stored.Revision + 1} {
		t.wantErr("Touch from another revision", t.touch(ctx, id, after(base), prev), driver.ErrConflict)
		t.wantStored(ctx, "after the conflict", id, stored)
	}
	t.save(ctx, deleted, base, 0)
	t.delete(ctx, deleted)
	for what, id := range map[string]driver.ID{"absent": absent, "deleted": deleted} {
		for _, prev := range []uint64{0, base.Revision} {
			t.wantErr("Touch of a record that is "+what, t.touch(ctx, id, after(base), prev), driver.ErrNotFound)
			t.wantGone(ctx, "Touch of a record that is "+what, id)
		}
	}
}

func touchLosesNoField(ctx context.Context, t *T) {
	id := t.newID()
	base := t.create(ctx, id, newRecord(longTTL))
	t.parallel(writers, func(i int) {
		before := t.load(ctx, id)
		t.update(ctx, id, base, func(rec driver.Record) driver.Record {
			return after(rec, sets(fmt.Sprint("field", i), fmt.Sprint(i))...)
		})
		t.wantErr("Touch from before a Save", t.touch(ctx, id, after(before), before.Revision), driver.ErrConflict)
		latest := t.load(ctx, id)
		if err := t.touch(ctx, id, after(latest), latest.Revision); err != nil && !errors.Is(err, driver.ErrConflict) {
			t.Errorf("Touch = %v, want nil or ErrConflict", err)
		}
	})
	t.wantWriters(t.load(ctx, id))
}
