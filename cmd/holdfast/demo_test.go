package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/holdfast-sessions/holdfast/internal/testserver"
)

// TestParallelVisits: 50 visits of one session at once over three servers are all counted.
func TestParallelVisits(t *testing.T) {
	t.Parallel()
	eachStore(t, oneWay, func(t *testing.T, storeArgs []string, _ bool) {
		b := newBrowser(t, mustDemo(t, storeArgs...).url)
		if w := b.must(t, "POST", "/visit", nil); w.Visits != 1 {
			t.Fatalf("first visit: %+v", w)
		}
		const n = 50
		var (
			wg   sync.WaitGroup
			mu   sync.Mutex
			apps = make(map[string]bool)
		)
		for range n {
			wg.Go(func() {
				w, err := b.ask(t.Context(), "POST", "/visit", nil)
				if err != nil {
					t.Error(err)
				}
				mu.Lock()
				defer mu.Unlock()
				apps[w.App] = true
			})
		}
		wg.Wait()
		if w := b.must(t, "GET", "/whoami", nil); w.Visits != 1+n {
			t.Errorf("%d visits counted, want %d", w.Visits, 1+n)
		}
		if len(apps) != 3 {
			t.Errorf("answered by %v, want three servers", apps)
		}
	})
}

// TestSlowVisit: a slow request that ends after the logout does not bring the session back (attack 15).
func TestSlowVisit(t *testing.T) {
	t.Parallel()
	eachStore(t, oneWay, func(t *testing.T, storeArgs []string, _ bool) {
		d := mustDemo(t, storeArgs...)
		b := newBrowser(t, d.url)
		b.mustLogin(t, "ada")
		before := b.must(t, "POST", "/visit", nil)
		base, err := url.Parse(d.url)
		if err != nil {
			t.Fatal(err)
		}
		old := b.client.Jar.Cookies(base)

		slow := make(chan reply, 1)
		go func() {
			r, err := b.do(t.Context(), "POST", "/slow-visit?ms=2000", nil, nil)
			if err != nil {
				t.Error(err)
			}
			slow <- r
		}()
		for range 4 { // meanwhile every server answers, the one that waits too
			b.must(t, "GET", "/whoami", nil)
		}
		if w := b.must(t, "POST", "/logout", nil); w.User != "" || w.Session != "" {
			t.Errorf("after the logout: %+v", w)
		}
		select {
		case r := <-slow:
			t.Fatalf("the slow visit was answered %d before the logout", r.status)
		default:
		}
		r := <-slow
		if r.status != http.StatusConflict {
			t.Errorf("the slow visit was answered %d %s, want 409", r.status, r.body)
		}
		if c := r.header["Set-Cookie"]; c != nil {
			t.Errorf("the slow visit set a cookie")
		}

		b.client.Jar.SetCookies(base, old)
		for range 3 {
			if w := b.must(t, "GET", "/whoami", nil); w.User != "" || w.Visits != 0 {
				t.Errorf("the session of %d visits is back under its old token: %+v", before.Visits, w)
			}
		}
		fresh := newBrowser(t, d.url)
		fresh.mustLogin(t, "ada")
		if list := mustSessions(t, fresh); len(list) != 1 {
			t.Errorf("%d sessions listed after the logout and a login, want 1", len(list))
		}
	})
}

// session is one of GET /sessions.
type session struct {
	Session, ID string
	Current     bool
}

func mustSessions(t testing.TB, b *browser) (list []session) {
	t.Helper()
	r, err := b.do(t.Context(), "GET", "/sessions", nil, nil)
	if err != nil || r.status != http.StatusOK {
		t.Fatalf("GET /sessions: %d %v", r.status, err)
	}
	if err := json.Unmarshal([]byte(r.body), &list); err != nil {
		t.Fatal(err)
	}
	return list
}

