package holdfast_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-sessions/holdfast"
	"github.com/holdfast-sessions/holdfast/driver"
)

// A store that tells of changes makes what is ended on one server end on the others at once: no time passes here. A server
// that remembers the user record asks for it once more, and for nothing while nothing changes.
func TestSealedPushed(t *testing.T) {
	type end func(t *testing.T, v *visitor, id driver.ID)
	for name, end := range map[string]end{
		"Logout":     func(t *testing.T, v *visitor, _ driver.ID) { v.logout() },
		"Revoke":     func(t *testing.T, v *visitor, id driver.ID) { must(t, v.m.Revoke(t.Context(), id)) },
		"RevokeUser": func(t *testing.T, v *visitor, _ driver.ID) { must(t, v.m.RevokeUser(t.Context(), "ada")) },
		"RevokeAll":  func(t *testing.T, v *visitor, _ driver.ID) { must(t, v.m.RevokeAll(t.Context())) },
		"Renew": func(t *testing.T, v *visitor, _ driver.ID) {
			v.visit(func(_ http.ResponseWriter, r *http.Request, s *holdfast.Session) { must(t, s.Renew(r.Context())) })
		},
		"limit": func(t *testing.T, v *visitor, _ driver.ID) { newVisitor(t, v.m).login("ada") },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var calls journal
				users := mustMemory(t)
				c := holdfast.Config{MaxSessions: 1}
				a, b := mustSealed(t, newFakeSealer(), users, c), mustSealed(t, newFakeSealer(), tappedWatcher{tapped{users, calls.note}}, c)
				v, bob := newVisitor(t, a), newVisitor(t, b)
				id := v.login("ada")
				bob.login("bob")
				start := time.Now()
				kept := v.copy().at(b)
				for range 2 { // the first begins to watch, with nothing remembered
					kept.user()
					bob.user()
					synctest.Wait()
				}
				calls.take()
				for range 10 {
					if kept.user() != "ada" || bob.user() != "bob" {
						t.Fatal("not logged in")
					}
				}
				if ops := calls.take(); len(ops) > 0 {
					t.Errorf("20 requests with what is remembered made the calls %v", ops)
				}
				end(t, v, id)
				if u := kept.user(); u != "" {
					t.Errorf("elsewhere, at once: user %q", u)
				}
				want, ops := "load", strings.Join(calls.take(), " ")
				if ops != want {
					t.Errorf("the server that was told made the calls %q, want %q", ops, want)
				}
				if u := bob.user(); (u == "bob") != (name != "RevokeAll") {
					t.Errorf("another user is %q", u)
				}
				if ops := calls.take(); len(ops) > 0 {
					t.Errorf("a change of one user's record cost another the calls %v", ops)
				}
				if n := b.Stats().Pushed; n != 1 {
					t.Errorf("Pushed = %d, want 1", n)
				}
				if d := time.Since(start); d != 0 {
					t.Errorf("%v passed", d)
				}
			})
		})
	}
}

// tappedWatcher is a tapped store that tells what the store below does.
type tappedWatcher struct{ tapped }

func (s tappedWatcher) Watch(ctx context.Context, changed func(driver.ID), whole func(bool)) error {
	return s.Store.(driver.Watcher).Watch(ctx, changed, whole)
}

// prompted is a store that tells what the test has it tell.
type prompted struct {
	tapped
	after  func(storeCall) // called when Load has its answer
	refuse func() error    // what is wrong with Watch, if anything is

	mu      sync.Mutex // mu guards the fields below
	changed func(driver.ID)
	whole   func(bool)
	watches int // calls of Watch
	ended   int // of those
}

func (s *prompted) Load(ctx context.Context, id driver.ID) (driver.Record, error) {
	rec, err := s.tapped.Load(ctx, id)
	s.after(storeCall{op: "load", id: id})
	return rec, err
}

