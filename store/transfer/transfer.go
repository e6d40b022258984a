// Package transfer moves live sessions from one store to another while applications use them, so that a site can
// change its store, and change back, without logging anybody out.
//
//	r, err := transfer.Run(ctx, from, to, transfer.Config{Journal: journal})
//
// It goes over all records of FROM and writes to TO what TO does not have: byte for byte, with the revision, so that
// writers in TO go on where those in FROM were. Then it goes over them again for what changed meanwhile, until a pass
// finds nothing new. Applications may write to both stores while it runs. What it guarantees:
//
//   - What ended in FROM since it was copied is ended in TO, unless it was changed in TO since. What ended in TO since
//     it was copied is not brought back.
//   - A logged-in session is never in TO without being listed in its user's record there, but for the moment between
//     two calls in which another client of TO unlists it, after which it is ended; so [holdfast.Manager.RevokeUser] in
//     TO ends every session that has been copied. See user.go for why.
//   - Where both stores changed a record since it was copied, the newer state is kept as a whole; the two are not
//     merged. User records are: each store's entries are kept.
//   - A run that is interrupted, or killed, goes on where it was: see [Journal].
//
// It does not end in FROM what ended in TO, and RevokeUser in TO cannot know of sessions that have not been copied yet:
// as long as both stores are in use, a revocation has to be made in both.
package transfer

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/holdfast-sessions/holdfast/driver"
)

// ErrSame says that FROM and TO are one store.
var ErrSame = errors.New("the two are one store")

// ErrCannotList says that FROM has no driver.Lister.
var ErrCannotList = errors.New("cannot list what it keeps")

// ErrVanished says that most of what was copied is no longer in FROM, as when its server lost its memory: to end all of
// that in TO would complete the loss.
var ErrVanished = errors.New("FROM has lost most of what was copied")

// Config are the settings of a run. The zero value is ready for use.
type Config struct {
	// Journal remembers what was copied, for the next run. nil: what ends in FROM between two runs stays alive in TO.
	Journal *Journal
	// Parallel is how many records are worked on at once. 0: 16.
	Parallel int
	// Rate is how many writes to TO are begun in a second, at most. 0: no limit.
	Rate int
	// Passes is how many times FROM is listed, at most. 0: 10.
	Passes int
	// Follow goes on with passes, Every one after the end of the last, until the context ends, which is then no error.
	Follow bool
	// Every is the pause between passes with Follow. 0: 1 second.
	Every time.Duration
	// Patience is how long a store may be unavailable until the run ends. 0: 1 minute.
	Patience time.Duration
	// EndMany does without ErrVanished: whatever is gone from FROM is ended in TO.
	EndMany bool
	// Progress is called often, by one goroutine at a time. It may be nil.
	Progress func(Progress)
}

// callTimeout is how long one call on a store may take. What took longer is tried again.
const callTimeout = 5 * time.Second

func (c Config) withDefaults() Config {
	if c.Parallel <= 0 {
		c.Parallel = 16
	}
	if c.Passes <= 0 {
		c.Passes = 10
	}
	if c.Every <= 0 {
		c.Every = time.Second
	}
	if c.Patience <= 0 {
		c.Patience = time.Minute
	}
	return c
}

// Progress is how far a run has come.
type Progress struct {
	Pass   int
	Listed int64 // records of FROM in this pass
	Total  int64 // records that FROM has, or negative if it cannot tell
	Result Result
}

// Result is what a run did. Each session and user record that it met is counted in one of the first eight numbers, by
// what became of it last; markers are not counted.
type Result struct {
	Copied     int // TO has its latest state, because this run wrote it
	Same       int // TO had the same state, or a newer one
	Ended      int // it ended in FROM, and therefore in TO
	EndedThere int // it was copied and ended in TO since, by itself: it is not brought back
	Kept       int // it was copied and changed in TO since: that state stays, though FROM ended it or has an older one
	Expired    int // its time was over before it was copied
	Unlisted   int // its user's record does not list it: it was logging in, or out, or its login has failed
	Failed     int // see Failures

	Met      int // how many that are
	Diverged int // of the copied, how often the copy replaced a state that was made in TO: both stores were in use
	Writes   int // to TO
	Passes   int // over FROM, the last of which may be incomplete
	Settled  bool
	// Failures are some of the records that could not be copied.
	Failures []Failure
}

// Failure is a record that could not be copied: one too large for TO, or that cannot be read.
type Failure struct {
	ID  driver.ID // print it as String does
	Err error
}

const maxFailures = 20

type outcome uint8

const (
	none outcome = iota
	copied
	same
	ended
	endedThere
	kept
	expired
	unlisted
	failed
	outcomes
)

// entry is what a run knows of a record.
type entry struct {
	// from and to are the revisions of FROM and TO when they held the same: one number, but for user records that were
	// merged. 0: never.
	from, to uint64
	intent   uint64 // the revision that is on its way to TO, or was when the last run was killed
	expires  int64  // milliseconds
	pass     uint32 // that last met it in FROM
	family   uint32 // for a user record: the pass that last looked at all of its sessions
	outcome  outcome
	met      bool // in this run
	listed   bool // its user's record in TO lists it, or did, though it may not have arrived
}

// known reports whether the record has been in both stores.
func (e entry) known() bool { return e.to != 0 }

// ours reports whether TO's state, of a revision, is one that was written by a run.
func (e entry) ours(revision uint64) bool {
	return revision != 0 && (revision == e.to || revision == e.intent)
}

