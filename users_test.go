package holdfast_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-sessions/holdfast"
	"github.com/holdfast-sessions/holdfast/driver"
)

// restless runs f over stores whose every call lets other goroutines go first at random, with and without a Merger.
func restless(t *testing.T, f func(t *testing.T, s driver.Store)) {
	yields := func(context.Context, storeCall) error {
		for range rand.N(4) {
			runtime.Gosched()
		}
		return nil
	}
	t.Run("merger", func(t *testing.T) { f(t, tappedMerger{tapped{mustMemory(t), yields}}) })
	t.Run("no merger", func(t *testing.T) { f(t, tapped{mustMemory(t), yields}) })
}

func ids(list []holdfast.Info) []driver.ID {
	var ids []driver.ID
	for _, i := range list {
		ids = append(ids, i.ID)
	}
	return ids
}

func mustList(t testing.TB, m *holdfast.Manager, user string) []holdfast.Info {
	t.Helper()
	list, err := m.List(context.Background(), user)
	must(t, err)
	return list
}

func alive(t testing.TB, m *holdfast.Manager, id driver.ID) bool {
	t.Helper()
	_, err := m.Open(context.Background(), id)
	if err != nil && !errors.Is(err, holdfast.ErrNotFound) {
		t.Fatal(err)
	}
	return err == nil
}

func TestListAndRevoke(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		m := mustManager(t, mustMemory(t), holdfast.Config{})
		start := time.Now()
		var browsers []*visitor
		var want []driver.ID
		for range 4 {
			v := newVisitor(t, m)
			want = append(want, v.login("ada"))
			browsers = append(browsers, v)
			sleep(time.Minute)
		}
		bob := newVisitor(t, m)
		bob.login("bob")

		list := mustList(t, m, "ada")
		if got := ids(list); !slices.Equal(got, want) {
			t.Errorf("listed %v, want %v, oldest first", got, want)
		}
		first := holdfast.Info{ID: want[0], User: "ada", Created: list[0].Created, Seen: list[0].Seen, Expires: list[0].Expires}
		if list[0] != first || !first.Created.Equal(start) || !first.Seen.Equal(start) || !first.Expires.Equal(start.Add(30*time.Minute)) {
			t.Errorf("listed %+v", list[0])
		}

		must(t, m.Revoke(ctx, want[1]))
		must(t, m.Revoke(ctx, want[1])) // ending it again is no error
		must(t, m.Revoke(ctx, driver.ID{1}))
		if u := browsers[1].user(); u != "" {
			t.Errorf("user %q after Revoke", u)
		}
		if got := ids(mustList(t, m, "ada")); !slices.Equal(got, []driver.ID{want[0], want[2], want[3]}) {
			t.Errorf("listed %v after Revoke of the second of %v", got, want)
		}
		wantErr(t, "Revoke of a user record", m.Revoke(ctx, holdfast.UserID("ada")), holdfast.ErrUnsupported)

		must(t, m.RevokeUser(ctx, "ada", want[2]))
		for i, v := range browsers {
			if want := map[bool]string{true: "ada"}[i == 2]; v.user() != want {
				t.Errorf("browser %d: user %q after RevokeUser except the third", i, v.user())
			}
		}
		must(t, m.RevokeUser(ctx, "ada"))
		if browsers[2].user() != "" || len(mustList(t, m, "ada")) != 0 {
			t.Error("a session outlived RevokeUser")
		}
		if bob.user() != "bob" {
			t.Error("bob's session ended with ada's")
		}
		must(t, m.RevokeUser(ctx, "nobody"))
		if n := len(mustList(t, m, "nobody")); n != 0 {
			t.Errorf("nobody has %d sessions", n)
		}
		if got := m.Stats(); got.Ended != 4 {
			t.Errorf("Ended = %d, want 4", got.Ended)
		}
	})
}

// TestListLeavesOutWhatEnded: sessions that idled out are not shown.
func TestListLeavesOutWhatEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := mustManager(t, mustMemory(t), holdfast.Config{})
		newVisitor(t, m).login("ada")
		sleep(20 * time.Minute)
		want := newVisitor(t, m).login("ada")
		out := newVisitor(t, m)
		out.login("ada")
		out.logout()
		sleep(10 * time.Minute)
		if got := ids(mustList(t, m, "ada")); !slices.Equal(got, []driver.ID{want}) {
			t.Errorf("listed %v, want %v alone", got, want)
		}
	})
}

