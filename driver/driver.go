// Package driver is the contract between Holdfast and the stores that keep sessions.
//
// A store implements [Store], four methods, and may implement [Merger], [Toucher], [Watcher], [Lister], [Sweeper], [Stater]
// and [Describer] to do more than the Manager can do for it. Everything else (tokens, cookies, timeouts,
// login, limits, retries, encryption) is written once, above this package, and holds for every store.
//
// The package imports the standard library only. Package storetest proves a store against it:
//
//	func TestStore(t *testing.T) {
//		storetest.Run(t, func(t testing.TB) driver.Store { return open(t) })
//	}
package driver

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"iter"
	"math"
	"math/rand/v2"
	"time"
)

// The errors a store answers with; callers branch on them with errors.Is. An error that is none of these,
// and not the error of the caller's context, must match ErrUnavailable (see [Unavailable]): "not found" and
// "cannot answer" are never confused.
var (
	// ErrNotFound says that the record is absent, expired or ended.
	ErrNotFound = errors.New("not found")
	// ErrGone matches ErrNotFound and says more: the store remembers that the record expired or was ended. One that may
	// drop records (Description.Evicts) answers with it where it can, so that losses are told from endings.
	ErrGone = fmt.Errorf("%w: expired or ended", ErrNotFound)
	// ErrConflict says that the stored record is not the one the caller started from. Nothing was changed.
	ErrConflict = errors.New("changed by another writer")
	// ErrUnavailable says that the store cannot answer now. A write may or may not have happened.
	ErrUnavailable = errors.New("store unavailable")
	// ErrTooLarge says that the record is larger than the store accepts. Nothing was changed.
	ErrTooLarge = errors.New("record too large")
	// ErrReadOnly says that the store answers reads but refuses writes. Nothing was changed.
	ErrReadOnly = errors.New("store is read-only")
	// ErrVersion says that the record was written in a format this release does not know, probably by a newer
	// release. It is left as it is.
	ErrVersion = errors.New("record format not known to this release")
	// ErrCorrupt says that the stored bytes are not a record.
	ErrCorrupt = errors.New("record corrupt")
	// ErrClosed is what a store's methods return after Close. It matches ErrUnavailable.
	ErrClosed = fmt.Errorf("%w: closed", ErrUnavailable)
)

// Unavailable wraps err so that it matches ErrUnavailable and whatever err matches. It returns nil for nil.
func Unavailable(err error) error {
	if err == nil || errors.Is(err, ErrUnavailable) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrUnavailable, err)
}

// ID names a record. For a session it is the SHA-256 of its token, so that nobody who can read a store, a log
// or a screen learns a token.
type ID [32]byte

// Hex returns all 64 hexadecimal characters, for use in keys.
func (id ID) Hex() string { return hex.EncodeToString(id[:]) }

// String returns the first 8 characters of Hex, for people. It is never used as a key.
func (id ID) String() string { return hex.EncodeToString(id[:4]) }

