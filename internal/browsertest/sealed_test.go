package browsertest

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/network"
	"github.com/google/go-cmp/cmp"
	"github.com/holdfast-sessions/holdfast"
)

// maxCookie is the longest name and value together that browsers keep (RFC 6265bis, section 5.6).
const maxCookie = 4096

// startSealed starts a fleet whose sessions are in their cookies.
func startSealed(t testing.TB, c holdfast.Config) *fleet {
	t.Helper()
	return startFleet(t, setup{sealed: true, config: c, routes: func(m *holdfast.Manager, mux *http.ServeMux) {
		a := application{m}
		mux.HandleFunc("POST /fill", a.with(a.fill))
		mux.HandleFunc("GET /toss", toss)
	}})
}

// fill sets a field to as many bytes as the request says.
func (a application) fill(w http.ResponseWriter, r *http.Request, s *holdfast.Session) error {
	n, err := strconv.Atoi(r.FormValue("bytes"))
	if err != nil || n < 0 {
		http.Error(w, "bytes: want a number.", http.StatusBadRequest)
		return nil
	}
	if err := fields[0].Set(s, filling(n)); err != nil {
		return err
	}
	_, err = fmt.Fprintln(w, "filled")
	return err
}

func filling(n int) string { return strings.Repeat("0123456789", n/10+1)[:n] }

// toss sets the cookie that the request says, as the server of another subdomain can.
func toss(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Set-Cookie", r.FormValue("cookie"))
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	fmt.Fprint(w, `<!doctype html><link rel="icon" href="data:,"><title>toss</title>`)
}

// post sends a request from the open page that must succeed.
func post(b *tab, path string) {
	b.t.Helper()
	if a := b.fetch(http.MethodPost, path); a.Status != http.StatusOK {
		b.t.Fatalf("POST %s: %d %s", path, a.Status, a.Body)
	}
}

func fill(b *tab, n int) {
	b.t.Helper()
	post(b, fmt.Sprintf("/fill?bytes=%d", n))
}

// wantEverywhere checks that every instance shows the browser's session so.
func wantEverywhere(b *tab, base string, want who) {
	b.t.Helper()
	seen := make(map[string]bool)
	for tries := 0; len(seen) < instances; tries++ {
		if tries == 10*instances {
			b.t.Fatalf("only instances %v answered", seen)
		}
		instance := header(b.open(base+"/whoami"), instanceHeader)
		if diff := cmp.Diff(want, b.shown()); diff != "" {
			b.t.Fatalf("instance %s shows (-want +got):\n%s", instance, diff)
		}
		seen[instance] = true
	}
}

// filled is what /whoami shows of a user whose session has a field of n bytes.
func filled(user string, n int) who {
	return who{User: user, Fields: map[string]string{fields[0].Name(): filling(n)}}
}

var nobody = who{Fields: map[string]string{}}

// jar returns the names and values of the browser's cookies as it would send them, and their names. It checks the size of
// each.
func (b *tab) jar() (header string, names []string) {
	b.t.Helper()
	cookies := b.cookies()
	slices.SortFunc(cookies, func(a, b *network.Cookie) int { return strings.Compare(a.Name, b.Name) })
	var pairs []string
	for _, c := range cookies {
		if n := len(c.Name) + len(c.Value); n > maxCookie {
			b.t.Errorf("cookie %s has %d bytes", c.Name, n)
		}
		names = append(names, c.Name)
		pairs = append(pairs, c.Name+"="+c.Value)
	}
	return strings.Join(pairs, "; "), names
}

// wantJar checks that the browser keeps a session in so many cookies, and nothing else.
func wantJar(b *tab, name string, n int) {
	b.t.Helper()
	var want []string
	for k := range n {
		if k == 0 {
			want = append(want, name)
		} else {
			want = append(want, name+"."+strconv.Itoa(k))
		}
	}
	if _, got := b.jar(); !slices.Equal(got, want) {
		b.t.Errorf("browser keeps %v, want %v", got, want)
	}
}

