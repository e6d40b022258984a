package holdfast_test

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-sessions/holdfast"
	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/internal/testserver"
	"github.com/holdfast-sessions/holdfast/keyring"
	"github.com/holdfast-sessions/holdfast/sealed/cookie"
	"github.com/holdfast-sessions/holdfast/sealed/jwt"
	"github.com/holdfast-sessions/holdfast/store/memory"
)

// sealers make the real sealers over a set of keys.
var sealers = map[string]func(*keyring.Set) (driver.Sealer, error){
	"cookie": func(s *keyring.Set) (driver.Sealer, error) { return cookie.New(keyring.New(s), cookie.Config{}) },
	"jwt": func(s *keyring.Set) (driver.Sealer, error) {
		return jwt.New(keyring.New(s), jwt.Config{Issuer: "https://a.example", Audience: "shop"})
	},
}

// client is a browser that keeps one cookie, for tests with many.
type client struct{ value string }

func (c *client) visit(t testing.TB, m *holdfast.Manager, f func(*http.Request, *holdfast.Session)) {
	t.Helper()
	r := httptest.NewRequest("GET", "https://www.example.com/", nil)
	if c.value != "" {
		r.AddCookie(&http.Cookie{Name: cookieName, Value: c.value})
	}
	w := httptest.NewRecorder()
	m.Handler(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		s, err := m.Get(r)
		if err != nil {
			t.Error(err)
			return
		}
		f(r, s)
	})).ServeHTTP(w, r)
	for _, set := range w.Result().Cookies() {
		c.value = set.Value
	}
}

// A token from a server whose clock is ahead by more than the leeway is nobody's here until the time has come: counted apart from
// what was tampered with, and left alone.
func TestSealedClockAhead(t *testing.T) {
	set := keyring.NewSet()
	server := func(t *testing.T) *holdfast.Manager {
		s, err := sealers["jwt"](set)
		must(t, err)
		return mustSealed(t, s, nil, holdfast.Config{})
	}
	var c client
	synctest.Test(t, func(t *testing.T) {
		time.Sleep(2 * time.Minute) // each bubble has a clock of its own
		c.visit(t, server(t), func(r *http.Request, s *holdfast.Session) { must(t, s.Login(r.Context(), "ada")) })
	})
	synctest.Test(t, func(t *testing.T) {
		m := server(t)
		token := c.value
		c.visit(t, m, func(r *http.Request, s *holdfast.Session) {
			if u := s.User(); u != "" {
				t.Errorf("two minutes too early: user %q", u)
			}
			must(t, visits.Set(s, 1))
			wantErr(t, "Save", s.Save(r.Context()), holdfast.ErrUnsupported)
		})
		if c.value != token {
			t.Error("two minutes too early: the cookie was overwritten")
		}
		if n := m.Stats(); n.NotYetValid != 1 || n.Tampered+n.Foreign != 0 {
			t.Errorf("NotYetValid = %d, Tampered = %d, Foreign = %d, want 1, 0, 0", n.NotYetValid, n.Tampered, n.Foreign)
		}
		time.Sleep(90 * time.Second) // the leeway is 30
		c.visit(t, m, func(_ *http.Request, s *holdfast.Session) {
			if u := s.User(); u != "ada" {
				t.Errorf("within the leeway: user %q", u)
			}
		})
	})
}

// Attack 12: a key is introduced, takes over and replaces the one before, on three servers one after the other, while
// 10,000 sessions are in use on all of them: nobody is logged out, and in the end all are sealed with the new key.
func TestSealedRotation(t *testing.T) {
	for name, open := range sealers {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			const servers = 3
			sessions := 10_000
			if name == "jwt" { // a signature takes ten times as long under the race detector
				sessions = testserver.Scale(1_000, 10_000)
			}
			users := memory.New()
			defer users.Close()
			one := keyring.NewSet()
			fleet := make([]*holdfast.Manager, servers)
			configure := func(i int, s *keyring.Set) {
				sealer, err := open(s)
				must(t, err)
				fleet[i] = mustSealed(t, sealer, users, holdfast.Config{})
			}
			for i := range fleet {
				configure(i, one)
			}
			clients := make([]client, sessions)
			for i := range clients {
				clients[i].visit(t, fleet[i%servers], func(r *http.Request, s *holdfast.Session) {
					must(t, s.Login(r.Context(), fmt.Sprintf("user %d", i)))
					must(t, visits.Set(s, i))
				})
			}
			out, refused := 0, uint64(0)
			everybody := func(share int) {
				for i := range clients {
					if rand.IntN(share) != 0 {
						continue
					}
					clients[i].visit(t, fleet[rand.IntN(servers)], func(r *http.Request, s *holdfast.Session) {
						if n, err := visits.Get(s); err != nil || n != i || s.User() != fmt.Sprintf("user %d", i) {
							out++
						}
					})
				}
				for _, m := range fleet {
					st := m.Stats()
					refused += st.Foreign + st.Retired + st.Tampered + st.Unlisted + st.Lost
				}
			}
			waiting, key, err := one.Add()
			must(t, err)
			promoted, err := waiting.Promote(key.ID())
			must(t, err)
			for _, set := range []*keyring.Set{waiting, promoted} {
				for i := range fleet {
					configure(i, set)
					everybody(8)
				}
			}
			everybody(1)
			retired, err := promoted.Retire(one.Active().ID())
			must(t, err)
			for i := range fleet {
				configure(i, retired)
				everybody(8)
			}
			everybody(1)
			if out != 0 || refused != 0 {
				t.Errorf("%d visits without the session, %d tokens refused, want none", out, refused)
			}

			// A server of the release before, which knows nothing of the new key.
			configure(0, one)
			kept := clients[0].value
			clients[0].visit(t, fleet[0], func(_ *http.Request, s *holdfast.Session) {
				if s.User() != "" {
					t.Errorf("opened with a key that is not known: user %q", s.User())
				}
			})
			if n := fleet[0].Stats().Foreign; n != 1 || clients[0].value != kept {
				t.Errorf("Foreign = %d, want 1, and the cookie left alone", n)
			}
			clients[0].visit(t, fleet[1], func(_ *http.Request, s *holdfast.Session) {
				if s.User() != "user 0" {
					t.Errorf("on the next server: user %q", s.User())
				}
			})
		})
	}
}
