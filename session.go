package holdfast

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/holdfast-sessions/holdfast/driver"
)

// Session is what is kept for one visitor. Fields read and write it. Its methods may be called concurrently, by the
// request it came from: they wait for each other.
type Session struct {
	m *Manager
	x *exchange // the request; nil if the session was opened by its ID

	// mu guards the fields below. It is held across the session's store calls, which come one after another anyway.
	mu      sync.Mutex
	loaded  bool
	err     error           // why the session cannot be known; everything fails with it
	lost    string          // kind of the marker, if another request renewed or ended the session
	token   string          // "" if the client has none, or the session was opened by its ID
	id      driver.ID       // of token
	unknown driver.ID       // of a token that the store, which may drop records, cannot tell anything about
	record  driver.Record   // as it was loaded or last stored; Revision 0: nothing is stored yet
	policy  policy          // that record was made under
	pending []driver.Change // not stored yet, at most one of a name, values not encrypted

	// Of sealed sessions only.
	foreign   bool   // the client has a token that another server may know
	reseal    bool   // the token was made with a key that is no longer the active one
	readOnly  bool   // the token has been replaced a moment ago; see Config.Strict
	serverTag uint64 // with Config.Strict: the Tag of what the servers keep of the session, as it was loaded
	spill     spill

	vary, private [1]string // room for two header lines, which are in the response of nearly every request
}

// load finds the session of a request, once.
func (s *Session) load() {
	if s.loaded {
		return
	}
	s.loaded = true
	s.policy = s.m.complete(policy{})
	token, err := s.x.findToken()
	if err != nil || token == "" {
		s.err = err
		return
	}
	ctx, cancel := s.m.bound(s.x.Context)
	defer cancel()
	if s.m.sealed() {
		s.openToken(ctx, token)
		return
	}
	id, ok := TokenID(token)
	if !ok {
		s.m.emit(ctx, &s.m.counters.malformed, Event{Kind: EventRefused, Cause: "malformed"})
		return
	}
	rec, p, err := s.m.loadSession(ctx, id)
	switch {
	case errors.Is(err, ErrNotFound) && time.Since(epoch)-s.x.began > markerAge/2:
		// It may have been renewed since the request began, and the marker be gone.
		s.lost = markerEnded
		s.m.emit(ctx, &s.m.counters.lost, Event{Kind: EventLost, ID: id})
	case errors.Is(err, ErrNotFound):
		if s.m.description.Evicts && !errors.Is(err, driver.ErrGone) {
			s.unknown = id
		}
		s.m.emit(ctx, &s.m.counters.unknown, Event{Kind: EventRefused, Cause: "unknown", ID: id})
	case err != nil:
		s.err = err
	case isMarker(rec):
		s.lost = markerKind(rec)
		s.m.emit(ctx, &s.m.counters.lost, Event{Kind: EventLost, ID: id})
	default:
		s.token, s.id, s.record, s.policy = token, id, rec, p
	}
}

// Format prints a session as "[session]", whatever the verb: its token and its values are not for logs.
func (s *Session) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "[session]") }

// ID names the session in lists and logs, and to Manager.Open. It is zero until the session is stored, and another
// one after Login and Renew.
func (s *Session) ID() driver.ID {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.record.Revision == 0 {
		return driver.ID{}
	}
	return s.id
}

// User returns the user who is logged in, or "".
func (s *Session) User() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.record.User
}

// Created returns when the session was made, or logged in: for a logged-in session, when its user last
// authenticated. It is zero until the session is stored.
func (s *Session) Created() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.record.Created
}

// Method returns how the user authenticated, as LoginOptions.Method said.
func (s *Session) Method() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.policy.Method
}

// Expires returns when the session ends if it is not used again. It is zero until the session is stored.
func (s *Session) Expires() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.record.Expires
}

// value returns the JSON of a field, nil if there is none.
func (s *Session) value(name string) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return nil, s.err
	}
	return s.valueIn(s.record, name)
}

// valueIn returns the JSON of a field in rec with the pending changes laid over it, nil if there is none.
func (s *Session) valueIn(rec driver.Record, name string) ([]byte, error) {
	for _, c := range s.pending {
		if c.Name == name {
			return c.Value, nil
		}
	}
	b, ok := rec.Fields.Get(name)
	if !ok {
		return nil, nil
	}
	return s.m.unseal(s.id, name, b)
}

