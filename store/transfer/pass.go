package transfer

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/holdfast-sessions/holdfast"
	"github.com/holdfast-sessions/holdfast/driver"
)

// A marker says that an ID was renewed or ended. Its zero Created makes it another life of the ID, so that no merge or
// touch of the session lands in it. The Manager takes one without a kind for "ended".
const markerAge = 30 * time.Second

func newMarker(prev uint64) driver.Record {
	now := time.UnixMilli(time.Now().UnixMilli())
	return driver.Record{Seen: now, Expires: now.Add(markerAge), Revision: driver.NewRevision(prev)}
}

func isMarker(rec driver.Record) bool { return rec.Created.IsZero() }

// pass goes over all of FROM once: it copies what is new or changed, then ends in TO what is no longer in FROM.
func (r *run) pass(ctx context.Context, n uint32) error {
	err := r.work(ctx, func(ctx context.Context, do func(func(context.Context) error)) error {
		for item, err := range r.list(ctx) {
			if err != nil {
				return err
			}
			if f := r.arrive(item, n); f != nil {
				do(f)
			}
			r.tell(false)
			if ctx.Err() != nil {
				break
			}
		}
		return ctx.Err()
	})
	if err != nil {
		return err
	}
	// What was listed is no longer in flight: who is missing now is missing in FROM.
	missing, known := r.missing(n)
	if n := len(missing); n > manyEnded && n > known/2 && !r.config.EndMany {
		return fmt.Errorf("%w: %d of the %d records that the two had in common; nothing was ended in TO", ErrVanished, n, known)
	}
	return r.work(ctx, func(ctx context.Context, do func(func(context.Context) error)) error {
		for _, id := range missing {
			do(func(ctx context.Context) error { return r.leave(ctx, id) })
			r.tell(false)
		}
		return ctx.Err()
	})
}

