package storetest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/holdfast-sessions/holdfast"
	"github.com/holdfast-sessions/holdfast/driver"
)

var managerCases = []Case{
	{
		Name:   "manager/update",
		Proves: "100 parallel Updates of one field by two Managers count to exactly 100",
		run:    managerUpdate,
	},
	{
		Name:   "manager/different-fields",
		Proves: "100 requests of two Managers that each set another field of one session all win",
		run:    managerDifferentFields,
	},
	{
		Name:   "manager/logout",
		Proves: "a session that was logged out stays so, whatever slow requests save after it",
		run:    managerLogout,
	},
	{
		Name:   "manager/revoke-user",
		Proves: "RevokeUser ends every session of its user that was logged in before, and nobody else's",
		run:    managerRevokeUser,
	},
}

var (
	counter = holdfast.NewField[int]("counter")
	note    = holdfast.NewField[string]("note")
)

// managers returns two Managers over the store, as two servers have them.
func (t *T) managers() [2]*holdfast.Manager {
	var ms [2]*holdfast.Manager
	for i := range ms {
		m, err := holdfast.New(t.stores[i%len(t.stores)], holdfast.Config{StoreTimeout: time.Minute})
		if err != nil {
			t.Fatalf("holdfast.New = %v, want a Manager", err)
		}
		ms[i] = m
	}
	return ms
}

// newUser returns a user name that no other run has, and has its record cleaned up.
func (t *T) newUser() string {
	user := "storetest-" + rand.Text()
	t.use(holdfast.UserID(user))
	return user
}

// start makes a session, of user unless that is "", in a request of its own, and returns its ID.
func (t *T) start(ctx context.Context, m *holdfast.Manager, user string) (id driver.ID, err error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://storetest.invalid/", nil)
	if err != nil {
		return id, err
	}
	m.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var s *holdfast.Session
		if s, err = m.Get(r); err != nil {
			return
		}
		if user != "" {
			err = s.Login(ctx, user)
		} else if err = counter.Set(s, 0); err == nil {
			err = s.Save(ctx)
		}
		if id = s.ID(); id != (driver.ID{}) {
			t.use(id)
		}
	})).ServeHTTP(discard{}, r)
	return id, err
}

// discard is a response that nobody reads.
type discard struct{}

func (discard) Header() http.Header         { return http.Header{} }
func (discard) Write(b []byte) (int, error) { return len(b), nil }
func (discard) WriteHeader(int)             {}

func (t *T) mustStart(ctx context.Context, m *holdfast.Manager, user string) driver.ID {
	id, err := t.start(ctx, m, user)
	if err != nil {
		t.Fatalf("a request that starts a session = %v, want nil", err)
	}
	return id
}

func (t *T) mustOpen(ctx context.Context, m *holdfast.Manager, id driver.ID) *holdfast.Session {
	s, err := m.Open(ctx, id)
	if err != nil {
		t.Fatalf("Manager.Open(%s) = %v, want the session", id, err)
	}
	return s
}

// wantEnded checks that no Manager finds the session.
func (t *T) wantEnded(ctx context.Context, what string, ms [2]*holdfast.Manager, id driver.ID) {
	for _, m := range ms {
		if _, err := m.Open(ctx, id); !errors.Is(err, holdfast.ErrNotFound) {
			t.Errorf("%s: Manager.Open(%s) = %v, want ErrNotFound", what, id, err)
		}
	}
}

// openAll opens a session for each writer, so that all start from one state of it.
func (t *T) openAll(ctx context.Context, ms [2]*holdfast.Manager, id driver.ID) []*holdfast.Session {
	all := make([]*holdfast.Session, writers)
	for i := range all {
		all[i] = t.mustOpen(ctx, ms[i%2], id)
	}
	return all
}

func managerUpdate(ctx context.Context, t *T) {
	ms := t.managers()
	id := t.mustStart(ctx, ms[0], "")
	sessions := t.openAll(ctx, ms, id)
	t.parallel(writers, func(i int) {
		if _, err := counter.Update(ctx, sessions[i], func(n int) (int, error) { return n + 1, nil }); err != nil {
			t.Errorf("Update by one of %d = %v, want nil", writers, err)
		}
	})
	for _, m := range ms {
		if n, err := counter.Get(t.mustOpen(ctx, m, id)); n != writers || err != nil {
			t.Errorf("after %d Updates that add 1 the field is %d (%v)", writers, n, err)
		}
	}
}

func managerDifferentFields(ctx context.Context, t *T) {
	ms := t.managers()
	id := t.mustStart(ctx, ms[0], "")
	fields := make([]holdfast.Field[int], writers)
	for i := range fields {
		fields[i] = holdfast.NewField[int](fmt.Sprint("field", i))
	}
	sessions := t.openAll(ctx, ms, id)
	t.parallel(writers, func(i int) {
		s := sessions[i]
		if err := fields[i].Set(s, i+1); err != nil {
			t.Fatalf("Set = %v", err)
		}
		if err := s.Save(ctx); err != nil {
			t.Errorf("Save by one of %d = %v, want nil", writers, err)
		}
	})
	s := t.mustOpen(ctx, ms[0], id)
	for i, f := range fields {
		if n, err := f.Get(s); n != i+1 || err != nil {
			t.Errorf("request %d saved %d in its field; afterwards it is %d (%v)", i, i+1, n, err)
		}
	}
}