// MarshalText returns what String does, so that no log or JSON holds a whole ID by accident; Hex is deliberate.
func (id ID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// ParseID is the inverse of Hex.
func ParseID(s string) (ID, error) {
	var id ID
	if len(s) != 2*len(id) {
		return ID{}, fmt.Errorf("session ID has %d characters, want %d hexadecimal ones", len(s), 2*len(id))
	}
	if _, err := hex.Decode(id[:], []byte(s)); err != nil {
		return ID{}, errors.New("session ID has characters other than 0-9 and a-f")
	}
	return id, nil
}

// Record is what a store keeps under an ID. Times have millisecond precision: a store keeps no more, and
// callers round before they save.
type Record struct {
	// User is "" before login. It never changes within an ID.
	User string
	// Created never changes within an ID. The zero Time is allowed and kept.
	Created time.Time
	// Seen is when the idle timeout was last extended. It is never lowered.
	Seen time.Time
	// Expires is when the record ends: a store may forget it from then on, never before, and no longer serves it.
	Expires time.Time
	// Revision is the record's version. The writer chooses it, with [NewRevision]. It uses all 64 bits: a store
	// must not pass it through a float or a JSON number.
	Revision uint64
	// Tag is private to the store: it sets it in Load, and finds it again in the record it gets back. Callers
	// copy it from the record they loaded into the one they save and do not look at it.
	Tag uint64
	// Fields are the values.
	Fields Fields
}

// Expired reports whether the record has ended at now.
func (r Record) Expired(now time.Time) bool { return !now.Before(r.Expires) }

// SameLife reports whether r and o are states of one record: the same user and the same Created under an ID.
// After a record ended, a new one under the same ID has another Created.
func (r Record) SameLife(o Record) bool { return r.User == o.User && r.Created.Equal(o.Created) }

// Change sets a field, or removes it.
type Change struct {
	// Name has 0 to [MaxName] bytes of any value.
	Name string
	// Value is not used when Delete is set.
	Value []byte
	// Delete removes the field; removing an absent one is allowed.
	Delete bool
}

// Store keeps records. Its methods may be called concurrently. They return by the deadline of ctx, or shortly
// after, do nothing with one that has already ended, and never keep or modify a slice they were given; the caller does not modify one it got.
type Store interface {
	// Load returns the record, or ErrNotFound if it is absent, expired or ended.
	Load(ctx context.Context, id ID) (Record, error)
	// Save writes rec if the stored revision is prev (0: absent or expired). Otherwise it changes nothing and
	// returns ErrConflict. A rec that has already expired may be stored or dropped.
	Save(ctx context.Context, id ID, rec Record, prev uint64) error
	// Delete ends the session. Ending an absent one is not an error. After Delete returns, no Save with prev != 0
	// and no Merge or Touch, whenever begun, brings the record back.
	Delete(ctx context.Context, id ID) error
	// Close releases what the store holds and waits for its goroutines. Closing twice is allowed; every other
	// method returns ErrClosed afterwards.
	Close() error
}

// Merger is a store that can lay changes over a record by itself, in one step and without conflicts between
// writers of different fields.
type Merger interface {
	// Merge stores next if the stored revision is base.Revision, next being base with changes laid over it and
	// new Seen, Expires and Revision. If the stored record is a later state of base (see Record.SameLife), Merge
	// lays changes over that instead, raises its Seen and Expires to next's, and gives it a revision of at least
	// next's that is larger than its own. It returns the record it stored.
	//
	// Merge never creates: it returns ErrNotFound if the record is absent, expired or ended, and ErrConflict if
	// what is stored is another life of the ID (a marker, or made anew after expiry).
	Merge(ctx context.Context, id ID, base, next Record, changes []Change) (Record, error)
}

// Toucher is a store that can extend a record without rewriting its fields.
type Toucher interface {
	// Touch gives the stored record next's Seen, Expires and Revision if its revision is prev, and leaves its
	// fields alone (next.Fields are those of the record that was loaded). Otherwise it changes nothing and
	// returns ErrConflict, or ErrNotFound if the record is absent, expired or ended.
	Touch(ctx context.Context, id ID, next Record, prev uint64) error
}

// Watcher is a store that tells what changes in it, whoever changes it, so that caches above it can drop what they have.
type Watcher interface {
	// Watch tells of changes until ctx ends or the store is closed, and returns ctx's error or ErrClosed then. It waits out
	// outages by itself. Any other error says why the store cannot watch at all, such as a right that is missing.
	//
	// It calls whole with true when it has begun, and from then on changed for every record that is saved, merged or
	// deleted, at least once, also for what is done through this Store; for touches, and for what expires or is dropped,
	// it may or may not, and also for what did not change. When changed is called, a Load that begins now finds the
	// record as the change left it, or later. Where changes may have been missed it calls whole with false, and with
	// true when that is over: what was loaded before any call of whole may be out of date. From a change to the call of
	// changed, or of whole with false, it takes at most Description.WatchDelay.
	//
	// Several goroutines may call changed at once; calls of whole come one after the other, true and false in turn. Both
	// must be quick, and call neither the store nor what ends ctx. None is called after Watch has returned.
	Watch(ctx context.Context, changed func(ID), whole func(bool)) error
}

// Lister is a store that can list everything it keeps, for operators.
type Lister interface {
	// List yields every record that exists during the whole iteration once, and any other at most once, in no
	// order. An error ends the iteration. It loads records in bounded portions, never all at once.
	List(ctx context.Context) iter.Seq2[Item, error]
}

// Item is a record and its name, as listed.
type Item struct {
	ID     ID
	Record Record
}

// Sweeper is a store that can remove at once what it would remove in time. It serves none of it meanwhile.
type Sweeper interface {
	// Sweep removes every record that has expired, and whatever else calls that broke off have left behind, in small
	// portions that hold up no other call for long. It calls progress, which may be nil, after each with the number of
	// records removed so far, and returns that number, also with an error.
	Sweep(ctx context.Context, progress func(removed int)) (removed int, err error)
}

// Stater is a store that can say how much it keeps without listing it, for operators.
type Stater interface {
	Stat(ctx context.Context) (Stat, error)
}

// Stat is how much a store keeps. A number that the store cannot tell is negative.
type Stat struct {
	// Records is how many records have not expired: sessions, user records and markers.
	Records int64
	// Expired is how many records have expired and wait to be removed.
	Expired int64
	// Bytes is what all of them take, as the store counts.
	Bytes int64
	// Facts are what else an operator of this kind of store would look at, in the order to show them in.
	Facts []Fact
}

// Fact is one thing that a store says of itself.
type Fact struct {
	Name  string // a few words in lower case: "evictions"
	Value string
}

// Describer is a store that says what it is. The zero Description holds for a store that does not.
type Describer interface {
	Describe() Description
}

// Description is what a store says of itself.
type Description struct {
	// Name is the kind of store: "memory", "file", "redis".
	Name string
	// Shared says that other processes see the same records.
	Shared bool
	// Durable says what survives the store's restart, in a few words for people.
	Durable string
	// Immediate says that no call ever waits (no I/O), so that the Manager spares it a deadline.
	Immediate bool
	// Evicts says that the store may drop records before they expire.
	Evicts bool
	// ExpiryPrecision is how long after Expires a Load may still find a record. 0: not at all.
	ExpiryPrecision time.Duration
	// MaxBytes is the largest encoded record the store accepts. 0: no limit of its own.
	MaxBytes int
	// WatchDelay is how long after a change, at the latest, a Watcher tells of it, or that it cannot. 0: at once.
	WatchDelay time.Duration
}

// NewRevision returns a revision for a record that replaces revision prev (0 for a new record). It is larger than
// prev, and in practice no two states ever stored under one ID share it: a counter that starts at 1 let a stale writer
// overwrite a record that had expired and been made anew, because the numbers met again. (Two attempts to replace one
// state share it once in a million; at most one of them succeeds.)
func NewRevision(prev uint64) uint64 {
	const random = 20 // bits below the millisecond; the sum stays below 2^63 until the year 2248
	r := uint64(rand.Uint32() >> (32 - random))
	return max(prev+1+min(r, math.MaxUint64-1-prev), uint64(time.Now().UnixMilli())<<random|r)
}
