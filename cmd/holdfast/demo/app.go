package demo

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/holdfast-sessions/holdfast"
	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/store"
)

// maxSlow bounds POST /slow-visit.
const maxSlow = 10 * time.Second

// visits is what the demo keeps in every session.
var visits = holdfast.NewField[int]("visits")

// application is the demo's application, written as a user of the library would.
type application struct {
	name     string
	sessions *holdfast.Manager
	page     page
}

// openApp makes an application server.
func openApp(ctx context.Context, o appOrder) (service, error) {
	sessions, opened, err := store.OpenManager(ctx, o.Store, holdfast.Config{
		Cookie: holdfast.Cookie{AllowPlainLocalhost: true},
		Logger: slog.Default().With("app", o.Name),
	})
	if err != nil {
		return service{}, err
	}
	l, err := net.Listen("tcp", o.Listen)
	if err != nil {
		_ = opened.Close() // err says more
		return service{}, err
	}
	a := &application{name: o.Name, sessions: sessions}
	a.page = page{Store: store.Name(o.Store), About: sessions.Capabilities().Store, Affinity: string(o.Affinity)}
	if sealer := sessions.Capabilities().Sealer; sealer.Name != "" {
		a.page.About, a.page.Sealed = sealer, true
	}
	return service{listener: l, handler: guard(a.handler()), close: opened.Close}, nil
}

func (a *application) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", a.page.serve)
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /whoami", a.with(a.whoami))
	mux.HandleFunc("POST /visit", a.with(a.visit))
	mux.HandleFunc("POST /slow-visit", a.with(a.slowVisit))
	mux.HandleFunc("POST /login", a.with(a.login))
	mux.HandleFunc("POST /logout", a.with(a.logout))
	mux.HandleFunc("GET /sessions", a.with(a.list))
	mux.HandleFunc("POST /sessions/{id}/revoke", a.with(a.revoke))
	if a.page.Sealed {
		mux.HandleFunc("POST /tamper", a.tamper)
	}
	return a.sessions.Handler(mux)
}

// with calls h with the request's session, and answers its error.
func (a *application) with(h func(http.ResponseWriter, *http.Request, *holdfast.Session) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		s, err := a.sessions.Get(r)
		if err == nil {
			err = h(w, r, s)
		}
		if err != nil {
			a.sessions.Error(w, r, err)
		}
	}
}

// who is what the demo says of a session.
type who struct {
	App     string `json:"app"`
	PID     int    `json:"pid"`
	Visits  int    `json:"visits"`
	User    string `json:"user"`
	Session string `json:"session"` // 8 characters of the ID, or "" if there is none
	Cookie  int    `json:"cookie"`  // characters of the cookies that the request came with
}

func (a *application) whoami(w http.ResponseWriter, r *http.Request, s *holdfast.Session) error {
	n, err := visits.Get(s)
	if err != nil {
		return err
	}
	me := who{App: a.name, PID: os.Getpid(), Visits: n, User: s.User(), Cookie: len(r.Header.Get("Cookie"))}
	if id := s.ID(); id != (driver.ID{}) {
		me.Session = id.String()
	}
	writeJSON(w, http.StatusOK, me)
	return nil
}

func (a *application) visit(w http.ResponseWriter, r *http.Request, s *holdfast.Session) error {
	_, err := visits.Update(r.Context(), s, func(n int) (int, error) { return n + 1, nil })
	if errors.Is(err, holdfast.ErrUnsupported) {
		// The session is in the visitor's cookie, and of two visits at once their browser keeps one.
		n, _ := visits.Get(s) // fails as Set does
		err = visits.Set(s, n+1)
	}
	if err != nil {
		return err
	}
	return a.whoami(w, r, s)
}

// tamper changes a character in the middle of the visitor's session cookies, as somebody would who wants to be another.
func (a *application) tamper(w http.ResponseWriter, r *http.Request) {
	for _, c := range r.Cookies() {
		if c.Name != "session" || len(c.Value) < 100 {
			continue
		}
		b := []byte(c.Value)
		if at := len(b) / 2; b[at] == 'A' {
			b[at] = 'B'
		} else {
			b[at] = 'A'
		}
		http.SetCookie(w, &http.Cookie{Name: c.Name, Value: string(b), Path: "/", HttpOnly: true, SameSite: http.SameSiteLaxMode})
	}
	w.Header().Set("Cache-Control", "no-store")
	writeJSON(w, http.StatusOK, struct{}{})
}

