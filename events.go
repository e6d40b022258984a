package holdfast

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync/atomic"

	"github.com/holdfast-sessions/holdfast/driver"
)

// The errors that callers branch on, with errors.Is. The first seven are those of package driver.
var (
	ErrNotFound    = driver.ErrNotFound
	ErrConflict    = driver.ErrConflict
	ErrUnavailable = driver.ErrUnavailable
	ErrTooLarge    = driver.ErrTooLarge
	ErrReadOnly    = driver.ErrReadOnly
	ErrVersion     = driver.ErrVersion
	ErrCorrupt     = driver.ErrCorrupt

	// ErrEnded says that the session was renewed or ended by another request while this one ran. Nothing of this
	// request was saved. The client has, or will get, another cookie: repeating the request is right.
	ErrEnded = errors.New("session was renewed or ended meanwhile: repeat the request")
	// ErrTampered says that a value cannot be decrypted: it was changed, moved, or written under another key.
	ErrTampered = errors.New("stored value cannot be decrypted")
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
	EventRefused EventKind = "refused" // a token was not accepted; Cause: "unknown", "malformed", "duplicate", "oversized"
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
}

// counters is Stats being counted.
type counters struct {
	loads, saves, merges, touches, deletes, conflicts, storeErrors atomic.Uint64
	created, renewed, ended, lost, unlisted, evicted               atomic.Uint64
	unknown, malformed, duplicate, oversized, corrupt              atomic.Uint64
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
