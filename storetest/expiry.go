package storetest

import (
	"context"
	"errors"
	"time"

	"github.com/holdfast-sessions/holdfast/driver"
)

var expiryCases = []Case{
	{
		Name:   "expiry/exact",
		Proves: "a record is served until Expires, and from then on, or Description.ExpiryPrecision later, never",
		run:    expiryExact,
	},
	{
		Name:   "expiry/already",
		Proves: "a record that has already expired is stored or dropped, never served, and ends the one it replaces",
		run:    expiryAlready,
	},
	{
		Name:   "expiry/extended",
		Proves: "a record that Save, Merge or Touch extended lives past its first Expires",
		run:    expiryExtended,
	},
	{
		Name:   "expiry/shortened",
		Proves: "a record that Save gave an earlier Expires ends then",
		run:    expiryShortened,
	},
	{
		Name:   "expiry/stale-writes",
		Proves: "Save with a prev, Merge and Touch do not bring an expired record back",
		run:    expiryStaleWrites,
	},
	{
		Name:   "expiry/made-anew",
		Proves: "Save with prev 0 replaces an expired record, takes no write meant for that one, and outlives its clean-up",
		run:    expiryMadeAnew,
	},
}

// watchExpiry loads rec until it is gone, and checks that this happens in time.
func (t *T) watchExpiry(ctx context.Context, what string, id driver.ID, rec driver.Record) {
	end := rec.Expires.Add(t.about.ExpiryPrecision)
	for {
		before := time.Now()
		got, err := t.store().Load(ctx, id)
		after := time.Now()
		switch {
		case err == nil && !before.Before(end):
			t.Fatalf("%s: served %v after Expires, which is longer than the store's precision of %v", what, before.Sub(rec.Expires), t.about.ExpiryPrecision)
		case err == nil:
			t.wantRecord(what, got, rec)
		case !errors.Is(err, driver.ErrNotFound):
			t.Fatalf("%s: Load = %v, want the record or ErrNotFound", what, err)
		case after.Before(rec.Expires):
			t.Fatalf("%s: gone %v before Expires", what, rec.Expires.Sub(after))
		default:
			t.wantErr(what+": Load", err, driver.ErrNotFound)
			return
		}
		time.Sleep(time.Millisecond)
	}
}

// waitUntil waits until a moment after at.
func waitUntil(at time.Time) { time.Sleep(time.Until(at) + time.Millisecond) }

func expiryExact(ctx context.Context, t *T) {
	ttls := []time.Duration{60 * time.Millisecond, 61 * time.Millisecond, 150 * time.Millisecond, 299 * time.Millisecond, 999 * time.Millisecond, 1500 * time.Millisecond}
	t.parallel(len(ttls), func(i int) {
		id, rec := t.newID(), newRecord(ttls[i], "a", "1")
		t.save(ctx, id, rec, 0)
		t.watchExpiry(ctx, "a record that lives "+ttls[i].String(), id, rec)
	})
}

func expiryAlready(ctx context.Context, t *T) {
	id := t.newID()
	ended := newRecord(-time.Second, "a", "1")
	t.save(ctx, id, ended, 0)
	t.wantGone(ctx, "saved when it had already expired", id)
	rec := newRecord(longTTL, "a", "2")
	t.save(ctx, id, rec, 0)
	t.wantErr("Save of an expired record with prev 0 over a live one", t.store().Save(ctx, id, ended, 0), driver.ErrConflict)
	t.wantStored(ctx, "after that", id, rec)
	ended.Revision = driver.NewRevision(rec.Revision)
	t.save(ctx, id, ended, rec.Revision)
	t.wantGone(ctx, "replaced by a record that had already expired", id)
	t.save(ctx, id, after(rec), 0)
	t.delete(ctx, id)
}

