package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/holdfast-sessions/holdfast/driver"
)

// longTTL is how long records live that are not meant to expire within a case.
const longTTL = 10 * time.Minute

// now is the current time as a record keeps it.
func now() time.Time { return time.UnixMilli(time.Now().UnixMilli()) }

// newRecord returns the first record of a life: pairs are names and values of fields in turn.
func newRecord(ttl time.Duration, pairs ...string) driver.Record {
	at := now()
	return driver.Record{
		User: "ada", Created: at, Seen: at, Expires: at.Add(ttl), Revision: driver.NewRevision(0),
		Fields: driver.Fields{}.With(sets(pairs...)...),
	}
}

// after returns a record that replaces rec, seen a millisecond later, with changes laid over it.
func after(rec driver.Record, changes ...driver.Change) driver.Record {
	rec.Seen, rec.Expires = rec.Seen.Add(time.Millisecond), rec.Expires.Add(time.Millisecond)
	rec.Revision = driver.NewRevision(rec.Revision)
	rec.Fields = rec.Fields.With(changes...)
	return rec
}

// before returns an earlier state of rec.
func before(rec driver.Record) driver.Record {
	rec.Seen, rec.Expires = rec.Seen.Add(-time.Millisecond), rec.Expires.Add(-time.Millisecond)
	rec.Revision--
	return rec
}

func sets(pairs ...string) []driver.Change {
	var changes []driver.Change
	for i := 0; i < len(pairs); i += 2 {
		changes = append(changes, driver.Change{Name: pairs[i], Value: []byte(pairs[i+1])})
	}
	return changes
}

func remove(name string) driver.Change { return driver.Change{Name: name, Delete: true} }

// save saves rec and fails the case if the store does not.
func (t *T) save(ctx context.Context, id driver.ID, rec driver.Record, prev uint64) {
	if err := t.store().Save(ctx, id, rec, prev); err != nil {
		t.Fatalf("Save(%s, revision %d, prev %d) = %v, want it saved", id, rec.Revision, prev, err)
	}
}

// create saves rec as a new record, and returns it as it is loaded.
func (t *T) create(ctx context.Context, id driver.ID, rec driver.Record) driver.Record {
	t.save(ctx, id, rec, 0)
	return t.load(ctx, id)
}

func (t *T) load(ctx context.Context, id driver.ID) driver.Record {
	rec, err := t.store().Load(ctx, id)
	if err != nil {
		t.Fatalf("Load(%s) = %v, want a record", id, err)
	}
	return rec
}

func (t *T) delete(ctx context.Context, id driver.ID) {
	if err := t.store().Delete(ctx, id); err != nil {
		t.Fatalf("Delete(%s) = %v, want nil", id, err)
	}
}

func (t *T) merge(ctx context.Context, id driver.ID, base, next driver.Record, changes []driver.Change) (driver.Record, error) {
	return t.store().(driver.Merger).Merge(ctx, id, base, next, changes)
}

func (t *T) touch(ctx context.Context, id driver.ID, next driver.Record, prev uint64) error {
	return t.store().(driver.Toucher).Touch(ctx, id, next, prev)
}

func noMerger(t *T) string {
	if _, ok := t.stores[0].(driver.Merger); !ok {
		return "the store has no Merge"
	}
	return ""
}

func noToucher(t *T) string {
	if _, ok := t.stores[0].(driver.Toucher); !ok {
		return "the store has no Touch"
	}
	return ""
}

// update replaces the record, of which base was a state, by what apply makes of its latest state: it begins with base,
// and loads again on every conflict.
func (t *T) update(ctx context.Context, id driver.ID, base driver.Record, apply func(driver.Record) driver.Record) {
	for try := 0; ; try++ {
		switch err := t.store().Save(ctx, id, apply(base), base.Revision); {
		case err == nil:
			return
		case !errors.Is(err, driver.ErrConflict):
			t.Fatalf("Save(%s, prev %d) = %v, want it saved or ErrConflict", id, base.Revision, err)
		}
		if try > 0 {
			time.Sleep(rand.N(time.Millisecond << min(try, 5)))
		}
		base = t.load(ctx, id)
	}
}

// wantStored checks that every client finds want under id. what says when.
func (t *T) wantStored(ctx context.Context, what string, id driver.ID, want driver.Record) {
	for _, s := range t.stores {
		if got, err := s.Load(ctx, id); err != nil {
			t.Errorf("%s: Load(%s) = %v, want the record", what, id, err)
		} else {
			t.wantRecord(what, got, want)
		}
	}
}

// wantGone checks that no client finds anything under id.
func (t *T) wantGone(ctx context.Context, what string, id driver.ID) {
	for _, s := range t.stores {
		if rec, err := s.Load(ctx, id); err == nil {
			t.Errorf("%s: Load(%s) returns revision %d, want ErrNotFound", what, id, rec.Revision)
		} else {
			t.wantErr(what+": Load", err, driver.ErrNotFound)
		}
	}
}

var sentinels = []error{
	driver.ErrNotFound, driver.ErrConflict, driver.ErrUnavailable, driver.ErrTooLarge, driver.ErrReadOnly, driver.ErrVersion,
	driver.ErrCorrupt,
}

// wantErr checks that err matches want and none of the contract's other errors.
func (t *T) wantErr(what string, err, want error) {
	if !errors.Is(err, want) {
		t.Errorf("%s: error is %v, want one that matches %q", what, err, want)
		return
	}
	for _, other := range sentinels {
		if errors.Is(err, other) && !errors.Is(want, other) {
			t.Errorf("%s: error %q matches %q too, want only %q", what, err, other, want)
		}
	}
}

// wantRecord checks that got is want but for the Tag.
func (t *T) wantRecord(what string, got, want driver.Record) {
	if d := difference(got, want); d != "" {
		t.Errorf("%s: %s", what, d)
	}
}

// difference says how got is not want, or "". It does not compare Tags.
func difference(got, want driver.Record) string {
	var d []string
	add := func(name string, got, want any) { d = append(d, fmt.Sprintf("%s is %v, want %v", name, got, want)) }
	if got.User != want.User {
		add("User", short(got.User), short(want.User))
	}
	at := func(name string, got, want time.Time) {
		if !got.Equal(want) {
			const ms = "2006-01-02T15:04:05.000000Z"
			add(name, got.UTC().Format(ms), want.UTC().Format(ms))
		}
	}
	at("Created", got.Created, want.Created)
	at("Seen", got.Seen, want.Seen)
	at("Expires", got.Expires, want.Expires)
	if got.Revision != want.Revision {
		add("Revision", got.Revision, want.Revision)
	}
	if !got.Fields.Equal(want.Fields) {
		d = append(d, fieldDifference(got.Fields, want.Fields))
	}
	return strings.Join(d, "; ")
}

func fieldDifference(got, want driver.Fields) string {
	for name, w := range want.All() {
		switch g, ok := got.Get(name); {
		case !ok:
			return fmt.Sprintf("field %s is missing", short(name))
		case !bytes.Equal(g, w):
			return fmt.Sprintf("field %s is %s, want %s", short(name), short(string(g)), short(string(w)))
		}
	}
	for name := range got.All() {
		if _, ok := want.Get(name); !ok {
			return fmt.Sprintf("field %s should not be there", short(name))
		}
	}
	return fmt.Sprintf("%d fields, want %d", got.Len(), want.Len())
}

// short quotes s, and only the start of it if it is long.
func short(s string) string {
	if len(s) > 40 {
		return fmt.Sprintf("%.40q… (%d bytes)", s, len(s))
	}
	return fmt.Sprintf("%q", s)
}
