package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/holdfast-sessions/holdfast/driver"
)

var cancelCases = []Case{
	{
		Name:   "cancel/before",
		Proves: "a call whose context has already ended says so, never ErrNotFound, and writes nothing",
		run:    cancelBefore,
	},
	{
		Name:   "cancel/during",
		Proves: "calls cancelled midway, by many goroutines on many IDs, never return another ID's record or half a one",
		run:    cancelDuring,
	},
}

// wantCancelled checks that err tells that the caller's context ended.
func (t *T) wantCancelled(what string, err error) {
	if !errors.Is(err, context.Canceled) {
		t.Errorf("%s: error is %v, want one that matches context.Canceled", what, err)
	}
	for _, wrong := range []error{driver.ErrNotFound, driver.ErrConflict} {
		if errors.Is(err, wrong) {
			t.Errorf("%s: error is %v, which says %q of a record that the store did not look at", what, err, wrong)
		}
	}
}

func cancelBefore(ctx context.Context, t *T) {
	over, cancel := context.WithCancel(ctx)
	cancel()
	late, cancel := context.WithDeadline(ctx, time.Now().Add(-time.Second))
	defer cancel()

	id, absent := t.newID(), t.newID()
	rec := t.create(ctx, id, newRecord(longTTL, "a", "1"))
	for _, c := range t.allCalls(rec) {
		for what, id := range map[string]driver.ID{"stored": id, "absent": absent} {
			t.wantCancelled(c.name+" of an ID that is "+what+", cancelled before", c.f(over, t.store(), id))
			if err := c.f(late, t.store(), id); !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, driver.ErrNotFound) {
				t.Errorf("%s of an ID that is %s, after its deadline: error is %v, want one that matches context.DeadlineExceeded", c.name, what, err)
			}
		}
	}
	t.wantStored(ctx, "after calls that had no time", id, rec)
	t.wantGone(ctx, "after calls that had no time", absent)
}

// owned returns a record that shows whose it is, and whether it is whole: it carries its owner and its version in
// front and at the end of a filler that both of them determine.
func owned(rec driver.Record, id driver.ID, version int) (driver.Record, []driver.Change) {
	v := fmt.Sprint(version)
	fill := bytes.Repeat([]byte(id.Hex()[:16]+v+";"), 50+version%50)
	changes := []driver.Change{
		{Name: "owner", Value: []byte(id.Hex())},
		{Name: "first", Value: []byte(v)},
		{Name: "fill", Value: fill},
		{Name: "last", Value: []byte(v)},
	}
	rec = after(rec, changes...)
	rec.User = id.Hex()
	return rec, changes
}

// wantOwned checks that rec is id's and whole.
func (t *T) wantOwned(what string, rec driver.Record, id driver.ID) {
	get := func(name string) string { v, _ := rec.Fields.Get(name); return string(v) }
	if rec.User != id.Hex() || get("owner") != id.Hex() {
		t.Errorf("%s of %s returned the record of user %.8s, field owner %.8s", what, id, rec.User, get("owner"))
		return
	}
	var version int
	_, _ = fmt.Sscan(get("first"), &version) // what is not a number fails below
	if want, _ := owned(rec, id, version); get("last") != get("first") || !rec.Fields.Equal(want.Fields) {
		t.Errorf("%s of %s returned half a record: first %s, last %s, fill of %d bytes", what, id, get("first"), get("last"), len(get("fill")))
	}
}

func cancelDuring(ctx context.Context, t *T) {
	const (
		goroutines = 32
		perWorker  = 32 // IDs
		calls      = 4  // of each ID
	)
	t.parallel(goroutines, func(int) {
		ids := make([]driver.ID, perWorker)
		for i := range ids {
			ids[i] = t.newID()
			rec, _ := owned(newRecord(longTTL), ids[i], 0)
			t.save(ctx, ids[i], rec, 0)
		}
		for n := range perWorker * calls {
			id := ids[n%perWorker]
			rec := t.load(ctx, id)
			t.wantOwned("Load", rec, id)
			t.cancelledCall(ctx, id, rec, n)
			t.wantOwned("Load after a cancelled call", t.load(ctx, id), id)
		}
	})
}

// cancelledCall makes one call and cancels it at some moment.
func (t *T) cancelledCall(ctx context.Context, id driver.ID, rec driver.Record, n int) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if rand.IntN(2) == 0 {
		go cancel() // about when the call starts; ends by itself
	} else {
		defer time.AfterFunc(rand.N(time.Millisecond), cancel).Stop()
	}
	next, changes := owned(rec, id, n+1)
	next.Tag = rec.Tag
	var err error
	switch call := rand.IntN(4); {
	case call == 1:
		err = t.store().Save(ctx, id, next, rec.Revision)
	case call == 2 && noMerger(t) == "":
		var merged driver.Record
		if merged, err = t.merge(ctx, id, rec, next, changes); err == nil {
			t.wantOwned("Merge", merged, id)
		}
	case call == 3 && noToucher(t) == "":
		err = t.touch(ctx, id, after(rec), rec.Revision)
	default:
		var got driver.Record
		if got, err = t.store().Load(ctx, id); err == nil {
			t.wantOwned("Load while others are cancelled", got, id)
		}
	}
	switch {
	case err == nil, errors.Is(err, context.Canceled), errors.Is(err, driver.ErrUnavailable):
	case errors.Is(err, driver.ErrConflict): // with a cancelled write that came to be after all
	default:
		t.Errorf("a call that was cancelled midway = %v, want nil, context.Canceled, ErrUnavailable or ErrConflict", err)
	}
	if errors.Is(err, driver.ErrNotFound) {
		t.Errorf("a call that was cancelled midway = %v: the record is there", err)
	}
}
