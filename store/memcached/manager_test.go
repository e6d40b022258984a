package memcached_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-sessions/holdfast"
	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/store/memcached"
)

// TestOneOfThreeKilledUnderLoad is the requirement: while users of two application servers go on, one memcached of three is
// killed, and restarted empty. Nobody is shown another's session. Who has session and user record elsewhere notices
// nothing. Who has not is unavailable, and after the restart logged out, once, and counted. A user who is revoked
// meanwhile stays out, also where the list of their sessions was on the server that lost it.
func TestOneOfThreeKilledUnderLoad(t *testing.T) { killOneOfThree(t, 1) }

// With a second copy nobody is logged out, except who is revoked.
func TestOneOfThreeKilledUnderLoadWithCopies(t *testing.T) { killOneOfThree(t, 2) }

var (
	owner  = holdfast.NewField[string]("owner")
	visits = holdfast.NewField[int]("visits")
)

// guest is a user with a browser.
type guest struct {
	name    string
	cookie  string
	id      driver.ID
	session int // the first server of the session
	list    int // the first server of the user record

	visits  int
	revoked atomic.Bool // RevokeUser has returned
	mayLose atomic.Bool // revoked, or about to be

	unavailable, lost, logins atomic.Int64
	seen                      atomic.Int64 // visits of the session that were answered
}

func killOneOfThree(t *testing.T, copies int) {
	t.Parallel()
	srvs, url := mustServers(t, 3)
	const killed, users = 1, 60
	url = fmt.Sprintf("%s?copies=%d", url, copies)
	stores := []*memcached.Store{mustOpen(t, url), mustOpen(t, url)}
	var managers []*holdfast.Manager
	for _, s := range stores {
		m, err := holdfast.New(s, holdfast.Config{IdleTimeout: 20 * time.Second, Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		managers = append(managers, m)
	}
	var guests []*guest
	kinds := make(map[[2]bool][]*guest) // session, and user record, on the server that is killed
	for i := range users {
		g := &guest{name: fmt.Sprint("user", i)}
		if status, user := g.ask(t, managers[0], "login"); status != http.StatusOK || user != g.name {
			t.Fatalf("login of %s: %d, %q", g.name, status, user)
		}
		g.session, _ = stores[0].ServerOf(g.id)
		g.list, _ = stores[0].ServerOf(holdfast.UserID(g.name))
		kind := [2]bool{g.session == killed, g.list == killed}
		guests, kinds[kind] = append(guests, g), append(kinds[kind], g)
	}
	for _, kind := range [][2]bool{{false, false}, {false, true}, {true, false}} {
		if len(kinds[kind]) < 2 {
			t.Fatalf("%d users have their session on the server that is killed: %v, and their user record: %v", len(kinds[kind]), kind[0], kind[1])
		}
	}

	var phase atomic.Int32 // 0 before, 1 killed, 2 restarted
	stop := make(chan struct{})
	var wg sync.WaitGroup
	end := sync.OnceFunc(func() { close(stop); wg.Wait() })
	t.Cleanup(end)
	for _, g := range guests {
		kind := [2]bool{g.session == killed, g.list == killed}
		wg.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				what := "read"
				if n%5 == 4 {
					what = "write"
				}
				revoked, before := g.revoked.Load(), phase.Load()
				status, user := g.ask(t, managers[n%2], what)
				switch {
				case status == http.StatusServiceUnavailable:
					g.unavailable.Add(1)
					if copies == 1 && kind == [2]bool{} && !g.mayLose.Load() {
						t.Errorf("%s, who has nothing on the server that was killed, is answered 503", g.name)
					}
				case status == http.StatusConflict && (g.mayLose.Load() || copies == 1 && g.list == killed && before > 0):
					// Ended during the request, as its list is gone; the next finds nobody.
				case status != http.StatusOK:
					t.Errorf("%s: status %d", g.name, status)
				case user == g.name:
					g.seen.Add(1)
					if revoked && kind == [2]bool{} { // elsewhere a revocation takes effect with the next look at the list
						t.Errorf("%s was revoked, and is let in", g.name)
					}
				case user != "":
					t.Errorf("%s is shown the session of %s", g.name, user)
				case g.mayLose.Load():
					return // out; a revoked user does not log in again here
				default:
					g.lost.Add(1)
					if copies == 2 || kind == [2]bool{} || before == 0 {
						t.Errorf("%s is logged out (session on the server that was killed: %v, user record: %v, phase %d)", g.name, kind[0], kind[1], before)
					}
					status, _ := g.ask(t, managers[n%2], "login")
					if status == http.StatusConflict {
						// The Manager has just ended the session and left a marker, which refuses logins with this cookie.
						g.cookie = ""
						status, _ = g.ask(t, managers[n%2], "login")
					}
					if status == http.StatusOK {
						g.logins.Add(1)
					}
				}
			}
		})
	}
	visited := func(what string) { // until each guest who is in has been answered some times
		t.Helper()
		start := make([]int64, len(guests))
		for i, g := range guests {
			start[i] = g.seen.Load() + g.unavailable.Load()
		}
		eventually(t, what, func() error {
			for i, g := range guests {
				if !g.mayLose.Load() && g.seen.Load()+g.unavailable.Load() < start[i]+20 {
					return fmt.Errorf("%s is not answered", g.name)
				}
			}
			return nil
		})
	}
	revoke := func(g *guest) {
		g.mayLose.Store(true)
		eventually(t, "RevokeUser", func() error { return managers[0].RevokeUser(context.Background(), g.name) })
		g.revoked.Store(true)
	}
	visited("before")
	srvs[killed].Stop()
	phase.Store(1)
	visited("while one is down")
	here, there := kinds[[2]bool{}][0], kinds[[2]bool{false, true}][0]
	if copies == 1 {
		revoke(here) // on servers that work
		if err := managers[1].RevokeUser(context.Background(), there.name); !errors.Is(err, driver.ErrUnavailable) {
			t.Errorf("RevokeUser, the list being on the server that is down = %v, want ErrUnavailable", err)
		}
	}
	srvs[killed].Restart()
	phase.Store(2)
	if copies == 2 {
		revoke(here)
	}
	revoke(there) // the list is empty, or back from its copy
	visited("after the restart")
	eventually(t, "the revoked are out, and who was lost is back", func() error {
		for _, g := range []*guest{here, there} {
			if _, user := g.peek(t, managers); user != "" {
				return fmt.Errorf("%s is revoked, and in", g.name)
			}
		}
		for _, g := range guests {
			lost := copies == 1 && !g.mayLose.Load() && (g.session == killed || g.list == killed)
			if lost && g.logins.Load() == 0 {
				return fmt.Errorf("%s has not been logged out yet", g.name)
			}
		}
		return nil
	})
	visited("at the end")
	end()

	var unavailable, lost, logins int64
	for _, g := range guests {
		unavailable, lost, logins = unavailable+g.unavailable.Load(), lost+g.lost.Load(), logins+g.logins.Load()
		if copies == 1 && g.logins.Load() > 1 {
			t.Errorf("%s had to log in %d times", g.name, g.logins.Load())
		}
	}
	for _, g := range []*guest{here, there} {
		if _, user := g.peek(t, managers); user != "" {
			t.Errorf("%s was revoked, and is in", g.name)
		}
	}
	var evicted, unlisted uint64
	for _, m := range managers {
		evicted, unlisted = evicted+m.Stats().Evicted, unlisted+m.Stats().Unlisted
	}
	l := stores[0].Losses()
	t.Logf("%d users, %d with their session and %d with only their list on the server that was killed; %d requests answered 503, %d times logged out; "+
		"the Managers count %d evicted and %d unlisted; the first store %+v", users, len(kinds[[2]bool{true, false}])+len(kinds[[2]bool{true, true}]),
		len(kinds[[2]bool{false, true}]), unavailable, lost, evicted, unlisted, l)
	if l.Restarts != 1 {
		t.Errorf("%d restarts counted, want 1", l.Restarts)
	}
	if copies == 2 {
		if evicted != 0 || lost != 0 {
			t.Errorf("%d sessions evicted, %d logged out, want none", evicted, lost)
		}
		return
	}
	// Counted as dropped by the store: a session whose user's record still lists it. Where both are gone nobody knows.
	if want := len(kinds[[2]bool{true, false}]); evicted != uint64(want) {
		t.Errorf("%d sessions counted as evicted, want %d", evicted, want)
	}
	if want := len(kinds[[2]bool{false, true}]); unlisted != uint64(want) {
		t.Errorf("%d sessions counted as unlisted, want %d", unlisted, want)
	}
}

