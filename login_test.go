package holdfast_test

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-sessions/holdfast"
	"github.com/holdfast-sessions/holdfast/driver"
)

// TestFixation is attack 2: a token from before the login is worth nothing after it, on every server.
func TestFixation(t *testing.T) {
	stores(t, func(t *testing.T, store driver.Store) {
		m, other := mustManager(t, store, holdfast.Config{}), mustManager(t, store, holdfast.Config{})
		victim := newVisitor(t, m)
		victim.set(1)
		attacker := victim.copy() // who planted the token
		victim.login("ada")
		if attacker.token() == victim.token() {
			t.Fatal("the token is the same after the login")
		}
		for _, attacker.m = range []*holdfast.Manager{m, other} {
			if u, n := attacker.user(), attacker.visits(); u != "" || n != 0 {
				t.Errorf("the token from before the login shows user %q, visits %d", u, n)
			}
			res := attacker.visit(func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) {
				wantErr(t, "Login with the old token", s.Login(r.Context(), "eve"), holdfast.ErrEnded)
				m.Error(w, r, holdfast.ErrEnded)
			})
			wantStatus(t, res, http.StatusConflict)
			wantCookies(t, res, 0)
		}
		victim.m = other
		if u, n := victim.user(), victim.visits(); u != "ada" || n != 1 {
			t.Errorf("user %q with visits %d, want ada and what she had before: 1", u, n)
		}
	})
}

// TestUnknownTokenIsNotAdopted is attack 1.
func TestUnknownTokenIsNotAdopted(t *testing.T) {
	store := mustMemory(t)
	var events []holdfast.Event
	m := mustManager(t, store, holdfast.Config{OnEvent: func(_ context.Context, e holdfast.Event) { events = append(events, e) }})
	planted := "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
	for _, page := range []page{
		func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) { must(t, visits.Set(s, 1)) },
		func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) {
			must(t, s.Login(r.Context(), "ada"))
		},
		func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) {
			_, err := visits.Update(r.Context(), s, func(int) (int, error) { return 1, nil })
			must(t, err)
		},
	} {
		events = nil
		v := newVisitor(t, m)
		v.jar.SetCookies(site, []*http.Cookie{{Name: cookieName, Value: planted, Secure: true, Path: "/"}})
		v.visit(page)
		if v.token() == planted || v.token() == "" {
			t.Errorf("the visitor's token is %q", v.token())
		}
		if _, there := records(t, store)[holdfast.MustTokenID(planted)]; there {
			t.Error("a session is stored under a token that was not issued")
		}
		want := holdfast.Event{Kind: holdfast.EventRefused, Cause: "unknown", ID: holdfast.MustTokenID(planted)}
		if len(events) < 2 || events[0] != want {
			t.Errorf("events %v, want first %v", events, want)
		}
	}
	if n := m.Stats().Unknown; n != 3 {
		t.Errorf("Unknown = %d, want 3", n)
	}
}

