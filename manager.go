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
	"net/http"
	"sync/atomic"
	"time"

	"github.com/holdfast-sessions/holdfast/driver"
)

// Manager hands out the sessions of one store. Its methods may be called concurrently.
type Manager struct {
	store        driver.Store
	merger       driver.Merger  // nil if the store has none
	toucher      driver.Toucher // nil if the store has none
	description  driver.Description
	config       Config
	secureCookie sentCookie // for every request, without Config.CookieFor
	keys         []valueKey
	locks        idLocks
	counters     counters

	warnedPlain atomic.Bool
}

// New returns a Manager over store. It does no I/O. The store stays the caller's, who closes it after the last
// request. The error lists every field of c that cannot be used.
func New(store driver.Store, c Config) (*Manager, error) {
	if store == nil {
		return nil, errors.New("holdfast: New needs a store, such as memory.New()")
	}
	if err := c.Validate(); err != nil {
		return nil, err
	}
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
	return m, nil
}

// Capabilities says what a Manager's store can do.
type Capabilities struct {
	Store    driver.Description
	Merge    bool // lays changes over a record by itself
	Touch    bool // extends a record without rewriting it
	List     bool // lists all records
	Sweep    bool // removes at once what has expired
	Stat     bool // says how much it keeps
	MaxBytes int  // the largest encoded session
}

// Capabilities says what the Manager's store can do.
func (m *Manager) Capabilities() Capabilities {
	_, lists := m.store.(driver.Lister)
	_, sweeps := m.store.(driver.Sweeper)
	_, counts := m.store.(driver.Stater)
	return Capabilities{
		Store: m.description, Merge: m.merger != nil, Touch: m.toucher != nil, List: lists, Sweep: sweeps, Stat: counts,
		MaxBytes: m.config.MaxBytes,
	}
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
// returns ErrNotFound if there is none. Its changes are stored by Session.Save.
func (m *Manager) Open(ctx context.Context, id driver.ID) (*Session, error) {
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
	if m.description.Immediate {
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