// run is the state of Run.
type run struct {
	config  Config
	from    reader
	lister  driver.Lister
	to      writer
	total   int64 // of the records in FROM, or negative; changes between passes only
	limit   int   // the largest record that TO takes, 0: any
	journal *Journal

	unlisting [64]sync.Mutex // of the user records whose IDs begin so

	mu sync.Mutex

	// mu guards the fields below.
	entries map[driver.ID]entry
	counts  [outcomes]int
	result  Result // but for what counts holds
	listed  int64
	changes int // made, or found to be made, in this pass
	told    time.Time
}

// Run copies all records of from to to. It returns what it did also with an error: that the context ended, that a store
// was unavailable for longer than Patience, or read-only, that from cannot list (ErrCannotList), or that the two are one
// store (ErrSame). Records that could not be copied are no error; they are counted.
func Run(ctx context.Context, from, to driver.Store, c Config) (Result, error) {
	lister, ok := from.(driver.Lister)
	if !ok {
		return Result{}, fmt.Errorf("FROM %w", ErrCannotList)
	}
	r := &run{config: c.withDefaults(), lister: lister, total: -1, journal: c.Journal, entries: make(map[driver.ID]entry)}
	caller := &caller{patience: r.config.Patience}
	r.from, r.to = reader{from, caller}, writer{reader: reader{to, caller}, pace: newPace(c.Rate), wrote: r.wrote}
	if d, ok := to.(driver.Describer); ok {
		r.limit = d.Describe().MaxBytes
	}
	if err := r.apart(ctx); err != nil {
		return Result{}, err
	}
	if s, ok := from.(driver.Stater); ok {
		if st, err := s.Stat(ctx); err == nil {
			r.total = st.Records
		}
	}
	if r.journal != nil {
		r.entries = r.journal.take()
	}
	err := r.passes(ctx)
	if r.journal != nil {
		err = errors.Join(err, r.journal.flush(true))
	}
	if c.Follow && ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		err = nil
	}
	r.tell(true)
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.snapshot(), err
}

// apart makes sure that the two are not one store under two names.
func (r *run) apart(ctx context.Context) error {
	var id driver.ID
	_, _ = rand.Read(id[:]) // never fails
	if err := r.to.save(ctx, id, newMarker(0), 0); err != nil {
		return fmt.Errorf("write to TO: %w", err)
	}
	_, err := r.from.load(ctx, id)
	if gone := r.to.remove(ctx, id); gone != nil {
		return fmt.Errorf("write to TO: %w", gone)
	}
	switch {
	case err == nil:
		return ErrSame
	case errors.Is(err, driver.ErrNotFound):
		return nil
	}
	return fmt.Errorf("read FROM: %w", err)
}

// passes goes over FROM until a pass finds nothing new, or as Config says.
func (r *run) passes(ctx context.Context) error {
	for n := 1; ; n++ {
		r.mu.Lock()
		r.result.Passes, r.listed, r.changes, r.result.Settled = n, 0, 0, false
		r.mu.Unlock()
		if err := r.pass(ctx, uint32(n)); err != nil {
			return err
		}
		r.mu.Lock()
		settled := r.changes == 0
		r.result.Settled = settled
		r.mu.Unlock()
		r.tell(true)
		r.total = r.listed // of the next pass, about
		if r.journal != nil {
			if err := r.journal.tidy(r.keep); err != nil {
				return err
			}
		}
		switch {
		case r.config.Follow:
			if err := wait(ctx, r.config.Every); err != nil {
				return err
			}
		case settled || n >= r.config.Passes:
			return nil
		}
	}
}

// keep calls f for every record that a later run has to know.
func (r *run) keep(f func(driver.ID, entry)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now().UnixMilli()
	for id, e := range r.entries {
		if (e.known() || e.intent != 0 || e.listed) && e.expires > now {
			f(id, e)
		}
	}
}

// snapshot returns the result as it is. The caller holds r.mu.
func (r *run) snapshot() Result {
	s := r.result
	s.Copied, s.Same, s.Ended, s.EndedThere = r.counts[copied], r.counts[same], r.counts[ended], r.counts[endedThere]
	s.Kept, s.Expired, s.Unlisted, s.Failed = r.counts[kept], r.counts[expired], r.counts[unlisted], r.counts[failed]
	return s
}

// tell calls Progress, ten times a second at most unless it is important.
func (r *run) tell(important bool) {
	if r.config.Progress == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if now := time.Now(); important || now.Sub(r.told) >= 100*time.Millisecond {
		r.told = now
		r.config.Progress(Progress{Pass: r.result.Passes, Listed: r.listed, Total: r.total, Result: r.snapshot()})
	}
}

func (r *run) entry(id driver.ID) entry {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.entries[id]
}

// change changes what is known of a record, and returns it.
func (r *run) change(id driver.ID, f func(*entry)) entry {
	r.mu.Lock()
	defer r.mu.Unlock()
	e := r.entries[id]
	before := e.outcome
	f(&e)
	if e.outcome != before {
		r.counts[before]--
		r.counts[e.outcome]++
	}
	r.entries[id] = e
	return e
}

// meet counts a record once.
func (r *run) meet(e *entry) {
	if !e.met {
		e.met = true
		r.counts[none]++
		r.result.Met++
	}
}

// found notes that there was something to do, so that there is another pass.
func (r *run) found() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.changes++
}

// wrote is called after each write to TO.
func (r *run) wrote() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.result.Writes++
}

// fail notes that a record could not be copied.
func (r *run) fail(id driver.ID, err error) {
	r.change(id, func(e *entry) {
		r.meet(e)
		if e.outcome != failed && len(r.result.Failures) < maxFailures {
			r.result.Failures = append(r.result.Failures, Failure{id, err})
		}
		e.outcome = failed
	})
}

// hopeless reports whether an error is one record's alone, and stays.
func hopeless(err error) bool {
	return errors.Is(err, driver.ErrTooLarge) || errors.Is(err, driver.ErrCorrupt) || errors.Is(err, driver.ErrVersion)
}
