package main

import (
	"fmt"
	"net/http"
	"net/url"
	"testing"
	"time"

	"github.com/holdfast-sessions/holdfast/internal/testserver"
)

// usersStores are where the user records of sealed sessions are kept in the tests.
var usersStores = map[string]func(*testing.T) string{
	"file":  func(*testing.T) string { return "" }, // the demo's own
	"redis": func(t *testing.T) string { return "redis://" + testserver.Redis(t).Addr },
}

// TestSealedDemo: sessions in cookies and tokens over three servers; who is logged out elsewhere is refused on all of them
// within five seconds, and a cookie that was changed makes a stranger.
func TestSealedDemo(t *testing.T) {
	for _, scheme := range []string{"cookie:", "jwt:"} {
		for name, open := range usersStores {
			t.Run(scheme+name, func(t *testing.T) {
				t.Parallel()
				store := scheme
				if users := open(t); users != "" {
					store += "?users=" + url.QueryEscape(users)
				}
				d := mustDemo(t, "--store", store)
				here, there := newBrowser(t, d.url), newBrowser(t, d.url)
				for range 6 {
					here.must(t, "POST", "/visit", nil)
				}
				me := here.mustLogin(t, "ada")
				if me.Visits != 6 {
					t.Errorf("%d visits, want 6", me.Visits)
				}
				there.mustLogin(t, "ada")
				for range 3 { // each server knows the user record now
					here.must(t, "GET", "/whoami", nil)
				}
				if r, err := there.do(t.Context(), "POST", "/sessions/"+me.Session+"/revoke", nil, nil); err != nil || r.status != http.StatusOK {
					t.Fatalf("revoke: %v, status %d", err, r.status)
				}
				out := time.Now()
				eventually(t, 15*time.Second, func() error {
					for range 3 {
						if w := here.must(t, "GET", "/whoami", nil); w.User != "" {
							return fmt.Errorf("%s still takes the revoked session for %q", w.App, w.User)
						}
					}
					return nil
				})
				t.Logf("revoked everywhere after %v", time.Since(out).Round(time.Millisecond))
				if w := there.must(t, "GET", "/whoami", nil); w.User != "ada" {
					t.Errorf("the other session: user %q", w.User)
				}
				there.must(t, "GET", "/whoami", nil)
				if r, err := there.do(t.Context(), "POST", "/tamper", nil, nil); err != nil || r.status != http.StatusOK {
					t.Fatalf("tamper: %v, status %d", err, r.status)
				}
				if w := there.must(t, "GET", "/whoami", nil); w.User != "" || w.Session != "" {
					t.Errorf("a cookie that was changed: user %q, session %q", w.User, w.Session)
				}
			})
		}
	}
}
