package main

import (
	"bufio"
	"fmt"
	"net"
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
	t.Parallel()
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

// TestSealedUsersDropped: who is logged out by force stays out although the store of user records drops them, and so does
// everybody whose record was dropped, until they log in again.
func TestSealedUsersDropped(t *testing.T) {
	t.Parallel()
	server := testserver.Memcached(t)
	d := mustDemo(t, "--store", "cookie:?users="+url.QueryEscape("memcached://"+server.Addr))
	ada, bob := newBrowser(t, d.url), newBrowser(t, d.url)
	me := ada.mustLogin(t, "ada")
	other := newBrowser(t, d.url)
	other.mustLogin(t, "ada")
	bob.mustLogin(t, "bob")
	if r, err := other.do(t.Context(), "POST", "/sessions/"+me.Session+"/revoke", nil, nil); err != nil || r.status != http.StatusOK {
		t.Fatalf("revoke: %v, status %d", err, r.status)
	}
	c, err := net.Dial("tcp", server.Addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := fmt.Fprint(c, "flush_all\r\n"); err != nil {
		t.Fatal(err)
	}
	if answer, err := bufio.NewReader(c).ReadString('\n'); err != nil || answer != "OK\r\n" {
		t.Fatalf("flush_all: %q, %v", answer, err)
	}
	eventually(t, 15*time.Second, func() error {
		for range 3 {
			for _, b := range []*browser{ada, other, bob} {
				if w := b.must(t, "GET", "/whoami", nil); w.User != "" {
					return fmt.Errorf("%s takes somebody for %q", w.App, w.User)
				}
			}
		}
		return nil
	})
	if w := bob.mustLogin(t, "bob"); w.User != "bob" {
		t.Errorf("after another login: user %q", w.User)
	}
	if w := ada.must(t, "GET", "/whoami", nil); w.User != "" {
		t.Errorf("the revoked session: user %q", w.User)
	}
}