// slowVisit is a visit that takes as many milliseconds as the query says. It knows its session before it waits, so
// that the session can end meanwhile; then the visit is refused.
func (a *application) slowVisit(w http.ResponseWriter, r *http.Request, s *holdfast.Session) error {
	ms, err := strconv.Atoi(cmp.Or(r.FormValue("ms"), "1000"))
	if err != nil || ms < 0 || ms > int(maxSlow/time.Millisecond) {
		http.Error(w, fmt.Sprintf("ms: want a number from 0 to %d.", maxSlow/time.Millisecond), http.StatusBadRequest)
		return nil
	}
	select {
	case <-time.After(time.Duration(ms) * time.Millisecond):
	case <-r.Context().Done():
		return nil
	}
	return a.visit(w, r, s)
}

// login believes everybody: an application authenticates its users first.
func (a *application) login(w http.ResponseWriter, r *http.Request, s *holdfast.Session) error {
	r.Body = http.MaxBytesReader(w, r.Body, 4<<10)
	user := strings.TrimSpace(r.PostFormValue("user"))
	if !validUser(user) {
		http.Error(w, "user: want a name of 1 to 40 characters.", http.StatusBadRequest)
		return nil
	}
	if err := s.Login(r.Context(), user, holdfast.LoginOptions{Method: "name"}); err != nil {
		return err
	}
	return a.done(w, r, s)
}

func validUser(user string) bool {
	n := utf8.RuneCountInString(user)
	return n > 0 && n <= 40 && utf8.ValidString(user) && !strings.ContainsFunc(user, unicode.IsControl)
}

func (a *application) logout(w http.ResponseWriter, r *http.Request, s *holdfast.Session) error {
	if err := s.Logout(r.Context()); err != nil {
		return err
	}
	return a.done(w, r, s)
}

// done answers what changed the session: the page for a form, JSON for a script.
func (a *application) done(w http.ResponseWriter, r *http.Request, s *holdfast.Session) error {
	if wantsPage(r) {
		http.Redirect(w, r, "/", http.StatusSeeOther)
		return nil
	}
	return a.whoami(w, r, s)
}

// mine is a session in the list of its user.
type mine struct {
	Session string    `json:"session"` // 8 characters, to be shown
	ID      string    `json:"id"`      // all 64
	Current bool      `json:"current"`
	Created time.Time `json:"created"`
	Seen    time.Time `json:"seen"`
	Expires time.Time `json:"expires"`
}

// list answers with the sessions of the user.
func (a *application) list(w http.ResponseWriter, r *http.Request, s *holdfast.Session) error {
	all := []mine{}
	if s.User() != "" {
		infos, err := a.sessions.List(r.Context(), s.User())
		if err != nil {
			return err
		}
		for _, in := range infos {
			all = append(all, mine{
				Session: in.ID.String(), ID: in.ID.Hex(), Current: in.ID == s.ID(),
				Created: in.Created, Seen: in.Seen, Expires: in.Expires,
			})
		}
	}
	writeJSON(w, http.StatusOK, all)
	return nil
}

// revoke ends the session of the user that the path names by its 8 characters, or beyond doubt the form by all 64,
// which do not belong into a log of paths. What is not a session of this user is not found, whoever else's it is.
func (a *application) revoke(w http.ResponseWriter, r *http.Request, s *holdfast.Session) error {
	r.Body = http.MaxBytesReader(w, r.Body, 4<<10)
	short, id := r.PathValue("id"), r.PostFormValue("id")
	if s.User() != "" {
		infos, err := a.sessions.List(r.Context(), s.User())
		if err != nil {
			return err
		}
		for _, in := range infos {
			switch {
			case in.ID.String() != short || id != "" && id != in.ID.Hex():
			case in.ID == s.ID():
				return a.logout(w, r, s)
			default:
				if err := a.sessions.Revoke(r.Context(), in.ID); err != nil {
					return err
				}
				return a.done(w, r, s)
			}
		}
	}
	http.Error(w, "You have no such session.", http.StatusNotFound)
	return nil
}