// TestLimit: at the limit the oldest session goes; the same browser's own does not count.
func TestLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var events []holdfast.Event
		m := mustManager(t, mustMemory(t), holdfast.Config{MaxSessions: 3, OnEvent: func(_ context.Context, e holdfast.Event) {
			if e.Kind == holdfast.EventEnded {
				events = append(events, e)
			}
		}})
		var browsers []*visitor
		var sessions []driver.ID
		for range 5 {
			v := newVisitor(t, m)
			sessions = append(sessions, v.login("ada"))
			browsers = append(browsers, v)
			sleep(time.Second)
		}
		for i, v := range browsers {
			if got, want := v.user() != "", i >= 2; got != want {
				t.Errorf("browser %d: logged in %v, want %v", i, got, want)
			}
		}
		want := []holdfast.Event{
			{Kind: holdfast.EventEnded, Cause: "limit", ID: sessions[0], User: "ada"},
			{Kind: holdfast.EventEnded, Cause: "limit", ID: sessions[1], User: "ada"},
		}
		if !slices.Equal(events, want) {
			t.Errorf("events %v, want %v", events, want)
		}
		for range 5 {
			browsers[4].login("ada")
		}
		browsers[4].visit(func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) { must(t, s.Renew(r.Context())) })
		for i, v := range browsers[2:] {
			if v.user() != "ada" {
				t.Errorf("browser %d was logged out by another that logged in again", i+2)
			}
		}
		if n := len(mustList(t, m, "ada")); n != 3 {
			t.Errorf("%d sessions, want 3", n)
		}
	})
}

func TestRefuseAtLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := mustMemory(t)
		m := mustManager(t, store, holdfast.Config{MaxSessions: 2, RefuseAtLimit: true})
		a, b, c := newVisitor(t, m), newVisitor(t, m), newVisitor(t, m)
		a.login("ada")
		b.login("ada")
		c.set(7)
		before := len(records(t, store))
		res := c.visit(func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) {
			must(t, owner.Set(s, "kept"))
			err := s.Login(r.Context(), "ada")
			wantErr(t, "Login at the limit", err, holdfast.ErrLimit)
			m.Error(w, r, err)
		})
		wantStatus(t, res, http.StatusForbidden)
		wantCookies(t, res, 0)
		c.visit(func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) {
			wantField(t, visits, s, 7)
			wantField(t, owner, s, "kept")
		})
		if n := len(records(t, store)); n != before {
			t.Errorf("%d records after a refused login, want %d", n, before)
		}
		if a.login("ada"); a.user() != "ada" || b.user() != "ada" {
			t.Error("a browser that logs in again counts twice")
		}
		b.logout()
		if c.login("ada"); c.user() != "ada" {
			t.Error("refused though another logged out")
		}
		sleep(31 * time.Minute) // both idle out, and are still listed
		if b.login("ada"); b.user() != "ada" {
			t.Error("refused because of sessions that idled out")
		}
	})
}

func TestNoLimit(t *testing.T) {
	restless(t, func(t *testing.T, store driver.Store) {
		const browsers = 150
		m := mustManager(t, store, holdfast.Config{MaxSessions: -1})
		var wg sync.WaitGroup
		for range browsers {
			wg.Go(func() { newVisitor(t, m).login("ada") })
		}
		wg.Wait()
		v := newVisitor(t, m)
		for range 3 {
			v.login("ada")
		}
		if n := len(mustList(t, m, "ada")); n != browsers+1 {
			t.Errorf("%d sessions, want %d", n, browsers+1)
		}
		must(t, m.RevokeUser(context.Background(), "ada"))
		if n := len(mustList(t, m, "ada")); n != 0 || v.user() != "" {
			t.Errorf("%d sessions after RevokeUser", n)
		}
	})
}

// TestLimitIsExact is attack 20: a hundred logins at once, over two servers, end with exactly as many sessions as are
// allowed, and with RefuseAtLimit exactly as many succeed.
func TestLimitIsExact(t *testing.T) {
	const limit, logins = 5, 100
	for _, refuse := range []bool{false, true} {
		t.Run(fmt.Sprintf("refuse %v", refuse), func(t *testing.T) {
			restless(t, func(t *testing.T, store driver.Store) {
				c := holdfast.Config{MaxSessions: limit, RefuseAtLimit: refuse, StoreTimeout: time.Minute}
				managers := []*holdfast.Manager{mustManager(t, store, c), mustManager(t, store, c)}
				var wg sync.WaitGroup
				var sessions [logins]driver.ID
				var succeeded atomic.Int64
				for i := range logins {
					wg.Go(func() {
						v := newVisitor(t, managers[i%2])
						v.visit(func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) {
							switch err := s.Login(r.Context(), "ada"); {
							case err == nil:
								succeeded.Add(1)
								sessions[i] = s.ID()
							case !refuse || !errors.Is(err, holdfast.ErrLimit):
								t.Error(err)
							}
						})
					})
				}
				wg.Wait()
				live := 0
				for _, id := range sessions {
					if alive(t, managers[0], id) {
						live++
					}
				}
				if n := len(mustList(t, managers[0], "ada")); n != limit || live != limit {
					t.Errorf("%d sessions live and %d are listed, want %d", live, n, limit)
				}
				if n := succeeded.Load(); refuse && n != limit || !refuse && n != logins {
					t.Errorf("%d logins succeeded", n)
				}
			})
		})
	}
}

