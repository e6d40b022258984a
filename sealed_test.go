package holdfast_test

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-sessions/holdfast"
	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/store/memory"
)

// fakeSealer signs records and hides nothing; packages sealed/cookie and sealed/jwt have the real ones. It seals with the
// key of its number, and knows those up to newest, of which the ones below oldest are retired.
type fakeSealer struct {
	seals, oldest, newest uint32
	max                   int
}

func newFakeSealer() *fakeSealer { return &fakeSealer{seals: 1, oldest: 1, newest: 1, max: 16 << 10} }

func (f *fakeSealer) sum(b []byte, binding string) []byte {
	h := hmac.New(sha256.New, []byte("fake"))
	_, _ = h.Write(b) // never fails
	_, _ = h.Write([]byte(binding))
	return h.Sum(nil)
}

func (f *fakeSealer) Seal(binding string, id driver.ID, rec driver.Record) (string, error) {
	b, err := driver.Encode(rec)
	if err != nil {
		return "", err
	}
	b = append(binary.BigEndian.AppendUint32(nil, f.seals), append(id[:], b...)...)
	token := base64.RawURLEncoding.EncodeToString(append(b, f.sum(b, binding)...))
	if len(token) > f.max {
		return "", driver.ErrTooLarge
	}
	return token, nil
}

func (f *fakeSealer) Open(binding, token string) (driver.Opened, error) {
	b, err := base64.RawURLEncoding.Strict().DecodeString(token)
	if err != nil || len(b) < 4+32+32 {
		return driver.Opened{}, driver.ErrTampered
	}
	key := binary.BigEndian.Uint32(b)
	switch {
	case key > f.newest:
		return driver.Opened{}, driver.ErrForeignSeal
	case key < f.oldest:
		return driver.Opened{}, driver.ErrRetiredKey
	}
	b, sum := b[:len(b)-32], b[len(b)-32:]
	if !hmac.Equal(sum, f.sum(b, binding)) {
		return driver.Opened{}, driver.ErrTampered
	}
	rec, err := driver.Decode(b[4+32:])
	if err != nil {
		return driver.Opened{}, driver.ErrTampered
	}
	o := driver.Opened{ID: driver.ID(b[4 : 4+32]), Record: rec, Stale: key < f.seals}
	if rec.Expired(time.Now()) {
		return o, driver.ErrGone
	}
	return o, nil
}

func (f *fakeSealer) Describe() driver.Description {
	return driver.Description{Name: "fake", Shared: true, MaxBytes: f.max}
}

func mustSealed(t testing.TB, s driver.Sealer, users driver.Store, c holdfast.Config) *holdfast.Manager {
	t.Helper()
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	m, err := holdfast.NewSealed(s, users, c)
	must(t, err)
	return m
}

// onServers calls f with two servers that share users' records, without and with Config.Strict, in a store that tells
// nothing and in one that tells of changes.
func onServers(t *testing.T, f func(t *testing.T, s *fakeSealer, users *memory.Store, a, b *holdfast.Manager)) {
	for _, strict := range []bool{false, true} {
		for _, watched := range []bool{false, true} {
			t.Run(fmt.Sprintf("strict=%v/watched=%v", strict, watched), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					s, users := newFakeSealer(), mustMemory(t)
					var store driver.Store = users
					if !watched {
						store = unwatched{users}
					}
					c := holdfast.Config{Strict: strict}
					f(t, s, users, mustSealed(t, s, store, c), mustSealed(t, s, store, c))
				})
			})
		}
	}
}

// unwatched is a store that tells nothing.
type unwatched struct{ *memory.Store }

// Watch is in the way of the store's, and no driver.Watcher.
func (unwatched) Watch() {}

func (v *visitor) at(m *holdfast.Manager) *visitor { v.m = m; return v }

