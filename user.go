package holdfast

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/holdfast-sessions/holdfast/driver"
)

// A user record lists the sessions of one user. It is an ordinary record whose ID is made from the user's name, with
// one field per session: the name is the session's ID (32 bytes), the value 13 bytes,
//
//	0  1  16 (version 1 in the upper half), plus 1 if the session is being ended
//	1  6  created, milliseconds since 1970
//	7  6  the end of its lifetime, likewise
//
// Two rules hold at every moment: no token leaves before its ID is listed, and no ID is unlisted before its session
// is gone. So whoever ends everything that is listed ends every session of the user.
const (
	entryVersion = 0x10
	entryEnding  = 0x01
	entryBytes   = 13

	// entryGrace is how long an ID stays listed after the end of its session's lifetime: longer than the clocks of two
	// servers are apart.
	entryGrace = time.Hour
)

// UserID returns the ID of a user's record. A session's ID is never one: it is the hash of a token, which has no NUL.
func UserID(user string) driver.ID { return sha256.Sum256([]byte("\x00holdfast user v1\x00" + user)) }

type entry struct {
	id               driver.ID
	created, expires time.Time
	ending           bool
}

func (e entry) change() driver.Change {
	b := make([]byte, 0, 16)
	state := byte(entryVersion)
	if e.ending {
		state |= entryEnding
	}
	b = append(b, state)
	b = append48(b, e.created)
	b = append48(b, e.expires)
	return driver.Change{Name: string(e.id[:]), Value: b}
}

func (e entry) removal() driver.Change { return driver.Change{Name: string(e.id[:]), Delete: true} }

func append48(b []byte, t time.Time) []byte {
	var ms [8]byte
	binary.BigEndian.PutUint64(ms[:], uint64(t.UnixMilli()))
	return append(b, ms[2:]...)
}

func read48(b []byte) time.Time {
	var ms [8]byte
	copy(ms[2:], b[:6])
	return time.UnixMilli(int64(binary.BigEndian.Uint64(ms[:])))
}

// entries returns what a user record lists, oldest first. It fails with ErrVersion if a newer release wrote some.
func entries(rec driver.Record) ([]entry, error) {
	var list []entry
	for name, b := range rec.Fields.All() {
		var e entry
		if len(name) != len(e.id) || len(b) != entryBytes || b[0]&^entryEnding != entryVersion {
			return nil, ErrVersion
		}
		copy(e.id[:], name)
		e.ending = b[0]&entryEnding != 0
		e.created, e.expires = read48(b[1:]), read48(b[7:])
		list = append(list, e)
	}
	slices.SortFunc(list, func(a, b entry) int {
		return cmp.Or(a.created.Compare(b.created), slices.Compare(a.id[:], b.id[:]))
	})
	return list, nil
}

// swapUser replaces a user record by itself with changes laid over it, as apply makes them from what it lists.
func (m *Manager) swapUser(ctx context.Context, user string, apply func([]entry) ([]driver.Change, error)) error {
	id := UserID(user)
	_, err := m.swap(ctx, id, m.latestOr(ctx, id, driver.Record{User: user, Created: now()}), func(rec driver.Record) (driver.Record, error) {
		list, err := entries(rec)
		if err != nil {
			return driver.Record{}, &StoreError{Op: "load", ID: id, Err: err}
		}
		changes, err := apply(list)
		if err != nil {
			return driver.Record{}, err
		}
		return m.followUser(rec, changes), nil
	})
	return err
}

