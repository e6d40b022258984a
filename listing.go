package holdfast

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/holdfast-sessions/holdfast/driver"
)

const (
	// listingAge is for how long a server believes what a user record said, and so the bound on how long a session that was
	// ended on one server is accepted on the others.
	listingAge = 5 * time.Second

	// maxListings bounds how many user records a server remembers at a time; each takes 60 bytes a session.
	maxListings = 50_000
)

// enlistSealed adds a session to its user's record, and ends the session old, which its new token replaces, and those
// beyond the limit, which it returns.
func (m *Manager) enlistSealed(ctx context.Context, user string, e entry, old driver.ID) (excess []driver.ID, err error) {
	defer m.listings.drop(UserID(user))
	err = m.swapUser(ctx, user, func(list []entry) ([]driver.Change, error) {
		excess = nil
		changes := []driver.Change{e.change()}
		var live []entry
		for _, other := range list {
			switch {
			case other.id == old:
				changes = append(changes, other.endingSoon().change())
			case !time.Now().Before(other.expires):
				changes = append(changes, other.removal())
			case !other.ending:
				live = append(live, other)
			}
		}
		if m.config.MaxSessions < 0 || len(live) < m.config.MaxSessions {
			return changes, nil
		}
		if m.config.RefuseAtLimit {
			if !m.config.Strict {
				return nil, ErrLimit // who of them is still there is not known
			}
			gone, err := m.belowLimit(ctx, live)
			return append(changes, gone...), err
		}
		for _, other := range live[:len(live)-m.config.MaxSessions+1] {
			changes = append(changes, other.removal())
			excess = append(excess, other.id)
		}
		return changes, nil
	})
	return excess, err
}

// endingSoon returns the entry of a sealed session that its client has replaced or left. It stays for markerAge, in place
// of a marker: requests that are under way with the old token neither set nor clear a cookie. A later login removes it.
func (e entry) endingSoon() entry {
	if !e.ending {
		e.ending, e.expires = true, now().Add(markerAge)
	}
	return e
}

// leaveListing ends a sealed session that its client has left.
func (m *Manager) leaveListing(ctx context.Context, user string, id driver.ID) error {
	defer m.listings.drop(UserID(user))
	return m.swapUser(ctx, user, func(list []entry) ([]driver.Change, error) {
		for _, e := range list {
			if e.id == id {
				return []driver.Change{e.endingSoon().change()}, nil
			}
		}
		return nil, nil
	})
}

// unlistSealed ends the sealed sessions of a user for which end says so, and returns those that lived. A user record that
// is not there is made, so that a login that comes at the same moment is before it or after it.
func (m *Manager) unlistSealed(ctx context.Context, user string, end func(entry) bool) (ended []driver.ID, err error) {
	defer m.listings.drop(UserID(user))
	err = m.swapUser(ctx, user, func(list []entry) ([]driver.Change, error) {
		ended = nil
		var changes []driver.Change
		for _, e := range list {
			if !end(e) || e.ending {
				continue
			}
			changes = append(changes, e.removal())
			if time.Now().Before(e.expires) {
				ended = append(ended, e.id)
			}
		}
		return changes, nil
	})
	return ended, err
}

