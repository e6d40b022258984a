package storetest

import (
	"context"
	"encoding/binary"
	"fmt"

	"github.com/holdfast-sessions/holdfast/driver"
)

var sizeCases = []Case{
	{
		Name:   "size/steps",
		Proves: "records of every size up to 1 MiB (or Description.MaxBytes) are kept to the last byte, by Save and Merge",
		run:    sizeSteps,
	},
	{
		Name:   "size/many-fields",
		Proves: "a record of 10,000 fields is kept, and one of them is changed",
		run:    sizeManyFields,
	},
	{
		Name:   "size/limit",
		Proves: "a record of Description.MaxBytes is kept; one byte more is ErrTooLarge and changes nothing",
		lacks: func(t *T) string {
			switch {
			case t.about.MaxBytes == 0:
				return "the store has no limit of its own"
			case t.about.MaxBytes > 64<<20:
				return "the store's limit is above 64 MiB"
			}
			return ""
		},
		run: sizeLimit,
	},
}

// largest returns the size of the largest record that is tried.
func (t *T) largest() int {
	n := t.maxBytes
	if n <= 0 {
		n = 1 << 20
	}
	if t.about.MaxBytes > 0 {
		n = min(n, t.about.MaxBytes)
	}
	return n
}

func (t *T) tooLarge(n int) bool { return n > t.largest() }

// sized returns a record whose encoding has n bytes.
func sized(n int) driver.Record {
	rec := newRecord(longTTL, "fill", "")
	fill := n - rec.EncodedLen()
	if fill < 0 {
		panic(fmt.Sprintf("no record is as small as %d bytes", n))
	}
	rec.Fields = rec.Fields.With(sets("fill", filler(fill))...)
	return rec
}

// filler returns n bytes in which no two blocks of 8 are the same.
func filler(n int) string {
	b := make([]byte, 0, n+8)
	for i := uint64(1); len(b) < n; i++ {
		b = binary.BigEndian.AppendUint64(b, i*0x9e3779b97f4a7c15)
	}
	return string(b[:n])
}

func sizeSteps(ctx context.Context, t *T) {
	id := t.newID()
	var prev uint64
	for _, n := range []int{64, 100, 255, 256, 1000, 4095, 4096, 4097, 65535, 65536, 65537, 1<<18 + 1, 1<<20 - 1, 1 << 20, t.largest(), 1000, 64} {
		if t.tooLarge(n) {
			continue
		}
		rec := sized(n)
		t.save(ctx, id, rec, prev) // grows and shrinks in place
		t.wantStored(ctx, fmt.Sprintf("%d bytes saved over another", n), id, rec)
		prev = rec.Revision

		fresh := t.newID()
		t.save(ctx, fresh, rec, 0)
		t.wantStored(ctx, fmt.Sprintf("%d bytes", n), fresh, rec)
		if noMerger(t) == "" {
			fill, _ := rec.Fields.Get("fill")
			base := before(rec) // so that the store lays the change over the record itself
			for _, fields := range []int{len(fill) / 2, 0, len(fill)} {
				changes := sets("fill", filler(fields))
				merged, err := t.merge(ctx, fresh, base, after(base, changes...), changes)
				if err != nil {
					t.Fatalf("%d bytes: Merge = %v", n, err)
				}
				if want := rec.Fields.With(changes...); !merged.Fields.Equal(want) {
					t.Errorf("%d bytes: Merge returns: %s", n, fieldDifference(merged.Fields, want))
				}
				t.wantStored(ctx, fmt.Sprintf("%d bytes merged", n), fresh, merged)
			}
		}
	}
}

func sizeManyFields(ctx context.Context, t *T) {
	const n = 10_000
	rec := newRecord(longTTL)
	var changes []driver.Change
	for i := range n {
		changes = append(changes, sets(fmt.Sprint("field", i), fmt.Sprint(i))...)
	}
	rec.Fields = rec.Fields.With(changes...)
	if t.tooLarge(rec.EncodedLen() + 100) {
		return
	}
	id := t.newID()
	t.save(ctx, id, rec, 0)
	t.wantStored(ctx, "10,000 fields", id, rec)
	one := sets("field5000", "changed")
	if noMerger(t) == "" {
		base := before(rec)
		if _, err := t.merge(ctx, id, base, after(base, one...), one); err != nil {
			t.Fatalf("Merge = %v", err)
		}
	} else {
		t.save(ctx, id, after(t.load(ctx, id), one...), rec.Revision)
	}
	if got, want := t.load(ctx, id).Fields, rec.Fields.With(one...); !got.Equal(want) {
		t.Errorf("one of 10,000 fields changed: %s", fieldDifference(got, want))
	}
}

func sizeLimit(ctx context.Context, t *T) {
	limit := t.about.MaxBytes
	id, fresh := t.newID(), t.newID()
	fits, over := sized(limit), sized(limit+1)
	t.save(ctx, id, fits, 0)
	t.wantStored(ctx, "as large as allowed", id, fits)
	t.wantErr("Save of one byte more", t.store().Save(ctx, id, over, fits.Revision), driver.ErrTooLarge)
	t.wantStored(ctx, "after that", id, fits)
	t.wantErr("Save of one byte more as a new record", t.store().Save(ctx, fresh, over, 0), driver.ErrTooLarge)
	t.wantGone(ctx, "after that", fresh)
	if noMerger(t) == "" {
		changes := sets("x", "")
		for _, base := range []driver.Record{fits, before(fits)} {
			_, err := t.merge(ctx, id, base, after(base, changes...), changes)
			t.wantErr("Merge that makes the record larger than allowed", err, driver.ErrTooLarge)
			t.wantStored(ctx, "after that", id, fits)
		}
	}
}