func TestSealedOnEveryServer(t *testing.T) {
	onServers(t, func(t *testing.T, _ *fakeSealer, _ *memory.Store, a, b *holdfast.Manager) {
		v := newVisitor(t, a)
		v.set(1)
		anonymous := v.copy()
		v.at(b).login("ada")
		if v.at(a).user() != "ada" || v.visits() != 1 {
			t.Errorf("after login elsewhere: user %q, %d visits", v.user(), v.visits())
		}
		v.at(b).set(2)
		if n := v.at(a).visits(); n != 2 {
			t.Errorf("%d visits, want 2", n)
		}
		// Attack 2: the token from before the login says nothing of it.
		if u := anonymous.at(b).user(); u != "" {
			t.Errorf("token from before the login: user %q", u)
		}
		res := v.visit(func(_ http.ResponseWriter, _ *http.Request, s *holdfast.Session) { _, _ = visits.Get(s) })
		wantCookies(t, res, 0) // nothing changed
	})
}

// A session that is newer than what a server remembers of its user is accepted there all the same.
func TestSealedNewerThanRemembered(t *testing.T) {
	onServers(t, func(t *testing.T, _ *fakeSealer, users *memory.Store, a, b *holdfast.Manager) {
		v := newVisitor(t, a)
		accepted := func(v *visitor, after string) {
			t.Helper()
			if u := v.at(b).user(); u != "ada" {
				t.Errorf("after %s elsewhere: user %q", after, u)
			}
			v.at(a)
		}
		v.login("ada")
		accepted(v, "login")
		other := newVisitor(t, a)
		other.login("ada")
		accepted(other, "a second login")
		v.visit(func(_ http.ResponseWriter, r *http.Request, s *holdfast.Session) { must(t, s.Renew(r.Context())) })
		accepted(v, "renewal")
		v.logout()
		v.login("ada")
		accepted(v, "logout and login")
		must(t, users.Delete(t.Context(), holdfast.EpochID)) // as a store does that drops records
		time.Sleep(6 * time.Second)
		if u := v.at(b).user(); u != "" {
			t.Errorf("without the epoch: user %q", u)
		}
		v.at(a).login("ada")
		accepted(v, "login without the epoch")
	})
}

// Attacks 14 and 15: what was ended on one server is refused on the others within five seconds, also a token that was
// kept aside, and a request that saves late.
func TestSealedEndsEverywhere(t *testing.T) {
	ends := map[string]func(t *testing.T, v *visitor, id driver.ID){
		"Logout": func(t *testing.T, v *visitor, _ driver.ID) { v.logout() },
		"Revoke": func(t *testing.T, v *visitor, id driver.ID) { must(t, v.m.Revoke(t.Context(), id)) },
		"RevokeUser": func(t *testing.T, v *visitor, _ driver.ID) {
			must(t, v.m.RevokeUser(t.Context(), "ada"))
		},
		"RevokeAll": func(t *testing.T, v *visitor, _ driver.ID) { must(t, v.m.RevokeAll(t.Context())) },
		"Renew": func(t *testing.T, v *visitor, _ driver.ID) {
			v.visit(func(_ http.ResponseWriter, r *http.Request, s *holdfast.Session) { must(t, s.Renew(r.Context())) })
		},
	}
	for name, end := range ends {
		t.Run(name, func(t *testing.T) {
			onServers(t, func(t *testing.T, s *fakeSealer, users *memory.Store, a, b *holdfast.Manager) {
				v := newVisitor(t, a)
				id := v.login("ada")
				if name != "Logout" {
					newVisitor(t, b).login("bob")
				}
				kept := v.copy()
				if u := kept.at(b).user(); u != "ada" { // b knows the user record now
					t.Fatalf("before: user %q", u)
				}
				end(t, v.at(a), id)
				if u := kept.at(a).user(); u != "" {
					t.Errorf("at the server that ended it: user %q", u)
				}
				if b.Capabilities().Strict && name != "RevokeAll" && name != "RevokeUser" && name != "Revoke" {
					if u := kept.at(b).user(); u != "" {
						t.Errorf("strict, elsewhere: user %q", u)
					}
				}
				time.Sleep(5 * time.Second)
				if u := kept.at(b).user(); u != "" {
					t.Errorf("elsewhere, 5 s later: user %q", u)
				}
				// All servers restarted.
				c := mustSealed(t, s, users, holdfast.Config{Strict: b.Capabilities().Strict})
				if u := kept.at(c).user(); u != "" {
					t.Errorf("after a restart: user %q", u)
				}
				if st := c.Stats(); st.Unlisted+st.Lost != 1 {
					t.Errorf("refused %d, lost %d, want 1 of them", st.Unlisted, st.Lost)
				}
				time.Sleep(time.Minute)
				if u := kept.at(b).user(); u != "" {
					t.Errorf("a minute later: user %q", u)
				}
				if kept.login("ada"); kept.at(a).user() != "ada" {
					t.Error("cannot log in again with the ended token")
				}
			})
		})
	}
}

