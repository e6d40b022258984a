// Package testload puts a store to work while a test breaks its servers, and says afterwards what became of it:
//
//	load := testload.Start(t, testload.Config{Stores: []driver.Store{a, b}, Sessions: 200})
//	load.Progress(500)
//	primary.Stop()
//	promote()
//	load.Progress(500)
//	report := load.Audit(fresh)
//
// Every session has one writer, which knows what it tried and what was acknowledged, so that each answer is either one
// that the contract of package driver allows or is counted as what it would be to a user: somebody else's session, a
// change that is gone, a logout that did not last. A call that was not acknowledged may or may not have happened, and
// either is right.
package testload

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-sessions/holdfast/driver"
)

// Config says how much work there is. Zero values of all but Stores take the defaults.
type Config struct {
	// Stores are clients of the same records. Each request uses one of them.
	Stores []driver.Store
	// Sessions is how many there are at a time. 100.
	Sessions int
	// Workers is how many requests there are at a time. 8.
	Workers int
	// Timeout is each request's. 1 s.
	Timeout time.Duration
	// Pause is how long a worker rests between requests. 2 ms.
	Pause time.Duration
}

// Load is applications at work.
type Load struct {
	t        testing.TB
	config   Config
	sessions []*session // each is one worker's until all have stopped
	stop     chan struct{}
	wg       sync.WaitGroup
	acked    atomic.Int64 // writes

	mu sync.Mutex

	// mu guards the fields below.
	report   Report
	ended    []*session // not in sessions any more
	answered time.Time  // when a call was acknowledged last
	created  int
}

// session is what its writer knows of it.
type session struct {
	id   driver.ID
	life int // after so many increments it logs out

	// tried are the counters of the writes that may have happened, by their revisions.
	tried map[uint64]int

	made    bool // the first Save was acknowledged
	acked   int  // the counter's value by the last write that was acknowledged
	leaving bool // a Delete was tried
	left    bool // a Delete was acknowledged
	counted bool // as revived or lost
}

// Report is what happened.
type Report struct {
	// Sessions, Writes and Logouts are those that were acknowledged; Writes are increments.
	Sessions, Writes, Logouts int

	// Wrong is the number of answers that are another session's record, or one that nobody wrote.
	Wrong int
	// LostWrites is the number of increments that were acknowledged and then missing, if only for one answer.
	LostWrites int
	// LostSessions is the number of sessions that were acknowledged and then not found.
	LostSessions int
	// Revived is the number of sessions that were found after their logout was acknowledged.
	Revived int

	// Errors counts the calls that failed, by kind.
	Errors map[string]int
	// Stall is the longest time during which no call at all was acknowledged.
	Stall time.Duration
	// Slowest is the call that took longest.
	Slowest time.Duration
	// Examples are the first few findings, for people.
	Examples []string
}

// Kinds of errors that there should be none of, whatever fails.
const (
	Foreign = "none of the driver's errors"
	Audited = "in the audit"
)

func (r Report) String() string {
	s := fmt.Sprintf("of %d acknowledged writes %d were lost, of %d logouts %d revived, of %d sessions %d lost; %d wrong answers; longest stall %v, slowest call %v",
		r.Writes, r.LostWrites, r.Logouts, r.Revived, r.Sessions, r.LostSessions, r.Wrong, r.Stall.Round(time.Millisecond), r.Slowest.Round(time.Millisecond))
	for _, kind := range slices.Sorted(maps.Keys(r.Errors)) {
		s += fmt.Sprintf("; %s: %d", kind, r.Errors[kind])
	}
	if len(r.Examples) > 0 {
		s += "\n" + strings.Join(r.Examples, "\n")
	}
	return s
}

// Lost reports whether anything that was acknowledged did not last.
func (r Report) Lost() bool { return r.LostWrites+r.LostSessions+r.Revived > 0 }

// Start begins the work, which ends with Audit or the test.
func Start(t testing.TB, c Config) *Load {
	t.Helper()
	if c.Sessions == 0 {
		c.Sessions = 100
	}
	if c.Workers == 0 {
		c.Workers = 8
	}
	if c.Timeout == 0 {
		c.Timeout = time.Second
	}
	if c.Pause == 0 {
		c.Pause = 2 * time.Millisecond
	}
	l := &Load{t: t, config: c, sessions: make([]*session, c.Sessions), stop: make(chan struct{}),
		report: Report{Errors: make(map[string]int)}, answered: time.Now()}
	for i := range l.sessions {
		l.sessions[i] = l.newSession(i)
	}
	for w := range min(c.Workers, c.Sessions) {
		l.wg.Go(func() { l.work(w) })
	}
	t.Cleanup(l.end)
	return l
}

