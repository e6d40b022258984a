package browsertest

import (
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-sessions/holdfast/internal/testserver"
)

// inFlight is how many requests are under way on the old token.
const inFlight = 20

// order lets the requests of a play on: the main one, a login or logout, and the others.
type order struct {
	name string
	run  func(p *play, main string, others []string)
}

var orders = []order{
	{"all answered before it", func(p *play, main string, others []string) {
		p.finish(others...)
		p.finish(main)
	}},
	{"stored before the others and answered after them", func(p *play, main string, others []string) {
		p.ready(main)
		p.finish(others...)
		p.finish(main)
	}},
	{"others loaded before and stored after it, answered before it", func(p *play, main string, others []string) {
		p.load(others...)
		p.ready(main)
		p.finish(others...)
		p.finish(main)
	}},
	{"others loaded before and stored after it, answered after it", func(p *play, main string, others []string) {
		p.load(others...)
		p.finish(main)
		p.finish(others...)
	}},
	{"others stored before and answered after it", func(p *play, main string, others []string) {
		p.ready(others...)
		p.finish(main)
		p.finish(others...)
	}},
	{"others stored before it, answered in reverse after it", func(p *play, main string, others []string) {
		p.ready(others...)
		p.ready(main)
		p.finish(main)
		slices.Reverse(others)
		p.finish(others...)
	}},
	{"it comes first", func(p *play, main string, others []string) {
		p.finish(main)
		p.finish(others...)
	}},
	{"others between its steps", func(p *play, main string, others []string) {
		p.load(others...)
		for part := range slices.Chunk(others, 4) {
			p.step(main)
			p.ready(part...)
		}
		p.finish(main)
		p.finish(others...)
	}},
}

// allOrders are the named ones and some random ones.
func allOrders(random int) []order {
	all := slices.Clone(orders)
	for _, seed := range seeds(random) {
		all = append(all, order{fmt.Sprintf("seed %d", seed), func(p *play, main string, _ []string) {
			p.random(source(seed), main)
		}})
	}
	return all
}

// oneSeed repeats a random order that failed: go test -run TestLoginInFlight/memory -seed N
var oneSeed = flag.Uint64("seed", 0, "run the one random order of this `number`, as the name of the test said")

// seeds returns n of them, or the one that was asked for.
func seeds(n int) (all []uint64) {
	if *oneSeed != 0 {
		return []uint64{*oneSeed}
	}
	for range n {
		all = append(all, rand.Uint64())
	}
	return all
}

func source(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 0)) }

// mixed returns reads and writes in turn, every write of a field of its own.
func mixed(prefix string, from, n int) (requests []request) {
	for i := from; i < from+n; i++ {
		q := request{Name: fmt.Sprintf("%s-read%02d", prefix, i), Method: http.MethodGet, Path: fmt.Sprintf("/read?n=%d", i)}
		if i%5 < 3 {
			q = request{
				Name: fmt.Sprintf("%s-write%02d", prefix, i), Method: http.MethodPost,
				Path: fmt.Sprintf("/write?field=%d&value=%s", i, prefix),
			}
		}
		requests = append(requests, q)
	}
	return requests
}

func names(requests []request) (all []string) {
	for _, q := range requests {
		all = append(all, q.Name)
	}
	return all
}

// overStores runs a test over one memory and over files, each in a number of random orders.
func overStores(t *testing.T, test func(t *testing.T, files bool, random int)) {
	t.Run("memory", func(t *testing.T) {
		t.Parallel() // each has a fleet and browser contexts of its own, and waits
		test(t, false, testserver.Scale(30, 500))
	})
	t.Run("files", func(t *testing.T) {
		t.Parallel()
		test(t, true, testserver.Scale(10, 100))
	})
}

// begin makes a session with one field, and returns its token.
func begin(b *tab, f *fleet) string {
	b.t.Helper()
	b.clearCookies()
	if !strings.HasPrefix(eval[string](b, "location.href"), f.base) {
		b.open(f.base)
	}
	if a := b.fetch(http.MethodPost, "/write?field=23&value=begun"); a.Status != http.StatusOK {
		b.t.Fatalf("first write: %d %s", a.Status, a.Body)
	}
	c := b.cookie(defaultCookie)
	if c == nil || c.Value != f.last() {
		b.t.Fatal("browser does not keep the cookie of the session")
	}
	return c.Value
}

func beginLoggedIn(b *tab, f *fleet, user string) string {
	b.t.Helper()
	begin(b, f)
	if a := b.fetch(http.MethodPost, "/login?user="+user); a.Status != http.StatusOK {
		b.t.Fatalf("login: %d %s", a.Status, a.Body)
	}
	return b.cookie(defaultCookie).Value
}

