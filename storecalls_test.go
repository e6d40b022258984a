package holdfast_test

import (
	"context"
	"net/http"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-sessions/holdfast"
	"github.com/holdfast-sessions/holdfast/driver"
)

// TestStoreCalls counts what a request costs.
func TestStoreCalls(t *testing.T) {
	count := func(n int) (int, error) { return n + 1, nil }
	tests := []struct {
		name string
		page page // nil: the session is not used
		new  []string
		cas  []string // of a known session, over a store that does not merge
		mrg  []string // over one that does
	}{
		{"untouched", nil, nil, nil, nil},
		{"got, not read", func(http.ResponseWriter, *http.Request, *holdfast.Session) {},
			nil, []string{"load"}, []string{"load"}},
		{"read", func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) {
			for range 3 {
				wantField(t, owner, s, "")
			}
			_ = s.User()
		}, nil, []string{"load"}, []string{"load"}},
		{"write", func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) {
			for n := range 3 {
				must(t, visits.Set(s, n+10))
			}
			must(t, cart.Set(s, []string{"a"}))
		}, []string{"save"}, []string{"load", "save"}, []string{"load", "merge"}},
		{"write what is there", func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) {
			n, err := visits.Get(s)
			must(t, err)
			if n != 0 {
				must(t, visits.Set(s, n))
			}
			must(t, owner.Delete(s))
		}, nil, []string{"load"}, []string{"load"}},
		{"update", func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) {
			must(t, cart.Set(s, []string{"a"}))
			_, err := visits.Update(r.Context(), s, count)
			must(t, err)
		}, []string{"save"}, []string{"load", "save"}, []string{"load", "save"}},
		{"renew", func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) { must(t, s.Renew(r.Context())) },
			nil, []string{"load", "save", "save"}, []string{"load", "save", "save"}},
		{"login", func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) {
			must(t, s.Login(r.Context(), "ada"))
		}, []string{"save", "load", "save"}, []string{"load", "save", "load", "save", "save"}, []string{"load", "save", "load", "save", "save"}},
		{"logout", func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) { must(t, s.Logout(r.Context())) },
			nil, []string{"load", "save"}, []string{"load", "save"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for _, merges := range []bool{false, true} {
				var calls journal
				var store driver.Store = tapped{mustMemory(t), calls.note}
				known := tt.cas
				if merges {
					store, known = tappedMerger{store.(tapped)}, tt.mrg
				}
				m := mustManager(t, store, holdfast.Config{})
				see := func(v *visitor) []string {
					if tt.page == nil {
						v.handle(v.request(context.Background()), func(http.ResponseWriter, *http.Request) {})
					} else {
						v.visit(tt.page)
					}
					return calls.take()
				}
				if d := cmp.Diff(tt.new, see(newVisitor(t, m)), equateEmpty); d != "" {
					t.Errorf("calls for a new visitor (-want +got):\n%s", d)
				}
				v := newVisitor(t, m)
				v.set(1)
				calls.take()
				if d := cmp.Diff(known, see(v), equateEmpty); d != "" {
					t.Errorf("calls for a known visitor, merges %v (-want +got):\n%s", merges, d)
				}
			}
		})
	}
}

var equateEmpty = cmp.Transformer("empty", func(s []string) []string { return append([]string{}, s...) })

// TestTouchThrottled: the idle timeout is extended once per twentieth of itself, whatever the number of requests,
// after the handler, and without the fields where the store can do that.
func TestTouchThrottled(t *testing.T) {
	const idle = 20 * time.Minute
	for _, touches := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			var calls journal
			tap := tapped{mustMemory(t), calls.note}
			var store driver.Store = tap
			want := "save"
			if touches {
				store, want = tappedToucher{tappedMerger{tap}}, "touch"
			}
			m := mustManager(t, store, holdfast.Config{IdleTimeout: idle})
			v := newVisitor(t, m)
			v.set(1)
			calls.take()
			written := 0
			const requests, every = 601, 10 * time.Second // 100 minutes
			for range requests {
				v.visits()
				ops := calls.take()
				if slices.Contains(ops, want) {
					written++
				}
				if len(ops) > 2 || len(ops) == 2 && ops[1] != want {
					t.Fatalf("a request calls %v", ops)
				}
				sleep(every)
			}
			if written != 100 {
				t.Errorf("%d requests in 100 minutes extend an idle timeout of 20 minutes %d times, want 100", requests, written)
			}
			if got := m.Stats(); touches && got.Touches != 100 || !touches && got.Saves != 101 {
				t.Errorf("counted %+v", got)
			}
		})
	}
}

// TestTouchKeepsWritesOfOthers: a touch that loses the race against a write leaves it alone.
func TestTouchKeepsWritesOfOthers(t *testing.T) {
	for _, touches := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			pass := func(context.Context, storeCall) error { return nil }
			tap := tapped{mustMemory(t), pass}
			var store driver.Store = tap
			if touches {
				store = tappedToucher{tappedMerger{tap}}
			}
			m := mustManager(t, store, holdfast.Config{})
			v := newVisitor(t, m)
			v.set(1)
			sleep(10 * time.Minute)
			res := v.visit(func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) { v.copy().set(2) })
			wantStatus(t, res, 200)
			if n := v.visits(); n != 2 {
				t.Errorf("visits = %d, want 2", n)
			}
			if m.Stats().Conflicts != 1 {
				t.Errorf("%d conflicts, want the touch's", m.Stats().Conflicts)
			}
		})
	}
}

// TestTouchDoesNotReviveALogout ends a session while a request reads it whose touch is due.
func TestTouchDoesNotReviveALogout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := mustManager(t, mustMemory(t), holdfast.Config{})
		v := newVisitor(t, m)
		v.login("ada")
		other := v.copy()
		sleep(10 * time.Minute)
		v.visit(func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) { other.copy().logout() })
		if u := other.user(); u != "" {
			t.Errorf("logged in as %q after a logout", u)
		}
	})
}

// TestAnonymousReadsWriteNothing is attack 38, with a tenth of its requests.
func TestAnonymousReadsWriteNothing(t *testing.T) {
	const requests = 100_000
	var calls journal
	m := mustManager(t, tapped{mustMemory(t), calls.note}, holdfast.Config{})
	for range requests {
		v := newVisitor(t, m)
		res := v.visit(func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) {
			if n, err := visits.Get(s); n != 0 || err != nil {
				t.Fatal(n, err)
			}
		})
		if len(res.Header["Set-Cookie"]) != 0 {
			t.Fatal("an anonymous visitor got a cookie")
		}
	}
	if ops := calls.take(); len(ops) != 0 {
		t.Errorf("%d store calls for anonymous visitors, want 0", len(ops))
	}
}
