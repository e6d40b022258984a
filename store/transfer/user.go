package transfer

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"time"

	"github.com/holdfast-sessions/holdfast"
	"github.com/holdfast-sessions/holdfast/driver"
)

// A user record lists the sessions of one user, one field each, so that RevokeUser finds them. Two rules hold in every
// store: no token leaves before its ID is listed, and no ID is unlisted before its session is gone. The tokens of what
// is copied have left long ago. So in TO
//
//  1. the ID is listed, by a write that is conditional on the user record's state,
//  2. then the session is saved,
//  3. then the user record is written once more, on the same condition: a fence.
//
// Whoever unlists sessions in TO ends them first, and does so by a write that is conditional on the state they read. If
// they read the user record before step 2, they may have ended a session that was not there yet. If their write comes
// before the fence, the fence fails, finds the session unlisted, and the session is ended here. If it comes after the
// fence, theirs fails: they read again, and this time the session is there. A run that is killed between the steps
// leaves a session that is listed, and the next run, which finds no step 3 in the journal, takes all of them again.
//
// The other order, the session first, would have left it unlisted in a crash, beyond the reach of RevokeUser.

const endingFlag = 1 // in the first byte of an entry of a user record

// arrival is a session that is new to TO, with the state to copy.
type arrival struct {
	id     driver.ID
	record driver.Record
	what   outcome
}

func (a arrival) name() string { return string(a.id[:]) }

// copyUser copies a user's record, and those of the user's sessions that were never copied. The item is one of them.
func (r *run) copyUser(ctx context.Context, user driver.ID, item driver.Item) error {
	record := item.Record
	if item.ID != user {
		var err error
		switch record, err = r.from.load(ctx, user); {
		case errors.Is(err, driver.ErrNotFound):
			return nil // its sessions stay unlisted
		case hopeless(err):
			r.fail(user, err)
			return nil
		case err != nil:
			return err
		}
	}
	if record.Expired(time.Now()) {
		return nil
	}
	r.change(user, func(e *entry) { r.meet(e) })
	arrivals, err := r.arrivals(ctx, record, item)
	if err != nil {
		return err
	}
	staged, arrivals, err := r.enlist(ctx, user, record, arrivals)
	if err != nil || len(arrivals) == 0 {
		return err
	}
	for i := range arrivals {
		a := &arrivals[i]
		e := r.entry(a.id)
		if err := r.note(opListed, a.id, a.record, &e); err != nil {
			return err
		}
		if err := r.note(opIntent, a.id, a.record, &e); err != nil {
			return err
		}
		if a.what, _, err = r.put(ctx, a.id, a.record, e); err != nil {
			return err
		}
		if a.what == failed {
			r.change(a.id, func(e *entry) { e.from = a.record.Revision })
		}
	}
	if err := r.fence(ctx, user, record, staged, arrivals); err != nil {
		return err
	}
	for _, a := range arrivals {
		if err := r.settle(a.id, a.record, a.what, false); err != nil {
			return err
		}
	}
	return nil
}

// arrivals returns the sessions that a user record lists and that were never copied. Those that are being ended are
// left to whoever ends them.
func (r *run) arrivals(ctx context.Context, user driver.Record, item driver.Item) (all []arrival, err error) {
	for name, value := range user.Fields.All() {
		var id driver.ID
		if copy(id[:], name) != len(id) || len(name) != len(id) || len(value) == 0 || value[0]&endingFlag != 0 || r.entry(id).known() {
			continue
		}
		rec := item.Record
		if id != item.ID {
			switch rec, err = r.from.load(ctx, id); {
			case errors.Is(err, driver.ErrNotFound):
				continue
			case hopeless(err):
				r.fail(id, err)
				continue
			case err != nil:
				return nil, err
			}
		}
		if e := r.entry(id); isMarker(rec) || rec.User != user.User || e.outcome == failed && e.from == rec.Revision {
			continue
		}
		r.change(id, func(e *entry) {
			r.meet(e)
			e.pass = uint32(r.result.Passes)
		})
		if r.limit > 0 && rec.EncodedLen() > r.limit {
			r.fail(id, driver.ErrTooLarge)
			continue
		}
		all = append(all, arrival{id: id, record: rec})
	}
	return all, nil
}