// TestLateWriteAfterLogout is attack 15: a slow request that ends after the logout does not bring the session back.
func TestLateWriteAfterLogout(t *testing.T) {
	late := map[string]page{
		"set": func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) { _ = visits.Set(s, 9) },
		"update": func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) {
			_, err := visits.Update(r.Context(), s, func(n int) (int, error) { return n + 1, nil })
			if !errors.Is(err, holdfast.ErrEnded) {
				panic(err)
			}
			_, _ = w.Write([]byte("ignored"))
		},
		"save": func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) {
			_ = visits.Set(s, 9)
			_ = s.Save(r.Context())
		},
		"login": func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) { _ = s.Login(r.Context(), "ada") },
		"renew": func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) { _ = s.Renew(r.Context()) },
	}
	for name, end := range map[string]func(*testing.T, *visitor, driver.ID){
		"logout": func(t *testing.T, v *visitor, _ driver.ID) { v.logout() },
		"revoke": func(t *testing.T, v *visitor, id driver.ID) { must(t, v.m.Revoke(context.Background(), id)) },
		"revoke user": func(t *testing.T, v *visitor, _ driver.ID) {
			must(t, v.m.RevokeUser(context.Background(), "ada"))
		},
	} {
		for what, write := range late {
			if what == "login" && name != "logout" {
				continue // who authenticates after a revocation is let in
			}
			t.Run(what+" after "+name, func(t *testing.T) {
				for _, wait := range []time.Duration{0, 5 * time.Second, time.Minute} {
					for _, merges := range []bool{false, true} {
						synctest.Test(t, func(t *testing.T) {
							var store driver.Store = mustMemory(t)
							if !merges {
								store = tapped{store, func(context.Context, storeCall) error { return nil }}
							}
							m := mustManager(t, store, holdfast.Config{})
							v := newVisitor(t, m)
							id := v.login("ada")
							slow := v.copy()
							res := slow.visit(func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) {
								end(t, v, id)
								sleep(wait)
								write(w, r, s)
							})
							if name == "logout" && what == "login" && wait > markerAge {
								return // likewise, when the marker is gone
							}
							wantCookies(t, res, 0)
							if u := slow.user(); u != "" {
								t.Errorf("logged in as %q", u)
							}
							if _, err := m.Open(context.Background(), id); !errors.Is(err, holdfast.ErrNotFound) {
								t.Errorf("the session: %v, want ErrNotFound", err)
							}
							if list, err := m.List(context.Background(), "ada"); len(list) != 0 || err != nil {
								t.Errorf("listed: %v, %v", list, err)
							}
						})
					}
				}
			})
		}
	}
}

const markerAge = 30 * time.Second

// TestLateWriteAfterLogoutByHTTP is attack 15 as a browser sees it.
func TestLateWriteAfterLogoutByHTTP(t *testing.T) {
	run(t, func(t *testing.T, start func(http.Handler) *server) {
		m := mustManager(t, mustMemory(t), holdfast.Config{})
		began, loggedOut := make(chan bool), make(chan bool)
		mux := http.NewServeMux()
		handle := func(path string, f func(r *http.Request, s *holdfast.Session) error) {
			mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
				s, err := m.Get(r)
				if err == nil {
					err = f(r, s)
				}
				if err != nil {
					m.Error(w, r, err)
					return
				}
				_, _ = w.Write([]byte(s.User()))
			})
		}
		handle("/login", func(r *http.Request, s *holdfast.Session) error { return s.Login(r.Context(), "ada") })
		handle("/logout", func(r *http.Request, s *holdfast.Session) error { return s.Logout(r.Context()) })
		handle("/whoami", func(*http.Request, *holdfast.Session) error { return nil })
		handle("/slow", func(r *http.Request, s *holdfast.Session) error {
			began <- true
			<-loggedOut
			return visits.Set(s, 9)
		})
		sv := start(m.Handler(mux))
		sv.get(t, "/login")
		var slow sync.WaitGroup
		slow.Go(func() {
			res, _ := sv.get(t, "/slow")
			wantStatus(t, res, http.StatusConflict)
			wantCookies(t, res, 0)
		})
		<-began
		res, _ := sv.get(t, "/logout")
		wantCookies(t, res, 1)
		close(loggedOut)
		slow.Wait()
		if _, body := sv.get(t, "/whoami"); body != "" {
			t.Errorf("logged in as %q after the logout", body)
		}
		if n := m.Stats().Lost; n != 1 {
			t.Errorf("Lost = %d, want 1", n)
		}
	})
}