// A request that is under way with the old token neither sets nor clears a cookie.
func TestSealedSlowRequest(t *testing.T) {
	onServers(t, func(t *testing.T, _ *fakeSealer, _ *memory.Store, a, b *holdfast.Manager) {
		v := newVisitor(t, a)
		v.login("ada")
		slow := v.request(t.Context())
		v.at(b).login("ada")
		time.Sleep(6 * time.Second)
		res := v.at(a).handle(slow, func(w http.ResponseWriter, r *http.Request) {
			s, err := v.m.Get(r)
			must(t, err)
			wantErr(t, "Set", visits.Set(s, 7), holdfast.ErrEnded)
			wantErr(t, "Login", s.Login(r.Context(), "eve"), holdfast.ErrEnded)
		})
		wantCookies(t, res, 0)
	})
}

func TestSealedMissingRecordRefuses(t *testing.T) {
	for name, id := range map[string]driver.ID{"user record": holdfast.UserID("ada"), "epoch": holdfast.EpochID} {
		t.Run(name, func(t *testing.T) {
			onServers(t, func(t *testing.T, _ *fakeSealer, users *memory.Store, a, b *holdfast.Manager) {
				v := newVisitor(t, a)
				v.login("ada")
				must(t, a.RevokeUser(t.Context(), "ada"))
				must(t, users.Delete(t.Context(), id)) // evicted
				if u := v.at(b).user(); u != "" {
					t.Errorf("user %q", u)
				}
				if v.login("ada"); v.at(a).user() != "ada" {
					t.Error("cannot log in afterwards")
				}
			})
		})
	}
}

func TestSealedLimit(t *testing.T) {
	for _, strict := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			s, users := newFakeSealer(), mustMemory(t)
			c := holdfast.Config{Strict: strict, MaxSessions: 3}
			a, b := mustSealed(t, s, users, c), mustSealed(t, s, users, c)
			var all []*visitor
			for range 5 {
				v := newVisitor(t, a)
				v.login("ada")
				all = append(all, v)
				time.Sleep(time.Second)
			}
			for i, v := range all {
				if u := v.at(b).user(); (u == "ada") != (i >= 2) {
					t.Errorf("session %d of 5, limit 3: user %q", i+1, u)
				}
			}
			list, err := b.List(t.Context(), "ada")
			must(t, err)
			if len(list) != 3 || list[0].User != "ada" || list[0].Created.After(list[1].Created) {
				t.Errorf("List: %v", list)
			}
			c.RefuseAtLimit = true
			v := newVisitor(t, mustSealed(t, s, users, c))
			v.visit(func(_ http.ResponseWriter, r *http.Request, s *holdfast.Session) {
				wantErr(t, "Login", s.Login(r.Context(), "ada"), holdfast.ErrLimit)
			})
		})
	}
}

// Attack 20.
func TestSealedLimitRaced(t *testing.T) {
	s, users := newFakeSealer(), mustMemory(t)
	c := holdfast.Config{MaxSessions: 10}
	servers := []*holdfast.Manager{mustSealed(t, s, users, c), mustSealed(t, s, users, c)}
	done := make(chan *visitor)
	for i := range 100 {
		go func() {
			v := newVisitor(t, servers[i%2])
			v.login("ada")
			done <- v
		}()
	}
	var all []*visitor
	for range 100 {
		all = append(all, <-done)
	}
	fresh, live := mustSealed(t, s, users, c), 0
	for _, v := range all {
		if v.at(fresh).user() == "ada" {
			live++
		}
	}
	if live != 10 {
		t.Errorf("%d sessions live, want 10", live)
	}
}

