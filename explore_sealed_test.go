package holdfast_test

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/holdfast-sessions/holdfast"
	"github.com/holdfast-sessions/holdfast/driver"
)

// TestSealedInterleavings is TestInterleavings for sealed sessions: a token lives while a server that has just been
// started accepts it.
func TestSealedInterleavings(t *testing.T) {
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
		{"login, login of one visitor", limit(100), login, login, neverBoth},
		{"login, login at limit 2", limit(2), login, other, nil},
		{"login, login at limit 1", limit(1), login, other, nil},
		{"login, login unlimited", limit(-1), login, other, nil},
		{"login, write under the old token", limit(100), login, opWrite("visitor", "x"), neverBoth},
		{"login, revoke user", limit(100), login, opRevokeUser, revoked},
		{"login again, write", limit(100), relogin, write, neverBoth},
		{"login again, logout", limit(100), relogin, logout, ended("b")},
		{"login again, revoke user", limit(100), relogin, opRevokeUser, revoked},
		{"renew, renew", limit(100), renew, renew, neverBoth},
		{"renew, write", limit(100), renew, write, neverBoth},
		{"renew, logout", limit(100), renew, logout, ended("b")},
		{"renew, revoke", limit(100), renew, opRevoke, ended("b")},
		{"renew, revoke user", limit(100), renew, opRevokeUser, revoked},
		{"logout, write", limit(100), logout, write, ended("a")},
		{"logout, touch", limit(100), logout, opTouch, ended("a")},
		{"logout, logout", limit(100), logout, logout, ended("a")},
		{"logout, revoke user", limit(100), logout, opRevokeUser, ended("a")},
		{"revoke, write", limit(100), opRevoke, write, ended("a")},
		{"revoke user, write", limit(100), opRevokeUser, write, ended("a")},
		{"revoke user, revoke user", limit(100), opRevokeUser, opRevokeUser, ended("a")},
		{"write, write of another field", limit(100), write, opWrite("member", "y"), neverBoth},
		{"update, update", limit(100), opUpdate, opUpdate, neverBoth},
	}
	for _, strict := range []bool{false, true} {
		for _, crash := range []bool{false, true} {
			for _, p := range pairs {
				if p.name == "update, update" && !strict {
					continue // Update is refused
				}
				t.Run(fmt.Sprintf("%s/strict=%v/crash=%v", p.name, strict, crash), func(t *testing.T) {
					config := p.config
					config.Strict = strict
					explore(t, p, crash, func(t *testing.T) *world { return newWorld(t, config, false, true) })
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
