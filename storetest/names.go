package storetest

import (
	"context"
	"fmt"
	"strings"

	"github.com/holdfast-sessions/holdfast/driver"
)

var identityCases = []Case{
	{
		Name:   "id/shared-bytes",
		Proves: "records whose IDs differ in one byte, first or last, are different records to every call",
		run:    idSharedBytes,
	},
	{
		Name:   "user/names",
		Proves: "a user name is any 0 to 65,535 bytes and kept as it is; a longer one is ErrTooLarge",
		run:    userNames,
	},
	{
		Name:   "field/names",
		Proves: "a field name is any 0 to 65,535 bytes, kept as it is, and means nothing to the store",
		run:    fieldNames,
	},
}

// weird are names that mean something to a shell, a database, a protocol, a file system or a text encoding.
var weird = []string{
	"", " ", "a", "a ", " a", "A", "a\x00", "\x00", "\x00login", "*", "?", "%", "_", "%s%n", "{tag}", "[a-z]", "'", `"`, "`", `\`,
	"' OR 1=1 --", "; DROP TABLE sessions", "\n", "\r\n", "a\r\nset b 0 0 1\r\n1", "../../x", "/etc/passwd", "..", ".", "CON",
	"$1", "${HOME}", "$(id)", "<b>", "&amp;", "\xff\xfe", "\xc3\x28", "\xed\xa0\x80", "é", "e\u0301", "ß", "SS", "İ", "\u202e", "😀", "\ufeff",
}

func longName() string { return strings.Repeat("n", driver.MaxName) }

func idSharedBytes(ctx context.Context, t *T) {
	first := t.newID()
	ids := []driver.ID{first}
	for i := range first {
		for _, bit := range []byte{0x01, 0x80} {
			id := first
			id[i] ^= bit
			ids = append(ids, t.use(id))
		}
	}
	for _, shared := range []int{4, 8, 16, 31} { // the rest is random
		id := t.newID()
		copy(id[:shared], first[:shared])
		id[shared] = first[shared] ^ 0x55 // none of those above, by chance
		ids = append(ids, t.use(id))
	}
	recs := make(map[driver.ID]driver.Record)
	for i, id := range ids {
		recs[id] = newRecord(longTTL, "owner", id.Hex(), "n", fmt.Sprint(i))
		t.save(ctx, id, recs[id], 0)
	}
	check := func(what string) {
		for id, rec := range recs {
			t.wantStored(ctx, what, id, rec)
		}
	}
	check("saved")
	next := after(recs[first], sets("n", "changed")...)
	t.save(ctx, first, next, recs[first].Revision)
	recs[first] = next
	check("one of them saved again")
	if noMerger(t) == "" {
		changes := sets("n", "merged")
		merged, err := t.merge(ctx, ids[1], recs[ids[1]], after(recs[ids[1]], changes...), changes)
		if err != nil {
			t.Fatalf("Merge = %v", err)
		}
		recs[ids[1]] = merged
		check("one of them merged")
	}
	t.delete(ctx, first)
	delete(recs, first)
	t.wantGone(ctx, "one of them deleted", first)
	check("one of them deleted")
}

func userNames(ctx context.Context, t *T) {
	for _, user := range append([]string{longName()}, weird...) {
		id, rec := t.newID(), newRecord(longTTL, "a", "1")
		rec.User = user
		if t.tooLarge(rec.EncodedLen() + 64) {
			continue
		}
		t.save(ctx, id, rec, 0)
		t.wantStored(ctx, "user "+short(user), id, rec)
		if noMerger(t) == "" {
			changes := sets("b", "2")
			base := before(rec) // not what is stored, so that the store compares the user names
			if _, err := t.merge(ctx, id, base, after(base, changes...), changes); err != nil {
				t.Errorf("user %s: Merge = %v", short(user), err)
			}
			if got := t.load(ctx, id); got.User != user || got.Fields.Len() != 2 {
				t.Errorf("user %s: after Merge user %s, %d fields", short(user), short(got.User), got.Fields.Len())
			}
		}
	}
	id, rec := t.newID(), newRecord(longTTL)
	rec.User = longName() + "n"
	t.wantErr("Save with a user name of 65,536 bytes", t.store().Save(ctx, id, rec, 0), driver.ErrTooLarge)
	t.wantGone(ctx, "refused", id)
}

func fieldNames(ctx context.Context, t *T) {
	names := weird
	if !t.tooLarge(2 * driver.MaxName) {
		names = append([]string{longName()}, weird...)
	}
	var changes []driver.Change
	for _, name := range names {
		changes = append(changes, driver.Change{Name: name, Value: []byte("value of " + name)})
	}
	id := t.newID()
	rec := newRecord(longTTL)
	rec.Fields = rec.Fields.With(changes...)
	t.save(ctx, id, rec, 0)
	t.wantStored(ctx, "all names in one record", id, rec)

	if noMerger(t) != "" {
		return
	}
	id = t.newID()
	base := newRecord(longTTL)
	t.save(ctx, id, base, 0)
	want := base.Fields
	for i, c := range changes {
		// The base is stale from the second time on, so that the store lays the change over the record itself.
		if _, err := t.merge(ctx, id, base, after(base, c), changes[i:i+1]); err != nil {
			t.Fatalf("Merge of field %s = %v", short(c.Name), err)
		}
		want = want.With(c)
	}
	if got := t.load(ctx, id); !got.Fields.Equal(want) {
		t.Errorf("merged one by one: %s", fieldDifference(got.Fields, want))
	}
	for _, c := range changes {
		gone := []driver.Change{remove(c.Name)}
		if _, err := t.merge(ctx, id, base, after(base, gone...), gone); err != nil {
			t.Fatalf("Merge that removes field %s = %v", short(c.Name), err)
		}
		want = want.With(gone...)
		if got := t.load(ctx, id); !got.Fields.Equal(want) {
			t.Fatalf("field %s removed: %s", short(c.Name), fieldDifference(got.Fields, want))
		}
	}
}