// wantWrites checks the answers of the requests in flight around a main one, and returns the fields that are to be in
// the session: a write is saved and answered 200 if it was stored before, and is refused with 409 otherwise. A read shows
// the user before the main request, or nobody. None of them sets or clears a cookie.
func wantWrites(p *play, main string, requests []request, token, before string) map[string]string {
	p.t.Helper()
	ended := p.flights[main].readyAt
	saved := make(map[string]string)
	for i, q := range requests {
		f := p.flights[q.Name]
		if want := defaultCookie + "=" + token; f.cookie != want {
			p.t.Errorf("%s was not sent with the old token", q.Name)
		}
		if len(f.setCookie) > 0 {
			p.t.Errorf("%s: sets a cookie", p.describe(q.Name))
		}
		if q.Method == http.MethodGet {
			user := ""
			if f.loaded < ended {
				user = before
			}
			if got := parse(p.t, f.answer.Body).User; f.answer.Status != http.StatusOK || got != user {
				p.t.Errorf("%s: want 200 and user %q", p.describe(q.Name), user)
			}
			continue
		}
		want := http.StatusConflict
		if f.readyAt < ended {
			want = http.StatusOK
			saved[fields[i].Name()] = "old"
		}
		if f.answer.Status != want {
			p.t.Errorf("%s: want %d", p.describe(q.Name), want)
		}
	}
	return saved
}

// TestLoginInFlight: whatever the order of the answers, the browser ends up logged in, and every write that was answered
// 200 is in the session.
func TestLoginInFlight(t *testing.T) {
	t.Parallel()
	overStores(t, func(t *testing.T, files bool, random int) {
		f := startFleet(t, setup{files: files})
		b := newTab(t)
		for _, o := range allOrders(random) {
			t.Run(o.name, func(t *testing.T) {
				b := b.in(t)
				token := begin(b, f)
				p := newPlay(t, b, f)
				others := mixed("old", 0, inFlight)
				p.send(append(slices.Clone(others), request{Name: "login", Method: http.MethodPost, Path: "/login?user=anna"})...)
				o.run(p, "login", names(others))

				if p.status("login") != http.StatusOK {
					t.Fatal(p.describe("login"))
				}
				want := who{User: "anna", Fields: wantWrites(p, "login", others, token, "")}
				want.Fields["f23"] = "begun"
				if diff := cmp.Diff(want, b.whoami(f.base)); diff != "" {
					t.Errorf("session in the browser (-want +got):\n%s", diff)
				}
				wantDead(t, f, token)
			})
		}
	})
}

// TestLogoutInFlight: whatever the order of the answers, the browser ends up logged out, without a cookie, and nothing
// brings the session back.
func TestLogoutInFlight(t *testing.T) {
	t.Parallel()
	overStores(t, func(t *testing.T, files bool, random int) {
		f := startFleet(t, setup{files: files})
		b := newTab(t)
		for _, o := range allOrders(random / 2) {
			t.Run(o.name, func(t *testing.T) {
				b := b.in(t)
				token := beginLoggedIn(b, f, "anna")
				p := newPlay(t, b, f)
				others := mixed("old", 0, inFlight)
				p.send(append(slices.Clone(others), request{Name: "logout", Method: http.MethodPost, Path: "/logout"})...)
				o.run(p, "logout", names(others))

				if p.status("logout") != http.StatusOK {
					t.Fatal(p.describe("logout"))
				}
				wantWrites(p, "logout", others, token, "anna")
				wantLoggedOut(t, b, f, token)
			})
		}
	})
}

// TestLogoutMarkerGone: as above, but the requests in flight are so late that the marker of the logout, which stays for
// 30 seconds, is gone when they go on.
func TestLogoutMarkerGone(t *testing.T) {
	t.Parallel()
	overStores(t, func(t *testing.T, files bool, _ int) {
		f := startFleet(t, setup{files: files})
		b := newTab(t)
		for _, o := range []order{
			{"others had loaded", func(p *play, main string, others []string) { p.load(others...) }},
			{"others had not loaded", func(*play, string, []string) {}},
		} {
			t.Run(o.name, func(t *testing.T) {
				b := b.in(t)
				token := beginLoggedIn(b, f, "anna")
				p := newPlay(t, b, f)
				others := mixed("old", 0, inFlight)
				p.send(append(slices.Clone(others), request{Name: "logout", Method: http.MethodPost, Path: "/logout"})...)
				o.run(p, "logout", names(others))
				p.finish("logout")
				if err := f.store.Delete(t.Context(), idOf(token)); err != nil {
					t.Fatal(err)
				}
				p.finish(names(others)...)
				if me := b.whoami(f.base); me.User != "" || me.Fields["f23"] != "" {
					t.Errorf("session in the browser after logout: %+v", me)
				}
				wantDead(t, f, token)
			})
		}
	})
}

// wantDead checks that a token is worth nothing on any instance.
func wantDead(t testing.TB, f *fleet, token string) {
	t.Helper()
	if me := f.ask(token); me.User != "" || len(me.Fields) > 0 {
		t.Errorf("old token is served %+v", me)
	}
}

