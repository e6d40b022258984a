package holdfast_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-sessions/holdfast"
	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/store/memory"
)

// evicting is a store that drops what it is told to, as a cache does when its memory is short, and remembers, as
// store/memcached does, how all other records ended.
type evicting struct {
	tapped
	mu      sync.Mutex // mu guards the field below
	dropped map[driver.ID]bool
}

func mustEvicting(t testing.TB, j *journal) *evicting {
	t.Helper()
	return &evicting{tapped: tapped{mustMemory(t), j.note}, dropped: make(map[driver.ID]bool)}
}

func (s *evicting) Describe() driver.Description {
	return driver.Description{Name: "cache", Evicts: true}
}

func (s *evicting) Load(ctx context.Context, id driver.ID) (driver.Record, error) {
	rec, err := s.tapped.Load(ctx, id)
	s.mu.Lock()
	defer s.mu.Unlock()
	if errors.Is(err, driver.ErrNotFound) && !s.dropped[id] {
		err = driver.ErrGone
	}
	return rec, err
}

func (s *evicting) evict(t testing.TB, id driver.ID) {
	t.Helper()
	must(t, s.Store.Delete(t.Context(), id))
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dropped[id] = true
}

// TestEvictedUserRecordHidesNothing: a revocation that finds the user record evicted ends the user's sessions all the
// same, within a twentieth of the idle timeout, however they are used.
func TestEvictedUserRecordHidesNothing(t *testing.T) {
	const idle = 20 * time.Minute
	const bound = idle/20 + time.Second
	read := func(v *visitor, _ *holdfast.Manager, _ driver.ID) error { v.user(); return nil }
	write := func(v *visitor, _ *holdfast.Manager, _ driver.ID) (err error) {
		v.visit(func(_ http.ResponseWriter, _ *http.Request, s *holdfast.Session) {
			if s.User() != "" {
				err = visits.Set(s, time.Now().Second())
			}
		})
		return err
	}
	update := func(v *visitor, _ *holdfast.Manager, _ driver.ID) (err error) {
		v.visit(func(_ http.ResponseWriter, r *http.Request, s *holdfast.Session) {
			if s.User() != "" {
				_, err = visits.Update(r.Context(), s, func(n int) (int, error) { return n + 1, nil })
			}
		})
		return err
	}
	socket := func(_ *visitor, m *holdfast.Manager, id driver.ID) error {
		s, err := m.Open(context.Background(), id)
		if err == nil {
			err = visits.Set(s, time.Now().Second()+1)
		}
		if err == nil {
			err = s.Save(context.Background())
		}
		return err
	}
	for name, use := range map[string]func(*visitor, *holdfast.Manager, driver.ID) error{
		"read": read, "write": write, "update": update, "opened by its ID": socket,
	} {
		for _, every := range []time.Duration{time.Second, 50 * time.Second} {
			t.Run(fmt.Sprintf("%s every %v", name, every), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					store := mustEvicting(t, new(journal))
					m := mustManager(t, store, holdfast.Config{IdleTimeout: idle, Lifetime: 10 * time.Hour})
					v := newVisitor(t, m)
					id := v.login("ada")
					for range 3 * idle / every { // nothing is wrong: it lives
						sleep(every)
						if err := use(v, m, id); err != nil {
							t.Fatalf("before anything happened: %v", err)
						}
					}
					if _, err := m.Open(t.Context(), id); err != nil {
						t.Fatalf("a session in use: %v", err)
					}
					store.evict(t, holdfast.UserID("ada"))
					must(t, m.RevokeUser(t.Context(), "ada"))
					start := time.Now()
					for time.Since(start) < bound+every {
						if err := use(v, m, id); err != nil && !errors.Is(err, holdfast.ErrEnded) && !errors.Is(err, holdfast.ErrNotFound) {
							t.Fatal(err)
						}
						sleep(every)
					}
					if _, err := m.Open(t.Context(), id); !errors.Is(err, holdfast.ErrNotFound) {
						t.Errorf("%v after the revocation the session: %v, want ErrNotFound", time.Since(start), err)
					}
					if u := v.user(); u != "" {
						t.Errorf("still logged in as %s", u)
					}
					if n := m.Stats().Unlisted; n != 1 {
						t.Errorf("%d sessions counted as unlisted, want 1", n)
					}
					if v.login("ada"); v.user() != "ada" { // at once, with the old cookie
						t.Error("cannot log in again")
					}
				})
			})
		}
	}
}

// TestRenewOfAnUnlistedSession: what was revoked is not listed again.
func TestRenewOfAnUnlistedSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := mustEvicting(t, new(journal))
		m := mustManager(t, store, holdfast.Config{})
		v := newVisitor(t, m)
		v.login("ada")
		store.evict(t, holdfast.UserID("ada"))
		must(t, m.RevokeUser(t.Context(), "ada"))
		v.visit(func(_ http.ResponseWriter, r *http.Request, s *holdfast.Session) {
			wantErr(t, "Renew", s.Renew(r.Context()), holdfast.ErrEnded)
		})
		if u := v.user(); u != "" {
			t.Errorf("still logged in as %s", u)
		}
	})
}