// A server that does not know a key yet leaves the cookie alone, unless somebody logs in or out there.
func TestSealedForeignKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		users := mustMemory(t)
		ahead, behind := newFakeSealer(), newFakeSealer()
		ahead.seals, ahead.newest = 2, 2
		a, b := mustSealed(t, ahead, users, holdfast.Config{}), mustSealed(t, behind, users, holdfast.Config{})
		v := newVisitor(t, a)
		v.login("ada")
		res := v.at(b).visit(func(_ http.ResponseWriter, r *http.Request, s *holdfast.Session) {
			if s.User() != "" {
				t.Errorf("user %q", s.User())
			}
			must(t, visits.Set(s, 1))
			wantErr(t, "Save", s.Save(r.Context()), holdfast.ErrUnsupported)
		})
		wantCookies(t, res, 0)
		wantStatus(t, res, 200)
		if n := b.Stats().Foreign; n != 1 {
			t.Errorf("Foreign = %d, want 1", n)
		}
		if u := v.at(a).user(); u != "ada" {
			t.Errorf("back at the first: user %q", u)
		}
		v.at(b).logout()
		if v.token() != "" {
			t.Error("logout left the cookie")
		}
		v.at(a).login("ada")
		v.at(b).login("ada")
		if u := v.at(a).user(); u != "ada" {
			t.Errorf("after a login there: user %q", u)
		}
	})
}

// Attack 11, and the cookie is sealed anew under the new key when it is used.
func TestSealedKeyChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, users := newFakeSealer(), mustMemory(t)
		m := mustSealed(t, s, users, holdfast.Config{})
		v := newVisitor(t, m)
		v.login("ada")
		old := v.copy()
		s.seals, s.newest = 2, 2
		if v.user() != "ada" || v.token() == old.token() {
			t.Error("not sealed anew")
		}
		s.oldest = 2
		if u := old.user(); u != "" {
			t.Errorf("retired key: user %q", u)
		}
		if v.user() != "ada" || m.Stats().Retired != 1 {
			t.Errorf("user %q, Retired = %d", v.user(), m.Stats().Retired)
		}
	})
}

func TestSealedTimeouts(t *testing.T) {
	onServers(t, func(t *testing.T, _ *fakeSealer, _ *memory.Store, a, b *holdfast.Manager) {
		v := newVisitor(t, a)
		v.login("ada")
		kept := v.copy()
		for range 23 { // extended by use, over the idle timeout of half an hour
			time.Sleep(29 * time.Minute)
			if v.user() != "ada" {
				t.Fatal("ended while in use")
			}
		}
		if u := kept.at(b).user(); u != "" {
			t.Errorf("a token that was not used for hours: user %q", u)
		}
		for ; ; time.Sleep(20 * time.Minute) {
			if v.user() == "" {
				break
			}
		}
		time.Sleep(25 * time.Minute)
		v.login("ada")
		time.Sleep(30 * time.Minute)
		if u := v.user(); u != "" {
			t.Errorf("after the idle timeout: user %q", u)
		}
	})
}

// refusing returns what has a tapped store refuse calls of these kinds while down is set.
func refusing(down *atomic.Bool, ops ...string) func(context.Context, storeCall) error {
	return func(_ context.Context, c storeCall) error {
		if down.Load() && slices.Contains(ops, c.op) {
			return driver.ErrUnavailable
		}
		return nil
	}
}