// enlist is step 1. It returns the user record as it is now in TO, and those arrivals that may come: not those that TO
// has already unlisted, or is ending.
func (r *run) enlist(ctx context.Context, user driver.ID, record driver.Record, arrivals []arrival) (driver.Record, []arrival, error) {
	for {
		there, err := r.to.load(ctx, user)
		switch {
		case errors.Is(err, driver.ErrNotFound):
			there = driver.Record{}
		case hopeless(err):
			r.fail(user, err)
			return there, nil, nil
		case err != nil:
			return there, nil, err
		}
		var may []arrival
		for _, a := range arrivals {
			value, listed := there.Fields.Get(a.name())
			ending := listed && len(value) > 0 && value[0]&endingFlag != 0
			if ending || !listed && there.Revision != 0 && r.entry(a.id).listed {
				if err := r.end(ctx, a.id, driver.Record{}, endedThere); err != nil {
					return there, nil, err
				}
				if err := r.settle(a.id, a.record, endedThere, false); err != nil {
					return there, nil, err
				}
				continue
			}
			may = append(may, a)
		}
		if there.Revision == record.Revision && record.Revision != 0 {
			// That is what a fence writes: who is here already has passed it, with a run that was killed afterwards.
			if may, err = r.arrived(ctx, may); err != nil {
				return there, nil, err
			}
		}
		arrivals = may
		dead, err := r.dead(ctx, record, there)
		if err != nil {
			return there, nil, err
		}
		next, changes := r.union(user, record, there, arrivals, dead...)
		if !changes && len(arrivals) == 0 {
			return there, nil, r.settleUser(user, record, there, same)
		}
		if len(arrivals) > 0 && next.Revision == record.Revision {
			// The fence writes it as it is in FROM. There is room for a stage of a run after one that was killed.
			next.Revision = there.Revision + (record.Revision-there.Revision)/2
			if next.Revision == there.Revision {
				next.Revision = driver.NewRevision(there.Revision)
			}
		}
		saved, err := r.saveUser(ctx, user, next, there.Revision)
		if err != nil {
			return next, nil, err
		}
		if !saved {
			if r.entry(user).outcome == failed {
				return next, nil, nil
			}
			continue
		}
		if len(arrivals) == 0 {
			err = r.settleUser(user, record, next, copied)
		}
		return next, arrivals, err
	}
}

// fence is step 3. staged is what step 1 has written. An arrival that is no longer listed is ended.
func (r *run) fence(ctx context.Context, user driver.ID, record, staged driver.Record, arrivals []arrival) error {
	there := staged
	for {
		next, _ := r.union(user, record, there, nil)
		if next.Revision <= there.Revision { // it has to be another state, though nothing in it may change
			next = there
			next.Revision = driver.NewRevision(there.Revision)
		}
		saved, err := r.saveUser(ctx, user, next, there.Revision)
		if err != nil || !saved && r.entry(user).outcome == failed {
			return err
		}
		if saved {
			return r.settleUser(user, record, next, copied)
		}
		switch there, err = r.to.load(ctx, user); {
		case errors.Is(err, driver.ErrNotFound): // dropped by a store that evicts
			there = driver.Record{}
			continue
		case hopeless(err):
			r.fail(user, err)
			return nil
		case err != nil:
			return err
		}
		for i := range arrivals {
			a := &arrivals[i]
			value, listed := there.Fields.Get(a.name())
			want, _ := record.Fields.Get(a.name())
			if listed && bytes.Equal(value, want) || a.what != copied && a.what != same {
				continue
			}
			if err := r.end(ctx, a.id, driver.Record{}, endedThere); err != nil {
				return err
			}
			a.what = endedThere
		}
	}
}

// arrived returns those arrivals that are not in TO yet, and settles the others.
func (r *run) arrived(ctx context.Context, arrivals []arrival) (not []arrival, err error) {
	for _, a := range arrivals {
		there, err := r.to.load(ctx, a.id)
		switch {
		case err == nil && there.Revision == a.record.Revision:
			if err := r.settle(a.id, a.record, same, false); err != nil {
				return nil, err
			}
		case err == nil || errors.Is(err, driver.ErrNotFound) || hopeless(err):
			not = append(not, a)
		default:
			return nil, err
		}
	}
	return not, nil
}

// dead returns the removals of those entries of TO's user record that FROM's has not and whose sessions are gone: a run
// may have been killed before they arrived, and then they ended.
func (r *run) dead(ctx context.Context, record, there driver.Record) (gone []driver.Change, err error) {
	for name := range there.Fields.All() {
		var id driver.ID
		if _, listed := record.Fields.Get(name); listed || copy(id[:], name) != len(id) {
			continue
		}
		switch rec, err := r.to.load(ctx, id); {
		case errors.Is(err, driver.ErrNotFound), err == nil && isMarker(rec):
			gone = append(gone, driver.Change{Name: name, Delete: true})
		case err != nil && !hopeless(err):
			return nil, err
		}
	}
	return gone, nil
}

