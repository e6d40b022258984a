// Package holdfast keeps a user's session while requests move between servers and servers come and go.
//
// A [Manager] is net/http middleware over a store that all servers share. Handlers get their [Session] from the
// request and read and write typed fields in it:
//
//	store, err := redisstore.Open(ctx, "redis://localhost:6379")
//	sessions, err := holdfast.New(store, holdfast.Config{IdleTimeout: 30 * time.Minute, Lifetime: 12 * time.Hour})
//
//	var visits = holdfast.NewField[int]("visits")
//
//	mux.HandleFunc("POST /visit", func(w http.ResponseWriter, r *http.Request) {
//		s, err := sessions.Get(r)
//		if err != nil {
//			sessions.Error(w, r, err)
//			return
//		}
//		n, err := visits.Update(r.Context(), s, func(n int) (int, error) { return n + 1, nil })
//		...
//	})
//	http.ListenAndServe(":8080", sessions.Handler(mux))
//
// What holds with every store:
//
//   - Two requests that change different fields both win. Field.Update loses no update of one field.
//   - Logout is final: a slow request that ends after it does not bring the session back.
//   - A store that cannot answer is an error (ErrUnavailable), never an anonymous visitor.
//   - A session is not served past its idle timeout or its lifetime.
//   - A token that this Manager did not issue is never adopted, and one that is malformed reaches no store.
//   - What a response says is saved before its first byte is sent; if it cannot be, the response is a 503.
//   - A request that does not use its session costs no store call; one that does costs one load and at most one
//     write, of what changed.
//
// A store never learns a token: it names sessions by the token's SHA-256.
package holdfast

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/holdfast-sessions/holdfast/driver"
)

// Manager hands out the sessions of one store, or those that a Sealer makes. Its methods may be called concurrently.
type Manager struct {
	store        driver.Store   // of user records only, if there is a sealer; may be nil then
	merger       driver.Merger  // nil if the store has none
	toucher      driver.Toucher // nil if the store has none
	description  driver.Description
	config       Config
	secureCookie sentCookie // for every request, without Config.CookieFor
	keys         []valueKey
	locks        idLocks
	counters     counters

	sealer            driver.Sealer // nil if sessions are in the store
	sealerDescription driver.Description
	maxToken          int
	listings          listings
	watcher           driver.Watcher // nil if the store has none, or needs none
	watching          watching

	warnedPlain atomic.Bool
}

// New returns a Manager over store. It does no I/O. The store stays the caller's, who closes it after the last
// request. The error lists every field of c that cannot be used.
func New(store driver.Store, c Config) (*Manager, error) {
	if store == nil {
		return nil, errors.New("holdfast: New needs a store, such as memory.New()")
	}
	if c.Strict || c.FailOpen || c.Bearer || c.Spill {
		return nil, errors.New("holdfast config: Strict, FailOpen, Spill and Bearer are for sealed sessions: see NewSealed")
	}
	if err := c.Validate(); err != nil {
		return nil, err
	}
	return newManager(store, c), nil
}

// newManager makes a Manager of what has been validated.
func newManager(store driver.Store, c Config) *Manager {
	m := &Manager{store: store, config: c.withDefaults()}
	m.secureCookie = m.config.Cookie.prefixed()
	m.merger, _ = store.(driver.Merger)
	m.toucher, _ = store.(driver.Toucher)
	if d, ok := store.(driver.Describer); ok {
		m.description = d.Describe()
	}
	if limit := m.description.MaxBytes; limit > 0 {
		m.config.MaxBytes = min(m.config.MaxBytes, limit)
	}
	for _, k := range m.config.ValueKeys {
		m.keys = append(m.keys, newValueKey(k))
	}
	return m
}

// Close ends what the Manager does in the background, and waits for it: with sealed sessions it watches the user records,
// once the first is remembered, if their store can tell of changes (Capabilities.Watch). Closing that store ends it too.
// Closing twice is allowed. Requests are served afterwards as with a store that cannot tell.
func (m *Manager) Close() error {
	m.watching.close()
	return nil
}

