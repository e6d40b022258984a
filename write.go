package holdfast

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/holdfast-sessions/holdfast/driver"
)

// Names of fields that are the Manager's own. Applications cannot make such names (see NewField).
const (
	loginField  = "\x00login"  // in a session: its policy, as JSON, if a login set one
	markerField = "\x00marker" // in a marker: markerRenewed or markerEnded
)

const (
	markerRenewed = "renewed"
	markerEnded   = "ended"

	// markerAge is how long a marker stays: longer than requests that carry the old token are under way before they
	// look at their session. Those that take more than half of it find no use for an unknown token (see Session.load).
	markerAge = 30 * time.Second
)

// newMarker returns the record that takes the place of a session that was renewed or ended. Its zero Created makes
// it another life of the ID, so that no merge or touch of the session lands in it.
func newMarker(kind string, prev uint64) driver.Record {
	t := now()
	return driver.Record{
		Seen: t, Expires: t.Add(markerAge), Revision: driver.NewRevision(prev),
		Fields: driver.Fields{}.With(driver.Change{Name: markerField, Value: []byte(kind)}),
	}
}

// isOwn reports whether a field is the Manager's own.
func isOwn(name string) bool { return strings.HasPrefix(name, "\x00") }

func isMarker(rec driver.Record) bool { return rec.Created.IsZero() }

func markerKind(rec driver.Record) string {
	if kind, _ := rec.Fields.Get(markerField); string(kind) == markerRenewed {
		return markerRenewed
	}
	return markerEnded
}

// policyOf returns the policy of a stored session: that of its login, or the Manager's.
func (m *Manager) policyOf(rec driver.Record) policy {
	if rec.User != "" {
		if b, ok := rec.Fields.Get(loginField); ok {
			var p policy
			_ = json.Unmarshal(b, &p) // an unreadable policy is the default one
			return m.complete(p)
		}
	}
	return m.complete(policy{})
}

func (m *Manager) complete(p policy) policy {
	if p.Lifetime <= 0 {
		p.Lifetime = m.config.Lifetime
	}
	if p.Idle <= 0 {
		p.Idle = m.config.IdleTimeout
	}
	p.Idle = min(p.Idle, p.Lifetime)
	return p
}

// load returns the record under id. The error is ErrNotFound, or says why it cannot be known.
func (m *Manager) load(ctx context.Context, id driver.ID) (driver.Record, error) {
	m.counters.loads.Add(1)
	rec, err := m.store.Load(ctx, id)
	if err == nil && rec.Expired(time.Now()) {
		err = driver.ErrGone
	}
	if err != nil {
		return driver.Record{}, m.failed("load", id, err)
	}
	return rec, nil
}

// loadSession is load for the ID of a session: it ends one that is corrupt, and one that is past the timeouts
// configured now, which may be shorter than those it was saved with. It returns markers, and the policy of others.
func (m *Manager) loadSession(ctx context.Context, id driver.ID) (driver.Record, policy, error) {
	rec, err := m.load(ctx, id)
	switch {
	case errors.Is(err, ErrCorrupt):
		m.counters.corrupt.Add(1)
		if err := m.delete(ctx, id); err != nil {
			return driver.Record{}, policy{}, err
		}
		m.emit(ctx, &m.counters.ended, Event{Kind: EventEnded, Cause: "corrupt", ID: id})
		return driver.Record{}, policy{}, &StoreError{Op: "load", ID: id, Err: driver.ErrGone}
	case err != nil || isMarker(rec):
		return rec, policy{}, err
	}
	p := m.policyOf(rec)
	if p.expires(rec.Created, rec.Seen).After(time.Now()) {
		return rec, p, nil
	}
	return driver.Record{}, policy{}, &StoreError{Op: "load", ID: id, Err: driver.ErrGone}
}

func (m *Manager) save(ctx context.Context, id driver.ID, rec driver.Record, prev uint64) error {
	m.counters.saves.Add(1)
	return m.failed("save", id, m.store.Save(ctx, id, rec, prev))
}

func (m *Manager) delete(ctx context.Context, id driver.ID) error {
	m.counters.deletes.Add(1)
	return m.failed("delete", id, m.store.Delete(ctx, id))
}

// failed wraps what a store call answered, and counts it unless it is an ordinary answer.
func (m *Manager) failed(op string, id driver.ID, err error) error {
	if err == nil {
		return nil
	}
	switch {
	case errors.Is(err, ErrConflict):
		m.counters.conflicts.Add(1)
	case errors.Is(err, ErrNotFound), errors.Is(err, ErrEnded), errors.Is(err, ErrTooLarge), errors.Is(err, context.Canceled):
	default:
		m.counters.storeErrors.Add(1)
	}
	return &StoreError{Op: op, ID: id, Err: err}
}

// follow returns the state of a session that follows base: with changes laid over it, seen now.
func (m *Manager) follow(p policy, base driver.Record, changes []driver.Change) (driver.Record, error) {
	rec := base
	rec.Fields = base.Fields.With(changes...)
	if t := now(); t.After(base.Seen) {
		rec.Seen = t
	}
	rec.Expires = p.expires(rec.Created, rec.Seen)
	rec.Revision = driver.NewRevision(base.Revision)
	if n := rec.EncodedLen(); n > m.config.MaxBytes {
		return driver.Record{}, fmt.Errorf("%w: %d bytes, at most %d", ErrTooLarge, n, m.config.MaxBytes)
	}
	return rec, nil
}