// change makes c pending.
func (s *Session) change(c driver.Change) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.writable(); err != nil {
		return err
	}
	if old, err := s.valueIn(s.record, c.Name); err == nil && (old == nil) == c.Delete && bytes.Equal(old, c.Value) {
		return nil
	}
	pending := s.pending
	if i := slices.IndexFunc(pending, func(p driver.Change) bool { return p.Name == c.Name }); i >= 0 {
		pending = slices.Delete(slices.Clone(pending), i, i+1) // whole if the change is refused
	}
	if !c.Delete || s.record.Revision != 0 {
		pending = append(pending, c)
	}
	if err := s.fits(pending); err != nil {
		return err
	}
	s.pending = pending
	return nil
}

// fits returns ErrTooLarge if the session with changes laid over it would be larger than is allowed.
func (s *Session) fits(changes []driver.Change) error {
	const perField = 64 // more than a field's overhead, encrypted or not
	bound := s.record.EncodedLen()
	for _, c := range changes {
		bound += perField + len(c.Name) + len(c.Value)
	}
	limit := s.m.config.MaxBytes
	if s.m.sealed() {
		limit = s.m.maxToken / 2 // a token is a third longer than what it holds
	}
	if bound <= limit {
		return nil
	}
	rec, err := s.m.follow(s.policy, s.record, s.m.seal(s.id, changes))
	if err == nil && s.m.sealed() && !s.m.config.Spill && rec.EncodedLen() > limit { // bound counts what is replaced, too
		_, err = s.m.sealToken(s.x.binding(), s.id, rec)
	}
	return err
}

// writable returns why the session cannot be written, if so.
func (s *Session) writable() error {
	switch {
	case s.err != nil:
		return s.err
	case s.lost != "":
		return ErrEnded
	case s.x == nil:
		if s.record.Revision == 0 {
			return ErrEnded // opened by its ID, and logged out: nobody could be given the token of another
		}
		return nil
	}
	switch p := s.x.phase.Load(); {
	case p == phaseFinished:
		return ErrFinished
	case p == phaseCommitted && (s.record.Revision == 0 || s.m.sealed()):
		return ErrCommitted
	}
	return nil
}

// update replaces the value of a field by what fn makes of the latest one, and stores it with all pending changes.
func (s *Session) update(ctx context.Context, name string, fn func([]byte) ([]byte, error)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.writable(); err != nil {
		return err
	}
	if s.m.sealed() && !s.m.config.Strict {
		return fmt.Errorf("update: %w: of two requests that carry the same sealed session the client keeps one answer (Config.Strict refuses the other)", ErrUnsupported)
	}
	ctx, cancel := s.m.bound(ctx)
	defer cancel()
	changesTo := func(rec driver.Record) ([]driver.Change, error) {
		b, err := s.valueIn(rec, name)
		if err != nil {
			return nil, err
		}
		if b, err = fn(b); err != nil {
			return nil, err
		}
		others := func(c driver.Change) bool { return c.Name == name }
		return append(slices.DeleteFunc(slices.Clone(s.pending), others), driver.Change{Name: name, Value: b}), nil
	}
	if s.record.Revision == 0 || s.m.sealed() {
		changes, err := changesTo(s.record)
		if err != nil {
			return err
		}
		return s.create(ctx, changes)
	}
	if err := s.confirm(ctx); err != nil {
		return err
	}
	rec, err := s.m.update(ctx, s.id, s.record, func(rec driver.Record) (driver.Record, error) {
		changes, err := changesTo(rec)
		if err != nil {
			return driver.Record{}, err
		}
		return s.m.follow(s.policy, rec, s.m.seal(s.id, changes))
	})
	return s.stored(ctx, rec, err)
}

// Save stores the pending changes now instead of before the first byte of the response. Sessions that were opened by
// their ID are stored by it alone. It fails with ErrEnded if the session was renewed or ended meanwhile, and then the
// changes are dropped.
func (s *Session) Save(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.writable(); err != nil {
		return err
	}
	return s.flush(ctx)
}

// flush stores the pending changes, if there are any.
func (s *Session) flush(ctx context.Context) error {
	if len(s.pending) == 0 {
		return nil
	}
	ctx, cancel := s.m.bound(ctx)
	defer cancel()
	if s.record.Revision == 0 || s.m.sealed() {
		return s.create(ctx, s.pending)
	}
	if err := s.confirm(ctx); err != nil {
		return err
	}
	rec, err := s.m.merge(ctx, s.policy, s.id, s.record, s.m.seal(s.id, s.pending))
	return s.stored(ctx, rec, err)
}

