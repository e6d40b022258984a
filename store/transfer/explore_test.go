package transfer_test

import (
	"context"
	"errors"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-sessions/holdfast"
	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/internal/testserver"
	"github.com/holdfast-sessions/holdfast/store/memory"
	"github.com/holdfast-sessions/holdfast/store/transfer"
)

// TestInterleavings runs a copy of a user's session and an operation on the new site in every order that their calls on
// TO can have, also when the copy is the second after one that was killed at any of its calls. In the end every session
// that lives in TO is listed for its user, so that RevokeUser would find it, and a revocation that found it listed has
// ended it.
func TestInterleavings(t *testing.T) {
	revoke := func(ctx context.Context, s *site) error { return s.m.RevokeUser(ctx, "ada") }
	login := func(ctx context.Context, s *site) error {
		_, err := s.do(ctx, "", func(ctx context.Context, x *holdfast.Session) error { return x.Login(ctx, "ada") })
		if errors.Is(err, holdfast.ErrLimit) {
			err = nil
		}
		return err
	}
	refuse := holdfast.Config{MaxSessions: 1, RefuseAtLimit: true}
	for _, test := range []struct {
		name   string
		config holdfast.Config
		op     func(context.Context, *site) error
		own    bool // ada has a session on the new site
		ends   bool // the operation ends whatever is listed when it begins
	}{
		{"revoke user", holdfast.Config{}, revoke, false, true},
		{"revoke user with a session of its own", holdfast.Config{}, revoke, true, true},
		{"login", holdfast.Config{}, login, false, false},
		{"login at limit 1", holdfast.Config{MaxSessions: 1}, login, false, false},
		{"login refused at limit 1", refuse, login, false, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			schedules, ended := 0, 0
			for killAt := range int64(12) {
				// It has 6 calls: before the fifth the session is listed and has not arrived, before the sixth it has.
				if usual := killAt == 0 || test.ends && !test.own && (killAt == 5 || killAt == 6); !usual && testserver.Scale(0, 1) == 0 {
					continue
				}
				ran := false
				for path := []int{}; path != nil; {
					var wrong string
					var live bool
					var taken, options []int
					synctest.Test(t, func(t *testing.T) {
						e := &exploring{t: t, config: test.config, own: test.own, killAt: killAt}
						if !e.prepare() {
							return
						}
						ran = true
						taken, options = e.run(path, test.op)
						wrong, live = e.check(test.ends)
					})
					if !ran {
						break
					}
					if schedules++; !live {
						ended++
					}
					if wrong != "" {
						t.Fatalf("killed at %d, schedule %v: %s", killAt, taken, wrong)
					}
					path = next(taken, options)
				}
				if !ran {
					break
				}
			}
			t.Logf("%d schedules, in %d of which the session ended", schedules, ended)
		})
	}
}

// next returns the schedule after the one that was taken, nil after the last.
func next(taken, options []int) []int {
	for i := len(taken) - 1; i >= 0; i-- {
		if taken[i]+1 < options[i] {
			return append(append([]int{}, taken[:i]...), taken[i]+1)
		}
	}
	return nil
}

type exploring struct {
	t        *testing.T
	config   holdfast.Config
	own      bool
	killAt   int64
	from, to *memory.Store
	token    string
	path     string

	listed bool // when the operation made its first call

	mu      sync.Mutex
	waiting [2]chan struct{}
	done    [2]bool
}

// prepare logs ada in on the old site, and runs a copy that is killed, if one is to be. It reports false if that copy
// has fewer calls.
func (e *exploring) prepare() bool {
	e.from, e.to = memory.New(), memory.New()
	e.t.Cleanup(func() { _, _ = e.from.Close(), e.to.Close() })
	e.token = newSite(e.t, e.from, holdfast.Config{}).login(e.t, "", "ada")
	if e.own {
		newSite(e.t, e.to, e.config).login(e.t, "", "ada")
	}
	e.path = filepath.Join(e.t.TempDir(), "journal")
	if e.killAt == 0 {
		return true
	}
	j := mustJournal(e.t, e.path)
	defer j.Close()
	_, err := transfer.Run(e.t.Context(), e.from, &mortal{Store: e.to, killAt: e.killAt}, transfer.Config{Journal: j, Parallel: 1})
	return err != nil
}

