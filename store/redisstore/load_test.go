package redisstore_test

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/internal/testserver"
	"github.com/holdfast-sessions/holdfast/store/redisstore"
)

// load is applications at work on many sessions, over two clients, which knows what was acknowledged. Each session
// has one writer at a time, so that nothing but a fault makes a call fail.
type load struct {
	t        *testing.T
	clients  [2]*redisstore.Store
	sessions []*loadSession

	// What happened.
	acked, refused, conflicts atomic.Int64
	deleted                   atomic.Int64
	lost, gone, revived       atomic.Int64
	wrong                     atomic.Int64
	lastRefused               atomic.Int64 // when, in Unix milliseconds

	stop chan struct{}
	wg   sync.WaitGroup
}

// loadSession is used by one writer.
type loadSession struct {
	n     int
	acked int  // the counter's value by the last write that was acknowledged
	ended bool // a Delete was acknowledged
	gone  bool // it was found missing, and counted
	doubt bool // a Delete was not acknowledged, and may have happened
}

const (
	loadWriters = 8
	loadTimeout = time.Second
)

// mustLoad saves the sessions and starts the writers.
func mustLoad(t *testing.T, url string) *load {
	t.Helper()
	l := &load{t: t, stop: make(chan struct{})}
	for i := range l.clients {
		l.clients[i] = mustOpen(t, url)
	}
	if strings.Contains(url, "cache=") { // what one writes, the other sees a moment later only
		l.clients[1] = l.clients[0]
	}
	for n := range testserver.Scale(800, 4000) {
		mustSave(t, l.clients[0], idOf(n), record(loadOwner(n), "owner", loadOwner(n), "n", "0"), 0)
		l.sessions = append(l.sessions, &loadSession{n: n})
	}
	for w := range loadWriters {
		l.wg.Go(func() { l.write(w) })
	}
	t.Cleanup(l.end)
	return l
}

func loadOwner(n int) string { return fmt.Sprintf("user%d", n) }

func (l *load) write(w int) {
	tick := time.NewTicker(4 * time.Millisecond) // the servers have a machine to share
	defer tick.Stop()
	for i := w; ; i += loadWriters {
		select {
		case <-l.stop:
			return
		case <-tick.C:
		}
		l.visit(l.sessions[i%len(l.sessions)], i/len(l.sessions), l.clients[i/loadWriters%2])
	}
}

// visit is one request: it loads and writes, or ends the session.
func (l *load) visit(x *loadSession, round int, s *redisstore.Store) {
	if x.ended || x.gone || x.doubt {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), loadTimeout)
	defer cancel()
	begun := time.Now()
	defer func() {
		if d := time.Since(begun); d > loadTimeout+late {
			l.t.Errorf("a request took %v, its deadline was %v", d, loadTimeout)
		}
	}()
	rec, ok := l.read(ctx, x, s)
	if !ok {
		return
	}
	if x.n%5 == 0 && round > x.n/5%20 { // one in five logs out, sooner or later
		err := s.Delete(ctx, idOf(x.n))
		if l.answered(err) {
			x.ended = true
			l.deleted.Add(1)
		} else {
			x.doubt = true
		}
		return
	}
	next := counter(rec) + 1
	changes := []driver.Change{set("n", strconv.Itoa(next))}
	var err error
	if round%2 == 0 {
		err = s.Save(ctx, idOf(x.n), after(rec, changes...), rec.Revision)
	} else {
		_, err = s.Merge(ctx, idOf(x.n), rec, after(rec, changes...), changes)
	}
	if l.answered(err) {
		x.acked = next
		l.acked.Add(1)
	}
}