// TestRequestsWithTheOldToken: while a login or logout is under way, requests that still carry the old token neither
// set nor clear a cookie, their changes are dropped, and they are counted.
func TestRequestsWithTheOldToken(t *testing.T) {
	change := map[string]func(*testing.T, *visitor){
		"login":  func(t *testing.T, v *visitor) { v.login("ada") },
		"logout": func(t *testing.T, v *visitor) { v.logout() },
		"renew": func(t *testing.T, v *visitor) {
			v.visit(func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) { must(t, s.Renew(r.Context())) })
		},
	}
	for name, change := range change {
		for _, met := range []bool{false, true} { // the request begins after the change, or before it
			t.Run(map[bool]string{false: "before ", true: "after "}[met]+name, func(t *testing.T) {
				stores(t, func(t *testing.T, store driver.Store) {
					var events []holdfast.Event
					m := mustManager(t, store, holdfast.Config{OnEvent: func(_ context.Context, e holdfast.Event) {
						events = append(events, e)
					}})
					v := newVisitor(t, m)
					v.set(1)
					old := v.copy()
					if met {
						change(t, v)
					}
					res := old.visit(func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) {
						if !met {
							change(t, v)
						} else {
							wantField(t, visits, s, 0)
						}
						if err := visits.Set(s, 9); err != nil {
							wantErr(t, "Set", err, holdfast.ErrEnded)
							m.Error(w, r, err)
							return
						}
						w.Header().Set("X-Page", "hello")
						_, err := w.Write([]byte("hello"))
						wantErr(t, "Write", err, holdfast.ErrEnded)
					})
					wantStatus(t, res, http.StatusConflict)
					wantCookies(t, res, 0)
					wantHeader(t, res, "X-Page", "")
					wantHeader(t, res, "Cache-Control", "no-store")
					if got := m.Stats(); got.Lost != 1 || got.StoreErrors != 0 {
						t.Errorf("Lost = %d, StoreErrors = %d, want 1 and 0", got.Lost, got.StoreErrors)
					}
					lost := holdfast.Event{Kind: holdfast.EventLost, ID: holdfast.MustTokenID(old.token())}
					if !slices.Contains(events, lost) {
						t.Errorf("events %v, want %v among them", events, lost)
					}
					if want := map[bool]int{true: 0, false: 1}[name == "logout"]; v.visits() != want {
						t.Errorf("visits = %d, want %d", v.visits(), want)
					}
					// A page that reads is shown, as to an anonymous visitor.
					res = old.visit(func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) {
						if s.User() != "" {
							t.Errorf("user %q", s.User())
						}
					})
					wantStatus(t, res, 200)
					wantCookies(t, res, 0)
				})
			})
		}
	}
}

// TestLogoutWithTheOldToken: a second logout is done already; a logout with a token that was renewed is not, and says so.
func TestLogoutWithTheOldToken(t *testing.T) {
	for _, met := range []bool{false, true} {
		m := mustManager(t, mustMemory(t), holdfast.Config{})
		logoutAfter := func(change func(*visitor)) (*visitor, error) {
			v := newVisitor(t, m)
			v.login("ada")
			old := v.copy()
			if met {
				change(v)
			}
			var err error
			res := old.visit(func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) {
				if !met {
					change(v)
				}
				err = s.Logout(r.Context())
			})
			if met {
				wantCookies(t, res, 0)
			}
			return v, err
		}
		if _, err := logoutAfter((*visitor).logout); err != nil {
			t.Errorf("second logout: %v", err)
		}
		v, err := logoutAfter(func(v *visitor) { v.login("ada") })
		wantErr(t, "logout with the token from before a login", err, holdfast.ErrEnded)
		if v.user() != "ada" {
			t.Error("it ended the session that the login made")
		}
	}
}