// Capabilities says what a Manager's store can do.
type Capabilities struct {
	Store    driver.Description
	Merge    bool // lays changes over a record by itself
	Touch    bool // extends a record without rewriting it
	Watch    bool // tells what is changed on other servers
	List     bool // lists all records
	Sweep    bool // removes at once what has expired
	Stat     bool // says how much it keeps
	MaxBytes int  // the largest encoded session; of a sealed one the longest token, all of its cookies together

	Sealer driver.Description // what makes the tokens, if sessions are sealed; Store keeps the user records then
	Revoke bool               // sessions can be ended by force
	Strict bool               // an older token of a sealed session is refused
}

// Capabilities says what the Manager's store can do.
func (m *Manager) Capabilities() Capabilities {
	_, watches := m.store.(driver.Watcher) // all false where there is no store
	_, lists := m.store.(driver.Lister)
	_, sweeps := m.store.(driver.Sweeper)
	_, counts := m.store.(driver.Stater)
	c := Capabilities{
		Store: m.description, Merge: m.merger != nil, Touch: m.toucher != nil, Watch: watches, List: lists, Sweep: sweeps, Stat: counts,
		MaxBytes: m.config.MaxBytes, Revoke: m.store != nil,
	}
	if m.sealed() {
		c.Sealer, c.Strict, c.MaxBytes = m.sealerDescription, m.config.Strict, m.maxToken
	}
	return c
}

// Get returns the session of a request that passed through Handler, loading it on first use. Every visitor has
// one: it is stored, and its token sent, when the first field is set.
//
// The error says that the session cannot be known: the store cannot answer (ErrUnavailable), or the Cookie header
// is beyond reason (ErrCookies). Answer it with Manager.Error, not as if the visitor were anonymous. The session is
// not nil even then, and refuses everything with the same error.
func (m *Manager) Get(r *http.Request) (*Session, error) {
	x, ok := r.Context().Value(m).(*exchange)
	if !ok {
		return &Session{m: m, err: ErrNoMiddleware}, ErrNoMiddleware
	}
	s := x.use()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.load()
	return s, s.err
}

// Open returns the session with an ID, for work that outlives the request, such as a WebSocket or a queue. It
// returns ErrNotFound if there is none. Its changes are stored by Session.Save. Sealed sessions are with their clients:
// ErrUnsupported.
func (m *Manager) Open(ctx context.Context, id driver.ID) (*Session, error) {
	if m.sealed() {
		return nil, fmt.Errorf("open session %s: %w: a sealed session is with its client", id, ErrUnsupported)
	}
	ctx, cancel := m.bound(ctx)
	defer cancel()
	rec, p, err := m.loadSession(ctx, id)
	if err != nil {
		return nil, err
	}
	if isMarker(rec) || id == UserID(rec.User) {
		return nil, &StoreError{Op: "load", ID: id, Err: ErrNotFound}
	}
	return &Session{m: m, loaded: true, id: id, record: rec, policy: p}, nil
}

// bound gives ctx the deadline that holds for one call's work in the store.
func (m *Manager) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	if m.store == nil || m.description.Immediate {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, m.config.StoreTimeout)
}

// policy is what a login decided for its session. It is kept in the record, in the field loginField.
type policy struct {
	Idle       time.Duration `json:"idle,omitempty"`
	Lifetime   time.Duration `json:"lifetime,omitempty"`
	Persistent bool          `json:"persistent,omitempty"`
	Method     string        `json:"method,omitempty"`
}

// expires returns when a session ends that was made at created and last seen at seen.
func (p policy) expires(created, seen time.Time) time.Time {
	idle, end := seen.Add(p.Idle), created.Add(p.Lifetime)
	if idle.Before(end) {
		return idle
	}
	return end
}

// now is the current time as a record keeps it.
func now() time.Time { return time.UnixMilli(time.Now().UnixMilli()) }

