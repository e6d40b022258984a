package gateway_test

import (
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-sessions/holdfast/gateway"
)

// Fall bad checks take an upstream out, Rise good ones bring it back, and in between nothing changes.
func TestHealthCheck(t *testing.T) {
	for _, c := range []struct {
		name  string
		check gateway.HealthCheck
		fail  func(*bubbleApp)
		mend  func(*bubbleApp)
	}{
		{"status", gateway.HealthCheck{Path: "/healthz?deep=1"}, func(a *bubbleApp) { a.set(func() { a.status = 503 }) }, func(a *bubbleApp) { a.set(func() { a.status = 0 }) }},
		{"expected status", gateway.HealthCheck{Path: "/healthz", Status: 200}, func(a *bubbleApp) { a.set(func() { a.status = 204 }) }, func(a *bubbleApp) { a.set(func() { a.status = 0 }) }},
		{"frozen", gateway.HealthCheck{Path: "/healthz"}, (*bubbleApp).freeze, (*bubbleApp).thaw},
		{"refuses", gateway.HealthCheck{Path: "/healthz"}, func(a *bubbleApp) { a.set(func() { a.refuses = true }) }, func(a *bubbleApp) { a.set(func() { a.refuses = false }) }},
		{"TCP", gateway.HealthCheck{TCP: true}, func(a *bubbleApp) { a.set(func() { a.refuses = true }) }, func(a *bubbleApp) { a.set(func() { a.refuses = false }) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			check := c.check
			check.Interval, check.Timeout = 10*time.Second, time.Second
			inBubble(t, 2, gateway.Config{HealthCheck: check}, true, func(t *testing.T, b *bubble) {
				b.want(4, "ab")
				time.Sleep(5 * time.Second) // between checks
				c.fail(b.app("a"))
				// Two checks, each at most 11 s and its second after the one before.
				time.Sleep(16 * time.Second)
				b.wantState("a", gateway.StateUp)
				time.Sleep(24 * time.Second)
				b.wantState("a", gateway.StateDown)
				b.want(4, "b")
				c.mend(b.app("a"))
				time.Sleep(8 * time.Second)
				b.wantState("a", gateway.StateDown)
				time.Sleep(24 * time.Second)
				b.wantState("a", gateway.StateUp)
				b.want(4, "ab")
				if u := b.upstream("a"); u.FailedChecks < 3 || u.Checks < u.FailedChecks+3 {
					t.Errorf("%d checks, %d failed", u.Checks, u.FailedChecks)
				}
			})
		})
	}
}

// What a check sends, and how often: once per interval, with up to a tenth more or less.
func TestHealthCheckRequest(t *testing.T) {
	var seen []string
	var at []time.Time
	inBubble(t, 1, gateway.Config{HealthCheck: gateway.HealthCheck{Path: "/up?x=1", Host: "app.example", Interval: 10 * time.Second}}, false, func(t *testing.T, b *bubble) {
		b.app("a").set(func() {
			b.app("a").handler = func(_ http.ResponseWriter, r *http.Request) {
				seen = append(seen, r.Method+" "+r.Host+r.RequestURI+" "+r.UserAgent())
				at = append(at, time.Now())
			}
		})
		time.Sleep(time.Minute)
		if len(seen) != 0 {
			t.Errorf("%d checks before Run", len(seen))
		}
		go func() { _ = b.Run(t.Context(), newPipeListener()) }()
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		if len(seen) < 55 || len(seen) > 67 || seen[0] != "GET app.example/up?x=1 holdfast-health-check" {
			t.Errorf("%d checks in 10 minutes, the first %q", len(seen), seen[0])
		}
		differ := false
		for i := range len(at) - 1 {
			d := at[i+1].Sub(at[i])
			differ = differ || d != at[1].Sub(at[0])
			if d < 9*time.Second || d > 11*time.Second {
				t.Errorf("%v between two checks, want 9 to 11 s", d)
			}
		}
		if !differ {
			t.Error("the intervals are all the same")
		}
	})
}

// While Run runs, no request pays for trying an upstream that is out.
func TestReturnIsProbed(t *testing.T) {
	t.Run("refused", func(t *testing.T) {
		inBubble(t, 2, gateway.Config{}, true, func(t *testing.T, b *bubble) {
			b.app("a").set(func() { b.app("a").refuses = true })
			b.want(2, "b")
			for range 600 {
				b.want(2, "b")
				time.Sleep(100 * time.Millisecond)
			}
			if u := b.upstream("a"); u.Failures != 1 || b.app("a").dials < 5 {
				t.Errorf("%d requests failed to connect, want 1; %d connects", u.Failures, b.app("a").dials)
			}
			b.app("a").set(func() { b.app("a").refuses = false })
			time.Sleep(11 * time.Second)
			b.wantState("a", gateway.StateUp)
			b.want(4, "ab")
		})
	})
	t.Run("frozen, with a check that does not notice", func(t *testing.T) {
		c := gateway.Config{ResponseHeaderTimeout: 5 * time.Second, HealthCheck: gateway.HealthCheck{TCP: true}}
		inBubble(t, 2, c, true, func(t *testing.T, b *bubble) {
			b.app("a").freeze()
			b.want(2, "b")
			time.Sleep(20 * time.Minute)
			b.wantState("a", gateway.StateEjected)
		})
	})
	t.Run("frozen", func(t *testing.T) {
		inBubble(t, 2, gateway.Config{ResponseHeaderTimeout: 5 * time.Second}, true, func(t *testing.T, b *bubble) {
			b.app("a").freeze()
			began := time.Now()
			b.want(2, "b")
			if d := time.Since(began); d != 5*time.Second {
				t.Errorf("answered after %v, want the deadline", d)
			}
			b.wantState("a", gateway.StateEjected)
			for range 600 {
				began := time.Now()
				b.want(2, "b")
				if time.Since(began) != 0 {
					t.Fatalf("a request waited %v for an upstream that is ejected", time.Since(began))
				}
				time.Sleep(100 * time.Millisecond)
			}
			b.app("a").thaw()
			time.Sleep(5 * time.Minute)
			b.wantState("a", gateway.StateUp)
			b.want(4, "ab")
		})
	})
}

// Checks that fail because too few upstreams are left are not believed.
func TestPanicThreshold(t *testing.T) {
	c := gateway.Config{
		HealthCheck: gateway.HealthCheck{Path: "/", Interval: time.Second, Fall: 1, Rise: 1}, PanicThreshold: 0.5,
	}
	inBubble(t, 4, c, true, func(t *testing.T, b *bubble) {
		fail := func(ids string, status int) {
			for _, id := range ids {
				b.app(string(id)).set(func() {
					b.app(string(id)).handler = func(w http.ResponseWriter, r *http.Request) {
						w.Header().Set("Connection", "close")
						if strings.HasPrefix(r.UserAgent(), "holdfast") {
							w.WriteHeader(status)
						}
						_, _ = w.Write([]byte(string(id)))
					}
				})
			}
			time.Sleep(2 * time.Second)
			synctest.Wait()
		}
		fail("ab", 500)
		b.want(8, "cd") // half of them is up
		fail("c", 500)
		b.wantState("c", gateway.StateDown)
		b.want(8, "abcd")
		// One that cannot be connected is left out all the same.
		b.app("a").set(func() { b.app("a").refuses = true })
		b.want(8, "bcd")
		fail("c", 200)
		b.want(8, "cd")
	})
}
