package holdfast_test

import (
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-sessions/holdfast"
	"github.com/holdfast-sessions/holdfast/driver"
)

// RevokeAll ends those who were logged in before, and nobody who logs in after it, however the servers' clocks are.
func TestSealedRevokeAllClocks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		users := mustMemory(t)
		m := mustSealed(t, newFakeSealer(), users, holdfast.Config{})
		before, after := newVisitor(t, m), newVisitor(t, m)
		before.login("ada")
		must(t, m.RevokeAll(t.Context()))
		after.login("ada") // in the same millisecond
		if u := before.user(); u != "" {
			t.Errorf("logged in before: user %q", u)
		}
		if u := after.user(); u != "ada" {
			t.Errorf("logged in after it: user %q", u)
		}

		// It ran on a server whose clock is ten minutes ahead, too.
		epoch, err := users.Load(t.Context(), holdfast.EpochID)
		must(t, err)
		ahead := epoch
		ahead.Created, ahead.Revision = time.Now().Add(10*time.Minute).Truncate(time.Millisecond), driver.NewRevision(epoch.Revision)
		must(t, users.Save(t.Context(), holdfast.EpochID, ahead, epoch.Revision))
		must(t, m.RevokeAll(t.Context()))
		epoch, err = users.Load(t.Context(), holdfast.EpochID)
		must(t, err)
		if !epoch.Created.After(ahead.Created) {
			t.Errorf("the second RevokeAll set the epoch back, from %v to %v", ahead.Created, epoch.Created)
		}
		if u := after.user(); u != "" {
			t.Errorf("logged in before the second: user %q", u)
		}
		after.login("ada")
		if u := after.user(); u != "ada" {
			t.Errorf("logged in after the second: user %q", u)
		}
		wantErr(t, "Revoke of the epoch", m.Revoke(t.Context(), holdfast.EpochID), holdfast.ErrUnsupported)
	})
}

// At the limit a session whose login lets it live for longer than others is not taken for one that is gone.
func TestSealedLimitCountsLongSessions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := mustSealed(t, newFakeSealer(), mustMemory(t), holdfast.Config{Strict: true, MaxSessions: 1, RefuseAtLimit: true})
		long, second := newVisitor(t, m), newVisitor(t, m)
		long.login("ada", holdfast.LoginOptions{IdleTimeout: 24 * time.Hour, Lifetime: 30 * 24 * time.Hour})
		login := func() (err error) {
			second.visit(func(_ http.ResponseWriter, r *http.Request, s *holdfast.Session) { err = s.Login(r.Context(), "ada") })
			return err
		}
		time.Sleep(2 * time.Hour) // over the idle timeout of the others
		wantErr(t, "Login", login(), holdfast.ErrLimit)
		if u := long.user(); u != "ada" {
			t.Errorf("the long session: user %q", u)
		}
		time.Sleep(25 * time.Hour)
		must(t, login())
	})
}

// A request that was under way when the session was logged out neither sets nor clears a cookie.
func TestSealedLogoutLeavesMarker(t *testing.T) {
	for name, start := range map[string]func(*visitor){
		"logged in": func(v *visitor) { v.login("ada") },
		"anonymous": func(v *visitor) { v.set(1) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := mustSealed(t, newFakeSealer(), mustMemory(t), holdfast.Config{Strict: true})
				v := newVisitor(t, m)
				start(v)
				slow := v.request(t.Context())
				v.logout()
				res := v.handle(slow, func(w http.ResponseWriter, r *http.Request) {
					s, err := m.Get(r)
					must(t, err)
					wantErr(t, "Set", visits.Set(s, 2), holdfast.ErrEnded)
				})
				wantCookies(t, res, 0)
			})
		})
	}
}

// A logout that the store refuses changes nothing: what has spilled into the store is still there.
func TestSealedFailedLogout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var down atomic.Bool
		s := newFakeSealer()
		s.max = 2000
		m := mustSealed(t, s, tapped{mustMemory(t), refusing(&down, "save")}, holdfast.Config{Spill: true})
		v := newVisitor(t, m)
		v.login("ada")
		large := strings.Repeat("x", 5000)
		v.visit(func(_ http.ResponseWriter, _ *http.Request, s *holdfast.Session) { must(t, owner.Set(s, large)) })
		v.visit(func(_ http.ResponseWriter, r *http.Request, s *holdfast.Session) {
			down.Store(true)
			wantErr(t, "Logout", s.Logout(r.Context()), holdfast.ErrUnavailable)
			down.Store(false)
		})
		v.visit(func(_ http.ResponseWriter, _ *http.Request, s *holdfast.Session) {
			if u := s.User(); u != "ada" {
				t.Errorf("user %q", u)
			}
			wantField(t, owner, s, large)
		})
	})
}