func (s *prompted) Watch(ctx context.Context, changed func(driver.ID), whole func(bool)) error {
	s.mu.Lock()
	s.changed, s.whole = changed, whole
	s.watches++
	s.mu.Unlock()
	if err := s.refuse(); err != nil {
		return err
	}
	whole(true)
	<-ctx.Done()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended++
	return ctx.Err()
}

// calls returns how often Watch was called.
func (s *prompted) calls() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.watches
}

func newPrompted(t testing.TB, users driver.Store) *prompted {
	return &prompted{
		tapped: tapped{users, func(context.Context, storeCall) error { return nil }},
		after:  func(storeCall) {}, refuse: func() error { return nil },
	}
}

// TestSealedPushInterleavings has a load of a user record, or of the epoch, meet a change of it in every order: the store
// reads (R), and its answer arrives (A); the record is changed (C), and the change told (T). What is told as a feed that was
// lost and is whole again is no different. Whatever the order, the next request is refused.
func TestSealedPushInterleavings(t *testing.T) {
	revokes := map[string]struct {
		id     driver.ID
		revoke func(ctx context.Context, m *holdfast.Manager) error
	}{
		"user record": {holdfast.UserID("ada"), func(ctx context.Context, m *holdfast.Manager) error { return m.RevokeUser(ctx, "ada") }},
		"epoch":       {holdfast.EpochID, func(ctx context.Context, m *holdfast.Manager) error { return m.RevokeAll(ctx) }},
	}
	// B: the request begins, and asks the store.
	orders := merged("BRA", "CT")
	if len(orders) != 10 {
		t.Fatalf("%d orders, want 10: %v", len(orders), orders)
	}
	for name, tt := range revokes {
		for _, lost := range []bool{false, true} {
			for _, order := range orders {
				t.Run(fmt.Sprintf("%s/lost=%v/%s", name, lost, order), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						users := mustMemory(t)
						s := newPrompted(t, users)
						a, b := mustSealed(t, newFakeSealer(), unwatched{users}, holdfast.Config{}), mustSealed(t, newFakeSealer(), s, holdfast.Config{})
						defer b.Close()
						v := newVisitor(t, a)
						v.login("ada")
						kept := v.copy().at(b)
						kept.user() // begins to watch
						synctest.Wait()
						kept.user()
						s.changed(tt.id) // nothing is remembered of it
						start := time.Now()

						read, answer := make(chan struct{}), make(chan struct{})
						s.before = func(_ context.Context, c storeCall) error {
							if c.id == tt.id {
								<-read
							}
							return nil
						}
						s.after = func(c storeCall) {
							if c.id == tt.id {
								<-answer
							}
						}
						for _, step := range order {
							switch step {
							case 'B':
								go kept.user() // done after A
							case 'R':
								close(read)
							case 'A':
								close(answer)
							case 'C':
								must(t, tt.revoke(t.Context(), a))
							case 'T':
								if lost {
									s.whole(false)
									s.whole(true)
								} else {
									s.changed(tt.id)
								}
							}
							synctest.Wait()
						}
						if u := kept.user(); u != "" {
							t.Errorf("user %q", u)
						}
						if d := time.Since(start); d != 0 {
							t.Errorf("%v passed", d)
						}
					})
				})
			}
		}
	}
}

// merged returns every string that has the letters of a and of b, each in their order.
func merged(a, b string) []string {
	if a == "" || b == "" {
		return []string{a + b}
	}
	var all []string
	for _, rest := range merged(a[1:], b) {
		all = append(all, a[:1]+rest)
	}
	for _, rest := range merged(a, b[1:]) {
		all = append(all, b[:1]+rest)
	}
	return all
}