func wantLoggedOut(t testing.TB, b *tab, f *fleet, token string) {
	t.Helper()
	if me := b.whoami(f.base); me.User != "" || len(me.Fields) > 0 {
		t.Errorf("session in the browser after logout: %+v", me)
	}
	if b.cookie(defaultCookie) != nil {
		t.Error("browser keeps the cookie after logout")
	}
	for range instances { // the gateway takes them in turn
		wantDead(t, f, token)
	}
}

// TestLoginLogoutLogin: a page logs in, out and in again, each as soon as it has the answer before, with requests in
// flight on every token on the way, answered in random order until after the end.
func TestLoginLogoutLogin(t *testing.T) {
	t.Parallel()
	overStores(t, func(t *testing.T, files bool, random int) {
		f := startFleet(t, setup{files: files})
		b := newTab(t)
		for _, seed := range seeds(random / 2) {
			t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) {
				b := b.in(t)
				r := source(seed)
				begin(b, f)
				p := newPlay(t, b, f)
				onFirst, onSecond, onThird := mixed("old", 0, 7), mixed("old", 7, 7), mixed("new", 14, 7)
				scenes := [][]request{
					append(slices.Clone(onFirst), request{Name: "login1", Method: http.MethodPost, Path: "/login?user=anna"}),
					append(slices.Clone(onSecond), request{Name: "logout", Method: http.MethodPost, Path: "/logout"}),
					{{Name: "reader", Method: http.MethodGet, Path: "/read?n=x"}, {Name: "login2", Method: http.MethodPost, Path: "/login?user=bert"}},
					onThird,
				}
				mains := []string{"login1", "logout", "login2"}
				for i, scene := range scenes {
					p.send(scene...)
					for i < len(mains) && !p.flights[mains[i]].answered {
						name := mains[i]
						if open := p.open(); r.IntN(4) > 0 {
							name = open[r.IntN(len(open))]
						}
						p.step(name)
					}
				}
				for open := p.open(); len(open) > 0; open = p.open() {
					p.step(open[r.IntN(len(open))])
				}
				for _, name := range mains {
					if p.status(name) != http.StatusOK {
						t.Error(p.describe(name))
					}
				}
				want := who{User: "bert", Fields: make(map[string]string)}
				for i, q := range onThird {
					if q.Method != http.MethodPost {
						continue
					}
					if p.status(q.Name) != http.StatusOK {
						t.Error(p.describe(q.Name))
					}
					want.Fields[fields[14+i].Name()] = "new"
				}
				if diff := cmp.Diff(want, b.whoami(f.base)); diff != "" {
					t.Errorf("session in the browser (-want +got):\n%s", diff)
				}
				if ended, ok := p.flights["logout"], p.flights["login1"]; ended.cookie == ok.cookie {
					t.Error("logout was not sent with the token of the login")
				}
			})
		}
	})
}

// TestActionsAtOnce: a page that does not wait sends a login, a logout and another login on one token. One of them wins,
// the others are refused or have nothing left to do, and the browser is in the state of the winner; repeating the last
// one, as 409 asks for, brings what was intended last.
func TestActionsAtOnce(t *testing.T) {
	t.Parallel()
	overStores(t, func(t *testing.T, files bool, random int) {
		f := startFleet(t, setup{files: files})
		b := newTab(t)
		for _, seed := range seeds(random / 2) {
			t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) {
				b := b.in(t)
				r := source(seed)
				token := begin(b, f)
				p := newPlay(t, b, f)
				users := map[string]string{"login1": "anna", "logout": "", "login2": "bert"}
				p.send(append(mixed("old", 0, 6),
					request{Name: "login1", Method: http.MethodPost, Path: "/login?user=anna"},
					request{Name: "logout", Method: http.MethodPost, Path: "/logout"},
					request{Name: "login2", Method: http.MethodPost, Path: "/login?user=bert"},
				)...)
				p.random(r, "")

				var won []string
				for _, name := range slices.Sorted(maps.Keys(users)) {
					switch p.status(name) {
					case http.StatusOK:
						won = append(won, name)
					case http.StatusConflict:
					default:
						t.Error(p.describe(name))
					}
				}
				if len(won) != 1 {
					t.Fatalf("%v answered 200, want one", won)
				}
				if me := b.whoami(f.base); me.User != users[won[0]] {
					t.Errorf("%s won, and the browser has user %q", won[0], me.User)
				}
				if won[0] != "login2" {
					if a := b.fetch(http.MethodPost, "/login?user=bert"); a.Status != http.StatusOK {
						t.Errorf("login repeated: %d %s", a.Status, a.Body)
					}
				}
				if me := b.whoami(f.base); me.User != "bert" {
					t.Errorf("after the last login was repeated the browser has user %q", me.User)
				}
				wantDead(t, f, token)
			})
		}
	})
}