// An extension of the idle timeout that loses a race takes nothing from the request that it was due in.
func TestSealedTouchRace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := mustSealed(t, newFakeSealer(), mustMemory(t), holdfast.Config{Strict: true})
		v := newVisitor(t, m)
		v.login("ada")
		time.Sleep(10 * time.Minute)
		other := v.copy()
		res := v.visit(func(w http.ResponseWriter, _ *http.Request, s *holdfast.Session) {
			other.set(1)
			w.WriteHeader(http.StatusOK)
			if u := s.User(); u != "ada" {
				t.Errorf("after the first byte: user %q", u)
			}
		})
		wantCookies(t, res, 0)
		if n := m.Stats().Lost; n != 0 {
			t.Errorf("Lost = %d, want 0", n)
		}
	})
}

// What requests of sealed sessions cost in the store of user records.
func TestSealedStoreCalls(t *testing.T) {
	for _, tt := range []struct {
		strict      bool
		read, write string
	}{
		{false, "", ""},
		{true, "load", "load save"},
	} {
		synctest.Test(t, func(t *testing.T) {
			var j journal
			m := mustSealed(t, newFakeSealer(), tapped{mustMemory(t), j.note}, holdfast.Config{Strict: tt.strict})
			v := newVisitor(t, m)
			v.set(1)
			calls := func(what, want string, f func()) {
				t.Helper()
				j.take()
				f()
				if got := strings.Join(j.take(), " "); got != want {
					t.Errorf("strict=%v: %s made the calls %q, want %q", tt.strict, what, got, want)
				}
			}
			calls("a read", tt.read, func() { v.visits() })
			calls("a write", tt.write, func() { v.set(2) })
		})
	}
}

// Stats.Seals counts the tokens that clients got, not those that were made to see whether they fit.
func TestSealedSealsCounted(t *testing.T) {
	for _, spill := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			s := newFakeSealer()
			s.max = 2000
			m := mustSealed(t, s, mustMemory(t), holdfast.Config{Spill: spill})
			v := newVisitor(t, m)
			sent := uint64(0)
			visit := func(what string, want int, f func(r *http.Request, s *holdfast.Session)) {
				t.Helper()
				wantCookies(t, v.visit(func(_ http.ResponseWriter, r *http.Request, s *holdfast.Session) { f(r, s) }), want)
				sent += uint64(want)
				if n := m.Stats().Seals; n != sent {
					t.Errorf("spill=%v: after %s: Seals = %d, want %d", spill, what, n, sent)
				}
			}
			visit("a small field", 1, func(_ *http.Request, s *holdfast.Session) { must(t, visits.Set(s, 1)) })
			visit("fields that nearly fill it", 1, func(_ *http.Request, s *holdfast.Session) {
				for n := range 5 {
					must(t, owner.Set(s, strings.Repeat("x", 1100+n)))
				}
			})
			visit("a read", 0, func(_ *http.Request, s *holdfast.Session) { wantField(t, visits, s, 1) })
			visit("two saves", 1, func(r *http.Request, s *holdfast.Session) {
				must(t, visits.Set(s, 2))
				must(t, s.Save(r.Context()))
				must(t, visits.Set(s, 3))
			})
			visit("a login", 1, func(r *http.Request, s *holdfast.Session) { must(t, s.Login(r.Context(), "ada")) })
			if spill {
				visit("a field for the store", 1, func(_ *http.Request, s *holdfast.Session) { must(t, owner.Set(s, strings.Repeat("x", 5000))) })
			} else {
				visit("a field that is too large", 0, func(_ *http.Request, s *holdfast.Session) {
					wantErr(t, "Set", owner.Set(s, strings.Repeat("x", 5000)), holdfast.ErrTooLarge)
				})
			}
		})
	}
}