// TestRevoke ends a session from another one of the same user, and not from anybody else's.
func TestRevoke(t *testing.T) {
	t.Parallel()
	d := mustDemo(t)
	here, there, eve := newBrowser(t, d.url), newBrowser(t, d.url), newBrowser(t, d.url)
	there.mustLogin(t, "ada")
	me := here.mustLogin(t, "ada")
	eve.mustLogin(t, "eve")

	var other session
	list := mustSessions(t, here)
	for _, s := range list {
		if s.Current != (s.Session == me.Session) {
			t.Errorf("session %s: current %v", s.Session, s.Current)
		}
		if !s.Current {
			other = s
		}
	}
	if len(list) != 2 || other.ID[:8] != other.Session {
		t.Fatalf("sessions of ada: %+v", list)
	}
	revoke := func(b *browser, short, id string) reply {
		t.Helper()
		r, err := b.do(t.Context(), "POST", "/sessions/"+short+"/revoke", url.Values{"id": {id}}, nil)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}

	unknown := revoke(eve, "00000000", strings.Repeat("0", 64))
	for name, r := range map[string]reply{
		"another user's session":          revoke(eve, other.Session, other.ID),
		"another user's, by 8 characters": revoke(eve, other.Session, ""),
		"without a login":                 revoke(newBrowser(t, d.url), other.Session, other.ID),
		"an ID that does not fit":         revoke(here, other.Session, strings.Repeat("0", 64)),
	} {
		if r.status != http.StatusNotFound || r.body != unknown.body {
			t.Errorf("revoke %s: %d %s, want the same 404 as for one that does not exist", name, r.status, r.body)
		}
	}
	if w := there.must(t, "GET", "/whoami", nil); w.User != "ada" {
		t.Fatalf("after refused revocations: %+v", w)
	}
	if r := revoke(here, other.Session, other.ID); r.status != http.StatusOK {
		t.Errorf("revoke: %d %s", r.status, r.body)
	}
	if w := there.must(t, "GET", "/whoami", nil); w.User != "" {
		t.Errorf("after it was revoked: %+v", w)
	}
	if w := here.must(t, "GET", "/whoami", nil); w.User != "ada" {
		t.Errorf("after it revoked another: %+v", w)
	}
	if r := revoke(here, me.Session, ""); r.status != http.StatusOK {
		t.Errorf("revoke its own session: %d %s", r.status, r.body)
	}
	if w := here.must(t, "GET", "/whoami", nil); w.User != "" {
		t.Errorf("after it revoked itself: %+v", w)
	}
}

// TestForms: a browser that navigates is sent back to the page, a script gets JSON.
func TestForms(t *testing.T) {
	t.Parallel()
	b := newBrowser(t, mustDemo(t).url)
	navigates := http.Header{"Accept": {"text/html,application/xhtml+xml,*/*;q=0.8"}}
	for _, path := range []string{"/login", "/logout"} {
		r, err := b.do(t.Context(), "POST", path, url.Values{"user": {"ada"}}, navigates)
		if err != nil || r.status != http.StatusSeeOther || r.header.Get("Location") != "/" {
			t.Errorf("POST %s from a form: %d to %q, %v", path, r.status, r.header.Get("Location"), err)
		}
	}
	for _, user := range []string{"", " ", "a\nb", "\x00", strings.Repeat("x", 41), "\xff"} {
		r, err := b.do(t.Context(), "POST", "/login", url.Values{"user": {user}}, nil)
		if err != nil || r.status != http.StatusBadRequest {
			t.Errorf("login as %q: %d %v, want 400", user, r.status, err)
		}
	}
	for _, ms := range []string{"-1", "10001", "x", "1e3"} {
		r, err := b.do(t.Context(), "POST", "/slow-visit?ms="+ms, nil, nil)
		if err != nil || r.status != http.StatusBadRequest {
			t.Errorf("slow visit of %s ms: %d %v, want 400", ms, r.status, err)
		}
	}
	for _, path := range []string{"/login", "/logout", "/visit", "/demo/apps/app-1/kill"} {
		r, err := b.do(t.Context(), "GET", path, nil, nil)
		if err != nil || r.status != http.StatusMethodNotAllowed {
			t.Errorf("GET %s: %d %v, want 405", path, r.status, err)
		}
	}
	r, err := b.do(t.Context(), "GET", "/", nil, nil)
	if err != nil || r.status != http.StatusOK {
		t.Fatalf("GET /: %d %v", r.status, err)
	}
	csp := r.header.Get("Content-Security-Policy")
	_, nonce, _ := strings.Cut(csp, "script-src 'nonce-")
	nonce, _, _ = strings.Cut(nonce, "'")
	if !strings.HasPrefix(csp, "default-src 'none'") || strings.Contains(csp, "unsafe") ||
		nonce == "" || !strings.Contains(r.body, `<script nonce="`+nonce+`">`) {
		t.Errorf("Content-Security-Policy %q does not fit the page", csp)
	}
	if strings.Contains(r.body, "://") && strings.Count(r.body, "://") != strings.Count(r.body, "http://www.w3.org/2000/svg") {
		t.Error("the page names other addresses")
	}
}