// wantDeadEverywhere checks that copied cookies are worth nothing on any instance after the time that an instance may
// believe what it knew of the user.
func wantDeadEverywhere(t testing.TB, f *fleet, cookies string) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for dead := 0; dead < instances; { // the gateway takes them in turn
		me := f.askWith(cookies)
		switch {
		case me.User == "" && len(me.Fields) == 0:
			dead++
		case time.Now().After(deadline):
			t.Fatalf("copied cookies are still served user %q", me.User)
		default:
			dead = 0
			time.Sleep(50 * time.Millisecond)
		}
	}
}

// cookieForms are the two forms of the cookie, and two hosts of which a browser with the cookie of the first is at both.
var cookieForms = []struct {
	name, cookie string
	config       holdfast.Cookie
	hosts        [2]string
	domain       string // as the browser keeps it
}{
	{"host only", "__Host-Http-session", holdfast.Cookie{}, [2]string{"app.holdfast.test", "app.holdfast.test"}, "app.holdfast.test"},
	{"parent domain", "__Secure-session", holdfast.Cookie{Domain: "holdfast.test"}, [2]string{"shop.holdfast.test", "desk.holdfast.test"}, ".holdfast.test"},
}

// TestSealedCookie: Chromium keeps a sealed session in either form of the cookie, every server reads it, and a logout on
// one subdomain is one on the other.
func TestSealedCookie(t *testing.T) {
	t.Parallel()
	for _, form := range cookieForms {
		t.Run(form.name, func(t *testing.T) {
			t.Parallel() // it waits
			f := startSealed(t, holdfast.Config{Cookie: form.config})
			b := newTab(t)
			here, there := f.at(form.hosts[0]), f.at(form.hosts[1])
			login(b, here, "anna")
			fill(b, 100)
			c := b.cookie(form.cookie)
			if c == nil {
				t.Fatalf("browser keeps %v, not %s", b.cookies(), form.cookie)
			}
			if !c.Secure || !c.HTTPOnly || c.SameSite != network.CookieSameSiteLax || c.Path != "/" || !c.Session || c.Domain != form.domain {
				t.Errorf("browser keeps %s as %+v", c.Name, c)
			}
			wantJar(b, form.cookie, 1)
			wantEverywhere(b, here, filled("anna", 100))
			wantEverywhere(b, there, filled("anna", 100))
			fill(b, 200) // from the other one
			wantEverywhere(b, here, filled("anna", 200))
			if form.config.Domain == "" {
				wantUser(b, f.at("desk.holdfast.test"), "")
			}
			wantUser(b, f.at("www.other.test"), "")

			copied, _ := b.jar()
			b.open(there)
			post(b, "/logout")
			wantJar(b, form.cookie, 0)
			wantEverywhere(b, here, nobody)
			wantEverywhere(b, there, nobody)
			wantDeadEverywhere(t, f, copied)
		})
	}
}

// TestSealedChunks: a session that is too large for one cookie is in several. When it shrinks, the browser keeps no more
// of them than it takes, and after a logout none.
func TestSealedChunks(t *testing.T) {
	t.Parallel()
	for _, form := range cookieForms {
		t.Run(form.name, func(t *testing.T) {
			f := startSealed(t, holdfast.Config{Cookie: form.config})
			b := newTab(t)
			here, there := f.at(form.hosts[0]), f.at(form.hosts[1])
			b.open(here)
			for _, step := range []struct {
				do     string
				bytes  int
				user   string
				chunks int
			}{
				{"fill", 7500, "", 3},
				{"login", 7500, "anna", 3}, // under another ID
				{"fill", 10, "anna", 1},
				{"fill", 8000, "anna", 3},
				{"fill", 4000, "anna", 2},
				{"fill", 7000, "anna", 3},
			} {
				if step.do == "login" {
					post(b, "/login?user="+step.user)
				} else {
					fill(b, step.bytes)
				}
				wantJar(b, form.cookie, step.chunks)
				wantEverywhere(b, there, filled(step.user, step.bytes))
				b.open(here)
			}
			post(b, "/logout")
			wantJar(b, form.cookie, 0)
			wantEverywhere(b, here, nobody)
			wantEverywhere(b, there, nobody)

			// Too large for any number of cookies: refused, and what was there stays.
			login(b, here, "anna")
			fill(b, 8000)
			if a := b.fetch(http.MethodPost, "/fill?bytes=20000"); a.Status != http.StatusRequestEntityTooLarge {
				t.Errorf("20,000 bytes: %d %s", a.Status, a.Body)
			}
			wantEverywhere(b, there, filled("anna", 8000))
			for _, m := range f.managers {
				if n := m.Stats(); n.Incomplete+n.Tampered+n.Duplicate > 0 {
					t.Errorf("an instance refused cookies: %d incomplete, %d tampered, %d duplicate", n.Incomplete, n.Tampered, n.Duplicate)
				}
			}
		})
	}
}

