package holdfast

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-sessions/holdfast/driver"
)

// A sealed session lives in its token, where a Sealer puts it; no server keeps it. What servers keep of it is little, and
// in any store: the user record, which lists it while it is logged in, and a server record under its ID,
//
//	user       so that Revoke, which is given the ID alone, knows whose record lists it
//	revision   with Config.Strict: that of the latest token
//	fields     strictField: with Config.Strict, 8 bytes that are the revision before that
//
// and, with Config.Spill, the fields that were too large, under an ID that the token has in spillField. The rules of user.go
// hold here too, but that a session is gone as soon as it is no longer listed: nothing else could end it.
const (
	strictField = "\x00before"
	spillField  = "\x00spill"

	// strictGrace is for how long a token is still read, and no more than read, after another has replaced it: browsers
	// send requests side by side, and the answers to some are under way when they send the next.
	strictGrace = 5 * time.Second
)

// NewSealed returns a Manager whose sessions are in the tokens that s makes. users keeps the user records, in any store
// that all servers share: by them sessions are taken back (Logout, Revoke, RevokeUser, RevokeAll, limits), on each server
// at most 5 seconds after, and usually at once where the store tells of changes (Capabilities.Watch). It stays the caller's,
// who closes it after the last request; that, or Manager.Close, ends the goroutine that watches it.
//
// users may be nil. Then a token is good until it expires, whatever Logout says: Revoke, RevokeUser, RevokeAll and List
// return ErrUnsupported, and a warning is logged now.
func NewSealed(s driver.Sealer, users driver.Store, c Config) (*Manager, error) {
	if s == nil {
		return nil, errors.New("holdfast: NewSealed needs a sealer, such as cookie.New(keys, cookie.Config{})")
	}
	var errs []error
	bad := func(format string, a ...any) { errs = append(errs, fmt.Errorf("holdfast config: "+format, a...)) }
	if c.URLParameter != "" {
		bad("URLParameter is set: a sealed session does not fit into addresses, and would be in every log")
	}
	if c.Strict && users == nil {
		bad("Strict needs a store for the records it compares with: give NewSealed one")
	}
	if c.Spill && users == nil {
		bad("Spill needs a store for what is too large: give NewSealed one")
	}
	if c.FailOpen && users == nil {
		bad("FailOpen says what holds while the store of user records is down: there is none")
	}
	if err := errors.Join(append(errs, c.Validate())...); err != nil {
		return nil, err
	}
	m := newManager(users, c)
	m.sealer, m.sealerDescription = s, s.Describe()
	m.watcher, _ = users.(driver.Watcher)
	m.maxToken = m.sealerDescription.MaxBytes
	if !c.DisableCookie {
		m.maxToken = min(m.maxToken, maxChunks*(maxCookie-512))
	}
	if users == nil {
		m.config.Logger.Warn("sealed sessions without a store for user records: nobody can be logged out by force, and a copied token is good until it expires")
	}
	return m, nil
}

// sealed reports whether the Manager's sessions are in their tokens.
func (m *Manager) sealed() bool { return m.sealer != nil }

// openToken is load for a sealed session.
func (s *Session) openToken(ctx context.Context, token string) {
	m := s.m
	opened, err := m.sealer.Open(s.x.binding(), token)
	p := policy{}
	if err == nil {
		if p = m.policyOf(opened.Record); !p.expires(opened.Record.Created, opened.Record.Seen).After(time.Now()) {
			err = driver.ErrGone
		}
	}
	if err != nil {
		s.refuse(ctx, opened.ID, err)
		return
	}
	rec := opened.Record
	if m.store != nil {
		ok, err := m.stillValid(ctx, s, opened.ID, rec)
		if err != nil {
			s.err = err
		}
		if !ok {
			return
		}
		if rec, err = s.unspill(ctx, opened.ID, rec); err != nil {
			if s.err = err; errors.Is(err, ErrNotFound) {
				s.err = nil
				m.emit(ctx, &m.counters.evicted, Event{Kind: EventLost, Cause: "evicted", ID: opened.ID, User: rec.User})
			}
			return
		}
	}
	s.token, s.id, s.record, s.policy, s.reseal = token, opened.ID, rec, p, opened.Stale
}