// Progress waits until n more writes are acknowledged.
func (l *Load) Progress(n int) {
	l.t.Helper()
	until := l.acked.Load() + int64(n)
	deadline, tick := time.After(time.Minute), time.NewTicker(5*time.Millisecond)
	defer tick.Stop()
	for l.acked.Load() < until {
		select {
		case <-deadline:
			l.mu.Lock()
			defer l.mu.Unlock()
			l.t.Fatalf("writes do not go on after a minute: %v", l.report)
		case <-tick.C:
		}
	}
}

// Audit ends the work and looks at every session there ever was, with a store that should be none of the Load's: one
// that has just been opened.
func (l *Load) Audit(s driver.Store) Report {
	l.t.Helper()
	l.end()
	for _, x := range slices.Concat(l.ended, l.sessions) {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		if _, err := l.load(ctx, x, s); err != nil && err != errWrong && !errors.Is(err, driver.ErrNotFound) {
			l.found(func(r *Report) { r.Errors[Audited]++ }, "%v cannot be audited: %v", x.id, err)
		}
		cancel()
	}
	return l.report
}

// end stops the workers.
func (l *Load) end() {
	select {
	case <-l.stop:
	default:
		close(l.stop)
	}
	l.wg.Wait()
}

// work is one worker. Session i is that of worker i modulo their number.
func (l *Load) work(w int) {
	tick := time.NewTicker(l.config.Pause)
	defer tick.Stop()
	for {
		select {
		case <-l.stop:
			return
		case <-tick.C:
		}
		mine := (len(l.sessions)-w-1)/l.config.Workers + 1
		i := w + rand.IntN(mine)*l.config.Workers
		if again := l.request(l.sessions[i], l.config.Stores[rand.IntN(len(l.config.Stores))]); !again {
			l.mu.Lock()
			l.ended = append(l.ended, l.sessions[i])
			l.mu.Unlock()
			l.sessions[i] = l.newSession(i)
		}
	}
}

// newSession returns one for place i that is not saved yet. Those of one place in three log out sooner or later, so that
// there are logouts all the time.
func (l *Load) newSession(i int) *session {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.created++
	x := &session{id: sha256.Sum256([]byte(strconv.Itoa(l.created))), life: 1 << 30, tried: make(map[uint64]int)}
	if i%3 == 2 {
		x.life = 1 + rand.IntN(8)
	}
	return x
}

// request makes the session, or increments its counter, or ends it. It reports whether there is more to do with it.
func (l *Load) request(x *session, s driver.Store) (again bool) {
	ctx, cancel := context.WithTimeout(context.Background(), l.config.Timeout)
	defer cancel()
	switch {
	case x.leaving:
		return l.logout(ctx, x, s)
	case !x.made:
		now := time.Now().Truncate(time.Millisecond)
		rec := driver.Record{User: userOf(x), Created: now, Seen: now, Expires: now.Add(time.Hour)}
		// One that was not acknowledged is left alone: the contract does not say what Delete is to one that is still
		// on its way.
		x.made = l.save(ctx, x, s, rec, 0, 0)
		return x.made
	}
	rec, err := l.load(ctx, x, s)
	switch {
	case errors.Is(err, driver.ErrNotFound), err == errWrong:
		return false // counted
	case err != nil:
		return true
	}
	if n := counter(rec); n < x.life {
		l.save(ctx, x, s, rec, rec.Revision, n+1)
		return true
	}
	return l.logout(ctx, x, s)
}

// save writes the counter, and reports whether that was acknowledged.
func (l *Load) save(ctx context.Context, x *session, s driver.Store, rec driver.Record, prev uint64, n int) bool {
	rec.Revision = driver.NewRevision(prev)
	rec.Fields = rec.Fields.With(
		driver.Change{Name: "session", Value: []byte(x.id.Hex())},
		driver.Change{Name: "n", Value: []byte(strconv.Itoa(n))})
	x.tried[rec.Revision] = n
	err := l.call(func() error { return s.Save(ctx, x.id, rec, prev) })
	switch {
	case errors.Is(err, driver.ErrConflict), errors.Is(err, driver.ErrReadOnly):
		delete(x.tried, rec.Revision) // nothing was changed, it says
	case err == nil && prev == 0:
		l.found(func(r *Report) { r.Sessions++ }, "")
	case err == nil:
		x.acked = n
		l.acked.Add(1)
		l.found(func(r *Report) { r.Writes++ }, "")
	}
	return err == nil
}