// While the store cannot tell, all is as with one that never can: what is remembered stays good for 5 s, and no longer,
// and nobody is refused before because of it. When it can again, nothing from before is believed.
func TestSealedWatchLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		users, log := mustMemory(t), new(bytes.Buffer)
		s := newPrompted(t, users)
		c := holdfast.Config{Logger: slog.New(slog.NewTextHandler(log, nil))}
		a, b := mustSealed(t, newFakeSealer(), unwatched{users}, c), mustSealed(t, newFakeSealer(), s, c)
		defer b.Close()
		v := newVisitor(t, a)
		v.login("ada")
		kept := v.copy().at(b)
		kept.user()
		synctest.Wait()
		kept.user()

		s.whole(false)
		must(t, a.RevokeUser(t.Context(), "ada"))
		time.Sleep(5*time.Second - 1)
		if u := kept.user(); u != "ada" {
			t.Errorf("less than 5 s after the store was asked: user %q", u)
		}
		time.Sleep(time.Nanosecond)
		if u := kept.user(); u != "" {
			t.Errorf("after 5 s: user %q", u)
		}

		v.login("ada")
		kept = v.copy().at(b)
		kept.user()
		must(t, a.RevokeUser(t.Context(), "ada"))
		s.whole(true)
		if u := kept.user(); u != "" {
			t.Errorf("watched again: user %q", u)
		}
		if n := b.Stats().WatchLosses; n != 1 {
			t.Errorf("WatchLosses = %d, want 1", n)
		}
		if text := log.String(); strings.Count(text, "watch of user records lost") != 1 || strings.Count(text, "watched again") != 1 {
			t.Errorf("the log does not say once that the watch was lost, and once that it is back:\n%s", text)
		}
	})
}

// A store that says that it cannot watch is named once, and asked again each minute.
func TestSealedWatchRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		users, log := mustMemory(t), new(bytes.Buffer)
		s := newPrompted(t, users)
		var refused atomic.Bool
		refused.Store(true)
		s.refuse = func() error {
			if refused.Load() {
				return errors.New("no right to; grant it")
			}
			return nil
		}
		c := holdfast.Config{Logger: slog.New(slog.NewTextHandler(log, nil))}
		m := mustSealed(t, newFakeSealer(), s, c)
		defer m.Close()
		v := newVisitor(t, m)
		v.login("ada")
		for range 9 {
			v.user()
			time.Sleep(30 * time.Second)
		}
		if text := log.String(); strings.Count(text, "grant it") != 1 {
			t.Errorf("the log does not say once what is wrong:\n%s", text)
		}
		refused.Store(false)
		time.Sleep(5 * time.Minute)
		if n := s.calls(); n != 6 {
			t.Errorf("Watch was called %d times, want 6: at once, four times more, and then with success", n)
		}
	})
}

// Close ends the watch, and so does closing the store. What was not begun before is not begun after it.
func TestManagerClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		users := mustMemory(t)
		s := newPrompted(t, users)
		m, idle := mustSealed(t, newFakeSealer(), s, holdfast.Config{}), mustSealed(t, newFakeSealer(), s, holdfast.Config{})
		v := newVisitor(t, m)
		v.login("ada")
		v.user()
		synctest.Wait()
		if n := s.calls(); n != 1 {
			t.Fatalf("Watch was called %d times, want once", n)
		}
		for range 2 {
			must(t, m.Close())
			if s.ended != 1 {
				t.Errorf("when Close returns, %d calls of Watch have ended, want 1", s.ended)
			}
		}
		must(t, idle.Close())
		time.Sleep(6 * time.Second)
		if v.user() != "ada" || v.at(idle).user() != "ada" {
			t.Error("after Close: not logged in")
		}
		synctest.Wait()
		if n := s.calls(); n != 1 {
			t.Errorf("Watch was called %d times, with requests after Close, want once", n)
		}

		must(t, mustManager(t, mustMemory(t), holdfast.Config{}).Close())

		// The bubble waits for the goroutine of a Manager that nobody closes.
		v.at(mustSealed(t, newFakeSealer(), users, holdfast.Config{})).user()
		synctest.Wait()
		must(t, users.Close())
	})
}