// TestApps kills and starts a server through the gateway.
func TestApps(t *testing.T) {
	t.Parallel()
	d := mustDemo(t, "--apps", "2")
	b := newBrowser(t, d.url)
	type app struct {
		Name string
		PID  int
		Up   bool
		URL  string
	}
	apps := func() (list []app) {
		t.Helper()
		r, err := b.do(t.Context(), "GET", "/demo/apps", nil, nil)
		if err == nil {
			err = json.Unmarshal([]byte(r.body), &list)
		}
		if err != nil {
			t.Fatal(err)
		}
		return list
	}
	change := func(name, verb string, want int) {
		t.Helper()
		if r, err := b.do(t.Context(), "POST", "/demo/apps/"+name+"/"+verb, nil, nil); err != nil || r.status != want {
			t.Errorf("%s %s: %d %s %v, want %d", verb, name, r.status, r.body, err, want)
		}
	}
	first, second := d.urls["app-1"], d.urls["app-2"]
	want := []app{{"app-1", d.pid("app-1"), true, first}, {"app-2", d.pid("app-2"), true, second}}
	if diff := cmp.Diff(want, apps()); diff != "" {
		t.Errorf("apps (-want +got):\n%s", diff)
	}
	change("app-1", "kill", http.StatusOK)
	change("app-1", "kill", http.StatusOK)
	want[0] = app{"app-1", 0, false, first}
	if diff := cmp.Diff(want, apps()); diff != "" {
		t.Errorf("apps after a kill (-want +got):\n%s", diff)
	}
	if err := refuses(first); err != nil {
		t.Error(err)
	}
	for range 4 {
		if w := b.must(t, "GET", "/whoami", nil); w.App != "app-2" {
			t.Errorf("answered by %s, which is dead", w.App)
		}
	}
	change("app-2", "kill", http.StatusOK)
	if r, err := b.do(t.Context(), "GET", "/whoami", nil, nil); err != nil || r.status != http.StatusServiceUnavailable || r.header.Get("Retry-After") == "" {
		t.Errorf("with all servers dead: %d, Retry-After %q, %v", r.status, r.header.Get("Retry-After"), err)
	}
	change("app-1", "start", http.StatusOK)
	change("app-1", "start", http.StatusOK)
	b.must(t, "GET", "/whoami", nil)
	list := apps()
	if !list[0].Up || list[0].URL != first || list[1].Up {
		t.Errorf("apps after a start: %+v", list)
	}
	change("app-3", "kill", http.StatusNotFound)
}

// TestCrossOrigin: pages of other sites, and names that others make lead here, reach nothing (attacks 30 and 31).
func TestCrossOrigin(t *testing.T) {
	t.Parallel()
	d := mustDemo(t)
	b := newBrowser(t, d.url)
	me := b.mustLogin(t, "ada")
	pid := d.pid("app-1")
	for _, base := range []string{d.url, d.urls["app-1"]} {
		b.base = base
		for name, header := range map[string]http.Header{
			"another origin":       {"Origin": {"http://evil.example"}},
			"no origin":            {"Origin": {"null"}},
			"another port":         {"Origin": {"http://127.0.0.1:1"}},
			"another site":         {"Sec-Fetch-Site": {"cross-site"}},
			"another port's fetch": {"Sec-Fetch-Site": {"same-site"}},
			"another name":         {"Host": {"evil.example"}},
			"a name like ours":     {"Host": {"localhost.evil.example:8080"}},
		} {
			for _, path := range []string{"/visit", "/logout", "/login", "/slow-visit?ms=0", "/sessions/" + me.Session + "/revoke", "/demo/apps/app-1/kill"} {
				r, err := b.do(t.Context(), "POST", path, url.Values{"user": {"eve"}}, header)
				if err != nil || r.status != http.StatusForbidden || !strings.HasPrefix(r.body, "Refused: ") {
					t.Errorf("%s: POST %s: %d %q %v, want a 403 that says why", name, path, r.status, r.body, err)
				}
			}
		}
		r, err := b.do(t.Context(), "GET", "/whoami", nil, http.Header{"Host": {"evil.example"}})
		if err != nil || r.status != http.StatusForbidden {
			t.Errorf("GET under another name: %d %v, want 403", r.status, err)
		}
	}
	b.base = d.url
	if w := b.must(t, "GET", "/whoami", nil); w.User != "ada" || w.Visits != 0 || w.Session != me.Session {
		t.Errorf("after all that: %+v", w)
	}
	if d.pid("app-1") != pid || !alive(pid) {
		t.Error("app-1 was killed")
	}
	same := http.Header{"Origin": {d.url}, "Sec-Fetch-Site": {"same-origin"}}
	if r, err := b.do(t.Context(), "POST", "/visit", nil, same); err != nil || r.status != http.StatusOK {
		t.Errorf("the demo's own page: %d %v", r.status, err)
	}
}