// refuse counts a token that could not be opened. The visit is anonymous.
func (s *Session) refuse(ctx context.Context, id driver.ID, err error) {
	c := &s.m.counters
	n, cause := &c.tampered, "tampered"
	switch {
	case errors.Is(err, driver.ErrForeignSeal):
		// Another server may know better: the client keeps its token, unless it logs in or out here.
		s.foreign, n, cause = true, &c.foreign, "foreign"
	case errors.Is(err, driver.ErrNotYetValid):
		s.foreign, n, cause = true, &c.notYetValid, "not yet valid"
	case errors.Is(err, driver.ErrRetiredKey):
		n, cause = &c.retired, "retired key"
	case errors.Is(err, driver.ErrGone):
		n, cause = &c.expired, "expired"
	}
	s.m.emit(ctx, n, Event{Kind: EventRefused, Cause: cause, ID: id})
}

// stillValid reports whether nobody has ended the session since its token was made. If somebody has, s is told. The error
// says that it cannot be known.
func (m *Manager) stillValid(ctx context.Context, s *Session, id driver.ID, rec driver.Record) (bool, error) {
	ended := func(cause string) (bool, error) {
		m.emit(ctx, &m.counters.unlisted, Event{Kind: EventRefused, Cause: cause, ID: id, User: rec.User})
		return false, nil
	}
	lost := func(kind string) (bool, error) {
		s.lost = kind
		m.emit(ctx, &m.counters.lost, Event{Kind: EventLost, ID: id, User: rec.User})
		return false, nil
	}
	if rec.User != "" {
		state, err := m.listing(ctx, rec.User, id, rec.Created)
		switch {
		case err != nil && m.config.FailOpen:
			m.counters.failedOpen.Add(1)
		case err != nil:
			return false, err
		case state == listedNot:
			return ended("ended")
		case state == listedEnding:
			return lost(markerRenewed)
		}
	}
	if !m.config.Strict {
		return true, nil
	}
	server, err := m.load(ctx, id)
	switch {
	case errors.Is(err, ErrNotFound):
		return ended("ended")
	case err != nil && m.config.FailOpen:
		m.counters.failedOpen.Add(1)
		s.readOnly = true
		return true, nil
	case err != nil:
		return false, err
	case isMarker(server):
		return lost(markerKind(server))
	case server.Revision == rec.Revision:
		s.serverTag = server.Tag
		return true, nil
	}
	before, _ := server.Fields.Get(strictField)
	if len(before) == 8 && binary.BigEndian.Uint64(before) == rec.Revision {
		switch age := time.Since(server.Seen); {
		case age < strictGrace:
			s.readOnly = true
			return true, nil
		case age < markerAge: // a slow request: what it does must not take the place of the newer token
			return lost(markerRenewed)
		}
	}
	m.emit(ctx, &m.counters.replayed, Event{Kind: EventRefused, Cause: "replayed", ID: id, User: rec.User})
	return false, nil
}

// sealNext seals the state that follows the session's: with changes laid over it, seen now. The client gets the token. It
// fails with ErrEnded if another request has replaced or ended the token first.
func (s *Session) sealNext(ctx context.Context, changes []driver.Change) error {
	switch {
	case s.foreign:
		return fmt.Errorf("%w here: the client holds a session that this server cannot read yet, as it does not know its key, or its clock is behind; only Login and Logout take its place", ErrUnsupported)
	case s.readOnly:
		return &StoreError{Op: "save", ID: s.id, Err: ErrEnded}
	}
	base, id, starts := s.record, s.id, s.record.Revision == 0
	if starts {
		base.Created = now()
		if err := s.m.random(id[:]); err != nil {
			return err
		}
	}
	rec, err := s.m.follow(s.policy, base, s.m.seal(id, changes))
	if err != nil {
		return err
	}
	token, err := s.spillToken(ctx, id, rec)
	if err != nil {
		return err
	}
	if s.m.config.Strict {
		server := serverRecord(rec, base.Revision)
		server.Tag = s.serverTag
		if err := s.m.swapServer(ctx, id, server, base.Revision); err != nil {
			return err
		}
	}
	s.token, s.id, s.record, s.pending, s.reseal = token, id, rec, nil, false
	s.x.send = true
	if starts {
		s.m.emit(ctx, &s.m.counters.created, Event{Kind: EventCreated, ID: id})
	}
	return nil
}