// TestListedLookUp counts what the look-up costs: one load in a twentieth of the idle timeout, and none without a
// user or where nothing is evicted.
func TestListedLookUp(t *testing.T) {
	const idle = 20 * time.Minute
	synctest.Test(t, func(t *testing.T) {
		var j journal
		m := mustManager(t, mustEvicting(t, &j), holdfast.Config{IdleTimeout: idle, Lifetime: 10 * time.Hour})
		for user, want := range map[string]int{"ada": 10, "": 0} {
			v := newVisitor(t, m)
			if user == "" {
				v.set(1)
			} else {
				v.login(user)
			}
			j.take()
			const requests = 60
			for n := range requests {
				sleep(idle / 20 / 6)
				v.set(n + 100)
			}
			calls := j.take()
			loads := len(slices.DeleteFunc(calls, func(op string) bool { return op != "load" }))
			if loads != requests+want {
				t.Errorf("user %q: %d loads in %d requests over 10 periods, want %d", user, loads, requests, requests+want)
			}
		}
	})
}

// TestOutageOfTheUserRecord: that the user record cannot be read ends nothing.
func TestOutageOfTheUserRecord(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		down := false
		store := mustEvicting(t, new(journal))
		store.before = func(_ context.Context, c storeCall) error {
			if down && c.id == holdfast.UserID("ada") {
				return driver.ErrUnavailable
			}
			return nil
		}
		m := mustManager(t, store, holdfast.Config{IdleTimeout: 20 * time.Minute})
		v := newVisitor(t, m)
		v.login("ada")
		down = true
		for n := range 60 {
			sleep(2 * time.Minute)
			if u := v.user(); u != "ada" {
				t.Fatalf("logged in as %q while her record cannot be read", u)
			}
			v.set(n + 1)
		}
		down = false
		if sleep(2 * time.Minute); v.user() != "ada" || v.visits() != 60 {
			t.Error("the session did not survive")
		}
	})
}

// TestEvictedSessionIsCounted: what the store dropped is told from what was logged out and from what expired.
func TestEvictedSessionIsCounted(t *testing.T) {
	tests := []struct {
		name string
		end  func(t *testing.T, s *evicting, v *visitor, id driver.ID)
		want uint64
	}{
		{"evicted", func(t *testing.T, s *evicting, _ *visitor, id driver.ID) { s.evict(t, id) }, 1},
		{"logged out, and the marker is gone", func(t *testing.T, s *evicting, v *visitor, id driver.ID) {
			v.copy().logout()
			sleep(time.Minute)
			s.evict(t, id)
		}, 0},
		{"revoked", func(t *testing.T, s *evicting, v *visitor, id driver.ID) {
			must(t, v.m.RevokeUser(t.Context(), "ada"))
			s.evict(t, id)
		}, 0},
		{"idle", func(*testing.T, *evicting, *visitor, driver.ID) { sleep(time.Hour) }, 0},
		{"evicted, and past its lifetime", func(t *testing.T, s *evicting, _ *visitor, id driver.ID) {
			s.evict(t, id)
			sleep(5 * time.Hour)
		}, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				store := mustEvicting(t, new(journal))
				var causes []string
				m := mustManager(t, store, holdfast.Config{Lifetime: 4 * time.Hour, OnEvent: func(_ context.Context, e holdfast.Event) {
					if e.Kind == holdfast.EventLost && e.Cause != "" {
						causes = append(causes, e.Cause)
					}
				}})
				v := newVisitor(t, m)
				id := v.login("ada")
				tt.end(t, store, v, id)
				if u := v.user(); u != "" {
					t.Fatalf("still logged in as %s", u)
				}
				v.login("ada")
				if n := m.Stats().Evicted; n != tt.want || len(causes) != int(tt.want) {
					t.Errorf("%d sessions counted as evicted (%v), want %d", n, causes, tt.want)
				}
				list, err := m.List(t.Context(), "ada")
				must(t, err)
				if len(list) != 1 {
					t.Errorf("%d sessions listed, want the new one", len(list))
				}
			})
		})
	}
	// Stores that drop nothing count nothing.
	synctest.Test(t, func(t *testing.T) {
		store := memory.New()
		defer store.Close()
		m := mustManager(t, store, holdfast.Config{})
		v := newVisitor(t, m)
		must(t, store.Delete(t.Context(), v.login("ada")))
		v.login("ada")
		if n := m.Stats().Evicted; n != 0 {
			t.Errorf("%d sessions counted as evicted by a store that drops none", n)
		}
	})
}