// TestMarkersOutlastLaterLogins: logging in again, or ending all other sessions, leaves the marker of the token before
// standing. Without it a slow request with that token would be taken for a new visitor and get a cookie, which takes
// the place of the login's in the browser.
func TestMarkersOutlastLaterLogins(t *testing.T) {
	ctx := context.Background()
	for name, later := range map[string]func(*testing.T, *visitor){
		"renew": func(t *testing.T, v *visitor) {
			v.visit(func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) { must(t, s.Renew(r.Context())) })
		},
		"login of another browser": func(t *testing.T, v *visitor) { newVisitor(t, v.m).login("ada") },
		"revoke all others": func(t *testing.T, v *visitor) {
			v.visit(func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) {
				must(t, v.m.RevokeUser(ctx, "ada", s.ID()))
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			v := newVisitor(t, mustManager(t, mustMemory(t), holdfast.Config{}))
			v.login("ada")
			old := v.copy()
			v.visit(func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) { must(t, s.Renew(r.Context())) })
			later(t, v)
			res := old.visit(func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) {
				wantErr(t, "Set with the old token", visits.Set(s, 1), holdfast.ErrEnded)
			})
			wantCookies(t, res, 0)
		})
	}
}

// TestLoginKeepsWhatWasAcknowledged has another request save a field of the old session at every step of a login.
func TestLoginKeepsWhatWasAcknowledged(t *testing.T) {
	for _, keys := range [][][]byte{nil, {testKey(1)}} {
		for _, merges := range []bool{false, true} {
			for step := range 6 {
				memory := mustMemory(t)
				calls := -1 // not counting
				var between func()
				tap := tapped{memory, func(context.Context, storeCall) error {
					if calls >= 0 {
						if calls++; calls == step {
							calls = -1
							between()
						}
					}
					return nil
				}}
				var store driver.Store = tap
				if merges {
					store = tappedMerger{tap}
				}
				m := mustManager(t, store, holdfast.Config{ValueKeys: keys})
				v := newVisitor(t, m)
				v.set(1)
				old := v.copy()
				old.m = mustManager(t, memory, holdfast.Config{ValueKeys: keys}) // another server
				var acknowledged bool
				between = func() {
					res := old.visit(func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) {
						if err := owner.Set(s, "ada's cat"); err != nil {
							old.m.Error(w, r, err)
						}
					})
					acknowledged = res.StatusCode == 200
				}
				v.visit(func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) {
					must(t, visits.Set(s, 2))
					calls = 0
					must(t, s.Login(r.Context(), "ada"))
					calls = -1
				})
				v.visit(func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) {
					wantField(t, visits, s, 2)
					if acknowledged {
						wantField(t, owner, s, "ada's cat")
					}
					if s.User() != "ada" {
						t.Errorf("user %q", s.User())
					}
				})
			}
		}
	}
}

// TestLoginOfAnotherUser: only what this request sets goes along, not what the user before had.
func TestLoginOfAnotherUser(t *testing.T) {
	v := newVisitor(t, mustManager(t, mustMemory(t), holdfast.Config{}))
	v.set(1)
	v.login("ada")
	v.visit(func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) {
		wantField(t, visits, s, 1) // from before the login
		must(t, cart.Set(s, []string{"ada's"}))
	})
	v.login("ada")
	v.visit(func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) {
		got, err := cart.Get(s)
		must(t, err)
		if d := cmp.Diff([]string{"ada's"}, got); d != "" {
			t.Errorf("after the same user's login (-want +got):\n%s", d)
		}
		must(t, owner.Set(s, "bob"))
		must(t, s.Login(r.Context(), "bob"))
		wantField(t, owner, s, "bob")
		wantField(t, visits, s, 0)
	})
	v.visit(func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) {
		got, err := cart.Get(s)
		must(t, err)
		if len(got) != 0 {
			t.Errorf("bob finds ada's cart: %v", got)
		}
	})
	if list, err := v.m.List(context.Background(), "ada"); len(list) != 0 || err != nil {
		t.Errorf("ada's sessions: %v, %v, want none", list, err)
	}
}