// work lets feed have functions done in parallel, and returns when all are done. The first error ends the context of
// the others and of feed.
func (r *run) work(ctx context.Context, feed func(ctx context.Context, do func(func(context.Context) error)) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	queue := make(chan func(context.Context) error)
	var workers sync.WaitGroup
	for range r.config.Parallel {
		workers.Go(func() {
			for f := range queue {
				if ctx.Err() != nil {
					continue
				}
				if err := f(ctx); err != nil {
					cancel(err)
				}
			}
		})
	}
	err := feed(ctx, func(f func(context.Context) error) { queue <- f })
	close(queue)
	workers.Wait()
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

// arrive takes note of a listed record, and returns what has to be done with it, or nil.
func (r *run) arrive(item driver.Item, n uint32) func(context.Context) error {
	id, rec := item.ID, item.Record
	r.mu.Lock()
	defer r.mu.Unlock()
	r.listed++
	e, user := r.entries[id], driver.ID{}
	if rec.User != "" {
		user = holdfast.UserID(rec.User)
	}
	if isMarker(rec) {
		if e.known() || e.intent != 0 {
			return nil // as if it were not there: see leave
		}
		return func(ctx context.Context) error { return r.mark(ctx, id, rec) }
	}
	r.meet(&e)
	e.pass = n
	unchanged := e.known() && e.from == rec.Revision
	if unchanged && e.outcome == none {
		r.counts[none]--
		r.counts[same]++
		e.outcome = same
	}
	r.entries[id] = e
	switch {
	case unchanged:
		return nil
	case rec.User == "" || e.known() && id != user:
		return func(ctx context.Context) error { return r.copy(ctx, id, rec) }
	}
	// The first that is new of a user's records brings all the others.
	if id != user && e.outcome == none {
		r.counts[none]--
		r.counts[unlisted]++
		e.outcome = unlisted // until its user's record is seen to list it
		r.entries[id] = e
		r.changes++
	}
	u := r.entries[user]
	if u.family == n {
		return nil
	}
	u.family = n
	r.entries[user] = u
	return func(ctx context.Context) error { return r.copyUser(ctx, user, item) }
}

// manyEnded is how many records may be missing in FROM without a look at how many there were.
const manyEnded = 1000

// missing returns the IDs that were in both stores and that this pass has not met in FROM, and how many there were.
func (r *run) missing(n uint32) (ids []driver.ID, known int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now().UnixMilli()
	for id, e := range r.entries {
		if !e.known() && e.intent == 0 || e.expires <= now {
			continue
		}
		known++
		if e.pass != n {
			ids = append(ids, id)
		}
	}
	return ids, known
}

// mark copies a marker of something that was never copied: requests that come to TO with the old token meet it.
func (r *run) mark(ctx context.Context, id driver.ID, rec driver.Record) error {
	_, _, err := r.put(ctx, id, rec, entry{})
	return err
}

// copy copies a session that is anonymous, or that was copied before.
func (r *run) copy(ctx context.Context, id driver.ID, rec driver.Record) error {
	e := r.entry(id)
	if e.known() && rec.Revision < e.from {
		return nil // it was listed before somebody else read it
	}
	if err := r.note(opIntent, id, rec, &e); err != nil {
		return err
	}
	what, diverged, err := r.put(ctx, id, rec, e)
	if err != nil {
		return err
	}
	return r.settle(id, rec, what, diverged)
}

// note puts a step in the journal before it is taken, or after.
func (r *run) note(op byte, id driver.ID, rec driver.Record, e *entry) error {
	*e = r.change(id, func(e *entry) {
		e.expires = max(e.expires, rec.Expires.UnixMilli())
		switch op {
		case opIntent:
			e.intent = rec.Revision
		case opListed:
			e.listed = true
		case opGone:
			e.from, e.to, e.intent, e.listed = 0, 0, 0, false
		}
	})
	if r.journal == nil {
		return nil
	}
	return r.journal.append(op, id, *e)
}

// settle notes what became of rec.
func (r *run) settle(id driver.ID, rec driver.Record, what outcome, diverged bool) error {
	if what == failed || what == expired {
		return nil
	}
	if what != same {
		r.found()
	}
	e := r.change(id, func(e *entry) {
		r.meet(e)
		if what != same || e.outcome != copied {
			e.outcome = what
		}
		if diverged {
			r.result.Diverged++
		}
		// Where TO has its own state, to is one that it does not have: nothing there is ours then.
		e.from, e.to, e.intent = rec.Revision, rec.Revision, 0
		e.expires = max(e.expires, rec.Expires.UnixMilli())
	})
	if r.journal == nil {
		return nil
	}
	return r.journal.append(opDone, id, e)
}

// put writes a state of a record to TO unless TO knows better, and says what became of it. It returns the errors that
// end the run.
func (r *run) put(ctx context.Context, id driver.ID, rec driver.Record, e entry) (what outcome, diverged bool, err error) {
	prev := e.to
	for try := 0; ; try++ {
		if err := wait(ctx, time.Duration(min(try, 100))*time.Millisecond); err != nil { // with others who write it
			return none, false, err
		}
		if rec.Expired(time.Now()) {
			r.change(id, func(e *entry) {
				if e.met && !e.known() {
					e.outcome = expired
				}
			})
			return expired, false, nil
		}
		err = driver.ErrTooLarge
		if r.limit == 0 || rec.EncodedLen() <= r.limit {
			err = r.to.save(ctx, id, rec, prev)
		}
		if err == nil {
			return copied, diverged, nil
		}
		var there driver.Record
		if errors.Is(err, driver.ErrConflict) {
			there, err = r.to.load(ctx, id)
		}
		switch {
		case hopeless(err):
			r.fail(id, err)
			return failed, false, nil
		case errors.Is(err, driver.ErrNotFound) && e.known():
			return endedThere, false, nil
		case errors.Is(err, driver.ErrNotFound):
			prev = 0
			continue
		case err != nil:
			return none, false, err
		case there.Revision == rec.Revision:
			return same, false, nil
		case isMarker(there) && isMarker(rec):
			return same, false, nil
		case isMarker(there) && !e.known():
			return ended, false, nil // in FROM, and its marker was copied while this was on its way
		case isMarker(there):
			return endedThere, false, nil
		case e.known() && !e.ours(there.Revision) && (isMarker(rec) || there.Revision > rec.Revision):
			return kept, false, nil
		case there.Revision > rec.Revision:
			return same, false, nil
		}
		diverged = e.known() && !e.ours(there.Revision)
		prev = there.Revision
	}
}

// leave ends in TO what is no longer in FROM, if TO still has what was written there.
func (r *run) leave(ctx context.Context, id driver.ID) error {
	rec, err := r.from.load(ctx, id)
	switch {
	case err == nil && !isMarker(rec): // a list may miss what came while it ran
		if e := r.entry(id); e.from != rec.Revision && e.known() {
			return r.copy(ctx, id, rec)
		}
		return nil
	case errors.Is(err, driver.ErrNotFound):
		rec = driver.Record{}
	case hopeless(err):
		r.fail(id, err)
		return nil
	case err != nil:
		return err
	}
	return r.end(ctx, id, rec, ended)
}

// end ends a record in TO, if it is still ours, by a conditional write of a marker, or of a new one if that is zero.
func (r *run) end(ctx context.Context, id driver.ID, marker driver.Record, what outcome) error {
	for {
		e := r.entry(id)
		there, err := r.to.load(ctx, id)
		switch {
		case errors.Is(err, driver.ErrNotFound):
			if what == ended && e.expires <= time.Now().UnixMilli() {
				what = expired
				if e.outcome != none { // it was copied in its time
					what = e.outcome
				}
			}
			return r.forget(id, what)
		case hopeless(err):
			r.fail(id, err)
			return nil
		case err != nil:
			return err
		case there.User != "" && holdfast.UserID(there.User) == id:
			return r.forget(id, same) // user records expire when all they list has
		case isMarker(there):
			return r.forget(id, what)
		case !e.ours(there.Revision):
			return r.forget(id, kept)
		}
		next := marker
		if next.Revision <= there.Revision || next.Expired(time.Now()) {
			next = newMarker(there.Revision)
		}
		err = r.to.save(ctx, id, next, there.Revision)
		if errors.Is(err, driver.ErrConflict) {
			continue
		}
		if err != nil {
			return err
		}
		r.found()
		if there.User != "" {
			if err := r.unlist(ctx, there.User, id); err != nil {
				return err
			}
		}
		return r.forget(id, what)
	}
}

// forget notes that a record is in neither store, or no longer ours.
func (r *run) forget(id driver.ID, what outcome) error {
	r.change(id, func(e *entry) {
		r.meet(e)
		if what != same || e.outcome == none {
			e.outcome = what
		}
	})
	var e entry
	return r.note(opGone, id, driver.Record{}, &e)
}