// logout ends the session, and tries that again when it is asked again. It reports whether it has to be.
func (l *Load) logout(ctx context.Context, x *session, s driver.Store) (again bool) {
	x.leaving = true
	if l.call(func() error { return s.Delete(ctx, x.id) }) != nil {
		return true
	}
	x.left = true
	l.found(func(r *Report) { r.Logouts++ }, "")
	_, _ = l.load(ctx, x, s) // counts one that is still there
	return false
}

// load loads the session and compares the answer with what is known of it.
func (l *Load) load(ctx context.Context, x *session, s driver.Store) (rec driver.Record, err error) {
	err = l.call(func() error { rec, err = s.Load(ctx, x.id); return err })
	switch {
	case errors.Is(err, driver.ErrNotFound):
		if x.made && !x.leaving && !x.counted {
			x.counted = true
			l.found(func(r *Report) { r.LostSessions++ }, "%v is lost, with %d acknowledged writes", x.id, x.acked)
		}
		return rec, err
	case err != nil:
		return rec, err
	}
	owner, _ := rec.Fields.Get("session")
	n, written := x.tried[rec.Revision]
	switch have := counter(rec); {
	case rec.User != userOf(x) || string(owner) != x.id.Hex():
		l.found(func(r *Report) { r.Wrong++ }, "%v is shown the record of %q with the fields of %.8s", x.id, rec.User, owner)
		return rec, errWrong
	case !written || have != n:
		l.found(func(r *Report) { r.Wrong++ }, "%v is shown %d in a revision in which %d was written: %v", x.id, have, n, written)
		return rec, errWrong
	case x.left:
		if !x.counted {
			x.counted = true
			l.found(func(r *Report) { r.Revived++ }, "%v is back after its logout", x.id)
		}
	case have < x.acked:
		lost := x.acked - have
		x.acked = have // counted once
		l.found(func(r *Report) { r.LostWrites += lost }, "%v lost %d acknowledged writes", x.id, lost)
	}
	return rec, nil
}

// errWrong has the session left to the audit.
var errWrong = errors.New("wrong answer")

func userOf(x *session) string { return "user of " + x.id.String() }

// counter returns -1 for a record without one.
func counter(rec driver.Record) int {
	v, _ := rec.Fields.Get("n")
	n, err := strconv.Atoi(string(v))
	if err != nil {
		return -1
	}
	return n
}

// call makes a call and counts how it went.
func (l *Load) call(f func() error) error {
	begun := time.Now()
	err := f()
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.report.Slowest = max(l.report.Slowest, now.Sub(begun))
	if err == nil {
		l.report.Stall = max(l.report.Stall, now.Sub(l.answered))
		l.answered = now
	} else if kind := kindOf(err); kind != "" {
		l.report.Errors[kind]++
		if l.report.Errors[kind] == 1 || kind == Foreign {
			l.example("%s, first: %v", kind, err)
		}
	}
	return err
}

// kindOf returns "" for what is counted elsewhere.
func kindOf(err error) string {
	switch {
	case errors.Is(err, driver.ErrNotFound):
		return ""
	case errors.Is(err, driver.ErrConflict):
		return "conflict"
	case errors.Is(err, driver.ErrReadOnly):
		return "read-only"
	case errors.Is(err, driver.ErrUnavailable) && errors.Is(err, context.DeadlineExceeded):
		return "deadline"
	case errors.Is(err, driver.ErrUnavailable):
		return "unavailable"
	}
	return Foreign
}

// found changes the report, and keeps an example if format is not "".
func (l *Load) found(change func(*Report), format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	change(&l.report)
	if format != "" {
		l.example(format, args...)
	}
}

// example keeps one. l.mu is held.
func (l *Load) example(format string, args ...any) {
	if len(l.report.Examples) < 10 {
		l.report.Examples = append(l.report.Examples, fmt.Sprintf(format, args...))
	}
}