// commitSealed seals what the handler did, before the first byte of the response. Also a touch and a change of key are
// due here: afterwards no cookie can be sent any more.
func (s *Session) commitSealed(ctx context.Context) error {
	if s.foreign {
		s.pending = nil // see refuse
	}
	if !s.loaded || s.err != nil || s.lost != "" {
		return nil
	}
	due := s.record.Revision != 0 && !s.readOnly && (s.reseal || s.touchDue())
	if len(s.pending) == 0 && !due {
		return nil
	}
	ctx, cancel := s.m.bound(ctx)
	defer cancel()
	if len(s.pending) == 0 {
		_ = s.sealNext(ctx, nil) // counted there; another request has extended it, or will
		return nil
	}
	return s.create(ctx, s.pending)
}

// sealToken seals rec, and holds the token to what the client takes.
func (m *Manager) sealToken(binding string, id driver.ID, rec driver.Record) (string, error) {
	token, err := m.sealer.Seal(binding, id, rec)
	if err != nil {
		return "", fmt.Errorf("seal session %s: %w", id, err)
	}
	if len(token) > m.maxToken {
		return "", fmt.Errorf("seal session %s: %w: a token of %d characters, at most %d", id, ErrTooLarge, len(token), m.maxToken)
	}
	return token, nil
}

// random fills b from the source of tokens.
func (m *Manager) random(b []byte) error {
	if _, err := io.ReadFull(m.config.Rand, b); err != nil {
		return fmt.Errorf("new session ID: the random source failed: %w", err)
	}
	return nil
}

// serverRecord is what the servers keep of a sealed session.
func serverRecord(rec driver.Record, before uint64) driver.Record {
	server := driver.Record{User: rec.User, Created: rec.Created, Seen: rec.Seen, Expires: rec.Expires, Revision: rec.Revision}
	server.Fields = server.Fields.With(driver.Change{Name: strictField, Value: binary.BigEndian.AppendUint64(nil, before)})
	return server
}

// swapServer replaces what the servers keep of a sealed session by compare-and-set: a token that another request has made
// of the same one would be lost with its changes. It fails with ErrEnded if there is one, or the session has ended.
func (m *Manager) swapServer(ctx context.Context, id driver.ID, server driver.Record, prev uint64) error {
	err := m.save(ctx, id, server, prev)
	if errors.Is(err, ErrConflict) {
		return &StoreError{Op: "save", ID: id, Err: ErrEnded}
	}
	return err
}

// renewSealed is renew for sealed sessions, in the same order: the new server record is stored, the new ID listed and the
// old one no longer, in one step, then the old server record ended; then the client gets the token.
func (s *Session) renewSealed(ctx context.Context, r renewal) error {
	m, old := s.m, s.detached()
	if s.readOnly {
		s.lose(ctx, markerRenewed)
		return &StoreError{Op: "save", ID: old.id, Err: ErrEnded}
	}
	var id driver.ID
	if err := m.random(id[:]); err != nil {
		return err
	}
	if r.cause == "login" && m.store != nil {
		// Whoever logs in after RevokeAll stays in, although this server's clock is behind that of the one it ran on.
		begin, err := m.ensureEpoch(ctx, r.created)
		if err != nil {
			return err
		}
		r.created = latest(r.created, begin)
	}
	rec := driver.Record{User: r.user, Created: r.created}
	if !r.dropFields {
		var err error
		if rec.Fields, err = m.reseal(old.id, id, old.record.Fields); err != nil {
			return err
		}
	}
	changes := append(m.seal(id, s.pending), r.changes...)
	rec, err := m.follow(r.policy, rec, changes)
	if err != nil {
		return err
	}
	token, err := s.spillToken(ctx, id, rec)
	if err != nil {
		return err
	}
	if m.store != nil {
		if err := m.replaceSealed(ctx, r, old, s.serverTag, id, rec); err != nil {
			if errors.Is(err, ErrEnded) {
				s.lose(ctx, markerRenewed)
			}
			return err
		}
	}
	s.token, s.id, s.record, s.policy, s.pending, s.serverTag = token, id, rec, r.policy, nil, 0
	s.foreign, s.reseal = false, false
	s.x.send, s.x.clear = true, false
	if old.record.Revision == 0 {
		m.emit(ctx, &m.counters.created, Event{Kind: EventCreated, ID: id, User: r.user})
	}
	m.emit(ctx, &m.counters.renewed, Event{Kind: EventRenewed, Cause: r.cause, ID: id, User: r.user})
	return nil
}