// TestAffinity: with a cookie a client stays on its server, also when the gateway was killed, and when the server
// dies it moves.
func TestAffinity(t *testing.T) {
	t.Parallel()
	d := mustDemo(t, "--affinity", "cookie")
	b := newBrowser(t, d.url)
	home := b.mustLogin(t, "ada").App
	stays := func(when string) {
		t.Helper()
		for range 6 {
			if w := b.must(t, "GET", "/whoami", nil); w.App != home || w.User != "ada" {
				t.Errorf("%s: %s answered for %q, want %s for ada", when, w.App, w.User, home)
			}
		}
	}
	stays("at first")
	k := &killing{d: d, b: b}
	k.killGateway(t)
	stays("with a new gateway")
	d.kill(t, home)
	w := b.must(t, "GET", "/whoami", nil)
	if w.App == home || w.User != "ada" {
		t.Errorf("after %s was killed: %+v", home, w)
	}
	home = w.App
	stays("after moving")
}

// TestStoreStopped: without Redis, what needs the session is answered 503, the rest works, and when Redis is back all
// are still logged in.
func TestStoreStopped(t *testing.T) {
	t.Parallel()
	redis := testserver.Redis(t, testserver.RedisOptions{Config: []string{"appendonly yes", "appendfsync always"}})
	d := mustDemo(t, "--store", "redis://"+redis.Addr)
	b := newBrowser(t, d.url)
	b.mustLogin(t, "ada")
	b.must(t, "POST", "/visit", nil)
	for _, outage := range []struct {
		name       string
		begin, end func()
	}{
		{"killed", redis.Stop, redis.Restart},
		{"frozen", redis.Freeze, redis.Thaw},
	} {
		outage.begin()
		for _, req := range []struct{ method, path string }{
			{"GET", "/whoami"}, {"POST", "/visit"}, {"GET", "/sessions"}, {"POST", "/logout"},
		} {
			r, err := b.do(t.Context(), req.method, req.path, nil, nil)
			if err != nil || r.status != http.StatusServiceUnavailable || r.header.Get("Retry-After") == "" || r.header["Set-Cookie"] != nil {
				t.Errorf("%s: %s %s: %d, Retry-After %q, %v, want 503", outage.name, req.method, req.path, r.status, r.header.Get("Retry-After"), err)
			}
		}
		for _, path := range []string{"/", "/healthz", "/demo/apps"} {
			if r, err := b.do(t.Context(), "GET", path, nil, nil); err != nil || r.status != http.StatusOK {
				t.Errorf("%s: GET %s: %d %v, want 200", outage.name, path, r.status, err)
			}
		}
		outage.end()
		for range 3 {
			eventually(t, 30*time.Second, func() error {
				w, err := b.ask(t.Context(), "GET", "/whoami", nil)
				if err == nil && (w.User != "ada" || w.Visits < 1) {
					t.Fatalf("after Redis was %s: %+v, want ada with a visit", outage.name, w)
				}
				return err
			})
		}
	}
}

// TestEnd: however the demo ends, its processes end too.
func TestEnd(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name string
		sig  syscall.Signal
		left int // entries in the directory for temporary files
	}{
		{"SIGTERM", syscall.SIGTERM, 0},
		{"SIGKILL", syscall.SIGKILL, 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			d := mustDemo(t)
			newBrowser(t, d.url).mustLogin(t, "ada")
			d.end(t, test.sig)
			eventually(t, 10*time.Second, func() error {
				var left []error
				for name, pid := range d.pids {
					if alive(pid) {
						left = append(left, fmt.Errorf("%s (pid %d) is left", name, pid))
					}
				}
				left = append(left, refuses(d.url))
				for _, u := range d.urls {
					left = append(left, refuses(u))
				}
				return errors.Join(left...)
			})
			entries, err := os.ReadDir(d.tmp)
			if err != nil || len(entries) != test.left {
				t.Errorf("%d temporary directories left (%v), want %d", len(entries), err, test.left)
			}
		})
	}
}
