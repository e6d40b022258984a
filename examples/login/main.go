// Command login logs users in and out, and out everywhere. Its sessions are files, so that it can be restarted, and
// run several times on other ports, while everybody stays logged in:
//
//	go run ./examples/login -listen localhost:8081 -sessions /tmp/sessions
//	go run ./examples/login -listen localhost:8082 -sessions /tmp/sessions
//
// Cookies do not tell ports apart: log in at one address and open the other.
package main

import (
	"context"
	"errors"
	"flag"
	"html/template"
	"log"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"time"

	"github.com/holdfast-sessions/holdfast"
	"github.com/holdfast-sessions/holdfast/store/filestore"
)

func main() {
	listen := flag.String("listen", "localhost:8080", "address to listen on")
	dir := flag.String("sessions", filepath.Join(os.TempDir(), "holdfast-sessions"), "directory of the sessions")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, *listen, *dir); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, listen, dir string) error {
	store, err := filestore.Open(ctx, dir, filestore.Config{})
	if err != nil {
		return err
	}
	defer store.Close()
	sessions, err := holdfast.New(store, holdfast.Config{
		IdleTimeout: 15 * time.Minute,
		Cookie:      holdfast.Cookie{AllowPlainLocalhost: true}, // this is plain http, for development only
	})
	if err != nil {
		return err
	}
	server := &http.Server{Addr: listen, Handler: handler(sessions), ReadHeaderTimeout: 10 * time.Second}
	context.AfterFunc(ctx, func() { _ = server.Close() })
	log.Println("http://" + listen)
	if err := server.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

var page = template.Must(template.New("page").Parse(`<!doctype html><title>Login</title>
{{if .User}}<p>You are {{.User}}, logged in {{len .Sessions}} time(s).
<form method=post action=/logout><button>Log out</button></form>
<form method=post action=/logout-others><button>Log out everywhere else</button></form>
{{else}}<form method=post action=/login><input name=user required maxlength=40> <button>Log in</button></form>{{end}}
`))

func handler(sessions *holdfast.Manager) http.Handler {
	mux := http.NewServeMux()
	handle := func(pattern string, f func(http.ResponseWriter, *http.Request, *holdfast.Session) error) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			s, err := sessions.Get(r)
			if err == nil {
				err = f(w, r, s)
			}
			if err != nil {
				sessions.Error(w, r, err)
			}
		})
	}
	back := func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/", http.StatusSeeOther) }

	handle("GET /{$}", func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) error {
		list, err := sessions.List(r.Context(), s.User())
		if err != nil {
			return err
		}
		return page.Execute(w, map[string]any{"User": s.User(), "Sessions": list})
	})
	handle("POST /login", func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) error {
		user := r.PostFormValue("user") // check a password, or better a passkey, here
		if user == "" || len(user) > 40 {
			http.Error(w, "Who are you?", http.StatusBadRequest)
			return nil
		}
		if err := s.Login(r.Context(), user); err != nil {
			return err
		}
		back(w, r)
		return nil
	})
	handle("POST /logout", func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) error {
		if err := s.Logout(r.Context()); err != nil {
			return err
		}
		back(w, r)
		return nil
	})
	handle("POST /logout-others", func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) error {
		if s.User() != "" {
			if err := sessions.RevokeUser(r.Context(), s.User(), s.ID()); err != nil {
				return err
			}
		}
		back(w, r)
		return nil
	})
	// Forms that other sites send in a user's name are refused.
	return http.NewCrossOriginProtection().Handler(sessions.Handler(mux))
}
