//go:build linux

package nfstest

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-sessions/holdfast"
	"github.com/holdfast-sessions/holdfast/driver"
)

// TestFilestoreUsers: a user logs in on two machines at once, many times, while answers to renames get lost: all sessions are
// in the user's record, the limit on sessions is exact, and ending them all ends them on both machines.
func TestFilestoreUsers(t *testing.T) {
	const limit, logins = 8, 24
	p := newPair(t, ClientOptions{Version: 3})
	var managers [2]*holdfast.Manager
	for i, s := range []driver.Store{p.onA, p.on} {
		m, err := holdfast.New(s, holdfast.Config{StoreTimeout: time.Minute, MaxSessions: limit})
		must(t, err)
		managers[i] = m
	}
	for i, c := range []*Client{p.a, p.b} {
		c.Inject(Fault{Kind: LostAnswer, Ops: []Op{Rename, Mkdir}, Probability: 0.1, Count: Always, Seed: uint64(i)})
	}
	var done sync.WaitGroup
	var ok atomic.Int32
	for i := range logins {
		done.Go(func() {
			m := managers[i%2]
			w := httptest.NewRecorder()
			r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "https://nfs.invalid/", nil)
			m.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				s, err := m.Get(r)
				if err == nil {
					err = s.Login(r.Context(), "ada")
				}
				if err != nil {
					t.Errorf("login %d: %v", i, err)
					return
				}
				ok.Add(1)
			})).ServeHTTP(w, r)
		})
	}
	done.Wait()
	for i, m := range managers {
		sessions, err := m.List(t.Context(), "ada")
		if err != nil || len(sessions) != limit {
			t.Errorf("machine %d lists %d sessions, %v, want %d", i, len(sessions), err, limit)
		}
	}
	if ok.Load() != logins {
		t.Errorf("%d of %d logins succeeded", ok.Load(), logins)
	}
	sessions, err := managers[1].List(t.Context(), "ada")
	must(t, err)
	must(t, managers[0].RevokeUser(t.Context(), "ada"))
	for i, m := range managers {
		for _, s := range sessions {
			if _, err := m.Open(t.Context(), s.ID); err == nil {
				t.Errorf("machine %d: a session that was revoked is there", i)
			}
		}
		if left, err := m.List(t.Context(), "ada"); err != nil || len(left) != 0 {
			t.Errorf("machine %d: %s", i, fmt.Sprint(len(left), " sessions left, ", err))
		}
	}
}