// listSealed is List. When a sealed session was used, and so when it ends if it is not used again, is known to nobody but
// its client, and with Config.Strict to the servers.
func (m *Manager) listSealed(ctx context.Context, user string) ([]Info, error) {
	rec, err := m.load(ctx, UserID(user))
	if errors.Is(err, ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	list, err := entries(rec)
	if err != nil {
		return nil, err
	}
	begin, err := m.epoch(ctx)
	if err != nil {
		return nil, err
	}
	var infos []Info
	for _, e := range list {
		if e.ending || !time.Now().Before(e.expires) || e.created.Before(begin) {
			continue
		}
		info := Info{ID: e.id, User: user, Created: e.created, Expires: e.expires}
		if m.config.Strict {
			server, ok, err := m.there(ctx, e.id)
			if err != nil {
				return nil, err
			}
			if !ok {
				continue
			}
			info.Seen, info.Expires = server.Seen, server.Expires
		}
		infos = append(infos, info)
	}
	return infos, nil
}

// revokeSealed is Revoke.
func (m *Manager) revokeSealed(ctx context.Context, id driver.ID) error {
	server, err := m.load(ctx, id)
	switch {
	case errors.Is(err, ErrNotFound) && m.description.Evicts:
		return fmt.Errorf("whose session it is, is not on record: RevokeUser ends all of a user's: %w", err)
	case errors.Is(err, ErrNotFound), err == nil && isMarker(server):
		return nil
	case err != nil:
		return err
	case id == UserID(server.User), id == epochID:
		return &StoreError{Op: "delete", ID: id, Err: ErrUnsupported} // no session
	}
	if server.User != "" {
		if _, err := m.unlistSealed(ctx, server.User, func(e entry) bool { return e.id == id }); err != nil {
			return err
		}
	}
	if err := m.delete(ctx, id); err != nil {
		return err
	}
	m.emit(ctx, &m.counters.ended, Event{Kind: EventEnded, Cause: "revoked", ID: id, User: server.User})
	return nil
}

// revokeUserSealed is RevokeUser.
func (m *Manager) revokeUserSealed(ctx context.Context, user string, except []driver.ID) error {
	ended, err := m.unlistSealed(ctx, user, func(e entry) bool { return !slices.Contains(except, e.id) })
	if err != nil {
		return err
	}
	for _, id := range ended {
		m.emit(ctx, &m.counters.ended, Event{Kind: EventEnded, Cause: "revoked", ID: id, User: user})
		if !m.config.Strict {
			m.forget(ctx, id)
		} else if err := m.delete(ctx, id); err != nil {
			return err
		}
	}
	return nil
}

var errNoUsers = fmt.Errorf("%w: sealed sessions without a store for user records cannot be taken back", ErrUnsupported)

// The epoch is a record whose Created is the moment before which nobody who is logged in is any more. One that is missing
// refuses everybody, as a missing user record does: a store that drops records never undoes RevokeAll. So the first login
// makes it.
var epochID driver.ID = sha256.Sum256([]byte("\x00holdfast epoch v1"))

// epochAge is how long the epoch is kept beyond the last login.
const epochAge = 2 * 365 * 24 * time.Hour

// RevokeAll ends all sessions of all users by force, at once here and within 5 seconds on every other server. It is for
// sealed sessions; others are in their store, which can be emptied: ErrUnsupported. It goes by the clock of this server:
// a session that was begun on one whose clock is ahead, by less than that ago, stays.
func (m *Manager) RevokeAll(ctx context.Context) error {
	if !m.sealed() || m.store == nil {
		return fmt.Errorf("revoke all sessions: %w: it needs sealed sessions and a store for user records", ErrUnsupported)
	}
	ctx, cancel := m.bound(ctx)
	defer cancel()
	// Never back, where another server's clock was ahead: that would undo its RevokeAll.
	_, err := m.swapEpoch(ctx, func(rec driver.Record) time.Time { return latest(now(), rec.Created).Add(time.Millisecond) })
	return err
}

// ensureEpoch returns the epoch. It makes the one that is missing to be the time t, when somebody logs in, and keeps it
// from expiring.
func (m *Manager) ensureEpoch(ctx context.Context, t time.Time) (time.Time, error) {
	rec, err := m.load(ctx, epochID)
	if errors.Is(err, ErrNotFound) || err == nil && time.Until(rec.Expires) <= epochAge/2 {
		rec, err = m.swapEpoch(ctx, func(rec driver.Record) time.Time {
			if rec.Revision != 0 {
				return rec.Created
			}
			return t
		})
	}
	return rec.Created, err
}

// swapEpoch replaces the epoch by the time that begin makes of it, and returns it.
func (m *Manager) swapEpoch(ctx context.Context, begin func(driver.Record) time.Time) (driver.Record, error) {
	defer m.listings.drop(epochID)
	return m.swap(ctx, epochID, m.latestOr(ctx, epochID, driver.Record{}), func(rec driver.Record) (driver.Record, error) {
		return driver.Record{Created: begin(rec), Seen: now(), Expires: now().Add(epochAge), Revision: driver.NewRevision(rec.Revision)}, nil
	})
}

// epoch returns the moment before which all logged-in sessions have ended, as this server last learned it.
func (m *Manager) epoch(ctx context.Context) (time.Time, error) {
	stands := func(l listing) bool { return !l.missing }
	l, err := m.recall(ctx, epochID, stands, func(rec driver.Record) (listing, error) { return listing{begin: rec.Created}, nil })
	if err != nil {
		return time.Time{}, err
	}
	if l.missing {
		return time.Now(), nil
	}
	return l.begin, nil
}

// How a user record lists a session.
type listed int

const (
	listedNot listed = iota
	listedEnding
	listedLive
)

// listing says how a user's record lists a session that was logged in at created, as this server last learned it.
func (m *Manager) listing(ctx context.Context, user string, id driver.ID, created time.Time) (listed, error) {
	begin, err := m.epoch(ctx)
	if err != nil {
		return listedNot, err
	}
	if created.Before(begin) {
		return listedNot, nil
	}
	known := func(l listing) bool { _, ok := l.sessions[id]; return ok }
	l, err := m.recall(ctx, UserID(user), known, func(rec driver.Record) (listing, error) {
		list, err := entries(rec)
		l := listing{sessions: make(map[driver.ID]entry, len(list))}
		for _, e := range list {
			l.sessions[e.id] = e
		}
		return l, err
	})
	if err != nil {
		return listedNot, err
	}
	e, ok := l.sessions[id]
	switch {
	case !ok || !time.Now().Before(e.expires):
		return listedNot, nil
	case e.ending:
		return listedEnding, nil
	}
	return listedLive, nil
}

// A listing is what a server remembers of a user record, or of the epoch.
type listing struct {
	asked    time.Time // when the store was asked, before it answered
	missing  bool
	sessions map[driver.ID]entry // of a user record
	begin    time.Time           // of the epoch
}

// recall returns what the server knows of the record under id, and asks the store where that is too old, or is not enough.
// What says no for being absent is not enough: another server may have added it a moment ago, with a login or a renewal.
func (m *Manager) recall(ctx context.Context, id driver.ID, enough func(listing) bool, read func(driver.Record) (listing, error)) (listing, error) {
	l, turn, ok := m.listings.get(id)
	if ok && enough(l) {
		return l, nil
	}
	m.watch()
	asked := time.Now()
	rec, err := m.load(ctx, id)
	switch {
	case errors.Is(err, ErrNotFound):
		l = listing{missing: true}
	case err != nil:
		return listing{}, err
	default:
		if l, err = read(rec); err != nil {
			return listing{}, &StoreError{Op: "load", ID: id, Err: err}
		}
	}
	l.asked = asked
	m.listings.put(id, turn, l)
	return l, nil
}

// listings remember what user records said, for listingAge. The zero value is ready.
type listings struct {
	mu    sync.Mutex // mu guards the fields below
	m     map[driver.ID]listing
	swept time.Time
	// turns counts drops, by the last byte of the ID: what was loaded before one is not put after it. A drop of one
	// record keeps one in 256 others out, which are loaded once more.
	turns [256]uint64
}

func (l *listings) turn(id driver.ID) *uint64 { return &l.turns[id[len(id)-1]] }

func (l *listings) get(id driver.ID) (found listing, turn uint64, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	found, ok = l.m[id]
	return found, *l.turn(id), ok && time.Since(found.asked) < listingAge
}

func (l *listings) put(id driver.ID, turn uint64, found listing) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if turn != *l.turn(id) {
		return
	}
	if time.Since(l.swept) > time.Second {
		for id, old := range l.m {
			if time.Since(old.asked) >= listingAge {
				delete(l.m, id)
			}
		}
		l.swept = time.Now()
	}
	if len(l.m) >= maxListings {
		return
	}
	if l.m == nil {
		l.m = make(map[driver.ID]listing)
	}
	l.m[id] = found
}