func TestSealedUsersDown(t *testing.T) {
	for _, open := range []bool{false, true} {
		t.Run(fmt.Sprintf("open=%v", open), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var down atomic.Bool
				m := mustSealed(t, newFakeSealer(), tapped{mustMemory(t), refusing(&down, "load", "save")}, holdfast.Config{FailOpen: open})
				v := newVisitor(t, m)
				v.login("ada")
				if v.user() != "ada" { // the user record is remembered from here on
					t.Fatal("not logged in")
				}
				down.Store(true)
				if v.user() != "ada" {
					t.Error("refused within 5 s of the user record's last answer")
				}
				time.Sleep(6 * time.Second)
				res := v.visit(func(w http.ResponseWriter, _ *http.Request, s *holdfast.Session) { _, _ = w.Write([]byte(s.User())) })
				if open {
					wantStatus(t, res, 200)
					if m.Stats().FailedOpen != 1 {
						t.Errorf("FailedOpen = %d", m.Stats().FailedOpen)
					}
				} else {
					wantStatus(t, res, 503)
				}
				// Anonymous visitors need no store.
				w := newVisitor(t, m)
				if w.set(3); w.visits() != 3 {
					t.Error("anonymous session lost")
				}
				// Logging out by force cannot get through, and says so.
				wantErr(t, "RevokeUser", m.RevokeUser(t.Context(), "ada"), holdfast.ErrUnavailable)
				down.Store(false)
				if u := v.user(); u != "ada" {
					t.Errorf("afterwards: user %q", u)
				}
			})
		})
	}
}

func TestSealedWithoutUsers(t *testing.T) {
	var log bytes.Buffer
	c := holdfast.Config{Logger: slog.New(slog.NewTextHandler(&log, nil))}
	m := mustSealed(t, newFakeSealer(), nil, c)
	if !strings.Contains(log.String(), "level=WARN") {
		t.Errorf("start-up does not warn: %s", log.String())
	}
	v := newVisitor(t, m)
	id := v.login("ada")
	if v.user() != "ada" {
		t.Error("not logged in")
	}
	_, err := m.List(t.Context(), "ada")
	wantErr(t, "List", err, holdfast.ErrUnsupported)
	wantErr(t, "Revoke", m.Revoke(t.Context(), id), holdfast.ErrUnsupported)
	wantErr(t, "RevokeUser", m.RevokeUser(t.Context(), "ada"), holdfast.ErrUnsupported)
	wantErr(t, "RevokeAll", m.RevokeAll(t.Context()), holdfast.ErrUnsupported)
	_, err = m.Open(t.Context(), id)
	wantErr(t, "Open", err, holdfast.ErrUnsupported)
	if v.logout(); v.token() != "" {
		t.Error("logout left the cookie")
	}
	if m.Capabilities().Revoke {
		t.Error("Capabilities says that sessions can be revoked")
	}
}

// What one of two requests with the same token does is lost if the browser keeps the other's answer. So Update, which
// promises that nothing is lost, refuses; with Strict, the later of the two is told.
func TestSealedParallel(t *testing.T) {
	onServers(t, func(t *testing.T, _ *fakeSealer, _ *memory.Store, a, b *holdfast.Manager) {
		strict := a.Capabilities().Strict
		v := newVisitor(t, a)
		v.set(1)
		one, two := v.copy(), v.copy()
		inc := func(n int) (int, error) { return n + 1, nil }
		update := func(v *visitor) (err error) {
			v.visit(func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) {
				if _, err = visits.Update(r.Context(), s, inc); err != nil {
					v.m.Error(w, r, err)
				}
			})
			return err
		}
		if !strict {
			wantErr(t, "Update", update(one), holdfast.ErrUnsupported)
			one.set(2)
			two.set(3)
			if n := one.visits() + two.visits(); n != 5 {
				t.Errorf("two answers hold %d together, want 5", n)
			}
			return
		}
		must(t, update(one))
		before := two.token()
		if n := two.at(b).visits(); n != 1 { // side by side: read, not written
			t.Errorf("%d visits beside another request, want 1", n)
		}
		wantErr(t, "Update", update(two), holdfast.ErrEnded)
		if two.token() != before {
			t.Error("the refused request sent a cookie")
		}
		if n := one.at(b).visits(); n != 2 {
			t.Errorf("%d visits, want 2", n)
		}
		time.Sleep(6 * time.Second)
		two.visit(func(_ http.ResponseWriter, _ *http.Request, s *holdfast.Session) {
			wantField(t, visits, s, 0)
			wantErr(t, "Set by a slow request", visits.Set(s, 9), holdfast.ErrEnded)
		})
		time.Sleep(30 * time.Second) // attack 14: an older token
		if n := two.visits(); n != 0 || b.Stats().Replayed != 1 {
			t.Errorf("replayed: %d visits, Replayed = %d", n, b.Stats().Replayed)
		}
	})
}