// The errors that callers branch on, with errors.Is. The first eight are those of package driver.
var (
	ErrNotFound    = driver.ErrNotFound
	ErrConflict    = driver.ErrConflict
	ErrUnavailable = driver.ErrUnavailable
	ErrTooLarge    = driver.ErrTooLarge
	ErrReadOnly    = driver.ErrReadOnly
	ErrVersion     = driver.ErrVersion
	ErrCorrupt     = driver.ErrCorrupt
	// ErrTampered says that a value cannot be decrypted: it was changed, moved, or written under another key.
	ErrTampered = driver.ErrTampered

	// ErrEnded says that the session was renewed or ended by another request while this one ran. Nothing of this
	// request was saved. The client has, or will get, another cookie: repeating the request is right.
	ErrEnded = errors.New("session was renewed or ended meanwhile: repeat the request")
	// ErrLimit says that the user has as many sessions as Config.MaxSessions allows.
	ErrLimit = errors.New("user has reached the limit of concurrent sessions")
	// ErrCookies says that the Cookie header is too large to be trusted whole.
	ErrCookies = errors.New("cookie header too large")
	// ErrCommitted says that the response header is sent: no token can be given to the client any more. Start,
	// log in and renew sessions before the first byte of the response.
	ErrCommitted = errors.New("response header already sent: too late to start, log in or renew a session")
	// ErrFinished says that the request of the session is over. For background work use Manager.Open.
	ErrFinished = errors.New("request is over: use Manager.Open for background work")
	// ErrNoMiddleware says that a request did not pass through Manager.Handler.
	ErrNoMiddleware = errors.New("request did not pass through Manager.Handler: wrap the outermost handler in it")
	// ErrUnsupported says that the session cannot do this, or not here.
	ErrUnsupported = errors.New("not supported")
)

// StoreError says which call of the store failed. It matches what the store answered.
type StoreError struct {
	Op  string    // "load", "save", "merge", "touch" or "delete"
	ID  driver.ID // printed as 8 characters
	Err error
}

func (e *StoreError) Error() string { return fmt.Sprintf("%s session %s: %v", e.Op, e.ID, e.Err) }

// Unwrap returns what the store answered.
func (e *StoreError) Unwrap() error { return e.Err }

// EventKind says what happened.
//
// Two causes occur only with stores that may drop records before they expire (driver.Description.Evicts). "unlisted" is
// a session that its user's record does not list: that record was dropped, perhaps after a revocation, so the session
// ends. "evicted" is a session that was dropped: its user, who had not logged out, logged in again with its token.
type EventKind string

// The kinds of events.
const (
	EventCreated EventKind = "created" // a session was saved for the first time
	EventRenewed EventKind = "renewed" // it has a new token; Cause: "login" or "renew"
	EventEnded   EventKind = "ended"   // by force or logout; Cause: "logout", "revoked", "limit", "corrupt", "unlisted"
	EventLost    EventKind = "lost"    // a request can save nothing because its session was ended or renewed by another; or, with Cause "evicted", the store dropped a session
	EventRefused EventKind = "refused" // a token was not accepted; Cause: "unknown", "malformed", "duplicate", "oversized", and for sealed ones "tampered", "foreign", "retired key", "expired", "not yet valid", "incomplete", "ended", "replayed"
)

// Event is something that happened to a session.
type Event struct {
	Kind  EventKind
	Cause string
	ID    driver.ID // zero where there is none
	User  string
}

// LogValue shows the short form of the ID, also in logs that are JSON.
func (e Event) LogValue() slog.Value {
	return slog.GroupValue(slog.String("kind", string(e.Kind)), slog.String("cause", e.Cause),
		slog.String("session", e.ID.String()), slog.String("user", e.User))
}

