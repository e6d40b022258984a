package holdfast_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-sessions/holdfast"
	"github.com/holdfast-sessions/holdfast/driver"
)

// TestConcurrentWriters is attack 16: a hundred writers of one session, over two servers. Different fields all
// survive, and Update of one field counts exactly.
func TestConcurrentWriters(t *testing.T) {
	const writers = 100
	for _, keys := range [][][]byte{nil, {testKey(1)}} {
		restless(t, func(t *testing.T, store driver.Store) {
			c := holdfast.Config{StoreTimeout: time.Minute, ValueKeys: keys}
			managers := []*holdfast.Manager{mustManager(t, store, c), mustManager(t, store, c)}
			v := newVisitor(t, managers[0])
			v.set(0)
			field := func(i int) holdfast.Field[int] { return holdfast.NewField[int](fmt.Sprintf("field %d", i)) }
			var wg sync.WaitGroup
			for i := range writers {
				wg.Go(func() {
					w := v.copy()
					w.m = managers[i%2]
					res := w.visit(func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) {
						if err := field(i).Set(s, i+1); err != nil {
							t.Error(err)
						}
						for range 3 {
							if _, err := visits.Update(r.Context(), s, func(n int) (int, error) { return n + 1, nil }); err != nil {
								t.Error(err)
							}
						}
						if err := owner.Set(s, fmt.Sprint(i)); err != nil {
							t.Error(err)
						}
					})
					wantStatus(t, res, 200)
				})
			}
			wg.Wait()
			v.visit(func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) {
				wantField(t, visits, s, 3*writers)
				for i := range writers {
					wantField(t, field(i), s, i+1)
				}
				if got, err := owner.Get(s); got == "" || err != nil {
					t.Errorf("the field that all set is %q, %v", got, err)
				}
			})
		})
	}
}

// TestParallelVisitsByHTTP: 50 parallel visits of one session over three servers count exactly.
func TestParallelVisitsByHTTP(t *testing.T) {
	run(t, func(t *testing.T, start func(http.Handler) *server) {
		restless(t, func(t *testing.T, store driver.Store) {
			var managers []*holdfast.Manager
			for range 3 {
				managers = append(managers, mustManager(t, store, holdfast.Config{StoreTimeout: time.Minute}))
			}
			var next atomic.Int64
			sv := start(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				m := managers[next.Add(1)%3]
				m.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					s, err := m.Get(r)
					if err == nil {
						_, err = visits.Update(r.Context(), s, func(n int) (int, error) { return n + 1, nil })
					}
					if err != nil {
						m.Error(w, r, err)
						return
					}
					n, _ := visits.Get(s)
					_, _ = fmt.Fprint(w, n)
				})).ServeHTTP(w, r)
			}))
			sv.get(t, "/")
			var wg sync.WaitGroup
			for range 50 {
				wg.Go(func() {
					res, _ := sv.get(t, "/")
					wantStatus(t, res, 200)
				})
			}
			wg.Wait()
			if _, body := sv.get(t, "/"); body != "52" {
				t.Errorf("visits = %s, want 52", body)
			}
		})
	})
}

// TestCancelledRequests is attack 17 on the Manager's side: requests of many users are cancelled at random moments,
// before and after each store call. Nobody ever sees another's data, and everybody's own is whole.
func TestCancelledRequests(t *testing.T) {
	users, rounds := 1000, 10
	if testing.Short() {
		users = 200
	}
	type cancelKey struct{}
	cancels := func(ctx context.Context, _ storeCall) error {
		for range rand.N(3) {
			runtime.Gosched()
		}
		if cancel, ok := ctx.Value(cancelKey{}).(context.CancelFunc); ok && rand.N(5) == 0 {
			cancel()
			if rand.N(2) == 0 {
				return driver.Unavailable(ctx.Err())
			}
		}
		return nil
	}
	pair := holdfast.NewField[[2]string]("pair")
	check := func(t *testing.T, store driver.Store) {
		m := mustManager(t, store, holdfast.Config{StoreTimeout: time.Minute})
		var wg sync.WaitGroup
		slots := make(chan bool, 32)
		for i := range users {
			slots <- true
			wg.Go(func() {
				defer func() { <-slots }()
				name := fmt.Sprint("user", i)
				v := newVisitor(t, m)
				own := func(s *holdfast.Session) {
					if u := s.User(); u != "" && u != name {
						t.Errorf("%s is served as %s", name, u)
					}
					p, err := pair.Get(s)
					if err == nil && (p[0] != "" && p[0] != name || p[0] != p[1]) {
						t.Errorf("%s sees %q", name, p)
					}
				}
				for range rounds {
					ctx, cancel := context.WithCancel(context.Background())
					r := v.request(context.WithValue(ctx, cancelKey{}, cancel))
					v.visitWith(r, func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) {
						own(s)
						var err error
						switch rand.N(5) {
						case 0:
							err = s.Login(r.Context(), name)
						case 1:
							_, err = pair.Update(r.Context(), s, func([2]string) ([2]string, error) { return [2]string{name, name}, nil })
						case 2:
							err = pair.Set(s, [2]string{name, name})
						case 3:
							err = s.Renew(r.Context())
						case 4:
							_, err = m.List(r.Context(), name)
						}
						own(s)
						if err != nil {
							if !errors.Is(err, context.Canceled) && !errors.Is(err, holdfast.ErrUnavailable) && !errors.Is(err, holdfast.ErrEnded) {
								t.Errorf("%s: %v", name, err)
							}
							m.Error(w, r, err)
						}
					})
					cancel()
				}
				v.visit(func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) { own(s) })
				for _, info := range mustList(t, m, name) {
					if info.User != name {
						t.Errorf("%s's list holds a session of %s", name, info.User)
					}
				}
			})
		}
		wg.Wait()
	}
	t.Run("merger", func(t *testing.T) { check(t, tappedMerger{tapped{mustMemory(t), cancels}}) })
	t.Run("no merger", func(t *testing.T) { check(t, tapped{mustMemory(t), cancels}) })
}

// TestParallelLoginsOfOneBrowser: requests of one browser log in at once. One of them wins, the browser holds a token
// that lives, and no other session is left.
func TestParallelLoginsOfOneBrowser(t *testing.T) {
	restless(t, func(t *testing.T, store driver.Store) {
		for range 20 {
			m := mustManager(t, store, holdfast.Config{StoreTimeout: time.Minute})
			v := newVisitor(t, m)
			v.set(1)
			user := fmt.Sprint("user", rand.Uint64())
			var wg sync.WaitGroup
			var won atomic.Pointer[visitor]
			var wins atomic.Int64
			for range 10 {
				wg.Go(func() {
					b := v.copy()
					res := b.visit(func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) {
						if err := s.Login(r.Context(), user); err != nil {
							m.Error(w, r, err)
						}
					})
					switch res.StatusCode {
					case 200:
						wins.Add(1)
						won.Store(b)
					case http.StatusConflict:
						wantCookies(t, res, 0)
					default:
						t.Errorf("status %d", res.StatusCode)
					}
				})
			}
			wg.Wait()
			if wins.Load() != 1 {
				t.Fatalf("%d of 10 parallel logins with one token succeeded, want 1", wins.Load())
			}
			if b := won.Load(); b.user() != user || b.visits() != 1 {
				t.Errorf("the login that succeeded is %q with visits %d", b.user(), b.visits())
			}
			if n := len(mustList(t, m, user)); n != 1 {
				t.Errorf("%d sessions, want 1", n)
			}
		}
	})
}