// union returns what the user record in TO should be, and whether that is another state than it has. It is what is
// there, with some changes and FROM's entries laid over it, or only those of the arrivals if TO has changed it since it
// was copied. It is FROM's record, byte for byte, if TO has nothing of its own.
func (r *run) union(user driver.ID, record, there driver.Record, arrivals []arrival, lay ...driver.Change) (next driver.Record, changes bool) {
	if there.Revision == 0 {
		return record, true
	}
	ours := r.entry(user).ours(there.Revision)
	for name, value := range record.Fields.All() {
		old, listed := there.Fields.Get(name)
		isArrival := slices.ContainsFunc(arrivals, func(a arrival) bool { return a.name() == name })
		if ours && !(listed && bytes.Equal(old, value)) || isArrival && !listed {
			lay = append(lay, driver.Change{Name: name, Value: value})
		}
	}
	next = there
	next.Fields = there.Fields.With(lay...)
	if record.Seen.After(next.Seen) {
		next.Seen = record.Seen
	}
	if record.Expires.After(next.Expires) {
		next.Expires = record.Expires
	}
	if next.SameLife(record) && next.Fields.Equal(record.Fields) && next.Seen.Equal(record.Seen) && next.Expires.Equal(record.Expires) &&
		record.Revision > there.Revision {
		return record, true
	}
	changes = len(lay) > 0 || !next.Expires.Equal(there.Expires)
	next.Revision = driver.NewRevision(max(there.Revision, record.Revision))
	return next, changes
}

// saveUser writes a user record, and reports whether its state was still prev, and the write possible.
func (r *run) saveUser(ctx context.Context, user driver.ID, next driver.Record, prev uint64) (bool, error) {
	var e entry
	if err := r.note(opIntent, user, next, &e); err != nil {
		return false, err
	}
	switch err := r.to.save(ctx, user, next, prev); {
	case err == nil:
		return true, nil
	case errors.Is(err, driver.ErrConflict):
		return false, nil
	case hopeless(err):
		r.fail(user, err)
		return false, nil
	default:
		return false, err
	}
}

// settleUser notes which states of a user record belong together.
func (r *run) settleUser(user driver.ID, record, there driver.Record, what outcome) error {
	if what == copied {
		r.found()
	}
	e := r.change(user, func(e *entry) {
		if what == copied || e.outcome != copied {
			e.outcome = what
		}
		e.pass = max(e.pass, uint32(r.result.Passes))
		ours := e.ours(there.Revision)
		e.from = record.Revision
		if what == copied || ours || there.Revision == record.Revision {
			e.to = there.Revision
		} else if e.to == 0 {
			e.to = record.Revision // which TO does not have: nothing there is ours
		}
		e.intent = 0
		e.expires = max(e.expires, record.Expires.UnixMilli(), there.Expires.UnixMilli())
	})
	if r.journal == nil {
		return nil
	}
	return r.journal.append(opDone, user, e)
}

// unlist removes a session that was ended in TO from its user's record there. If the run is killed before, it stays
// listed until its lifetime is over, which is harmless.
func (r *run) unlist(ctx context.Context, name string, id driver.ID) error {
	user := holdfast.UserID(name)
	mu := &r.unlisting[user[0]%byte(len(r.unlisting))]
	mu.Lock() // several sessions of one user may have ended
	defer mu.Unlock()
	removal := driver.Change{Name: string(id[:]), Delete: true}
	for {
		there, err := r.to.load(ctx, user)
		if errors.Is(err, driver.ErrNotFound) || hopeless(err) {
			return nil
		}
		if err != nil {
			return err
		}
		if _, listed := there.Fields.Get(removal.Name); !listed {
			return nil
		}
		next := there
		next.Fields = there.Fields.With(removal)
		next.Revision = driver.NewRevision(there.Revision)
		record, err := r.from.load(ctx, user)
		switch {
		case err == nil:
			if _, listed := record.Fields.Get(removal.Name); !listed && next.SameLife(record) && next.Fields.Equal(record.Fields) &&
				next.Seen.Equal(record.Seen) && next.Expires.Equal(record.Expires) && record.Revision > there.Revision {
				next = record
			}
		case !errors.Is(err, driver.ErrNotFound) && !hopeless(err):
			return err
		}
		ours := r.entry(user).ours(there.Revision)
		saved, err := r.saveUser(ctx, user, next, there.Revision)
		if err != nil || !saved && r.entry(user).outcome == failed {
			return err
		}
		if saved && ours {
			e := r.change(user, func(e *entry) { e.to, e.intent = next.Revision, 0 })
			if r.journal != nil {
				return r.journal.append(opDone, user, e)
			}
		}
		if saved {
			return nil
		}
	}
}
