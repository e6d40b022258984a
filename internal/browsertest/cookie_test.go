package browsertest

import (
	"net/http"
	"testing"

	"github.com/chromedp/cdproto/network"
	"github.com/holdfast-sessions/holdfast"
)

// login opens a page of the application and logs in from it.
func login(b *tab, base, user string) {
	b.t.Helper()
	b.open(base)
	if a := b.fetch(http.MethodPost, "/login?user="+user); a.Status != http.StatusOK {
		b.t.Fatalf("login: %d %s", a.Status, a.Body)
	}
}

func wantUser(b *tab, base, user string) {
	b.t.Helper()
	if me := b.whoami(base); me.User != user {
		b.t.Errorf("%s/whoami shows user %q, want %q", base, me.User, user)
	}
}

// TestDefaultCookie: Chromium takes the cookie with its prefix over TLS, sends it back, shows it to no script and lets
// none replace it.
func TestDefaultCookie(t *testing.T) {
	t.Parallel()
	f := startFleet(t, setup{})
	for _, base := range []string{f.base, f.at("localhost"), f.at("127.0.0.1")} {
		t.Run(base, func(t *testing.T) {
			b := newTab(t)
			login(b, base, "anna")
			c := b.cookie(defaultCookie)
			if c == nil {
				t.Fatalf("browser keeps %v, not %s", b.cookies(), defaultCookie)
			}
			if !c.Secure || !c.HTTPOnly || c.SameSite != network.CookieSameSiteLax || c.Path != "/" || !c.Session || c.Domain[0] == '.' {
				t.Errorf("browser keeps %s as %+v", c.Name, c)
			}
			wantUser(b, base, "anna")
			seen := eval[string](b, `document.cookie = "`+defaultCookie+`=evil; Secure; Path=/", document.cookie`)
			if seen != "" {
				t.Errorf("a script sees %s", seen)
			}
			wantUser(b, base, "anna")
		})
	}
}

// TestPlainLocalhost: over plain http on a loopback address the cookie comes back, without prefix where that was asked
// for.
func TestPlainLocalhost(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name   string
		setup  setup
		cookie string
		host   string
		user   string // after login
	}{
		{"allowed, localhost", setup{plain: true}, "session", "localhost", "anna"},
		{"allowed, 127.0.0.1", setup{plain: true}, "session", "127.0.0.1", "anna"},
		{"not allowed, localhost", setup{strict: true}, defaultCookie, "localhost", "anna"},
		{"not allowed, 127.0.0.1", setup{strict: true}, defaultCookie, "127.0.0.1", "anna"},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := startFleet(t, test.setup)
			b := newTab(t)
			base := "http://" + test.host + ":" + f.port
			login(b, base, "anna")
			wantUser(b, base, test.user)
			if c := b.cookie(test.cookie); (c != nil) != (test.user != "") {
				t.Errorf("browser keeps %+v, want %s", b.cookies(), test.cookie)
			}
		})
	}
}

// TestSubdomains: a cookie with a Domain is shared by subdomains, in both directions, and the default one is not.
func TestSubdomains(t *testing.T) {
	t.Parallel()
	t.Run("shared", func(t *testing.T) {
		f := startFleet(t, setup{config: holdfast.Config{Cookie: holdfast.Cookie{Domain: "holdfast.test"}}})
		b := newTab(t)
		shop, desk := f.at("shop.holdfast.test"), f.at("desk.holdfast.test")
		login(b, shop, "anna")
		if c := b.cookie("__Secure-session"); c == nil || c.Domain != ".holdfast.test" {
			t.Fatalf("browser keeps %+v", b.cookies())
		}
		wantUser(b, desk, "anna")
		if a := b.fetch(http.MethodPost, "/logout"); a.Status != http.StatusOK {
			t.Fatalf("logout: %d %s", a.Status, a.Body)
		}
		wantUser(b, shop, "")
		wantUser(b, f.at("www.other.test"), "")
		if left := b.cookies(); len(left) > 0 {
			t.Errorf("browser keeps %+v after logout", left)
		}
	})
	t.Run("host only", func(t *testing.T) {
		f := startFleet(t, setup{})
		b := newTab(t)
		login(b, f.at("shop.holdfast.test"), "anna")
		wantUser(b, f.at("desk.holdfast.test"), "")
		wantUser(b, f.at("shop.holdfast.test"), "anna")
	})
}

// TestTossedCookie: a page of another subdomain sets a cookie of the session's name for all of them (attack 21). It is
// never served as a session, and nobody is locked out: at the latest when they log in a second time, all is well.
func TestTossedCookie(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name   string
		cookie holdfast.Cookie
		toss   string // document.cookie on the other subdomain
	}{
		{"prefix", holdfast.Cookie{}, defaultCookie + "=evil; Secure; Path=/; Domain=holdfast.test"},
		{"no prefix", holdfast.Cookie{NoPrefix: true}, "session=evil; Secure; Path=/; Domain=holdfast.test"},
		{"no prefix, longer path", holdfast.Cookie{NoPrefix: true}, "session=evil; Secure; Path=/whoami; Domain=holdfast.test"},
		{"shared", holdfast.Cookie{Domain: "holdfast.test"}, "__Secure-session=evil; Secure; Path=/; Domain=holdfast.test"},
		{"shared, longer path", holdfast.Cookie{Domain: "holdfast.test"}, "__Secure-session=evil; Secure; Path=/whoami; Domain=holdfast.test"},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := startFleet(t, setup{config: holdfast.Config{Cookie: test.cookie}})
			toss := func(b *tab) {
				b.open(f.at("evil.holdfast.test"))
				eval[bool](b, `document.cookie = "`+test.toss+`", true`)
			}
			loginAgain := func(b *tab) {
				for range 2 {
					login(b, f.base, "anna")
					if b.whoami(f.base).User == "anna" {
						return
					}
				}
				b.t.Error("user is locked out: logged in twice, and /whoami shows nobody")
			}
			t.Run("after login", func(t *testing.T) {
				b := newTab(t)
				login(b, f.base, "anna")
				toss(b)
				b.whoami(f.base)
				loginAgain(b)
			})
			t.Run("before login", func(t *testing.T) {
				b := newTab(t)
				toss(b)
				wantUser(b, f.base, "")
				loginAgain(b)
			})
		})
	}
}