// Stats are counts since the Manager was made, for metrics.
type Stats struct {
	Loads, Saves, Merges, Touches, Deletes uint64 // store calls
	Conflicts                              uint64 // saves repeated because another writer was first
	StoreErrors                            uint64 // store calls that failed for another reason
	Created, Renewed, Ended                uint64 // sessions
	Lost                                   uint64 // requests that could save nothing, see EventLost
	Unlisted, Evicted                      uint64 // sessions lost with records that the store dropped; see EventKind
	Unknown, Malformed                     uint64 // tokens not accepted
	Duplicate, Oversized                   uint64 // Cookie headers not accepted
	Corrupt                                uint64 // stored records that could not be read

	Seals                               uint64 // tokens sent that hold a session
	Tampered, Foreign, Retired, Expired uint64 // sealed tokens not accepted: see driver.Sealer
	NotYetValid                         uint64 // the same: from a server whose clock is ahead of this one's by more than is allowed
	Incomplete                          uint64 // sealed tokens of which a cookie was missing, or was another token's
	Replayed                            uint64 // sealed tokens older than Config.Strict accepts
	FailedOpen                          uint64 // requests accepted by Config.FailOpen
	Spills                              uint64 // fields of sealed sessions moved to the store, see Config.Spill
	Pushed                              uint64 // user records forgotten as their store told of a change
	WatchLosses                         uint64 // times that it could not tell any more, until it could again
}

// counters is Stats being counted.
type counters struct {
	loads, saves, merges, touches, deletes, conflicts, storeErrors atomic.Uint64
	created, renewed, ended, lost, unlisted, evicted               atomic.Uint64
	unknown, malformed, duplicate, oversized, corrupt              atomic.Uint64
	seals, tampered, foreign, retired, expired, notYetValid        atomic.Uint64
	incomplete, replayed, failedOpen, spills, pushed, watchLosses  atomic.Uint64
}

// Stats returns the counts. It may be called concurrently.
func (m *Manager) Stats() Stats {
	c := &m.counters
	return Stats{
		Loads: c.loads.Load(), Saves: c.saves.Load(), Merges: c.merges.Load(), Touches: c.touches.Load(),
		Deletes: c.deletes.Load(), Conflicts: c.conflicts.Load(), StoreErrors: c.storeErrors.Load(),
		Created: c.created.Load(), Renewed: c.renewed.Load(), Ended: c.ended.Load(), Lost: c.lost.Load(),
		Unlisted: c.unlisted.Load(), Evicted: c.evicted.Load(),
		Unknown: c.unknown.Load(), Malformed: c.malformed.Load(),
		Duplicate: c.duplicate.Load(), Oversized: c.oversized.Load(), Corrupt: c.corrupt.Load(),
		Seals: c.seals.Load(), Tampered: c.tampered.Load(), Foreign: c.foreign.Load(), Retired: c.retired.Load(), NotYetValid: c.notYetValid.Load(),
		Expired: c.expired.Load(), Incomplete: c.incomplete.Load(), Replayed: c.replayed.Load(), FailedOpen: c.failedOpen.Load(), Spills: c.spills.Load(),
		Pushed: c.pushed.Load(), WatchLosses: c.watchLosses.Load(),
	}
}

func (m *Manager) emit(ctx context.Context, n *atomic.Uint64, e Event) {
	n.Add(1)
	if m.config.OnEvent != nil {
		m.config.OnEvent(ctx, e)
	}
}

// Error answers a request whose session could not be used, as fits err: 503 with Retry-After where the store
// cannot answer, 409 where the session was renewed or ended meanwhile, 413 and 431 where something is too large.
// The text says no more than that.
func (m *Manager) Error(w http.ResponseWriter, r *http.Request, err error) {
	status, text := http.StatusInternalServerError, "The session could not be used."
	switch {
	case errors.Is(err, ErrEnded):
		status, text = http.StatusConflict, "Your session was renewed or ended while this request ran. Please repeat it."
	case errors.Is(err, ErrTooLarge):
		status, text = http.StatusRequestEntityTooLarge, "Too much to keep in the session."
	case errors.Is(err, ErrCookies):
		status, text = http.StatusRequestHeaderFieldsTooLarge, "The browser sent too many cookies. Please delete those of this site."
	case errors.Is(err, ErrLimit):
		status, text = http.StatusForbidden, "Too many sessions. Please log out elsewhere first."
	case errors.Is(err, ErrUnavailable), errors.Is(err, ErrVersion), errors.Is(err, ErrReadOnly),
		errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		status, text = http.StatusServiceUnavailable, "Sessions are unavailable for a moment. Nothing is lost; please try again."
		w.Header().Set("Retry-After", "2")
	}
	w.Header().Set("Cache-Control", "no-store")
	http.Error(w, text, status)
}
