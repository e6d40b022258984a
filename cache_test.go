package holdfast_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-sessions/holdfast"
)

// TestCacheHeaders: what the handler said about caching, and what is sent.
func TestCacheHeaders(t *testing.T) {
	type headers struct{ cacheControl, vary string }
	nothing := func(http.ResponseWriter, *http.Request, *holdfast.Session) {}
	write := func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) { must(t, visits.Set(s, 2)) }
	start := func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) { must(t, s.Renew(r.Context())) }
	tests := []struct {
		name string
		page page // nil: the session is not used
		said headers
		want headers
	}{
		{"untouched", nil, headers{}, headers{}},
		{"untouched, public", nil, headers{"public, max-age=60", "Accept"}, headers{"public, max-age=60", "Accept"}},
		{"read", nothing, headers{}, headers{"private", "Cookie"}},
		{"written", write, headers{}, headers{"private", "Cookie"}},
		{"cookie set", start, headers{}, headers{"no-store", "Cookie"}},
		{"cookie set, public", start, headers{"public, max-age=60", ""}, headers{"no-store", "Cookie"}},
		{"read, public", nothing, headers{"public, max-age=60", ""}, headers{"private, max-age=60", "Cookie"}},
		{"read, for shared caches", nothing, headers{"s-maxage=600, proxy-revalidate, Public", ""}, headers{"private", "Cookie"}},
		{"read, no-cache", nothing, headers{"no-cache", ""}, headers{"private, no-cache", "Cookie"}},
		{"read, no-store", nothing, headers{"max-age=0, No-Store", ""}, headers{"max-age=0, No-Store", "Cookie"}},
		{"read, private", nothing, headers{"private, max-age=5", ""}, headers{"private, max-age=5", "Cookie"}},
		{"read, private for one header", nothing, headers{`private="X-A", max-age=5`, ""}, headers{"private, max-age=5", "Cookie"}},
		{"read, immutable", nothing, headers{"public, max-age=5, immutable", ""}, headers{"private, max-age=5, immutable", "Cookie"}},
		{"read, empty", nothing, headers{" , ", ""}, headers{"private", "Cookie"}},
		{"read, Vary more", nothing, headers{"", "Accept-Encoding"}, headers{"private", "Accept-Encoding, Cookie"}},
		{"read, Vary cookie", nothing, headers{"", "accept, cookie"}, headers{"private", "accept, cookie"}},
		{"read, Vary all", nothing, headers{"", "*"}, headers{"private", "*"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			v := newVisitor(t, mustManager(t, mustMemory(t), holdfast.Config{}))
			v.set(1)
			for _, status := range []int{200, 304, 404} {
				res := v.handle(v.request(context.Background()), func(w http.ResponseWriter, r *http.Request) {
					if tt.said.cacheControl != "" {
						w.Header().Set("Cache-Control", tt.said.cacheControl)
					}
					if tt.said.vary != "" {
						w.Header().Set("Vary", tt.said.vary)
					}
					if tt.page != nil {
						s, err := v.m.Get(r)
						must(t, err)
						tt.page(w, r, s)
					}
					w.WriteHeader(status)
				})
				v.jar.SetCookies(site, res.Cookies())
				got := headers{strings.Join(res.Header["Cache-Control"], ", "), strings.Join(res.Header["Vary"], ", ")}
				if got != tt.want {
					t.Errorf("status %d: got %+v, want %+v", status, got, tt.want)
				}
			}
		})
	}
}

func TestVaryNamesTheHeaderTransport(t *testing.T) {
	m := mustManager(t, mustMemory(t), holdfast.Config{Header: "X-Auth-Token"})
	res := newVisitor(t, m).visit(func(http.ResponseWriter, *http.Request, *holdfast.Session) {})
	if got := strings.Join(res.Header["Vary"], ", "); got != "Cookie, X-Auth-Token" {
		t.Errorf("Vary %q", got)
	}
}

// sharedCache is a cache in front of everybody. It stores whatever RFC 9111 does not forbid, keeps it for ever, and
// takes a 304 for the occasion to renew what it has.
type sharedCache struct {
	next http.Handler

	// mu guards the field below.
	mu     sync.Mutex
	stored map[string][]cached // by path
}

type cached struct {
	request http.Header // of the names in Vary
	res     *httptest.ResponseRecorder
}