// merge lays changes over a stored session, of which base was an earlier state, and returns the new state. It fails
// with ErrEnded if the session is gone.
func (m *Manager) merge(ctx context.Context, p policy, id driver.ID, base driver.Record, changes []driver.Change) (driver.Record, error) {
	if m.merger == nil {
		return m.update(ctx, id, base, func(fresh driver.Record) (driver.Record, error) {
			return m.follow(p, fresh, changes)
		})
	}
	next, err := m.follow(p, base, changes)
	if err != nil {
		return driver.Record{}, err
	}
	return m.mergeNatively(ctx, id, base, next, changes)
}

func (m *Manager) mergeNatively(ctx context.Context, id driver.ID, base, next driver.Record, changes []driver.Change) (driver.Record, error) {
	m.counters.merges.Add(1)
	rec, err := m.merger.Merge(ctx, id, base, next, changes)
	if errors.Is(err, ErrNotFound) || errors.Is(err, ErrConflict) {
		err = ErrEnded
	}
	return rec, m.failed("merge", id, err)
}

// update replaces a stored session, of which base was an earlier state, by what apply makes of its latest state, and
// returns that. It fails with ErrEnded if the session is gone.
func (m *Manager) update(ctx context.Context, id driver.ID, base driver.Record, apply func(driver.Record) (driver.Record, error)) (driver.Record, error) {
	latest := func(try int) (driver.Record, error) {
		if try == 0 {
			return base, nil
		}
		fresh, err := m.load(ctx, id)
		if errors.Is(err, ErrNotFound) || err == nil && !fresh.SameLife(base) {
			err = &StoreError{Op: "save", ID: id, Err: ErrEnded}
		}
		return fresh, err
	}
	return m.swap(ctx, id, latest, apply)
}

// latestOr returns a function for swap, which loads the record under id, or returns fresh if there is none.
func (m *Manager) latestOr(ctx context.Context, id driver.ID, fresh driver.Record) func(try int) (driver.Record, error) {
	return func(int) (driver.Record, error) {
		rec, err := m.load(ctx, id)
		if errors.Is(err, ErrNotFound) {
			return fresh, nil
		}
		return rec, err
	}
}

// swap replaces the latest record under id by what apply makes of it, and returns that. Both functions run again
// whenever another writer was first, until ctx ends; their errors end it.
//
// Writers of one process queue up per ID, so that only other processes can be first, and the first repetition comes
// at once. (Without the queue, 18 of 100 parallel writers had not succeeded after eight tries.)
func (m *Manager) swap(ctx context.Context, id driver.ID,
	latest func(try int) (driver.Record, error), apply func(driver.Record) (driver.Record, error),
) (driver.Record, error) {
	unlock, err := m.locks.lock(ctx, id)
	if err != nil {
		return driver.Record{}, &StoreError{Op: "save", ID: id, Err: driver.Unavailable(err)}
	}
	defer unlock()
	for try := 0; ; try++ {
		if err := pause(ctx, try); err != nil {
			return driver.Record{}, &StoreError{Op: "save", ID: id, Err: driver.Unavailable(err)}
		}
		base, err := latest(try)
		if err != nil {
			return driver.Record{}, err
		}
		next, err := apply(base)
		if err != nil {
			return driver.Record{}, err
		}
		next.Tag = base.Tag
		if err = m.save(ctx, id, next, base.Revision); !errors.Is(err, ErrConflict) {
			return next, err
		}
	}
}

// pause waits before a try: not at all before the first and the second, then 1 ms doubling to 64 ms, each with up to
// half of it taken off at random.
func pause(ctx context.Context, try int) error {
	if try < 2 {
		return ctx.Err()
	}
	d := time.Millisecond << min(try-2, 6)
	t := time.NewTimer(d - rand.N(d/2))
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// idLocks let one goroutine at a time work on an ID. The zero value is ready.
type idLocks struct {
	mu sync.Mutex // mu guards the field below
	m  map[driver.ID]*idLock
}

type idLock struct {
	free  chan struct{} // holds a value while nobody has the lock
	users int           // goroutines that have it or wait for it
}

// lock waits until it has the lock for id, or ctx ends.
func (l *idLocks) lock(ctx context.Context, id driver.ID) (unlock func(), err error) {
	l.mu.Lock()
	k := l.m[id]
	if k == nil {
		k = &idLock{free: make(chan struct{}, 1)}
		k.free <- struct{}{}
		if l.m == nil {
			l.m = make(map[driver.ID]*idLock)
		}
		l.m[id] = k
	}
	k.users++
	l.mu.Unlock()

	leave := func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if k.users--; k.users == 0 {
			delete(l.m, id)
		}
	}
	select {
	case <-k.free:
		return func() { k.free <- struct{}{}; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, ctx.Err()
	}
}