// TestSealedExactly4096: a session whose cookie has exactly as many bytes as browsers keep is in one, and in two if it has
// one byte more. Both are kept.
func TestSealedExactly4096(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name   string
		config holdfast.Cookie
		cookie string
	}{
		// base64url without padding has no lengths of 4n+1: with these names it has those that make 4,096 and 4,097.
		{"host only", holdfast.Cookie{Name: "my-session"}, "__Host-Http-my-session"},
		{"parent domain", holdfast.Cookie{Name: "a-session", Domain: "holdfast.test"}, "__Secure-a-session"},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := startSealed(t, holdfast.Config{Cookie: test.config})
			b := newTab(t)
			b.open(f.base)
			// sized makes a session whose token has as many characters. Its length follows from the times in it, too, which are
			// varints.
			sized := func(length int) (bytes int) {
				bytes = length*3/4 - 200
				for range 10 {
					b.clearCookies()
					fill(b, bytes)
					got := f.last()
					if len(got) == length {
						return bytes
					}
					bytes += base64.RawURLEncoding.DecodedLen(length) - base64.RawURLEncoding.DecodedLen(len(got))
				}
				t.Fatalf("no token of %d characters", length)
				return 0
			}
			bytes := sized(maxCookie - len(test.cookie))
			wantJar(b, test.cookie, 1)
			if c := b.cookie(test.cookie); c == nil || len(c.Name)+len(c.Value) != maxCookie {
				t.Errorf("browser keeps %+v, want one of %d bytes", c, maxCookie)
			}
			wantEverywhere(b, f.base, filled("", bytes))

			b.clearCookies()
			fill(b, bytes+1)
			wantJar(b, test.cookie, 2)
			if c := b.cookie(test.cookie); c == nil || len(c.Name)+len(c.Value) != maxCookie {
				t.Errorf("browser keeps %+v as the first, want %d bytes", c, maxCookie)
			}
			if got, want := f.assembled(b, test.cookie), maxCookie+1-len(test.cookie); got != want {
				t.Errorf("the token in two cookies has %d characters, want %d", got, want)
			}
			wantEverywhere(b, f.base, filled("", bytes+1))
			fill(b, bytes-50) // the times in an older session take some bytes more
			wantJar(b, test.cookie, 1)
			wantEverywhere(b, f.base, filled("", bytes-50))
		})
	}
	t.Run("Chromium's limit", func(t *testing.T) {
		f := startSealed(t, holdfast.Config{})
		b := newTab(t)
		for _, n := range []int{maxCookie, maxCookie + 1} {
			b.open(f.base + "/toss?cookie=x=" + strings.Repeat("v", n-1))
			if kept := b.cookie("x") != nil; kept != (n == maxCookie) {
				t.Errorf("a cookie of %d bytes is kept: %v", n, kept)
			}
			b.clearCookies()
		}
	})
}

// assembled returns the length of the token in the browser's two cookies of a session.
func (f *fleet) assembled(b *tab, name string) int {
	f.t.Helper()
	first, second := b.cookie(name), b.cookie(name+".1")
	if first == nil || second == nil {
		f.t.Fatal("browser does not keep two cookies")
	}
	const head, id = len("~2."), len("12345678.")
	if first.Value[head:head+id] != second.Value[:id] {
		f.t.Error("the cookies are of different tokens")
	}
	return len(first.Value) - head - id + len(second.Value) - id
}