func managerLogout(ctx context.Context, t *T) {
	ms := t.managers()
	user := t.newUser()
	// late returns a session that was loaded, and is saved after the logout.
	late := func(id driver.ID) *holdfast.Session {
		s := t.mustOpen(ctx, ms[1], id)
		if err := note.Set(s, "late"); err != nil {
			t.Fatalf("Set = %v", err)
		}
		return s
	}
	quiet := t.mustStart(ctx, ms[0], user)
	slow := late(quiet)
	if err := t.mustOpen(ctx, ms[0], quiet).Logout(ctx); err != nil {
		t.Errorf("Logout = %v, want nil", err)
	}
	t.wantEndedErr("Save of a session that was logged out", slow.Save(ctx))
	t.wantEnded(ctx, "logged out", ms, quiet)

	const sessions, perSession = 10, 4
	t.parallel(sessions, func(int) {
		id := t.mustStart(ctx, ms[0], user)
		slow := late(id)
		var ready sync.WaitGroup
		ready.Add(perSession)
		t.parallel(perSession+1, func(i int) {
			if i == perSession {
				ready.Wait()
				if err := t.mustOpen(ctx, ms[0], id).Logout(ctx); err != nil {
					t.Errorf("Logout among writes = %v, want nil", err)
				}
				t.wantEnded(ctx, "logged out among writes", ms, id)
				return
			}
			s := t.mustOpen(ctx, ms[i%2], id)
			ready.Done()
			for n := range 100 {
				if err := note.Set(s, fmt.Sprint(i, n)); err != nil {
					t.wantEndedErr("Set among writes and a logout", err)
					return
				}
				if err := s.Save(ctx); err != nil {
					t.wantEndedErr("Save among writes and a logout", err)
					return
				}
			}
		})
		t.wantEndedErr("Save of a session that was logged out", slow.Save(ctx))
		t.wantEnded(ctx, "after a slow request", ms, id)
	})
	if list, err := ms[1].List(ctx, user); len(list) > 0 || err != nil {
		t.Errorf("after all of the user's sessions were logged out List = %d sessions, %v", len(list), err)
	}
}

func (t *T) wantEndedErr(what string, err error) {
	if !errors.Is(err, holdfast.ErrEnded) {
		t.Errorf("%s = %v, want ErrEnded", what, err)
	}
}

func managerRevokeUser(ctx context.Context, t *T) {
	ms := t.managers()
	user, other := t.newUser(), t.newUser()
	theirs := t.mustStart(ctx, ms[0], other)
	var before []driver.ID
	for i := range 10 {
		before = append(before, t.mustStart(ctx, ms[i%2], user))
	}
	slow := t.mustOpen(ctx, ms[1], before[1]) // loaded before the revocation, saved after it
	if err := note.Set(slow, "late"); err != nil {
		t.Fatalf("Set = %v", err)
	}
	var mu sync.Mutex
	var during []driver.ID
	t.parallel(12, func(i int) { // ten log in, one writes, one revokes
		switch i {
		case 0:
			if err := ms[0].RevokeUser(ctx, user); err != nil {
				t.Errorf("RevokeUser among logins = %v, want nil", err)
			}
			for _, id := range before {
				t.wantEnded(ctx, "revoked", ms, id)
			}
		case 1:
			s, err := ms[1].Open(ctx, before[0])
			for n := 0; n < 100 && err == nil; n++ {
				if err = note.Set(s, fmt.Sprint(n)); err == nil {
					err = s.Save(ctx)
				}
			}
			if err != nil && !errors.Is(err, holdfast.ErrEnded) && !errors.Is(err, holdfast.ErrNotFound) {
				t.Errorf("a write while the user is revoked = %v, want nil or ErrEnded", err)
			}
		default:
			id, err := t.start(ctx, ms[i%2], user)
			if err != nil {
				if !errors.Is(err, holdfast.ErrEnded) {
					t.Errorf("Login while the user is revoked = %v, want nil or ErrEnded", err)
				}
				return
			}
			mu.Lock()
			defer mu.Unlock()
			during = append(during, id)
		}
	})
	t.wantEndedErr("Save of a session that was revoked", slow.Save(ctx))
	for _, id := range before {
		t.wantEnded(ctx, "revoked, after the last writer", ms, id)
	}
	// Those that logged in during it live and are listed, or are ended.
	list, err := ms[1].List(ctx, user)
	if err != nil {
		t.Fatalf("Manager.List = %v", err)
	}
	for _, id := range during {
		_, err := ms[0].Open(ctx, id)
		listed := slices.ContainsFunc(list, func(i holdfast.Info) bool { return i.ID == id })
		if (err == nil) != listed {
			t.Errorf("a session that logged in during RevokeUser: Open = %v, listed: %v", err, listed)
		}
	}
	if err := ms[0].RevokeUser(ctx, user); err != nil {
		t.Errorf("RevokeUser = %v, want nil", err)
	}
	for _, id := range slices.Concat(before, during) {
		t.wantEnded(ctx, "revoked", ms, id)
	}
	t.mustOpen(ctx, ms[1], theirs)
}
