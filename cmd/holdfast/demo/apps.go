package demo

import (
	"context"
	"crypto/subtle"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
)

// app is an application server that the user kills and starts.
type app struct {
	name    string
	addr    string // stays the same over restarts; set by the first start
	process atomic.Pointer[process]

	changing sync.Mutex // one start or kill at a time, from beginning to end
}

// State is what GET /demo/apps says of an application server.
type State struct {
	Name string `json:"name"`
	PID  int    `json:"pid"` // 0 if it is down
	Up   bool   `json:"up"`
	URL  string `json:"url"`
}

func (a *app) state() State {
	st := State{Name: a.name, URL: "http://" + a.addr}
	if p := a.process.Load(); p.up() {
		st.Up, st.PID = true, p.pid()
	}
	return st
}

// start starts a, unless it runs.
func (s *supervisor) start(ctx context.Context, a *app) error {
	a.changing.Lock()
	defer a.changing.Unlock()
	if a.process.Load().up() {
		return nil
	}
	again := a.addr != ""
	o := appOrder{Name: a.name, Listen: "127.0.0.1:0", Store: s.config.Store, Affinity: s.config.Affinity}
	if again {
		o.Listen = a.addr
	}
	p, err := startProcess(ctx, s.exe, AppCommand, o)
	if err != nil {
		return fmt.Errorf("%s: %w", a.name, err)
	}
	a.process.Store(p)
	if again {
		s.printf("%-7s  pid %d  up again", a.name, p.pid())
	} else {
		a.addr = p.addr
	}
	s.watchers.Go(func() {
		<-p.exited
		if ctx.Err() == nil {
			s.printf("%-7s  pid %d  died (%v), start it again on the page", a.name, p.pid(), p.err)
		}
	})
	return nil
}

// kill kills a, if it runs.
func (s *supervisor) kill(_ context.Context, a *app) error {
	a.changing.Lock()
	defer a.changing.Unlock()
	if p := a.process.Load(); p.up() {
		p.kill()
	}
	return nil
}

func (s *supervisor) stopApps() {
	var wg sync.WaitGroup
	for _, a := range s.apps {
		wg.Go(func() {
			a.changing.Lock()
			defer a.changing.Unlock()
			if p := a.process.Load(); p.up() {
				p.stop()
			}
		})
	}
	wg.Wait()
}

// controlHandler answers what the gateway forwards. ctx is that of the supervisor: what it starts lives longer than the
// request.
func (s *supervisor) controlHandler(ctx context.Context) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /demo/apps", func(w http.ResponseWriter, r *http.Request) {
		states := make([]State, len(s.apps))
		for i, a := range s.apps {
			states[i] = a.state()
		}
		writeJSON(w, http.StatusOK, states)
	})
	change := func(do func(context.Context, *app) error) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			for _, a := range s.apps {
				if a.name != r.PathValue("name") {
					continue
				}
				if err := do(ctx, a); err != nil {
					http.Error(w, err.Error(), http.StatusServiceUnavailable)
					return
				}
				writeJSON(w, http.StatusOK, a.state())
				return
			}
			http.Error(w, "There is no such server: GET /demo/apps lists them.", http.StatusNotFound)
		}
	}
	mux.HandleFunc("POST /demo/apps/{name}/kill", change(s.kill))
	mux.HandleFunc("POST /demo/apps/{name}/start", change(s.start))

	want := "Bearer " + s.secret
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if subtle.ConstantTimeCompare([]byte(r.Header.Get("Authorization")), []byte(want)) != 1 {
			http.Error(w, "This address is for the demo's gateway. Use /demo/ there.", http.StatusForbidden)
			return
		}
		mux.ServeHTTP(w, r)
	})
}

// writeJSON answers with v.
func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	if w.Header().Get("Cache-Control") == "" {
		w.Header().Set("Cache-Control", "no-store")
	}
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // fails if the client has gone
}

// wantsPage reports whether a browser navigates, as with a form, rather than a script asking.
func wantsPage(r *http.Request) bool { return strings.Contains(r.Header.Get("Accept"), "text/html") }