// stored takes note of what became of the pending changes.
func (s *Session) stored(ctx context.Context, rec driver.Record, err error) error {
	switch {
	case err == nil:
		s.record, s.pending = rec, nil
	case errors.Is(err, ErrEnded):
		s.lose(ctx, markerRenewed)
	}
	return err
}

// lose drops the pending changes of a session that another request renewed or ended.
func (s *Session) lose(ctx context.Context, kind string) {
	s.m.emit(ctx, &s.m.counters.lost, Event{Kind: EventLost, ID: s.id, User: s.record.User})
	s.lost, s.pending, s.record = kind, nil, driver.Record{}
	if s.x != nil {
		s.x.send = false // another cookie may be on its way
	}
}

// create stores a new session with changes, or seals any, and has its token sent.
func (s *Session) create(ctx context.Context, changes []driver.Change) error {
	if s.m.sealed() {
		err := s.sealNext(ctx, changes)
		if errors.Is(err, ErrEnded) {
			s.lose(ctx, markerRenewed)
		}
		return err
	}
	if s.token == "" {
		if err := s.mint(); err != nil {
			return err
		}
	}
	rec, err := s.m.follow(s.policy, driver.Record{Created: now()}, s.m.seal(s.id, changes))
	if err != nil {
		return err
	}
	if err := s.m.save(ctx, s.id, rec, 0); err != nil {
		s.token, s.id = "", driver.ID{} // it may be stored all the same: the next attempt takes another
		return err
	}
	s.record, s.pending = rec, nil
	s.x.send = true
	s.m.emit(ctx, &s.m.counters.created, Event{Kind: EventCreated, ID: s.id})
	return nil
}

// mint gives the session a new token.
func (s *Session) mint() error {
	token, err := newToken(s.m.config.Rand)
	if err != nil {
		return err
	}
	s.token = token
	s.id, _ = TokenID(token)
	return nil
}

// touchDue reports whether a twentieth of the idle timeout has passed.
func (s *Session) touchDue() bool {
	return s.record.Revision != 0 && time.Since(s.record.Seen) >= s.policy.Idle/20
}

// touch extends the idle timeout. One that loses a race is done: whoever won it has just used the session.
func (s *Session) touch(ctx context.Context) {
	ctx, cancel := s.m.bound(ctx)
	defer cancel()
	if s.confirm(ctx) != nil {
		return
	}
	next, err := s.m.follow(s.policy, s.record, nil)
	if err != nil {
		return // MaxBytes was lowered below the size of this session
	}
	if s.m.toucher == nil {
		_ = s.m.save(ctx, s.id, next, s.record.Revision) // counted there
		return
	}
	s.m.counters.touches.Add(1)
	_ = s.m.failed("touch", s.id, s.m.toucher.Touch(ctx, s.id, next, s.record.Revision)) // counted there
}

// LoginOptions are what one login decides for its session.
type LoginOptions struct {
	// Lifetime and IdleTimeout take the place of those in Config, for example for "remember me".
	Lifetime, IdleTimeout time.Duration
	// Persistent makes the browser keep the cookie, for Lifetime, when it is closed.
	Persistent bool
	// Method says how the user authenticated, for Session.Method: "password", "passkey", up to 64 bytes.
	Method string
}

// maxUserBytes is the longest user name: enough for an address or a URI that names one.
const maxUserBytes = 1024

