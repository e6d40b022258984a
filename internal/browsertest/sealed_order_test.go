package browsertest

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/holdfast-sessions/holdfast"
)

// pairOrders let two requests on that were sent with one token.
var pairOrders = []struct {
	name string
	run  func(p *play, first, second string) // second is answered last
}{
	{"one stored and answered after the other", func(p *play, first, second string) {
		p.load(first, second)
		p.finish(first, second)
	}},
	{"both stored before either is answered", func(p *play, first, second string) {
		p.load(first, second)
		p.ready(first, second)
		p.finish(first, second)
	}},
	{"answered in reverse", func(p *play, first, second string) {
		p.load(first, second)
		p.ready(second, first)
		p.finish(first, second)
	}},
	{"one arrives when the other is answered", func(p *play, first, second string) {
		p.finish(first, second)
	}},
}

// writes are two requests that set different fields.
func writes() []request {
	return []request{
		{Name: "a", Method: http.MethodPost, Path: "/write?field=2&value=a"},
		{Name: "b", Method: http.MethodPost, Path: "/write?field=4&value=b"},
	}
}

// TestSealedInFlight says what two parallel requests of one sealed session do: each is answered with a state of its own,
// and the browser keeps that of the answer that came last. The change of the other is lost, although its answer was 200;
// Update, which promises that this does not happen, refuses. With Config.Strict the second is refused with 409 and sends
// no cookie, so nothing is lost, whatever the order of the answers.
func TestSealedInFlight(t *testing.T) {
	t.Parallel()
	for _, strict := range []bool{false, true} {
		t.Run(fmt.Sprintf("strict=%v", strict), func(t *testing.T) {
			f := startSealed(t, holdfast.Config{Strict: strict})
			b := newTab(t)
			b.open(f.base)
			for _, o := range pairOrders {
				t.Run(o.name, func(t *testing.T) {
					b := b.in(t)
					b.clearCookies()
					fill(b, 10)
					before := b.cookie(defaultCookie).Value
					p := newPlay(t, b, f)
					p.send(writes()...)
					o.run(p, "a", "b")

					want := filled("", 10)
					answered := map[string]int{"a": 200, "b": 200}
					wins := "b" // answered last
					if strict {
						if p.flights["a"].readyAt < p.flights["b"].readyAt { // stored first
							wins = "a"
						}
						for name := range answered {
							if name != wins {
								answered[name] = http.StatusConflict
							}
						}
					}
					want.Fields[map[string]string{"a": "f02", "b": "f04"}[wins]] = wins
					for name, status := range answered {
						q := p.flights[name]
						if q.cookie != defaultCookie+"="+before {
							t.Errorf("%s was not sent with the token of the other", name)
						}
						if q.answer.Status != status {
							t.Errorf("%s: want %d", p.describe(name), status)
						}
						if sends := len(q.setCookie) > 0; sends != (status == http.StatusOK) {
							t.Errorf("%s: sets a cookie: %v", p.describe(name), sends)
						}
					}
					if diff := cmp.Diff(want, b.whoami(f.base)); diff != "" {
						t.Errorf("session in the browser (-want +got):\n%s", diff)
					}
					b.open(f.base)
					for _, q := range writes() { // 409 asks to repeat it
						if q.Name != wins {
							post(b, q.Path)
							want.Fields[map[string]string{"a": "f02", "b": "f04"}[q.Name]] = q.Name
						}
					}
					wantEverywhere(b, f.base, want)
				})
			}
			t.Run("Update", func(t *testing.T) {
				b := b.in(t)
				b.open(f.base)
				fill(b, 10)
				copied, _ := b.jar()
				a := b.fetch(http.MethodPost, "/write?field=1&value=x")
				if (a.Status == http.StatusOK) != strict {
					t.Errorf("Update: %d %s", a.Status, a.Body)
				}
				if now, _ := b.jar(); (now != copied) != strict {
					t.Errorf("the cookie changed: %v", now != copied)
				}
			})
		})
	}
}

// TestSealedChunksInFlight: two parallel requests of which one or both take several cookies. The parts of their answers are
// never put together: the browser has the session of the answer that came last, whole, and a logout leaves nothing.
func TestSealedChunksInFlight(t *testing.T) {
	t.Parallel()
	f := startSealed(t, holdfast.Config{})
	b := newTab(t)
	b.open(f.base)
	for _, sizes := range [][3]int{{10, 7500, 20}, {10, 20, 7500}, {10, 7500, 4000}, {7500, 20, 7600}, {7500, 7600, 20}, {7500, 4000, 7600}, {7500, 7600, 7700}} {
		for _, o := range pairOrders {
			t.Run(fmt.Sprintf("%v, %s", sizes, o.name), func(t *testing.T) {
				b := b.in(t)
				b.clearCookies()
				if !strings.HasPrefix(eval[string](b, "location.href"), f.base) {
					b.open(f.base)
				}
				post(b, "/login?user=anna")
				fill(b, sizes[0])
				p := newPlay(t, b, f)
				p.send(request{Name: "a", Method: http.MethodPost, Path: fmt.Sprintf("/fill?bytes=%d", sizes[1])},
					request{Name: "b", Method: http.MethodPost, Path: fmt.Sprintf("/fill?bytes=%d", sizes[2])})
				o.run(p, "a", "b")
				if diff := cmp.Diff(filled("anna", sizes[2]), b.whoami(f.base)); diff != "" {
					t.Errorf("session in the browser (-want +got):\n%s", diff)
				}
				post(b, "/logout")
				wantJar(b, defaultCookie, 0)
			})
		}
	}
	duplicate, incomplete := f.refused()
	if duplicate+incomplete > 0 {
		t.Errorf("%d duplicate, %d incomplete cookies", duplicate, incomplete)
	}
}

// TestSealedLogoutInFlight: a session grows to three cookies while its logout is under way. If the logout is answered last,
// the browser keeps nothing; if it is answered first, what the browser keeps is worth nothing, after the time that a server
// may believe what it knew of the user.
func TestSealedLogoutInFlight(t *testing.T) {
	t.Parallel()
	for _, strict := range []bool{false, true} {
		t.Run(fmt.Sprintf("strict=%v", strict), func(t *testing.T) {
			f := startSealed(t, holdfast.Config{Strict: strict})
			b := newTab(t)
			for _, test := range []struct{ name, first, last string }{
				{"logout answered last", "grow", "logout"},
				{"logout answered first", "logout", "grow"},
			} {
				t.Run(test.name, func(t *testing.T) {
					b := b.in(t)
					b.clearCookies()
					login(b, f.base, "anna")
					p := newPlay(t, b, f)
					p.send(request{Name: "grow", Method: http.MethodPost, Path: "/fill?bytes=7500"},
						request{Name: "logout", Method: http.MethodPost, Path: "/logout"})
					p.load("grow", "logout")
					p.ready("grow")
					p.finish(test.first, test.last)
					for _, name := range p.names {
						if p.status(name) != http.StatusOK {
							t.Error(p.describe(name))
						}
					}
					if test.last == "logout" {
						wantJar(b, defaultCookie, 0)
						wantEverywhere(b, f.base, nobody)
						login(b, f.base, "bert")
						wantEverywhere(b, f.base, who{User: "bert", Fields: map[string]string{}})
						return
					}
					kept, _ := b.jar()
					wantDeadEverywhere(t, f, kept)
					wantEverywhere(b, f.base, nobody)
				})
			}
		})
	}
}
