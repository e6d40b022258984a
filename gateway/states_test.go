package gateway_test

import (
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/holdfast-sessions/holdfast/gateway"
)

// Whatever operators and faults do, in any order: nobody gets to an upstream in maintenance or one that is gone, new
// clients to one that drains only if no other is up, and a bound client moves only if its upstream cannot be had.
func TestStates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rapid.Check(struct{ testing.TB }{t}, func(t *rapid.T) { // without Deadline, which a bubble forbids
			// model is what an upstream is to be.
			type model struct {
				mode      string    // ready, draining, maintenance
				last, end time.Time // of a drain; from last on its clients go elsewhere
				down      bool
			}
			c := gateway.Config{Affinity: gateway.AffinityCookie, Key: testKey, SlowStart: time.Minute, Logger: slog.New(slog.DiscardHandler)}
			c.Upstreams = weighted(1, 1, 1)
			g := mustNew(t, c)
			is := map[string]*model{"a": {mode: "ready"}, "b": {mode: "ready"}, "c": {mode: "ready"}}
			type client struct{ home, cookie string }
			bound := make(map[string]client)
			bind := func(name, id string) {
				bound[name] = client{id, "__Host-holdfast-upstream=" + g.AffinityValue(id, time.Now())}
			}
			anyID := func(t *rapid.T) string {
				return rapid.SampledFrom(slices.Sorted(maps.Keys(is))).Draw(t, "upstream")
			}
			must := func(err error) {
				if err != nil {
					t.Fatal(err)
				}
			}
			takesNew := func(id string) bool { return is[id] != nil && is[id].mode == "ready" && !is[id].down }
			t.Repeat(map[string]func(*rapid.T){
				"": func(t *rapid.T) {
					for id, m := range is {
						if m.mode == "draining" && !time.Now().Before(m.end) {
							m.mode = "maintenance"
						}
						want := gateway.State(m.mode)
						switch {
						case m.mode == "ready" && m.down:
							want = gateway.StateDown
						case m.mode == "ready":
							want = gateway.StateUp
						}
						for _, u := range g.Upstreams() {
							if u.ID == id && u.State != want {
								t.Fatalf("upstream %s is %s, want %s", id, u.State, want)
							}
						}
					}
				},
				"new client": func(t *rapid.T) {
					id := g.Pick(anyRequest())
					some := slices.ContainsFunc(slices.Collect(maps.Keys(is)), takesNew)
					switch {
					case id == "":
						for id, m := range is {
							if m.mode != "maintenance" {
								t.Fatalf("goes nowhere although %s is there", id)
							}
						}
					case is[id] == nil || is[id].mode == "maintenance":
						t.Fatalf("went to %s, which takes nobody", id)
					case some && !takesNew(id):
						t.Fatalf("went to %s, although another takes new clients", id)
					}
					if id != "" {
						bind(fmt.Sprint(len(bound)), id)
					}
				},
				"bound client": func(t *rapid.T) {
					if len(bound) == 0 {
						return
					}
					name := rapid.SampledFrom(slices.Sorted(maps.Keys(bound))).Draw(t, "client")
					home := bound[name].home
					r := anyRequest()
					r.Header.Set("Cookie", bound[name].cookie)
					id := g.Pick(r)
					m := is[home]
					leaving := m == nil || m.down || m.mode == "maintenance" || m.mode == "draining" && !time.Now().Before(m.last)
					if !leaving && id != home {
						t.Fatalf("moved from %s, which is %s, to %s", home, m.mode, id)
					}
					if id != "" && (is[id] == nil || is[id].mode == "maintenance") {
						t.Fatalf("went to %s, which takes nobody", id)
					}
					if id != "" {
						bind(name, id)
					}
				},
				"drain": func(t *rapid.T) {
					id, within := anyID(t), time.Duration(rapid.IntRange(1, 100).Draw(t, "ms"))*time.Millisecond
					must(g.Drain(id, within))
					is[id].mode, is[id].last, is[id].end = "draining", time.Now().Add(within-within/10), time.Now().Add(within)
				},
				"maintenance": func(t *rapid.T) {
					id := anyID(t)
					must(g.Maintenance(id))
					is[id].mode = "maintenance"
				},
				"ready": func(t *rapid.T) {
					id := anyID(t)
					must(g.Ready(id))
					*is[id] = model{mode: "ready"}
				},
				"down": func(t *rapid.T) {
					id := anyID(t)
					g.Down(id)
					is[id].down = true
				},
				"back": func(t *rapid.T) {
					id := anyID(t)
					g.Back(id)
					is[id].down = false
				},
				"weight": func(t *rapid.T) { must(g.SetWeight(anyID(t), rapid.IntRange(1, 1000).Draw(t, "weight"))) },
				"add": func(t *rapid.T) {
					id := rapid.SampledFrom([]string{"a", "b", "c", "d", "e"}).Draw(t, "new")
					must(g.SetUpstream(gateway.Upstream{ID: id, URL: "http://" + id + ":1"}))
					if is[id] == nil {
						is[id] = &model{mode: "ready"}
					}
				},
				"remove": func(t *rapid.T) {
					id := anyID(t)
					if err := g.RemoveUpstream(id); err != nil {
						if len(is) > 1 || !strings.Contains(err.Error(), "the last one") {
							t.Fatal(err)
						}
						return
					}
					delete(is, id)
				},
				"reload": func(t *rapid.T) {
					c.Upstreams = nil
					for _, id := range slices.Sorted(maps.Keys(is)) {
						c.Upstreams = append(c.Upstreams, gateway.Upstream{ID: id, URL: "http://" + id + ":1", Zone: rapid.SampledFrom([]string{"", "x"}).Draw(t, "zone")})
					}
					must(g.Reload(c))
				},
				"later": func(t *rapid.T) {
					// Less than the shortest back-off in all, so that nobody who is down is tried again.
					time.Sleep(time.Duration(rapid.IntRange(1, 3).Draw(t, "ms")) * time.Millisecond)
					synctest.Wait()
				},
			})
			_ = g.Close()
		})
	})
}