func TestRenewKeepsLifetime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newVisitor(t, mustManager(t, mustMemory(t), holdfast.Config{Lifetime: time.Hour}))
		v.login("ada")
		v.set(3)
		created := time.Now()
		sleep(20 * time.Minute)
		before := v.token()
		v.visit(func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) {
			must(t, s.Renew(r.Context()))
			if !s.Created().Equal(created) || !s.Expires().Equal(time.Now().Add(30*time.Minute)) || s.User() != "ada" {
				t.Errorf("after Renew: created %v, expires %v, user %q", s.Created(), s.Expires(), s.User())
			}
			wantField(t, visits, s, 3)
		})
		if v.token() == before {
			t.Error("Renew kept the token")
		}
		sleep(20 * time.Minute)
		if v.user() != "ada" || v.visits() != 3 {
			t.Error("Renew lost the session")
		}
		sleep(20 * time.Minute)
		if v.user() != "" {
			t.Error("Renew extended the lifetime")
		}
	})
}

// TestLogoutThenStart: a session that is logged out can be used again in the same request, for a message that is shown
// next.
func TestLogoutThenStart(t *testing.T) {
	v := newVisitor(t, mustManager(t, mustMemory(t), holdfast.Config{ClearSiteData: true}))
	v.set(1)
	v.login("ada")
	before := v.token()
	res := v.visit(func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) {
		must(t, s.Logout(r.Context()))
		if s.User() != "" || s.ID() != (driver.ID{}) {
			t.Errorf("after Logout: user %q, ID %v", s.User(), s.ID())
		}
		wantField(t, visits, s, 0)
		must(t, owner.Set(s, "bye"))
	})
	wantCookies(t, res, 1)
	wantHeader(t, res, "Clear-Site-Data", `"storage"`) // "cookies" would take the new one along
	if v.token() == before || v.token() == "" {
		t.Error("no new token")
	}
	v.visit(func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) {
		wantField(t, owner, s, "bye")
		wantField(t, visits, s, 0)
	})
}

// TestLoginThatFailsLeavesTheSession: the store fails at each step of a login in turn. The session is as it was, also
// after the user's next login elsewhere, or it is the new one.
func TestLoginThatFailsLeavesTheSession(t *testing.T) {
	ctx := context.Background()
	for name, change := range map[string]func(context.Context, *holdfast.Session) error{
		"login":      func(ctx context.Context, s *holdfast.Session) error { return s.Login(ctx, "ada") },
		"other user": func(ctx context.Context, s *holdfast.Session) error { return s.Login(ctx, "bob") },
		"renew":      func(ctx context.Context, s *holdfast.Session) error { return s.Renew(ctx) },
	} {
		for step := range 8 {
			memory := mustMemory(t)
			calls := -1
			store := tapped{memory, func(context.Context, storeCall) error {
				if calls < 0 {
					return nil
				}
				if calls++; calls == step {
					return errDown
				}
				return nil
			}}
			m := mustManager(t, store, holdfast.Config{})
			v := newVisitor(t, m)
			v.set(1)
			v.login("ada")
			v.visit(func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) {
				calls = 0
				err := change(r.Context(), s)
				calls = -1
				if err != nil {
					wantErr(t, name, err, holdfast.ErrUnavailable)
					if s.User() != "ada" {
						t.Errorf("%s failed in step %d: user %q", name, step, s.User())
					}
					m.Error(w, r, err)
				}
			})
			user := v.user()
			newVisitor(t, m).login(user)
			if again := v.user(); user == "" || again != user {
				t.Errorf("%s failed in step %d: then the user is %q, and %q after a login elsewhere", name, step, user, again)
			}
			// All that lives is listed.
			for id, rec := range records(t, memory) {
				if rec.User == "" || rec.Created.IsZero() || id == holdfast.UserID(rec.User) {
					continue
				}
				list, err := m.List(ctx, rec.User)
				must(t, err)
				if !slices.ContainsFunc(list, func(i holdfast.Info) bool { return i.ID == id }) {
					t.Errorf("%s failed in step %d: session %v of %s lives unlisted", name, step, id, rec.User)
				}
			}
		}
	}
}