// drop forgets a record that was changed, and reports whether it was there.
func (l *listings) drop(id driver.ID) (was bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, was = l.m[id]
	delete(l.m, id)
	*l.turn(id)++
	return was
}

// dropAll forgets all records, as any of them may have been changed.
func (l *listings) dropAll() {
	l.mu.Lock()
	defer l.mu.Unlock()
	clear(l.m)
	for i := range l.turns {
		l.turns[i]++
	}
}

// watchAgain is how long after a store said that it cannot watch it is asked again: what was wrong may be mended.
const watchAgain = time.Minute

// watching is the goroutine that watches the user records. The zero value is ready.
type watching struct {
	begin sync.Once          // done by what begins it, or by close
	end   context.CancelFunc // set in begin; may be nil
	runs  sync.WaitGroup
}

func (w *watching) close() {
	w.begin.Do(func() {}) // nothing begins any more
	if w.end != nil {
		w.end()
	}
	w.runs.Wait()
}

// watch has what is remembered of user records dropped as soon as their store tells of a change, from now until Close, or
// that of the store. No bound rests on it: listingAge holds with and without.
func (m *Manager) watch() {
	if m.watcher == nil {
		return
	}
	m.watching.begin.Do(func() {
		ctx, end := context.WithCancel(context.Background())
		m.watching.end = end
		m.watching.runs.Go(func() { m.watchUsers(ctx) })
	})
}

func (m *Manager) watchUsers(ctx context.Context) {
	log, said := m.config.Logger.With("store", m.description.Name), ""
	for {
		err := m.watcher.Watch(ctx, m.userChanged, func(whole bool) { m.watchIs(whole, log) })
		if ctx.Err() != nil || errors.Is(err, driver.ErrClosed) {
			return
		}
		if text := fmt.Sprint(err); text != said {
			said = text
			log.Warn("user records cannot be watched: sessions ended on another server are accepted for up to 5 s", "err", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(watchAgain):
		}
	}
}

// userChanged drops what is remembered of a record, of which the store says that it has changed.
func (m *Manager) userChanged(id driver.ID) {
	if m.listings.drop(id) {
		m.counters.pushed.Add(1)
	}
}

// watchIs is told when changes begin to be told, and when some may not be. Then what is remembered stays good for the rest
// of its listingAge, as with a store that tells nothing: dropping it would make no bound shorter, and refuse everybody who
// is logged in at the first moment of an outage.
func (m *Manager) watchIs(whole bool, log *slog.Logger) {
	if !whole {
		m.counters.watchLosses.Add(1)
		log.Warn("watch of user records lost: sessions ended on another server are accepted for up to 5 s")
		return
	}
	m.listings.dropAll()
	if m.counters.watchLosses.Load() > 0 {
		log.Info("user records are watched again")
	}
}
