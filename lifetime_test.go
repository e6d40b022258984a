package holdfast_test

import (
	"context"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-sessions/holdfast"
	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/store/memory"
)

// forgetful is a store that never forgets: the Manager alone ends sessions.
type forgetful struct{ tapped }

func neverForgets(s driver.Store) forgetful {
	return forgetful{tapped{s, func(context.Context, storeCall) error { return nil }}}
}

func (s forgetful) Load(ctx context.Context, id driver.ID) (driver.Record, error) {
	rec, err := s.Store.Load(ctx, id)
	if err == nil {
		rec.Expires = rec.Expires.Add(-1000 * time.Hour)
	}
	return rec, err
}

func (s forgetful) Save(ctx context.Context, id driver.ID, rec driver.Record, prev uint64) error {
	rec.Expires = rec.Expires.Add(1000 * time.Hour)
	return s.Store.Save(ctx, id, rec, prev)
}

// TestTimeouts holds the idle timeout and the lifetime to the millisecond, also over a store that keeps records long
// after they expired.
func TestTimeouts(t *testing.T) {
	const idle, life = 10 * time.Minute, time.Hour
	run := func(name string, f func(t *testing.T, v *visitor)) {
		for _, keeps := range []bool{false, true} {
			t.Run(name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					var store driver.Store = mustMemory(t)
					if keeps {
						store = neverForgets(store)
					}
					f(t, newVisitor(t, mustManager(t, store, holdfast.Config{IdleTimeout: idle, Lifetime: life})))
				})
			})
		}
	}
	run("idle, alive", func(t *testing.T, v *visitor) {
		v.set(1)
		sleep(idle - time.Millisecond)
		if v.visits() != 1 {
			t.Error("ended before its idle timeout")
		}
	})
	run("idle, gone", func(t *testing.T, v *visitor) {
		v.set(1)
		sleep(idle)
		if v.visits() != 0 {
			t.Error("alive after its idle timeout")
		}
	})
	run("idle is extended by use", func(t *testing.T, v *visitor) {
		v.set(1)
		for range 5 {
			sleep(idle - time.Millisecond)
			if v.visits() != 1 {
				t.Fatal("ended though in use")
			}
		}
		sleep(idle)
		if v.visits() != 0 {
			t.Error("alive after its idle timeout")
		}
	})
	run("lifetime is not extended by use", func(t *testing.T, v *visitor) {
		v.login("ada")
		start := time.Now()
		for time.Since(start) < life-time.Minute {
			sleep(time.Minute)
			v.set(int(time.Since(start)))
		}
		sleep(time.Minute - time.Millisecond)
		if v.user() != "ada" {
			t.Error("ended before its lifetime")
		}
		sleep(time.Millisecond)
		if v.user() != "" {
			t.Error("alive after its lifetime")
		}
	})
}

// TestRequestThatOutlastsItsSession saves nothing.
func TestRequestThatOutlastsItsSession(t *testing.T) {
	for _, merges := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			var store driver.Store = mustMemory(t)
			if !merges {
				store = tapped{store, func(context.Context, storeCall) error { return nil }}
			}
			v := newVisitor(t, mustManager(t, store, holdfast.Config{}))
			v.set(1)
			res := v.visit(func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) {
				sleep(30 * time.Minute)
				must(t, visits.Set(s, 2))
			})
			wantStatus(t, res, http.StatusConflict)
			if v.visits() != 0 {
				t.Error("a save revived a session that had expired")
			}
		})
	}
}

func TestSessionTells(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newVisitor(t, mustManager(t, mustMemory(t), holdfast.Config{IdleTimeout: time.Minute, Lifetime: time.Hour}))
		start := time.Now()
		v.visit(func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) {
			must(t, s.Login(r.Context(), "ada", holdfast.LoginOptions{Method: "passkey"}))
		})
		sleep(30 * time.Second)
		v.visits() // extends the idle timeout
		v.visit(func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) {
			if !s.Created().Equal(start) || !s.Expires().Equal(start.Add(90*time.Second)) || s.User() != "ada" || s.Method() != "passkey" {
				t.Errorf("created %v, expires %v, user %q, method %q", s.Created(), s.Expires(), s.User(), s.Method())
			}
		})
	})
}