// followUser returns the user record that follows base. It outlives every session it lists.
func (m *Manager) followUser(base driver.Record, changes []driver.Change) driver.Record {
	rec := base
	rec.Fields = base.Fields.With(changes...)
	rec.Seen = now()
	rec.Expires = latest(base.Expires, rec.Seen.Add(m.config.Lifetime+entryGrace))
	for _, c := range changes {
		if !c.Delete {
			rec.Expires = latest(rec.Expires, read48(c.Value[7:]).Add(entryGrace))
		}
	}
	rec.Revision = driver.NewRevision(base.Revision)
	return rec
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// enlist adds a session to its user's record. It returns the sessions beyond the limit, oldest first: they are marked
// as ending, and stay listed until a later login finds them so. If the user had the session old, that is marked too.
func (m *Manager) enlist(ctx context.Context, r renewal, e entry, old stale) (excess []driver.ID, err error) {
	if m.config.MaxSessions < 0 && m.merger != nil {
		if done, err := m.enlistByMerge(ctx, r.user, e); done || err != nil {
			return nil, err
		}
	}
	evicted := false
	err = m.swapUser(ctx, r.user, func(list []entry) ([]driver.Change, error) {
		excess, evicted = nil, false
		changes := []driver.Change{e.change()}
		var live []entry
		for _, other := range list {
			switch {
			case other.id == old.id:
				other.ending = true
				changes = append(changes, other.change())
			case other.ending:
				// Whoever marked it may have crashed before ending it.
				if _, err := m.endListed(ctx, other); err != nil {
					return nil, err
				}
				changes = append(changes, other.removal())
			case other.id == r.unknown:
				evicted = time.Now().Before(other.expires)
				changes = append(changes, other.removal())
			case time.Since(other.expires) > entryGrace:
				changes = append(changes, other.removal())
			default:
				live = append(live, other)
			}
		}
		if m.config.MaxSessions < 0 || len(live) < m.config.MaxSessions {
			return changes, nil
		}
		if m.config.RefuseAtLimit {
			gone, err := m.belowLimit(ctx, live)
			return append(changes, gone...), err
		}
		for _, other := range live[:len(live)-m.config.MaxSessions+1] {
			other.ending = true
			changes = append(changes, other.change())
			excess = append(excess, other.id)
		}
		return changes, nil
	})
	if err == nil && evicted {
		m.emit(ctx, &m.counters.evicted, Event{Kind: EventLost, Cause: "evicted", ID: r.unknown, User: r.user})
	}
	return excess, err
}

// enlistByMerge is enlist where there is no limit: logins of one user need not wait for each other then. It reports
// false if there is no record to merge into.
func (m *Manager) enlistByMerge(ctx context.Context, user string, e entry) (bool, error) {
	id := UserID(user)
	base, err := m.load(ctx, id)
	if errors.Is(err, ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	changes := []driver.Change{e.change()}
	_, err = m.mergeNatively(ctx, id, base, m.followUser(base, changes), changes)
	if errors.Is(err, ErrEnded) { // it expired just now
		return false, nil
	}
	return err == nil, err
}

// belowLimit returns the removals of those entries whose sessions are gone, or ErrLimit if the others are as many as are
// allowed.
func (m *Manager) belowLimit(ctx context.Context, live []entry) ([]driver.Change, error) {
	var gone []driver.Change
	for _, e := range live {
		_, ok, err := m.there(ctx, e.id)
		if err != nil {
			return nil, err
		}
		if !ok {
			gone = append(gone, e.removal())
		}
	}
	if len(live)-len(gone) >= m.config.MaxSessions {
		return nil, ErrLimit
	}
	return gone, nil
}

// there returns the record of a session that a user record lists, of a sealed one what the servers keep, and whether the
// session is still there.
func (m *Manager) there(ctx context.Context, id driver.ID) (rec driver.Record, ok bool, err error) {
	if m.sealed() {
		rec, err = m.load(ctx, id) // how long its login lets it live is in the token; it expires accordingly
	} else {
		rec, _, err = m.loadSession(ctx, id)
	}
	if errors.Is(err, ErrNotFound) || err == nil && isMarker(rec) {
		return driver.Record{}, false, nil
	}
	return rec, err == nil, err
}

// endListed ends a session that its user's record lists, and reports whether it lived. A marker stays, so that slow
// requests with the token from before a renewal meet it.
func (m *Manager) endListed(ctx context.Context, e entry) (lived bool, err error) {
	if e.ending {
		if rec, err := m.load(ctx, e.id); errors.Is(err, ErrNotFound) || err == nil && isMarker(rec) {
			return false, nil
		}
	}
	return true, m.delete(ctx, e.id)
}

// unlist removes a session that has ended from its user's record; those to keep are no longer being ended. If that
// fails, it stays listed until its lifetime is over, which is harmless.
func (m *Manager) unlist(ctx context.Context, user string, id driver.ID, keep ...driver.ID) {
	errUnlisted := errors.New("not listed")
	err := m.swapUser(ctx, user, func(list []entry) ([]driver.Change, error) {
		var changes []driver.Change
		for _, e := range list {
			switch {
			case e.id == id:
				changes = append(changes, e.removal())
			case e.ending && slices.Contains(keep, e.id):
				e.ending = false
				changes = append(changes, e.change())
			}
		}
		if len(changes) == 0 {
			return nil, errUnlisted
		}
		return changes, nil
	})
	if err != nil && err != errUnlisted {
		m.config.Logger.Warn("ended session stays listed for its user", "session", id.String(), "err", err)
	}
}

// A store that may drop records can drop a user record. RevokeUser then finds nothing to end, and leaves an empty one.
// So with such a store a session lives only while its user's record lists it; that is looked up once in every twentieth
// of the idle timeout in which the session is used. It also keeps the user record from being the first to be dropped.

// confirm looks the session up in its user's record, if that is due, and ends it if it is not there. It fails with
// ErrEnded then.
func (s *Session) confirm(ctx context.Context) error {
	if !s.m.description.Evicts {
		return nil
	}
	// Periods, not the time since the last look-up, which nobody remembers: a session that is written all the time
	// crosses from one to the next, too. They begin at another moment for each session.
	period := max(s.policy.Idle/20, 1)
	phase := time.Duration(binary.BigEndian.Uint64(s.id[:]) % uint64(period))
	number := func(t time.Time) int64 { return t.Add(phase).UnixNano() / int64(period) }
	if number(s.record.Seen) == number(time.Now()) {
		return nil
	}
	return s.listed(ctx)
}

// listed ends the session, and fails with ErrEnded, if its store may drop records and its user's record does not list
// it. Where that record cannot be read, all is well: a revocation cannot have got through either.
func (s *Session) listed(ctx context.Context) error {
	if !s.m.description.Evicts || s.record.User == "" {
		return nil
	}
	ctx, cancel := s.m.bound(ctx)
	defer cancel()
	// A part of the time: the user record may be on a server that hangs, and the session's own on one that does not.
	short, stop := context.WithTimeout(ctx, s.m.config.StoreTimeout/4)
	defer stop()
	rec, err := s.m.load(short, UserID(s.record.User))
	if err != nil && !errors.Is(err, ErrNotFound) {
		return nil
	}
	if _, ok := rec.Fields.Get(string(s.id[:])); ok {
		return nil
	}
	err = s.m.end(ctx, s.detached())
	if err == nil { // the client keeps the token, and may log in with it: no marker stays in its way
		err = s.m.delete(ctx, s.id)
	}
	if err != nil && !errors.Is(err, ErrEnded) {
		return err
	}
	s.m.emit(ctx, &s.m.counters.unlisted, Event{Kind: EventEnded, Cause: "unlisted", ID: s.id, User: s.record.User})
	s.lose(ctx, markerEnded)
	return &StoreError{Op: "load", ID: s.id, Err: ErrEnded}
}

// Info describes a session of a user.
type Info struct {
	ID      driver.ID
	User    string
	Created time.Time // when it was logged in
	Seen    time.Time // when its idle timeout was last extended: its last use, to a twentieth of the timeout
	Expires time.Time // when it ends if it is not used again
}

// List returns the sessions of a user, oldest first.
func (m *Manager) List(ctx context.Context, user string) ([]Info, error) {
	if m.store == nil {
		return nil, fmt.Errorf("list sessions: %w", errNoUsers)
	}
	ctx, cancel := m.bound(ctx)
	defer cancel()
	if m.sealed() {
		return m.listSealed(ctx, user)
	}
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
	var infos []Info
	for _, e := range list {
		rec, ok, err := m.there(ctx, e.id)
		if err != nil {
			return nil, err
		}
		if !ok {
			continue
		}
		infos = append(infos, Info{ID: e.id, User: rec.User, Created: rec.Created, Seen: rec.Seen, Expires: rec.Expires})
	}
	return infos, nil
}

// Revoke ends a session by force, on every server at once, a sealed one within 5 seconds. Ending one that does not exist
// is not an error. Sealed sessions of nobody in particular are on no record and cannot be ended, unless Config.Strict is
// set; where a store that may drop records no longer knows whose session it is, the error is ErrNotFound.
func (m *Manager) Revoke(ctx context.Context, id driver.ID) error {
	if m.store == nil {
		return fmt.Errorf("revoke session %s: %w", id, errNoUsers)
	}
	ctx, cancel := m.bound(ctx)
	defer cancel()
	if m.sealed() {
		return m.revokeSealed(ctx, id)
	}
	rec, _, err := m.loadSession(ctx, id)
	if errors.Is(err, ErrNotFound) || err == nil && isMarker(rec) {
		return nil
	}
	if errors.Is(err, ErrVersion) { // a newer release's: its user is not known, and lists it until its lifetime is over
		rec, err = driver.Record{}, nil
	}
	if err != nil {
		return err
	}
	if id == UserID(rec.User) {
		return &StoreError{Op: "delete", ID: id, Err: ErrUnsupported} // a user record is no session
	}
	if err := m.delete(ctx, id); err != nil {
		return err
	}
	m.emit(ctx, &m.counters.ended, Event{Kind: EventEnded, Cause: "revoked", ID: id, User: rec.User})
	if rec.User != "" {
		m.unlist(ctx, rec.User, id)
	}
	return nil
}

// RevokeUser ends all sessions of a user by force, except some, on every server at once: afterwards none lives that
// was logged in before. A login that comes at the same moment is before it or after it, never half. Sealed sessions end
// within 5 seconds on the other servers.
func (m *Manager) RevokeUser(ctx context.Context, user string, except ...driver.ID) error {
	if m.store == nil {
		return fmt.Errorf("revoke sessions of a user: %w", errNoUsers)
	}
	ctx, cancel := m.bound(ctx)
	defer cancel()
	if m.sealed() {
		return m.revokeUserSealed(ctx, user, except)
	}
	ended := make(map[driver.ID]bool)
	return m.swapUser(ctx, user, func(list []entry) ([]driver.Change, error) {
		var changes []driver.Change
		for _, e := range list {
			if slices.Contains(except, e.id) {
				continue
			}
			// Also when this is tried again: what was copied here from another store meanwhile was not there before.
			lived, err := m.endListed(ctx, e)
			if err != nil {
				return nil, err
			}
			if lived && !ended[e.id] {
				ended[e.id] = true
				m.emit(ctx, &m.counters.ended, Event{Kind: EventEnded, Cause: "revoked", ID: e.id, User: user})
			}
			changes = append(changes, e.removal())
		}
		return changes, nil
	})
}