// replaceSealed stores and lists the session that follows old, and ends old, whose server record has oldTag.
func (m *Manager) replaceSealed(ctx context.Context, r renewal, old stale, oldTag uint64, id driver.ID, rec driver.Record) error {
	server := serverRecord(rec, 0)
	if !m.config.Strict { // it stays as it is
		server.Expires = rec.Created.Add(r.policy.Lifetime + entryGrace)
	}
	if m.config.Strict || r.user != "" {
		if err := m.save(ctx, id, server, 0); err != nil {
			return err
		}
	}
	undo := func(err error) error {
		// The new token is known to nobody: what is left of it if this fails expires.
		ctx, cancel := m.bound(context.WithoutCancel(ctx))
		defer cancel()
		if m.delete(ctx, id) == nil && r.user != "" {
			_, _ = m.unlistSealed(ctx, r.user, func(e entry) bool { return e.id == id })
		}
		return err
	}
	if m.config.Strict && old.record.Revision != 0 {
		marker := newMarker(markerRenewed, old.record.Revision)
		marker.Tag = oldTag
		if err := m.swapServer(ctx, old.id, marker, old.record.Revision); err != nil {
			return undo(err)
		}
	}
	if r.user != "" {
		e := entry{id: id, created: r.created, expires: r.created.Add(r.policy.Lifetime)}
		excess, err := m.enlistSealed(ctx, r.user, e, old.id)
		if err != nil {
			return undo(err)
		}
		for _, id := range excess {
			m.forget(ctx, id)
			m.emit(ctx, &m.counters.ended, Event{Kind: EventEnded, Cause: "limit", ID: id, User: r.user})
		}
	}
	if old.record.User != "" {
		if old.record.User != r.user {
			if err := m.leaveListing(ctx, old.record.User, old.id); err != nil {
				return undo(err)
			}
		}
		if !m.config.Strict {
			m.forget(ctx, old.id)
		}
	}
	return nil
}

// forget removes the server record of a session that is no longer listed. What is left if it fails expires.
func (m *Manager) forget(ctx context.Context, id driver.ID) {
	if err := m.delete(ctx, id); err != nil {
		m.config.Logger.Warn("record of an ended session stays until it expires", "session", id.String(), "err", err)
	}
}

// spill is what a session has in the store because it does not fit into the token.
type spill struct {
	id     driver.ID
	record driver.Record // as stored; Revision 0: there is nothing
}

// unspill returns rec with the fields that were moved to the store. The error matches ErrNotFound if they are gone.
func (s *Session) unspill(ctx context.Context, id driver.ID, rec driver.Record) (driver.Record, error) {
	ref, ok := rec.Fields.Get(spillField)
	if !ok {
		return rec, nil
	}
	if len(ref) != len(id) {
		return rec, &StoreError{Op: "load", ID: id, Err: ErrVersion}
	}
	copy(s.spill.id[:], ref)
	stored, err := s.m.load(ctx, s.spill.id)
	if err != nil {
		return rec, err
	}
	s.spill.record = stored
	changes := []driver.Change{{Name: spillField, Delete: true}}
	for name, value := range stored.Fields.All() {
		changes = append(changes, driver.Change{Name: name, Value: value})
	}
	rec.Fields = rec.Fields.With(changes...)
	return rec, nil
}