// read loads a session and compares it with what is known of it.
func (l *load) read(ctx context.Context, x *loadSession, s *redisstore.Store) (driver.Record, bool) {
	rec, err := s.Load(ctx, idOf(x.n))
	if errors.Is(err, driver.ErrNotFound) {
		x.gone = true
		l.gone.Add(1)
		return rec, false
	}
	if !l.answered(err) {
		return rec, false
	}
	owner, _ := rec.Fields.Get("owner")
	if rec.User != loadOwner(x.n) || string(owner) != loadOwner(x.n) {
		l.wrong.Add(1)
		l.t.Errorf("%s is shown the record of %q with the fields of %q", loadOwner(x.n), rec.User, owner)
		return rec, false
	}
	if have := counter(rec); have < x.acked {
		l.lost.Add(int64(x.acked - have))
		x.acked = have // counted once
	}
	return rec, true
}

func counter(rec driver.Record) int {
	v, _ := rec.Fields.Get("n")
	n, _ := strconv.Atoi(string(v))
	return n
}

// answered reports whether a call succeeded, and counts one that did not.
func (l *load) answered(err error) bool {
	switch {
	case err == nil:
		return true
	case errors.Is(err, driver.ErrUnavailable), errors.Is(err, driver.ErrReadOnly):
		l.lastRefused.Store(time.Now().UnixMilli())
		if l.refused.Add(1) == 1 {
			l.t.Logf("first refusal: %v", err)
		}
	case errors.Is(err, driver.ErrConflict), errors.Is(err, driver.ErrNotFound):
		// Of a write whose session was loaded just before: another server answers than did then.
		l.conflicts.Add(1)
	default:
		l.t.Errorf("a call fails with %v", err)
	}
	return false
}

// progress waits until n more writes are acknowledged.
func (l *load) progress(n int) {
	l.t.Helper()
	until := l.acked.Load() + int64(n)
	deadline, tick := time.After(time.Minute), time.NewTicker(10*time.Millisecond)
	defer tick.Stop()
	for l.acked.Load() < until {
		select {
		case <-deadline:
			l.t.Fatalf("writes do not go on after a minute: %v", l)
		case <-tick.C:
		}
	}
}

// recover waits until nothing was refused for a second while writes went on.
func (l *load) recover() {
	l.t.Helper()
	deadline, tick := time.After(time.Minute), time.NewTicker(10*time.Millisecond)
	defer tick.Stop()
	for time.Now().UnixMilli()-l.lastRefused.Load() < 1000 {
		select {
		case <-deadline:
			l.t.Fatalf("requests are still refused after a minute: %v", l)
		case <-tick.C:
		}
	}
	l.progress(200)
}

func (l *load) end() {
	select {
	case <-l.stop:
	default:
		close(l.stop)
	}
	l.wg.Wait()
}

// check stops the writers and looks at every session, with a client that is new.
func (l *load) check(url string) {
	l.t.Helper()
	l.end()
	s := mustOpen(l.t, url)
	for _, x := range l.sessions {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		switch {
		case x.ended:
			if _, err := s.Load(ctx, idOf(x.n)); err == nil {
				l.revived.Add(1)
			} else if !errors.Is(err, driver.ErrNotFound) {
				l.t.Errorf("Load of an ended session = %v", err)
			}
		case !x.gone && !x.doubt:
			l.read(ctx, x, s)
		}
		cancel()
	}
	l.t.Logf("%s: %v", l.t.Name(), l)
}

func (l *load) String() string {
	return fmt.Sprintf("of %d acknowledged writes %d were lost, of %d logouts %d revived, of %d sessions %d lost; %d calls refused, %d overtaken, %d wrong answers",
		l.acked.Load(), l.lost.Load(), l.deleted.Load(), l.revived.Load(), len(l.sessions), l.gone.Load(),
		l.refused.Load(), l.conflicts.Load(), l.wrong.Load())
}

// wantNothingLost is for what is confirmed by the replica that took over, and where nobody had to take over.
func (l *load) wantNothingLost() {
	l.t.Helper()
	if l.lost.Load()+l.gone.Load()+l.revived.Load() > 0 {
		l.t.Errorf("want nothing lost and nobody back: %v", l)
	}
}