// run runs the copy and the operation, one call at a time in the order that path says, and then as it comes. It returns
// the whole order, and how many choices there were at each call.
func (e *exploring) run(path []int, op func(context.Context, *site) error) (taken, options []int) {
	var j *transfer.Journal // its writes take most of the time, so only where one run follows another
	if e.killAt > 0 {
		j = mustJournal(e.t, e.path)
		defer j.Close() // checked elsewhere
	}
	var both sync.WaitGroup
	both.Go(func() {
		defer e.finish(0)
		if _, err := transfer.Run(e.t.Context(), e.from, stepped{e.to, e, 0}, transfer.Config{Journal: j, Parallel: 1}); err != nil {
			e.t.Errorf("copy: %v", err)
		}
	})
	both.Go(func() {
		defer e.finish(1)
		if err := op(e.t.Context(), newSite(e.t, stepped{e.to, e, 1}, e.config)); err != nil {
			e.t.Errorf("operation: %v", err)
		}
	})
	first := true
	for {
		synctest.Wait()
		var ready []int
		e.mu.Lock()
		over, asleep := e.done[0] && e.done[1], false
		for who, c := range e.waiting {
			switch {
			case c != nil:
				ready = append(ready, who)
			case !e.done[who]:
				asleep = true // before it tries again
			}
		}
		e.mu.Unlock()
		if over {
			break
		}
		if asleep {
			time.Sleep(time.Millisecond)
			continue
		}
		choice := 0
		if n := len(taken); n < len(path) {
			choice = min(path[n], len(ready)-1)
		}
		taken, options = append(taken, choice), append(options, len(ready))
		who := ready[choice]
		if who == 1 && first {
			first = false
			id := mustID(e.t, e.token)
			user, err := e.to.Load(e.t.Context(), holdfast.UserID("ada"))
			_, listed := user.Fields.Get(string(id[:]))
			e.listed = err == nil && listed
		}
		e.mu.Lock()
		c := e.waiting[who]
		e.waiting[who] = nil
		e.mu.Unlock()
		close(c)
	}
	both.Wait()
	return taken, options
}

func (e *exploring) finish(who int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.done[who] = true
}

func (e *exploring) step(who int) {
	c := make(chan struct{})
	e.mu.Lock()
	e.waiting[who] = c
	e.mu.Unlock()
	<-c
}

func (e *exploring) check(ends bool) (wrong string, live bool) {
	id := mustID(e.t, e.token)
	rec, err := e.to.Load(e.t.Context(), id)
	live = err == nil && !isMarker(rec)
	user, err := e.to.Load(e.t.Context(), holdfast.UserID("ada"))
	entry, listed := user.Fields.Get(string(id[:]))
	ending := listed && entry[0]&1 != 0
	switch {
	case live && (err != nil || !listed):
		return "the session lives unlisted", live
	case live && ending:
		return "the session lives, and is listed as one that is being ended", live
	case live && ends && e.listed:
		return "the session lives, though it was listed when the revocation began", live
	}
	return "", live
}

// stepped waits for its turn before each call.
type stepped struct {
	s   driver.Store
	e   *exploring
	who int
}

func (s stepped) Load(ctx context.Context, id driver.ID) (driver.Record, error) {
	s.e.step(s.who)
	return s.s.Load(ctx, id)
}

func (s stepped) Save(ctx context.Context, id driver.ID, rec driver.Record, prev uint64) error {
	s.e.step(s.who)
	return s.s.Save(ctx, id, rec, prev)
}

func (s stepped) Delete(ctx context.Context, id driver.ID) error {
	s.e.step(s.who)
	return s.s.Delete(ctx, id)
}

func (s stepped) Close() error { return nil }