// spillToken is sealToken, after moving fields to the store where that is needed and allowed. What an earlier token refers
// to stays there until it expires: the client may keep that token instead of this one.
func (s *Session) spillToken(ctx context.Context, id driver.ID, rec driver.Record) (string, error) {
	m, binding := s.m, s.x.binding()
	token, err := m.sealToken(binding, id, rec)
	if !m.config.Spill || !errors.Is(err, ErrTooLarge) {
		if err == nil {
			s.spill = spill{}
		}
		return token, err
	}
	var fields []driver.Change
	for name, value := range rec.Fields.All() {
		if !isOwn(name) {
			fields = append(fields, driver.Change{Name: name, Value: value})
		}
	}
	slices.SortFunc(fields, func(a, b driver.Change) int {
		return cmp.Or(cmp.Compare(len(b.Value), len(a.Value)), strings.Compare(a.Name, b.Name))
	})
	kept, next := s.spill, spill{record: driver.Record{User: rec.User, Created: rec.Created, Seen: rec.Seen, Expires: rec.Expires}}
	if err := m.random(next.id[:]); err != nil {
		return "", err
	}
	small, same := rec, false
	for n, f := range fields {
		small.Fields = small.Fields.With(driver.Change{Name: f.Name, Delete: true})
		if n < len(fields)-1 && small.EncodedLen()+len(spillField)+len(next.id) > m.maxToken {
			continue // a token is longer than what it holds, nearly always
		}
		next.record.Fields = driver.Fields{}.With(fields[:n+1]...)
		same = kept.record.Revision != 0 && sameFields(kept.record.Fields, next.record.Fields)
		ref := next.id
		if same {
			ref = kept.id
		}
		small.Fields = small.Fields.With(driver.Change{Name: spillField, Value: ref[:]})
		if token, err = m.sealToken(binding, id, small); !errors.Is(err, ErrTooLarge) {
			break
		}
	}
	if err != nil {
		return "", err
	}
	if same {
		next = kept
		if kept.record.Expires.Before(rec.Expires) {
			next.record.Seen, next.record.Expires = rec.Seen, rec.Expires
			next.record.Revision = driver.NewRevision(kept.record.Revision)
			err = m.save(ctx, next.id, next.record, kept.record.Revision)
		}
		if errors.Is(err, ErrConflict) { // another request that was first has extended it, too
			err = nil
		}
	} else {
		next.record.Revision = driver.NewRevision(0)
		err = m.save(ctx, next.id, next.record, 0)
		m.counters.spills.Add(1)
	}
	if err != nil {
		return "", err
	}
	s.spill = next
	return token, nil
}

func sameFields(a, b driver.Fields) bool {
	next, stop := iter.Pull2(b.All())
	defer stop()
	for name, value := range a.All() {
		if n, v, ok := next(); !ok || n != name || !bytes.Equal(v, value) {
			return false
		}
	}
	_, _, more := next()
	return !more
}

// logoutSealed ends the session: by its user's record, and by its server record.
func (s *Session) logoutSealed(ctx context.Context) error {
	m := s.m
	if m.store == nil {
		return nil
	}
	if s.record.User != "" {
		if err := m.leaveListing(ctx, s.record.User, s.id); err != nil {
			return err
		}
	}
	switch {
	case m.config.Strict:
		if err := m.endServer(ctx, s.id, s.record.Revision, s.serverTag); err != nil {
			return err
		}
	case s.record.User != "":
		m.forget(ctx, s.id)
	}
	if s.spill.record.Revision != 0 { // last: until here the session may live on
		m.forget(ctx, s.spill.id)
	}
	return nil
}

// endServer puts a marker in the place of what the servers keep of a session, so that a request under way neither sets nor
// clears a cookie. If another request has made another token meanwhile, that ends too.
func (m *Manager) endServer(ctx context.Context, id driver.ID, prev, tag uint64) error {
	marker := newMarker(markerEnded, prev)
	marker.Tag = tag
	err := m.save(ctx, id, marker, prev)
	if errors.Is(err, ErrConflict) {
		return m.delete(ctx, id)
	}
	return err
}