func TestSealedChunks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := mustSealed(t, newFakeSealer(), mustMemory(t), holdfast.Config{})
		v := newVisitor(t, m)
		fill := func(n int) *http.Response {
			return v.visit(func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) {
				if err := owner.Set(s, strings.Repeat("x", n)); err != nil {
					m.Error(w, r, err)
				}
			})
		}
		names := func() (list []string) {
			for _, c := range v.jar.Cookies(site) {
				if n := len(c.Name) + len(c.Value); n > 4096 {
					t.Errorf("cookie %s has %d bytes", c.Name, n)
				}
				list = append(list, strings.TrimPrefix(c.Name, cookieName))
			}
			return list
		}
		length := func(n int) {
			t.Helper()
			v.visit(func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) {
				if got, err := owner.Get(s); err != nil || len(got) != n {
					t.Errorf("%d characters back, %v, want %d", len(got), err, n)
				}
			})
		}
		for _, step := range []struct {
			n     int
			names string
		}{{100, "[]"}, {7000, "[ .1 .2]"}, {3500, "[ .1]"}, {8000, "[ .1 .2]"}, {10, "[]"}} {
			wantStatus(t, fill(step.n), 200)
			length(step.n)
			if got := fmt.Sprint(names()); got != step.names && !(step.names == "[]" && got == "[]") {
				t.Errorf("%d characters are in cookies %s, want %s", step.n, got, step.names)
			}
		}
		fill(7000)
		// Attack 23.
		wantStatus(t, fill(20000), 413)
		length(7000)
		// A part of another token, and one that is missing.
		other := v.copy()
		fill(7001)
		for _, c := range v.jar.Cookies(site) {
			if c.Name == cookieName+".1" {
				other.jar.SetCookies(site, []*http.Cookie{c})
			}
		}
		other.visits()
		if n := m.Stats().Incomplete; n != 1 {
			t.Errorf("Incomplete = %d, want 1", n)
		}
		v.logout()
		if got := names(); len(got) != 0 {
			t.Errorf("logout left %v", got)
		}
	})
}

// With Spill, what does not fit into the token is in the store, and nothing is lost or mixed.
func TestSealedSpill(t *testing.T) {
	for _, strict := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			s, users := newFakeSealer(), mustMemory(t)
			s.max = 2000
			c := holdfast.Config{Spill: true, Strict: strict}
			a, b := mustSealed(t, s, users, c), mustSealed(t, s, users, c)
			v := newVisitor(t, a)
			v.set(7)
			want := func(v *visitor, fill string, n int) {
				t.Helper()
				v.visit(func(_ http.ResponseWriter, _ *http.Request, s *holdfast.Session) {
					if got, err := owner.Get(s); err != nil || got != fill {
						t.Errorf("field of %d characters back, %v, want %d", len(got), err, len(fill))
					}
					wantField(t, visits, s, n)
				})
			}
			fill := func(v *visitor, x string) {
				t.Helper()
				res := v.visit(func(_ http.ResponseWriter, _ *http.Request, s *holdfast.Session) { must(t, owner.Set(s, x)) })
				wantStatus(t, res, 200)
			}
			large := strings.Repeat("x", 5000)
			fill(v, large)
			if len(v.token()) > 2000 {
				t.Errorf("token of %d characters", len(v.token()))
			}
			want(v.at(b), large, 7)
			v.set(8) // beside the large one, which stays where it is
			want(v.at(a), large, 8)
			if n := a.Stats().Spills + b.Stats().Spills; n != 1 {
				t.Errorf("Spills = %d, want 1", n)
			}
			if !strict { // the client keeps one of two answers, whole
				one, two := v.copy(), v.copy()
				fill(one, strings.Repeat("1", 5000))
				fill(two, strings.Repeat("2", 5000))
				want(one.at(b), strings.Repeat("1", 5000), 8)
				want(two.at(b), strings.Repeat("2", 5000), 8)
			}
			for range 10 { // used for longer than the idle timeout
				time.Sleep(20 * time.Minute)
				want(v.at(b), large, 8)
			}
			v.login("ada")
			want(v.at(a), large, 8)
			fill(v, "small")
			want(v.at(b), "small", 8)
			fill(v, large)
			for id, rec := range records(t, users) {
				if _, ok := rec.Fields.Get("owner"); ok {
					must(t, users.Delete(t.Context(), id)) // evicted
				}
			}
			if u := v.at(b).user(); u != "" || b.Stats().Evicted != 1 {
				t.Errorf("fields gone: user %q, Evicted = %d", u, b.Stats().Evicted)
			}
			v.login("ada")
			fill(v, large)
			v.logout()
		})
	}
}