// TestRevokeUserRacesLogins: none lives afterwards that was logged in before the revocation began; whatever lives is
// listed, so that the next revocation ends it.
func TestRevokeUserRacesLogins(t *testing.T) {
	const logins, rounds = 100, 5
	for _, limit := range []int{1000, 10, -1} {
		t.Run(fmt.Sprintf("limit %d", limit), func(t *testing.T) {
			restless(t, func(t *testing.T, store driver.Store) {
				ctx := context.Background()
				c := holdfast.Config{MaxSessions: limit, StoreTimeout: time.Minute}
				m, other := mustManager(t, store, c), mustManager(t, store, c)
				for range rounds {
					var clock atomic.Int64 // orders what happens
					var wg sync.WaitGroup
					var sessions [logins]driver.ID
					var returned [logins]int64
					var began int64
					half := make(chan struct{})
					var done atomic.Int64
					for i := range logins {
						wg.Go(func() {
							sessions[i] = newVisitor(t, []*holdfast.Manager{m, other}[i%2]).login("ada")
							returned[i] = clock.Add(1)
							if done.Add(1) == logins/4 {
								close(half)
							}
						})
					}
					wg.Go(func() {
						<-half
						began = clock.Add(1)
						if err := m.RevokeUser(ctx, "ada"); err != nil {
							t.Error(err)
						}
					})
					wg.Wait()
					listed := ids(mustList(t, m, "ada"))
					for i, id := range sessions {
						if !alive(t, m, id) {
							continue
						}
						if returned[i] < began {
							t.Errorf("session %v lives, and was logged in before the revocation began", id)
						}
						if !slices.Contains(listed, id) {
							t.Errorf("session %v lives unlisted", id)
						}
					}
					must(t, m.RevokeUser(ctx, "ada"))
					for _, id := range sessions {
						if alive(t, m, id) {
							t.Errorf("session %v lives after a revocation with nothing beside it", id)
						}
					}
				}
			})
		})
	}
}

// TestUserNames: whatever a user is called, their sessions are theirs alone.
func TestUserNames(t *testing.T) {
	ctx := context.Background()
	m := mustManager(t, mustMemory(t), holdfast.Config{})
	names := []string{"ada", "Ada", "ada ", "ada\x00", "ada\r\nSet-Cookie: a=b", "*", "{ada}", "'; DROP TABLE users; --", "🦀", "\xff"}
	browsers := make(map[string]*visitor)
	for _, name := range names {
		browsers[name] = newVisitor(t, m)
		browsers[name].login(name)
	}
	for _, name := range names {
		if got := browsers[name].user(); got != name {
			t.Errorf("logged in as %q, want %q", got, name)
		}
		if n := len(mustList(t, m, name)); n != 1 {
			t.Errorf("%q has %d sessions, want 1", name, n)
		}
		must(t, m.RevokeUser(ctx, name))
		if got := browsers[name].user(); got != "" {
			t.Errorf("%q is logged in after RevokeUser", name)
		}
	}
}

// TestUserRecordOfANewerRelease: what this release cannot read it does not write, and nobody is logged out.
func TestUserRecordOfANewerRelease(t *testing.T) {
	ctx := context.Background()
	store := mustMemory(t)
	m := mustManager(t, store, holdfast.Config{})
	v := newVisitor(t, m)
	id := v.login("ada")
	user := holdfast.UserID("ada")
	rec, err := store.Load(ctx, user)
	must(t, err)
	newer := rec
	newer.Revision++
	newer.Fields = rec.Fields.With(driver.Change{Name: string(id[:]), Value: append([]byte{0x20}, make([]byte, 20)...)})
	must(t, store.Save(ctx, user, newer, rec.Revision))

	_, err = m.List(ctx, "ada")
	wantErr(t, "List", err, holdfast.ErrVersion)
	wantErr(t, "RevokeUser", m.RevokeUser(ctx, "ada"), holdfast.ErrVersion)
	res := newVisitor(t, m).visit(func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) {
		err := s.Login(r.Context(), "ada")
		wantErr(t, "Login", err, holdfast.ErrVersion)
		m.Error(w, r, err)
	})
	wantStatus(t, res, 503)
	wantCookies(t, res, 0)
	if v.user() != "ada" {
		t.Error("logged out")
	}
}

// The first login of a new visitor makes a session and renews it; a later one renews.
func TestLoginEvents(t *testing.T) {
	var kinds []holdfast.EventKind
	m := mustManager(t, mustMemory(t), holdfast.Config{OnEvent: func(_ context.Context, e holdfast.Event) {
		kinds = append(kinds, e.Kind)
	}})
	v := newVisitor(t, m)
	v.login("ada")
	v.login("ada")
	if want := []holdfast.EventKind{holdfast.EventCreated, holdfast.EventRenewed, holdfast.EventRenewed}; !slices.Equal(kinds, want) {
		t.Errorf("events %v, want %v", kinds, want)
	}
}
