package browsertest

import (
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/holdfast-sessions/holdfast"
)

// refused returns how many Cookie headers the instances have refused, with two cookies of one name, and with parts of two
// tokens or of one that is not whole.
func (f *fleet) refused() (duplicate, incomplete uint64) {
	for _, m := range f.managers {
		duplicate += m.Stats().Duplicate
		incomplete += m.Stats().Incomplete
	}
	return duplicate, incomplete
}

// TestTossedChunk is TestTossedCookie for the second of the cookies that a sealed session is in (attack 21), tossed by the
// server of another subdomain.
func TestTossedChunk(t *testing.T) {
	t.Parallel()
	const noPrefix, shared = "session", "__Secure-session"
	for _, test := range []struct {
		name   string
		cookie holdfast.Cookie
		base   string // name of the session's first cookie
		toss   string // attributes
		counts string // what refuses it, "" if the browser does
	}{
		{"prefix", holdfast.Cookie{}, defaultCookie, "Path=/; Domain=holdfast.test", ""},
		{"no prefix", holdfast.Cookie{NoPrefix: true}, noPrefix, "Path=/; Domain=holdfast.test", "duplicate"},
		{"no prefix, longer path", holdfast.Cookie{NoPrefix: true}, noPrefix, "Path=/whoami; Domain=holdfast.test", "duplicate"},
		{"shared", holdfast.Cookie{Domain: "holdfast.test"}, shared, "Path=/; Domain=holdfast.test", "incomplete"},
		{"shared, longer path", holdfast.Cookie{Domain: "holdfast.test"}, shared, "Path=/whoami; Domain=holdfast.test", "duplicate"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel() // each has a fleet and browser contexts of its own
			f := startSealed(t, holdfast.Config{Cookie: test.cookie})
			tossed := func(b *tab) {
				b.t.Helper()
				line := test.base + ".1=evil; Secure; HttpOnly; " + test.toss
				b.open(f.at("evil.holdfast.test") + "/toss?cookie=" + url.QueryEscape(line))
			}
			large := func(b *tab) {
				b.t.Helper()
				login(b, f.base, "anna")
				fill(b, 7500)
			}
			// wantRefused opens /whoami with the tossed cookie: nobody is logged in, it is counted, and the browser drops it.
			wantRefused := func(b *tab) {
				b.t.Helper()
				duplicate, incomplete := f.refused()
				me := b.whoami(f.base)
				d, i := f.refused()
				d, i = d-duplicate, i-incomplete
				if test.counts == "" {
					if me.User != "anna" || d+i > 0 {
						b.t.Errorf("the browser should have refused the cookie: user %q, %d duplicate, %d incomplete", me.User, d, i)
					}
					return
				}
				if me.User != "" || len(me.Fields) > 0 {
					b.t.Errorf("with a tossed part: user %q", me.User)
				}
				if d != b2i(test.counts == "duplicate") || i != b2i(test.counts == "incomplete") {
					b.t.Errorf("counted %d duplicate, %d incomplete; want one %s", d, i, test.counts)
				}
				for _, c := range b.cookies() {
					if c.Value == "evil" && test.counts == "duplicate" {
						b.t.Errorf("browser keeps the tossed cookie %s%s", c.Domain, c.Path)
					}
				}
			}
			// wantNotLockedOut: who logs in again has a large session again, at the latest the second time.
			wantNotLockedOut := func(b *tab) {
				b.t.Helper()
				for range 2 {
					large(b)
					if me := b.whoami(f.base); me.User == "anna" && len(me.Fields) == 1 {
						wantEverywhere(b, f.base, filled("anna", 7500))
						b.open(f.base)
						if a := b.fetch(http.MethodPost, "/logout"); a.Status != http.StatusOK {
							b.t.Errorf("logout: %d %s", a.Status, a.Body)
						}
						wantJar(b, test.base, 0)
						return
					}
				}
				b.t.Error("user is locked out: logged in twice, and /whoami shows nobody")
			}
			t.Run("session in three cookies", func(t *testing.T) {
				b := newTab(t)
				large(b)
				tossed(b)
				wantRefused(b)
				wantNotLockedOut(b)
			})
			t.Run("session in one cookie that grows", func(t *testing.T) {
				b := newTab(t)
				login(b, f.base, "anna")
				tossed(b)
				wantUser(b, f.base, "anna") // nothing looks at it
				b.open(f.base)
				fill(b, 7500)
				if strings.HasPrefix(test.name, "shared") && test.counts == "incomplete" {
					wantUser(b, f.base, "anna") // its place is taken again
				} else {
					wantRefused(b)
				}
				wantNotLockedOut(b)
			})
			t.Run("before login", func(t *testing.T) {
				b := newTab(t)
				tossed(b)
				wantUser(b, f.base, "")
				wantNotLockedOut(b)
			})
		})
	}
}

func b2i(b bool) uint64 {
	if b {
		return 1
	}
	return 0
}