// ask makes one request and returns who it was served as.
func (g *guest) ask(t *testing.T, m *holdfast.Manager, what string) (status int, user string) {
	r := httptest.NewRequestWithContext(context.Background(), "GET", "https://www.example.com/", nil)
	if g.cookie != "" {
		r.AddCookie(&http.Cookie{Name: "__Host-Http-session", Value: g.cookie})
	}
	w := httptest.NewRecorder()
	m.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s, err := m.Get(r)
		if err == nil && what == "login" {
			if err = s.Login(r.Context(), g.name); err == nil {
				err = errors.Join(owner.Set(s, g.name), visits.Set(s, 0))
				g.visits = 0
			}
			g.id = s.ID()
		}
		var whose string
		var n int
		if err == nil {
			whose, err = owner.Get(s)
		}
		if err == nil {
			n, err = visits.Get(s)
		}
		if err == nil && whose != s.User() {
			t.Errorf("%s is shown the session of %q with the fields of %q", g.name, s.User(), whose)
		}
		if err == nil && s.User() != "" && n < g.visits {
			t.Errorf("%s has %d visits, after %d were acknowledged", g.name, n, g.visits)
		}
		if err == nil && s.User() != "" && what == "write" {
			err = visits.Set(s, n+1)
		}
		if err != nil {
			m.Error(w, r, err)
			return
		}
		user = s.User()
	})).ServeHTTP(w, r)
	res := w.Result()
	for _, c := range res.Cookies() {
		if c.Value != "" && res.StatusCode == http.StatusOK {
			g.cookie = c.Value
		}
	}
	if user != "" && what == "write" && res.StatusCode == http.StatusOK {
		g.visits++
	}
	return res.StatusCode, user
}

// peek asks with the guest's cookie, beside the guest.
func (g *guest) peek(t *testing.T, managers []*holdfast.Manager) (status int, user string) {
	o := &guest{name: g.name, cookie: g.cookie}
	return o.ask(t, managers[0], "read")
}