// Login makes user the session's user, after the application has authenticated them. It gives the session a new
// token and ends the old one at once on every server, so that a token from before the login is worth nothing after it.
// Values stay, also those that other requests save meanwhile; but where another user was logged in, only those that
// this request set. Everything is stored when Login returns.
//
// It must come before the first byte of the response (ErrCommitted). It fails with ErrEnded if another request renewed
// or ended the session first, and with ErrLimit as Config.RefuseAtLimit says; then the session is as it was.
func (s *Session) Login(ctx context.Context, user string, o ...LoginOptions) error {
	if user == "" || len(user) > maxUserBytes {
		return fmt.Errorf("login: user name has %d bytes, want 1 to %d", len(user), maxUserBytes)
	}
	var p policy
	if len(o) > 0 {
		p = policy{Idle: o[0].IdleTimeout, Lifetime: o[0].Lifetime, Persistent: o[0].Persistent, Method: o[0].Method}
	}
	if len(p.Method) > 64 {
		return fmt.Errorf("login: method has %d bytes, want at most 64", len(p.Method))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	login := driver.Change{Name: loginField, Delete: p == policy{}}
	if !login.Delete {
		login.Value, _ = json.Marshal(p) // cannot fail: numbers, a bool and a string
	}
	r := renewal{cause: "login", user: user, created: now(), policy: s.m.complete(p), changes: []driver.Change{login}}
	r.dropFields = s.record.User != "" && s.record.User != user
	return s.renew(ctx, r)
}

// Renew gives the session a new token and ends the old one, as every change of a user's rights should. Lifetime and
// values stay as they are. It fails like Login; a session that is not stored yet needs none.
func (s *Session) Renew(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.record.Revision == 0 && s.lost == "" && s.err == nil {
		return nil
	}
	if !s.m.sealed() { // sealed ones are looked up in each request
		if err := s.listed(ctx); err != nil { // it would be listed again
			return err
		}
	}
	return s.renew(ctx, renewal{cause: "renew", user: s.record.User, created: s.record.Created, policy: s.policy})
}

// renewal says what a session becomes when it gets a new token.
type renewal struct {
	cause      string // "login" or "renew"
	user       string
	created    time.Time
	policy     policy
	changes    []driver.Change // of the Manager's own fields
	dropFields bool
	unknown    driver.ID // see Session
}

// renew puts the session under a new token. The order is what makes every crash and every parallel call safe: the new
// session is stored, then listed, then those beyond the limit are ended, then the old one, then the client gets the
// token. So no token leaves before its ID is listed, and no ID is unlisted before its session is gone.
// TestInterleavings tries all of them. (Listing before storing left unlisted sessions in 79 of 510 schedules.)
func (s *Session) renew(ctx context.Context, r renewal) error {
	if err := s.renewable(); err != nil {
		return err
	}
	ctx, cancel := s.m.bound(ctx)
	defer cancel()
	if s.m.sealed() {
		return s.renewSealed(ctx, r)
	}
	old := s.detached()
	r.unknown = s.unknown
	fresh := Session{m: s.m, policy: r.policy, pending: s.pending}
	if err := fresh.mint(); err != nil {
		return err
	}
	// copied lays the request's changes over the fields of the old session, for the new one.
	copied := func(from driver.Record) (driver.Record, error) {
		rec := driver.Record{User: r.user, Created: r.created}
		if !r.dropFields {
			var err error
			if rec.Fields, err = s.m.reseal(old.id, fresh.id, from.Fields); err != nil {
				return driver.Record{}, err
			}
		}
		return s.m.follow(r.policy, rec, s.m.seal(fresh.id, slices.Concat(fresh.pending, r.changes)))
	}
	var err error
	if fresh.record, err = copied(old.record); err != nil {
		return err
	}
	if err := s.m.save(ctx, fresh.id, fresh.record, 0); err != nil {
		return err
	}
	if err := s.m.replace(ctx, r, old, &fresh, copied); err != nil {
		// The new token is known to nobody: what is left of it if this fails expires, listed.
		ctx, cancel := s.m.bound(context.WithoutCancel(ctx))
		defer cancel()
		ended := errors.Is(err, ErrEnded)
		if s.m.delete(ctx, fresh.id) == nil && r.user != "" {
			var keep []driver.ID
			if !ended {
				keep = []driver.ID{old.id}
			}
			s.m.unlist(ctx, r.user, fresh.id, keep...)
		}
		if ended {
			s.lose(ctx, markerRenewed)
		}
		return err
	}
	s.token, s.id, s.record, s.policy, s.pending = fresh.token, fresh.id, fresh.record, fresh.policy, nil
	s.x.send, s.x.clear = true, false
	if old.record.Revision == 0 {
		s.m.emit(ctx, &s.m.counters.created, Event{Kind: EventCreated, ID: s.id, User: r.user})
	}
	s.m.emit(ctx, &s.m.counters.renewed, Event{Kind: EventRenewed, Cause: r.cause, ID: s.id, User: r.user})
	return nil
}

// renewable returns why the session cannot get a new token, if so.
func (s *Session) renewable() error {
	if err := s.writable(); err != nil {
		return err
	}
	if s.x == nil {
		return fmt.Errorf("%w: a session opened by its ID has no client to give a token to", ErrUnsupported)
	}
	if s.x.phase.Load() != phaseOpen {
		return ErrCommitted
	}
	return nil
}

// stale is a session that is about to be replaced.
type stale struct {
	id     driver.ID
	record driver.Record // Revision 0: there is none
}

func (s *Session) detached() stale { return stale{id: s.id, record: s.record} }

// replace lists the fresh session, ends those of its user beyond the limit, and puts a marker in the place of the old
// one. Whatever another request wrote to the old one until then is copied over: it was acknowledged.
func (m *Manager) replace(ctx context.Context, r renewal, old stale, fresh *Session, copied func(driver.Record) (driver.Record, error)) error {
	if r.user != "" {
		e := entry{id: fresh.id, created: r.created, expires: r.created.Add(r.policy.Lifetime)}
		excess, err := m.enlist(ctx, r, e, old)
		if err != nil {
			return err
		}
		for _, id := range excess {
			if err := m.delete(ctx, id); err != nil {
				return err
			}
			m.emit(ctx, &m.counters.ended, Event{Kind: EventEnded, Cause: "limit", ID: id, User: r.user})
		}
	}
	if old.record.Revision == 0 {
		return nil
	}
	_, err := m.update(ctx, old.id, old.record, func(latest driver.Record) (driver.Record, error) {
		if latest.Revision != old.record.Revision {
			rec, err := copied(latest)
			if err != nil {
				return driver.Record{}, err
			}
			rec.Revision = driver.NewRevision(fresh.record.Revision)
			if err := m.saveAgain(ctx, fresh, rec); err != nil {
				return driver.Record{}, err
			}
		}
		return newMarker(markerRenewed, latest.Revision), nil
	})
	if errors.Is(err, ErrEnded) && r.cause == "login" {
		// Gone without a marker, it expired or was revoked: the user has authenticated anew all the same.
		if _, again := m.load(ctx, old.id); errors.Is(again, ErrNotFound) {
			err = nil
		}
	}
	if listed := old.record.User == r.user && m.config.MaxSessions >= 0; err == nil && old.record.User != "" && !listed {
		m.unlist(ctx, old.record.User, old.id)
	}
	return err
}

// saveAgain replaces the record of a fresh session, which only a revocation can have touched. Stores with a Tag need
// the one they keep now.
func (m *Manager) saveAgain(ctx context.Context, fresh *Session, rec driver.Record) error {
	stored, err := m.load(ctx, fresh.id)
	if err == nil {
		rec.Tag = stored.Tag
		err = m.save(ctx, fresh.id, rec, fresh.record.Revision)
	}
	if errors.Is(err, ErrNotFound) || errors.Is(err, ErrConflict) {
		return ErrEnded
	}
	fresh.record = rec
	return err
}

// Logout ends the session on every server, and has the client drop its cookie. What another request saves afterwards
// is refused. The session can be used again: a field that is set starts a new one.
func (s *Session) Logout(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.err != nil:
		return s.err
	case s.lost == markerEnded:
		return nil
	case s.lost != "":
		return ErrEnded
	}
	ctx, cancel := s.m.bound(ctx)
	defer cancel()
	if old := s.detached(); old.record.Revision != 0 {
		var err error
		if s.m.sealed() {
			err = s.logoutSealed(ctx)
		} else {
			err = s.m.end(ctx, old)
		}
		if err != nil {
			if errors.Is(err, ErrEnded) {
				s.lose(ctx, markerRenewed)
			}
			return err
		}
		s.m.emit(ctx, &s.m.counters.ended, Event{Kind: EventEnded, Cause: "logout", ID: old.id, User: old.record.User})
	}
	s.token, s.id, s.record, s.pending, s.policy = "", driver.ID{}, driver.Record{}, nil, s.m.complete(policy{})
	s.foreign, s.reseal, s.serverTag, s.spill = false, false, 0, spill{}
	if s.x != nil {
		s.x.send, s.x.clear = false, true
	}
	return nil
}

// end puts a marker in the place of a session and unlists it. It fails with ErrEnded if the session was renewed
// meanwhile, so that it lives on under another token; if it was ended meanwhile, all is well.
func (m *Manager) end(ctx context.Context, old stale) error {
	_, err := m.update(ctx, old.id, old.record, func(latest driver.Record) (driver.Record, error) {
		return newMarker(markerEnded, latest.Revision), nil
	})
	if errors.Is(err, ErrEnded) {
		rec, again := m.load(ctx, old.id)
		switch {
		case errors.Is(again, ErrNotFound), again == nil && markerKind(rec) == markerEnded:
			err = nil
		case again != nil:
			err = again
		}
	}
	if err == nil && old.record.User != "" {
		m.unlist(ctx, old.record.User, old.id)
	}
	return err
}