func (c *sharedCache) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	revalidate := r.Header.Get("If-None-Match") != ""
	for _, s := range c.stored[r.URL.Path] {
		if !revalidate && s.matches(r) {
			send(w, s.res, "HIT")
			return
		}
	}
	rec := httptest.NewRecorder()
	c.next.ServeHTTP(rec, r)
	cc := strings.ToLower(strings.Join(rec.Header()["Cache-Control"], ","))
	vary := strings.Join(rec.Header()["Vary"], ",")
	if rec.Code == 304 && !strings.Contains(cc, "no-store") && !strings.Contains(cc, "private") {
		for _, s := range c.stored[r.URL.Path] {
			if s.matches(r) {
				for name, v := range rec.Header() {
					s.res.Header()[name] = v
				}
			}
		}
	}
	if r.Method == "GET" && rec.Code == 200 && !strings.Contains(cc, "no-store") && !strings.Contains(cc, "private") && vary != "*" {
		s := cached{make(http.Header), rec}
		for name := range strings.SplitSeq(vary, ",") {
			if name = http.CanonicalHeaderKey(strings.TrimSpace(name)); name != "" {
				s.request[name] = r.Header[name]
			}
		}
		c.stored[r.URL.Path] = append(c.stored[r.URL.Path], s)
	}
	send(w, rec, "MISS")
}

func (s cached) matches(r *http.Request) bool {
	for name, v := range s.request {
		if fmt.Sprint(r.Header[name]) != fmt.Sprint(v) {
			return false
		}
	}
	return true
}

func send(w http.ResponseWriter, rec *httptest.ResponseRecorder, x string) {
	for name, v := range rec.Header() {
		w.Header()[name] = v
	}
	w.Header().Set("X-Cache", x)
	w.WriteHeader(rec.Code)
	_, _ = w.Write(rec.Body.Bytes())
}

// TestSharedCache is attack 28: with a cache in front, nobody sees another's page or gets another's cookie, 304 and
// answers that only refresh the cookie included; and pages that use no session are still cached.
func TestSharedCache(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := mustManager(t, mustMemory(t), holdfast.Config{})
		mux := http.NewServeMux()
		handle := func(path string, f func(http.ResponseWriter, *http.Request, *holdfast.Session) error) {
			mux.HandleFunc("GET "+path, func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Cache-Control", "public, max-age=600, s-maxage=600")
				w.Header().Set("Etag", `"1"`)
				s, err := m.Get(r)
				if err == nil {
					err = f(w, r, s)
				}
				if err != nil {
					m.Error(w, r, err)
					return
				}
				if r.Header.Get("If-None-Match") != "" {
					w.WriteHeader(304)
					return
				}
				_, _ = fmt.Fprintf(w, "page of %q", s.User())
			})
		}
		type none = *holdfast.Session
		handle("/read", func(http.ResponseWriter, *http.Request, none) error { return nil })
		handle("/write", func(w http.ResponseWriter, r *http.Request, s none) error {
			return visits.Set(s, int(time.Now().Unix()))
		})
		handle("/renew", func(w http.ResponseWriter, r *http.Request, s none) error { return s.Renew(r.Context()) })
		handle("/login/{user}", func(w http.ResponseWriter, r *http.Request, s none) error {
			return s.Login(r.Context(), r.PathValue("user"))
		})
		mux.HandleFunc("GET /static", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Cache-Control", "public, max-age=600")
			_, _ = w.Write([]byte("for all"))
		})
		front := &sharedCache{next: m.Handler(mux), stored: make(map[string][]cached)}
		issued := make(map[string]string) // token to user
		see := func(v *visitor, user, path string, revalidate bool) *http.Response {
			v.path = path
			r := v.request(context.Background())
			if revalidate {
				r.Header.Set("If-None-Match", `"1"`)
			}
			rec := httptest.NewRecorder()
			front.ServeHTTP(rec, r)
			res := rec.Result()
			if body := rec.Body.String(); strings.Contains(body, "page of") && body != fmt.Sprintf("page of %q", user) {
				t.Errorf("%q sees at %s: %s", user, path, body)
			}
			for _, c := range res.Cookies() {
				if other, again := issued[c.Value]; again {
					t.Errorf("%q gets at %s the cookie of %q", user, path, other)
				}
				issued[c.Value] = user
			}
			v.jar.SetCookies(site, res.Cookies())
			return res
		}
		browsers := map[string]*visitor{"": newVisitor(t, m), "ada": newVisitor(t, m), "bob": newVisitor(t, m)}
		for user, v := range browsers {
			if user != "" {
				see(v, user, "/login/"+user, false)
			}
		}
		for range 3 {
			for _, revalidate := range []bool{false, true} {
				for user, v := range browsers {
					for _, path := range []string{"/read", "/write", "/renew", "/read"} {
						see(v, user, path, revalidate)
					}
				}
			}
			sleep(5 * time.Minute) // touches are due
		}
		see(browsers["ada"], "ada", "/static", false)
		if res := see(browsers["bob"], "bob", "/static", false); res.Header.Get("X-Cache") != "HIT" {
			t.Error("a page that uses no session is not cached")
		}
	})
}
