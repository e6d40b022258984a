package holdfast_test

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/holdfast-sessions/holdfast"
	"github.com/holdfast-sessions/holdfast/driver"
)

// TestSealedInterleavings is TestInterleavings for sealed sessions: a token lives while a server that has just been
// started accepts it.
func TestSealedInterleavings(t *testing.T) {
	type pair struct {
		name  string
		limit int
		a, b  op
		check func(w *world) error
	}
	login, relogin := opLogin("visitor"), opLogin("member")
	renew, logout := opSession("renew", "member"), opSession("logout", "member")
	write, other := opWrite("member", "x"), opLogin("stranger")
	neverBoth := func(w *world) error { // only Strict can know
		if w.config.Strict && w.answered("a") && w.answered("b") {
			return errors.New("both requests were answered 200")
		}
		return nil
	}
	// ended: whatever tokens of the session anybody holds, none lives after the answer.
	ended := func(op string) func(*world) error {
		return func(w *world) error {
			for _, token := range w.held {
				if w.answered(op) && idOf(token) == idOf(w.old["member"]) && w.live(token) {
					return errors.New("the session that was ended lives")
				}
			}
			return nil
		}
	}
	revoked := func(w *world) error {
		if w.answered("b") && w.live(w.old["member"]) {
			return errors.New("a session that was logged in before the revocation lives")
		}
		return nil
	}
	pairs := []pair{
		{"login, login of one visitor", 100, login, login, neverBoth},
		{"login, login at limit 2", 2, login, other, nil},
		{"login, login at limit 1", 1, login, other, nil},
		{"login, login unlimited", -1, login, other, nil},
		{"login, write under the old token", 100, login, opWrite("visitor", "x"), neverBoth},
		{"login, revoke user", 100, login, opRevokeUser, revoked},
		{"login again, write", 100, relogin, write, neverBoth},
		{"login again, logout", 100, relogin, logout, ended("b")},
		{"login again, revoke user", 100, relogin, opRevokeUser, revoked},
		{"renew, renew", 100, renew, renew, neverBoth},
		{"renew, write", 100, renew, write, neverBoth},
		{"renew, logout", 100, renew, logout, ended("b")},
		{"renew, revoke", 100, renew, opRevoke, ended("b")},
		{"renew, revoke user", 100, renew, opRevokeUser, revoked},
		{"logout, write", 100, logout, write, ended("a")},
		{"logout, touch", 100, logout, opTouch, ended("a")},
		{"logout, logout", 100, logout, logout, ended("a")},
		{"logout, revoke user", 100, logout, opRevokeUser, ended("a")},
		{"revoke, write", 100, opRevoke, write, ended("a")},
		{"revoke user, write", 100, opRevokeUser, write, ended("a")},
		{"revoke user, revoke user", 100, opRevokeUser, opRevokeUser, ended("a")},
		{"write, write of another field", 100, write, opWrite("member", "y"), neverBoth},
		{"update, update", 100, opUpdate, opUpdate, neverBoth},
	}
	for _, strict := range []bool{false, true} {
		for _, crash := range []bool{false, true} {
			for _, p := range pairs {
				if p.name == "update, update" && !strict {
					continue // Update is refused
				}
				t.Run(fmt.Sprintf("%s/strict=%v/crash=%v", p.name, strict, crash), func(t *testing.T) {
					var tree tree
					schedules := 0
					for more := true; more && !t.Failed(); more = tree.next() {
						schedules++
						synctest.Test(t, func(t *testing.T) {
							w := newWorld(t, holdfast.Config{MaxSessions: p.limit, Strict: strict}, false, true)
							if !w.run(map[string]op{"a": p.a, "b": p.b}, &tree, crash) {
								return
							}
							err := w.check()
							if p.check != nil {
								err = errors.Join(err, p.check(w))
							}
							if err = errors.Join(err, w.checkRevocation()); err != nil {
								t.Fatalf("schedule %d:\n%s\n%v", schedules, strings.Join(w.trace, "\n"), err)
							}
						})
					}
					t.Logf("%d schedules", schedules)
				})
			}
		}
	}
}

// idOf returns the ID of a token, sealed or not.
func idOf(token string) driver.ID {
	if o, err := newFakeSealer().Open("session", token); err == nil {
		return o.ID
	}
	return holdfast.MustTokenID(token)
}

// opened returns what a server that has just been started takes from a sealed token, and whether it accepts it.
func (w *world) opened(token string) (rec driver.Record, ok bool) {
	o, err := newFakeSealer().Open("session", token)
	if err != nil {
		return driver.Record{}, false
	}
	config := w.config
	config.Rand = nil
	config.Cookie.AllowPlainLocalhost = true
	m, err := holdfast.NewSealed(newFakeSealer(), w.store, config)
	if err != nil {
		return driver.Record{}, false
	}
	r := httptest.NewRequest("GET", "http://localhost/", nil)
	r.AddCookie(&http.Cookie{Name: "session", Value: token})
	m.Handler(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		s, err := m.Get(r)
		ok = err == nil && s.ID() == o.ID
	})).ServeHTTP(httptest.NewRecorder(), r)
	return o.Record, ok
}