// The seal binds a token to the cookie's name and the tenant (attack 10).
func TestSealedBinding(t *testing.T) {
	s := newFakeSealer()
	users := mustMemory(t)
	m := mustSealed(t, s, users, holdfast.Config{})
	v := newVisitor(t, m)
	v.login("ada")
	for name, c := range map[string]holdfast.Config{
		"another tenant": {Cookie: holdfast.Cookie{Tenant: "b"}},
		"another name":   {Cookie: holdfast.Cookie{Name: "other"}},
		"a header":       {Header: "X-Auth-Token", DisableCookie: true},
		"bearer":         {Bearer: true, DisableCookie: true},
	} {
		o := mustSealed(t, s, users, c)
		w := newVisitor(t, o)
		w.jar.SetCookies(site, []*http.Cookie{{Name: "__Host-Http-session", Value: v.token()}, {Name: "__Host-Http-other", Value: v.token()}})
		w.header.Set("X-Auth-Token", v.token())
		w.header.Set("Authorization", "Bearer "+v.token())
		if u := w.user(); u != "" {
			t.Errorf("%s: user %q", name, u)
		}
		if o.Stats().Tampered != 1 {
			t.Errorf("%s: Tampered = %d, want 1", name, o.Stats().Tampered)
		}
	}
}

func TestSealedBearer(t *testing.T) {
	m := mustSealed(t, newFakeSealer(), mustMemory(t), holdfast.Config{Bearer: true, DisableCookie: true})
	v := newVisitor(t, m)
	res := v.visit(func(_ http.ResponseWriter, r *http.Request, s *holdfast.Session) {
		must(t, s.Login(r.Context(), "ada"))
	})
	wantCookies(t, res, 0)
	token := res.Header.Get("Authorization")
	if !strings.HasPrefix(token, "Bearer ") {
		t.Fatalf("no token in the response: %d characters", len(token))
	}
	for _, header := range []string{token, "bearer  " + token[len("Bearer "):]} {
		if v.header.Set("Authorization", header); v.user() != "ada" {
			t.Error("token not taken")
		}
	}
	for _, header := range []string{"Basic " + token[len("Bearer "):], token[len("Bearer "):], "Bearer", ""} {
		if v.header.Set("Authorization", header); v.user() != "" {
			t.Error("taken from another scheme")
		}
	}
}

func TestSealedConfig(t *testing.T) {
	for name, c := range map[string]holdfast.Config{
		"URLParameter": {URLParameter: "session"}, "Strict": {Strict: true}, "FailOpen": {FailOpen: true},
		"Spill": {Spill: true},
	} {
		if _, err := holdfast.NewSealed(newFakeSealer(), nil, c); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: error %v", name, err)
		}
	}
	if _, err := holdfast.NewSealed(nil, nil, holdfast.Config{}); err == nil {
		t.Error("no sealer: no error")
	}
	for _, c := range []holdfast.Config{{Strict: true}, {FailOpen: true}, {Bearer: true}, {Spill: true}} {
		_, err := holdfast.New(mustMemory(t), c)
		if err == nil {
			t.Errorf("New accepts what is for sealed sessions: %+v", c)
		}
	}
}