// TestLoginOptions: a login can have its own timeouts and its own kind of cookie, which Renew keeps and Logout ends.
func TestLoginOptions(t *testing.T) {
	const hour = time.Hour
	synctest.Test(t, func(t *testing.T) {
		m := mustManager(t, mustMemory(t), holdfast.Config{IdleTimeout: 30 * time.Minute, Lifetime: 12 * time.Hour})
		v := newVisitor(t, m)
		remember := holdfast.LoginOptions{Lifetime: 30 * hour, IdleTimeout: 7 * hour, Persistent: true, Method: "password"}
		var res *http.Response
		v.visit(func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) { must(t, visits.Set(s, 1)) })
		res = v.visit(func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) {
			must(t, s.Login(r.Context(), "ada", remember))
		})
		if c := res.Cookies()[0]; c.MaxAge != int(30*hour/time.Second) {
			t.Errorf("Max-Age %d, want 30 hours", c.MaxAge)
		}
		for range 4 {
			sleep(7*hour - time.Millisecond)
			if v.user() != "ada" {
				t.Fatal("ended before its idle timeout")
			}
		}
		res = v.visit(func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) { must(t, s.Renew(r.Context())) })
		if c := res.Cookies()[0]; c.MaxAge != int(2*hour/time.Second) {
			t.Errorf("Max-Age %d after 28 hours, want 2 hours", c.MaxAge)
		}
		v.visit(func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) {
			if s.Method() != "password" {
				t.Errorf("method %q after Renew", s.Method())
			}
		})
		sleep(2*hour - time.Millisecond)
		if v.user() != "ada" {
			t.Error("ended before its lifetime")
		}
		sleep(5 * time.Millisecond)
		if v.user() != "" {
			t.Error("alive after its lifetime")
		}

		// A login without options has those of the Config again.
		v.login("ada", remember)
		res = v.visit(func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) {
			must(t, s.Login(r.Context(), "ada"))
		})
		if c := res.Cookies()[0]; c.MaxAge != 0 {
			t.Errorf("Max-Age %d, want a cookie for as long as the browser runs", c.MaxAge)
		}
		sleep(30 * time.Minute)
		if v.user() != "" {
			t.Error("alive after the idle timeout of the Config")
		}
	})
}

func TestLoginRefuses(t *testing.T) {
	store := mustMemory(t)
	v := newVisitor(t, mustManager(t, store, holdfast.Config{}))
	v.visit(func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) {
		for _, user := range []string{"", string(make([]byte, 1025))} {
			if err := s.Login(r.Context(), user); err == nil {
				t.Errorf("a user name of %d bytes is taken", len(user))
			}
		}
		if err := s.Login(r.Context(), "ada", holdfast.LoginOptions{Method: string(make([]byte, 65))}); err == nil {
			t.Error("a method of 65 bytes is taken")
		}
	})
	if n := len(records(t, store)); n != 0 {
		t.Errorf("%d records", n)
	}
}

// TestShorterConfig: timeouts that are shortened hold for sessions that exist, at once; a login's own do not change.
func TestShorterConfig(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := mustMemory(t)
		long := mustManager(t, store, holdfast.Config{IdleTimeout: time.Hour, Lifetime: 10 * time.Hour})
		short := mustManager(t, store, holdfast.Config{IdleTimeout: 10 * time.Minute, Lifetime: time.Hour})
		plain, own := newVisitor(t, long), newVisitor(t, long)
		plain.login("ada")
		own.login("bob", holdfast.LoginOptions{IdleTimeout: time.Hour, Lifetime: 10 * time.Hour})
		sleep(10*time.Minute - time.Millisecond)
		plain.m, own.m = short, short
		if plain.copy().user() != "ada" || own.user() != "bob" {
			t.Error("ended too early")
		}
		plain = newVisitor(t, long)
		plain.login("ada")
		plain.m = short
		sleep(10 * time.Minute)
		if plain.user() != "" {
			t.Error("alive after the idle timeout that is configured now")
		}
		if own.user() != "bob" {
			t.Error("a login's own idle timeout is gone")
		}
	})
}

// skewed is a store as a server sees it whose clock is ahead of ours: to it, all times are as much earlier.
type skewed struct {
	driver.Store
	ahead time.Duration
}

func shift(t time.Time, d time.Duration) time.Time {
	if t.IsZero() {
		return t
	}
	return t.Add(d)
}

func shifted(rec driver.Record, d time.Duration) driver.Record {
	rec.Created, rec.Seen, rec.Expires = shift(rec.Created, d), shift(rec.Seen, d), shift(rec.Expires, d)
	return rec
}

func (s skewed) Load(ctx context.Context, id driver.ID) (driver.Record, error) {
	rec, err := s.Store.Load(ctx, id)
	return shifted(rec, -s.ahead), err
}

func (s skewed) Save(ctx context.Context, id driver.ID, rec driver.Record, prev uint64) error {
	return s.Store.Save(ctx, id, shifted(rec, s.ahead), prev)
}