func expiryExtended(ctx context.Context, t *T) {
	const ttl = 300 * time.Millisecond
	extend := map[string]func(driver.ID, driver.Record, driver.Record) error{
		"Save": func(id driver.ID, base, next driver.Record) error {
			return t.store().Save(ctx, id, next, base.Revision)
		},
	}
	if noMerger(t) == "" {
		extend["Merge"] = func(id driver.ID, base, next driver.Record) error {
			_, err := t.merge(ctx, id, base, next, nil)
			return err
		}
		extend["Merge from a stale base"] = func(id driver.ID, base, next driver.Record) error {
			if _, err := t.merge(ctx, id, base, after(base), nil); err != nil {
				return err
			}
			_, err := t.merge(ctx, id, base, next, nil)
			return err
		}
	}
	if noToucher(t) == "" {
		extend["Touch"] = func(id driver.ID, base, next driver.Record) error { return t.touch(ctx, id, next, base.Revision) }
	}
	ids := make(map[string]driver.ID)
	want := make(map[string]driver.Record)
	var last time.Time
	for name, f := range extend {
		id, rec, next, err := t.extend(ctx, ttl, f)
		for longer := 2 * ttl; err != nil && time.Now().After(rec.Expires) && longer < time.Minute; longer *= 2 {
			id, rec, next, err = t.extend(ctx, longer, f) // on a busy machine it ended before it was extended
		}
		if err != nil {
			t.Errorf("%s that extends a record, %v before it ends = %v", name, time.Until(rec.Expires), err)
			continue
		}
		ids[name], want[name] = id, t.load(ctx, id)
		if rec.Expires.After(last) {
			last = rec.Expires
		}
		if !want[name].Expires.Equal(next.Expires) {
			t.Errorf("%s that extends a record: Expires is %v, want %v", name, want[name].Expires, next.Expires)
		}
	}
	waitUntil(last.Add(t.about.ExpiryPrecision))
	for name, id := range ids {
		t.wantStored(ctx, "extended by "+name+", past its first end", id, want[name])
	}
}

// extend saves a record that lives for ttl, and extends it by f.
func (t *T) extend(ctx context.Context, ttl time.Duration, f func(driver.ID, driver.Record, driver.Record) error) (driver.ID, driver.Record, driver.Record, error) {
	id, rec := t.newID(), newRecord(ttl, "a", "1")
	t.save(ctx, id, rec, 0)
	next := after(rec)
	next.Expires = rec.Expires.Add(longTTL)
	return id, rec, next, f(id, rec, next)
}

func expiryShortened(ctx context.Context, t *T) {
	id := t.newID()
	rec := t.create(ctx, id, newRecord(longTTL, "a", "1"))
	next := after(rec)
	next.Expires = now().Add(100 * time.Millisecond)
	t.save(ctx, id, next, rec.Revision)
	t.watchExpiry(ctx, "shortened", id, next)
}

// expired returns a record that the store held and that is over.
func (t *T) expired(ctx context.Context, id driver.ID) driver.Record {
	rec := newRecord(60*time.Millisecond, "a", "old")
	rec.Created = rec.Created.Add(-time.Second)
	t.save(ctx, id, rec, 0)
	if loaded, err := t.store().Load(ctx, id); err == nil {
		rec.Tag = loaded.Tag
	}
	t.watchExpiry(ctx, "a record that lives 60ms", id, rec)
	waitUntil(rec.Expires.Add(t.about.ExpiryPrecision))
	return rec
}

func expiryStaleWrites(ctx context.Context, t *T) {
	id := t.newID()
	old := t.expired(ctx, id)
	changes := sets("late", "1")
	next := after(old, changes...)
	next.Expires = now().Add(longTTL)
	next.Tag = old.Tag
	t.wantErr("Save over an expired record", t.store().Save(ctx, id, next, old.Revision), driver.ErrConflict)
	t.wantGone(ctx, "Save over an expired record", id)
	if noMerger(t) == "" {
		_, err := t.merge(ctx, id, old, next, changes)
		t.wantErr("Merge over an expired record", err, driver.ErrNotFound)
		t.wantGone(ctx, "Merge over an expired record", id)
	}
	if noToucher(t) == "" {
		touched := next
		touched.Fields = old.Fields
		t.wantErr("Touch of an expired record", t.touch(ctx, id, touched, old.Revision), driver.ErrNotFound)
		t.wantGone(ctx, "Touch of an expired record", id)
	}
	t.delete(ctx, id)
	t.wantGone(ctx, "Delete of an expired record", id)
}

func expiryMadeAnew(ctx context.Context, t *T) {
	ids := []driver.ID{t.newID(), t.newID(), t.newID(), t.newID()}
	t.parallel(len(ids), func(i int) {
		id := ids[i]
		old := t.expired(ctx, id)
		anew := newRecord(longTTL, "a", "new")
		t.save(ctx, id, anew, 0)
		anew = t.load(ctx, id)
		t.wantNoStaleWrites(ctx, id, old, anew)
		for range 10 { // the clean-up of the old one, whenever it comes, leaves the new one alone
			time.Sleep(20 * time.Millisecond)
			t.wantStored(ctx, "made anew", id, anew)
		}
	})
}