// TestClocksApart is part of attack 19: two servers whose clocks are ten minutes apart serve one session. It ends at
// most that much early or late, its timeouts are never lowered by the one behind, and nothing is lost or revived.
func TestClocksApart(t *testing.T) {
	const idle, apart = 30 * time.Minute, 10 * time.Minute
	for _, ahead := range []time.Duration{apart, -apart} {
		synctest.Test(t, func(t *testing.T) {
			store := mustMemory(t)
			c := holdfast.Config{IdleTimeout: idle, Lifetime: 2 * time.Hour}
			here, there := mustManager(t, store, c), mustManager(t, skewed{store, ahead}, c)
			v := newVisitor(t, here)
			id := v.login("ada")
			start := time.Now()
			seen := records(t, store)[id].Seen
			for n := 1; time.Since(start) < 2*time.Hour-2*apart; n++ {
				v.m = []*holdfast.Manager{here, there}[n%2]
				v.set(n)
				if v.user() != "ada" || v.visits() != n {
					t.Fatalf("ahead %v: after %v user %q, visits %d", ahead, time.Since(start), v.user(), v.visits())
				}
				rec := records(t, store)[id]
				if rec.Seen.Before(seen) {
					t.Fatalf("Seen went back from %v to %v", seen, rec.Seen)
				}
				seen = rec.Seen
				sleep(7 * time.Minute)
			}
			sleep(idle + apart)
			for _, m := range []*holdfast.Manager{here, there} {
				if v.m = m; v.user() != "" {
					t.Errorf("ahead %v: alive longer than the clocks are apart", ahead)
				}
			}
			// Ended is ended on both.
			v = newVisitor(t, here)
			v.login("ada")
			old := v.copy()
			v.m = there
			v.logout()
			for _, m := range []*holdfast.Manager{here, there} {
				if old.m = m; old.user() != "" {
					t.Errorf("ahead %v: alive after a logout", ahead)
				}
			}
		})
	}
}

// TestMarkerAge: a marker stands for 30 seconds; then the old token is an unknown one.
func TestMarkerAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := mustMemory(t)
		m := mustManager(t, store, holdfast.Config{})
		v := newVisitor(t, m)
		v.set(1)
		old := v.copy()
		v.login("ada")
		sleep(30*time.Second - time.Millisecond)
		before := m.Stats().Unknown
		old.visit(func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) {
			wantErr(t, "Set with a token that was renewed", visits.Set(s, 9), holdfast.ErrEnded)
		})
		if m.Stats().Unknown != before {
			t.Error("a marker counts as an unknown token")
		}
		sleep(time.Millisecond)
		old.visits()
		if m.Stats().Unknown != before+1 {
			t.Error("the marker is still there after 30 s")
		}
	})
}

// TestStoreForgetsWhatExpired: nothing of a visitor is left when all has expired.
func TestStoreForgetsWhatExpired(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := mustMemory(t)
		v := newVisitor(t, mustManager(t, store, holdfast.Config{}))
		v.set(1)
		v.login("ada")
		v.login("ada", holdfast.LoginOptions{Lifetime: 20 * time.Hour})
		v.logout()
		sleep(21*time.Hour + time.Minute)
		wantEmpty(t, store)
	})
}

func wantEmpty(t *testing.T, store *memory.Store) {
	t.Helper()
	for id, rec := range records(t, store) {
		t.Errorf("record %v of user %q expires %v", id, rec.User, rec.Expires)
	}
}

// A request that was slow to look at its session, because of an upload for example, cannot know whether a token that is
// unknown by then was renewed meanwhile. It must not overwrite the cookie that came with the renewal.
func TestSlowRequestWithAnUnknownToken(t *testing.T) {
	for _, tt := range []struct {
		after time.Duration
		want  error
	}{{10 * time.Second, nil}, {40 * time.Second, holdfast.ErrEnded}} {
		synctest.Test(t, func(t *testing.T) {
			m := mustManager(t, mustMemory(t), holdfast.Config{})
			v := newVisitor(t, m)
			v.set(1)
			slow := v.copy()
			v.logout()
			sleep(markerAge + time.Second)
			res := slow.handle(slow.request(t.Context()), func(w http.ResponseWriter, r *http.Request) {
				sleep(tt.after)
				s, err := m.Get(r)
				must(t, err)
				wantErr(t, "Set", visits.Set(s, 2), tt.want)
			})
			wantCookies(t, res, map[bool]int{true: 1}[tt.want == nil])
		})
	}
}
