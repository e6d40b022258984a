package holdfast_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-sessions/holdfast"
	"github.com/holdfast-sessions/holdfast/driver"
)

// TestFieldTypes sets values of many types and reads them in a later request.
func TestFieldTypes(t *testing.T) {
	type address struct {
		Street string
		Number int `json:"no,omitempty"`
	}
	wantSurvives(t, "int", -42)
	wantSurvives(t, "int zero", 0)
	wantSurvives(t, "int64", int64(math.MaxInt64))
	wantSurvives(t, "uint64", uint64(math.MaxUint64))
	wantSurvives(t, "float", 1e300)
	wantSurvives(t, "bool", true)
	wantSurvives(t, "bool false", false)
	wantSurvives(t, "string", "plain")
	wantSurvives(t, "string empty", "")
	wantSurvives(t, "string odd", "\" \\ </script> \x00 \u2028 é 🦀 \t\r\n")
	wantSurvives(t, "bytes", []byte{0, 255, 10})
	wantSurvives(t, "slice", []string{"a", ""})
	wantSurvives(t, "map", map[string]int{"a": 1, "": 2})
	wantSurvives(t, "struct", address{"High \"Street\"", 7})
	wantSurvives(t, "pointer", &address{"Low Street", 0})
	wantSurvives(t, "time", time.Date(2026, 11, 21, 10, 0, 0, 123456789, time.UTC))
	wantSurvives(t, "raw", json.RawMessage(`{"a":[1,2]}`))
	wantSurvives(t, "any", any(map[string]any{"a": 1.5, "b": nil}))
	wantSurvives(t, "named string", http.SameSite(3))
}

func wantSurvives[T any](t *testing.T, name string, want T) {
	t.Run(name, func(t *testing.T) {
		f := holdfast.NewField[T](name)
		v := newVisitor(t, mustManager(t, mustMemory(t), holdfast.Config{}))
		v.visit(func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) {
			must(t, f.Set(s, want))
			got, err := f.Get(s)
			must(t, err)
			if d := cmp.Diff(want, got); d != "" {
				t.Errorf("in the same request (-want +got):\n%s", d)
			}
		})
		v.visit(func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) {
			got, err := f.Get(s)
			must(t, err)
			if d := cmp.Diff(want, got); d != "" {
				t.Errorf("in the next request (-want +got):\n%s", d)
			}
		})
	})
}

func TestFieldOfAnAnonymousVisitorIsZero(t *testing.T) {
	store := mustMemory(t)
	v := newVisitor(t, mustManager(t, store, holdfast.Config{}))
	res := v.visit(func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) {
		wantField(t, visits, s, 0)
		wantField(t, owner, s, "")
		must(t, visits.Delete(s))
		if s.ID() != (driver.ID{}) || s.User() != "" || !s.Created().IsZero() || !s.Expires().IsZero() || s.Method() != "" {
			t.Errorf("an anonymous visitor has ID %v, user %q, times %v, %v", s.ID(), s.User(), s.Created(), s.Expires())
		}
		must(t, s.Renew(r.Context()))
		must(t, s.Save(r.Context()))
	})
	wantCookies(t, res, 0)
	if n := len(records(t, store)); n != 0 {
		t.Errorf("%d records are stored for a visitor who has nothing", n)
	}
}

func TestFieldDelete(t *testing.T) {
	stores(t, func(t *testing.T, store driver.Store) {
		v := newVisitor(t, mustManager(t, store, holdfast.Config{}))
		v.visit(func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) {
			must(t, visits.Set(s, 1))
			must(t, owner.Set(s, "ada"))
		})
		v.visit(func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) {
			must(t, visits.Delete(s))
			wantField(t, visits, s, 0)
		})
		v.visit(func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) {
			wantField(t, visits, s, 0)
			wantField(t, owner, s, "ada")
		})
	})
}

// TestFieldOfAnotherType reads what was set as another type: an error that names the field, not a wrong value.
func TestFieldOfAnotherType(t *testing.T) {
	number := holdfast.NewField[int](owner.Name())
	v := newVisitor(t, mustManager(t, mustMemory(t), holdfast.Config{}))
	v.visit(func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) {
		must(t, owner.Set(s, "ada"))
		if _, err := number.Get(s); err == nil || !strings.Contains(err.Error(), owner.Name()) {
			t.Errorf("a string read as int: %v, want an error that names the field", err)
		}
		if _, err := number.Update(r.Context(), s, func(n int) (int, error) { return n + 1, nil }); err == nil {
			t.Error("a string was updated as int")
		}
		if err := number.Set(s, 1); err != nil {
			t.Errorf("set over another type: %v", err)
		}
	})
}

func TestFieldThatIsNoJSON(t *testing.T) {
	f := holdfast.NewField[func()]("f")
	v := newVisitor(t, mustManager(t, mustMemory(t), holdfast.Config{}))
	res := v.visit(func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) {
		if err := f.Set(s, func() {}); err == nil || !strings.Contains(err.Error(), "session field f") {
			t.Errorf("Set of a function = %v", err)
		}
		_, err := f.Update(r.Context(), s, func(func()) (func(), error) { return func() {}, nil })
		if err == nil {
			t.Error("Update to a function: no error")
		}
	})
	wantCookies(t, res, 0)
}

func TestNewFieldRefusesNames(t *testing.T) {
	for _, name := range []string{"", "\x00login", "\x00", strings.Repeat("n", 256)} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("NewField(%.10q) did not panic", name)
				}
			}()
			holdfast.NewField[int](name)
		}()
	}
	for _, name := range []string{"a", "a\x00", " ", "é", "\xff", strings.Repeat("n", 255)} {
		f := holdfast.NewField[int](name)
		v := newVisitor(t, mustManager(t, mustMemory(t), holdfast.Config{}))
		v.visit(func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) { must(t, f.Set(s, 7)) })
		v.visit(func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) { wantField(t, f, s, 7) })
	}
}

// TestSetTooLarge is attack 23: the application learns that its session is too large, and what it had stays.
func TestSetTooLarge(t *testing.T) {
	for _, keys := range [][][]byte{nil, {testKey(1)}} {
		v := newVisitor(t, mustManager(t, mustMemory(t), holdfast.Config{MaxBytes: 2000, ValueKeys: keys}))
		v.visit(func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) {
			must(t, visits.Set(s, 1))
			wantErr(t, "Set", owner.Set(s, strings.Repeat("x", 3000)), holdfast.ErrTooLarge)
			wantField(t, owner, s, "")
			_, err := owner.Update(r.Context(), s, func(string) (string, error) { return strings.Repeat("x", 3000), nil })
			wantErr(t, "Update", err, holdfast.ErrTooLarge)
		})
		v.visit(func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) {
			wantField(t, visits, s, 1)
			must(t, owner.Set(s, strings.Repeat("x", 1500)))
			wantErr(t, "a second field", cart.Set(s, []string{strings.Repeat("y", 500)}), holdfast.ErrTooLarge)
		})
		v.visit(func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) {
			wantField(t, owner, s, strings.Repeat("x", 1500))
			must(t, owner.Set(s, "small")) // the field that is replaced no longer counts
			must(t, cart.Set(s, []string{strings.Repeat("y", 500)}))
		})
	}
}

// TestSetFillsToTheLimit finds the largest value by bytes: the limit is that of the encoded record, exactly.
func TestSetFillsToTheLimit(t *testing.T) {
	store := mustMemory(t)
	v := newVisitor(t, mustManager(t, store, holdfast.Config{MaxBytes: 2000}))
	var id driver.ID
	v.visit(func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) {
		for n := 2100; ; n-- {
			if err := owner.Set(s, strings.Repeat("x", n)); err == nil {
				break
			}
		}
		must(t, s.Save(r.Context()))
		id = s.ID()
	})
	if got := records(t, store)[id].EncodedLen(); got != 2000 {
		t.Errorf("the largest session has %d bytes, want 2000", got)
	}
}

func TestUpdate(t *testing.T) {
	stores(t, func(t *testing.T, store driver.Store) {
		m := mustManager(t, store, holdfast.Config{})
		v := newVisitor(t, m)
		count := func(n int) (int, error) { return n + 1, nil }
		res := v.visit(func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) {
			must(t, owner.Set(s, "ada"))
			n, err := visits.Update(r.Context(), s, count)
			if err != nil || n != 1 {
				t.Errorf("Update of a new session = %d, %v, want 1", n, err)
			}
			// It is stored at once, with what was pending.
			o, err := m.Open(r.Context(), s.ID())
			must(t, err)
			wantField(t, visits, o, 1)
			wantField(t, owner, o, "ada")
		})
		wantCookies(t, res, 1)
		v.visit(func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) {
			v.copy().set(10) // meanwhile
			must(t, owner.Set(s, "bob"))
			n, err := visits.Update(r.Context(), s, count)
			if err != nil || n != 11 {
				t.Errorf("Update = %d, %v, want 11: the latest value and one", n, err)
			}
			o, err := m.Open(r.Context(), s.ID())
			must(t, err)
			wantField(t, owner, o, "bob")
			must(t, visits.Set(s, 20))
			if n, err = visits.Update(r.Context(), s, count); err != nil || n != 21 {
				t.Errorf("Update after Set = %d, %v, want 21: what this request set, and one", n, err)
			}
		})
		if n := v.visits(); n != 21 {
			t.Errorf("visits = %d, want 21", n)
		}
	})
}

func TestUpdateReturnsTheErrorOfItsFunction(t *testing.T) {
	store := mustMemory(t)
	v := newVisitor(t, mustManager(t, store, holdfast.Config{}))
	errSoldOut := errors.New("sold out")
	fail := func(int) (int, error) { return 99, errSoldOut }
	res := v.visit(func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) {
		if n, err := visits.Update(r.Context(), s, fail); err != errSoldOut || n != 0 {
			t.Errorf("Update = %d, %v, want 0 and the function's own error", n, err)
		}
	})
	wantCookies(t, res, 0)
	v.set(5)
	v.visit(func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) {
		must(t, owner.Set(s, "ada"))
		_, err := visits.Update(r.Context(), s, fail)
		wantErr(t, "Update", err, errSoldOut)
		wantField(t, visits, s, 5)
		wantField(t, owner, s, "ada") // still pending
	})
	v.visit(func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) { wantField(t, owner, s, "ada") })
}

func TestUpdatePanicLeavesTheSessionUsable(t *testing.T) {
	v := newVisitor(t, mustManager(t, mustMemory(t), holdfast.Config{}))
	v.set(1)
	v.visit(func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) {
		func() {
			defer func() { _ = recover() }()
			_, _ = visits.Update(r.Context(), s, func(int) (int, error) { panic("boom") })
		}()
		wantField(t, visits, s, 1)
		_, err := visits.Update(r.Context(), s, func(n int) (int, error) { return n + 1, nil })
		must(t, err)
	})
	if n := v.visits(); n != 2 {
		t.Errorf("visits = %d, want 2", n)
	}
}

// TestSetAfterTheResponse: what a live session is set after the first byte is saved once more; a new one cannot start
// any more; and after the handler nothing can be set.
func TestSetAfterTheResponse(t *testing.T) {
	m := mustManager(t, mustMemory(t), holdfast.Config{})
	v := newVisitor(t, m)
	var kept *holdfast.Session
	v.visit(func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) {
		_, _ = w.Write([]byte("sent"))
		wantErr(t, "Set", visits.Set(s, 1), holdfast.ErrCommitted)
		_, err := visits.Update(r.Context(), s, func(int) (int, error) { return 1, nil })
		wantErr(t, "Update", err, holdfast.ErrCommitted)
		wantErr(t, "Login", s.Login(r.Context(), "ada"), holdfast.ErrCommitted)
		kept = s
	})
	wantErr(t, "Set after the handler", visits.Set(kept, 1), holdfast.ErrFinished)

	v.set(1)
	v.visit(func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) {
		_, _ = w.Write([]byte("sent"))
		must(t, visits.Set(s, 2))
		_, err := owner.Update(r.Context(), s, func(string) (string, error) { return "ada", nil })
		must(t, err)
		must(t, visits.Set(s, 3))
		wantErr(t, "Renew", s.Renew(r.Context()), holdfast.ErrCommitted)
		kept = s
	})
	v.visit(func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) {
		wantField(t, visits, s, 3)
		wantField(t, owner, s, "ada")
	})
	ctx := context.Background()
	wantErr(t, "Set after the handler", visits.Set(kept, 4), holdfast.ErrFinished)
	wantErr(t, "Delete after the handler", visits.Delete(kept), holdfast.ErrFinished)
	wantErr(t, "Save after the handler", kept.Save(ctx), holdfast.ErrFinished)
	wantErr(t, "Login after the handler", kept.Login(ctx, "eve"), holdfast.ErrFinished)
	wantErr(t, "Renew after the handler", kept.Renew(ctx), holdfast.ErrFinished)
	if n, err := visits.Get(kept); n != 3 || err != nil {
		t.Errorf("Get after the handler = %d, %v: reading stays allowed", n, err)
	}
}

func TestGetWithoutMiddleware(t *testing.T) {
	m, other := mustManager(t, mustMemory(t), holdfast.Config{}), mustManager(t, mustMemory(t), holdfast.Config{})
	v := newVisitor(t, other)
	v.handle(v.request(context.Background()), func(w http.ResponseWriter, r *http.Request) {
		s, err := m.Get(r)
		wantErr(t, "Get", err, holdfast.ErrNoMiddleware)
		wantErr(t, "Set", visits.Set(s, 1), holdfast.ErrNoMiddleware)
		wantErr(t, "Login", s.Login(r.Context(), "ada"), holdfast.ErrNoMiddleware)
		wantErr(t, "Renew", s.Renew(r.Context()), holdfast.ErrNoMiddleware)
		wantErr(t, "Logout", s.Logout(r.Context()), holdfast.ErrNoMiddleware)
		wantErr(t, "Save", s.Save(r.Context()), holdfast.ErrNoMiddleware)
		_, err = visits.Get(s)
		wantErr(t, "Field.Get", err, holdfast.ErrNoMiddleware)
		if got := m.URL(r, "/a"); got != "/a" {
			t.Errorf("URL = %q", got)
		}
	})
}

// TestOneSessionConcurrently uses one session from many goroutines of its request, all methods at once.
func TestOneSessionConcurrently(t *testing.T) {
	stores(t, func(t *testing.T, store driver.Store) {
		m := mustManager(t, store, holdfast.Config{})
		v := newVisitor(t, m)
		v.visit(func(w http.ResponseWriter, r *http.Request, _ *holdfast.Session) {
			var wg sync.WaitGroup
			for i := range 50 {
				wg.Go(func() {
					s, err := m.Get(r)
					if err != nil {
						t.Error(err)
						return
					}
					f := holdfast.NewField[int](fmt.Sprintf("f%d", i%10))
					_, err1 := visits.Update(r.Context(), s, func(n int) (int, error) { return n + 1, nil })
					_, err2 := f.Get(s)
					if err := errors.Join(err1, err2, f.Set(s, i), s.Save(r.Context()), owner.Delete(s)); err != nil {
						t.Error(err)
					}
					_, _, _, _ = s.ID(), s.User(), s.Created(), s.Expires()
					if i%10 == 0 {
						if err := s.Renew(r.Context()); err != nil {
							t.Error(err)
						}
					}
				})
			}
			wg.Wait()
		})
		if n := v.visits(); n != 50 {
			t.Errorf("visits = %d, want 50", n)
		}
	})
}

func TestOpen(t *testing.T) {
	stores(t, func(t *testing.T, store driver.Store) {
		ctx := context.Background()
		m := mustManager(t, store, holdfast.Config{})
		v := newVisitor(t, m)
		id := v.login("ada")
		s, err := m.Open(ctx, id)
		must(t, err)
		if s.User() != "ada" || s.ID() != id {
			t.Errorf("opened session %v of %q, want %v of ada", s.ID(), s.User(), id)
		}
		must(t, visits.Set(s, 5))
		if n := v.visits(); n != 0 {
			t.Errorf("visits = %d before Save", n)
		}
		must(t, s.Save(ctx))
		if n := v.visits(); n != 5 {
			t.Errorf("visits = %d after Save, want 5", n)
		}
		wantErr(t, "Login", s.Login(ctx, "bob"), holdfast.ErrUnsupported)
		wantErr(t, "Renew", s.Renew(ctx), holdfast.ErrUnsupported)

		for what, id := range map[string]driver.ID{"unknown": {1}, "zero": {}, "a user record": holdfast.UserID("ada")} {
			_, err := m.Open(ctx, id)
			wantErr(t, "Open of "+what, err, holdfast.ErrNotFound)
		}
		must(t, s.Logout(ctx))
		if u := v.user(); u != "" {
			t.Errorf("logged in as %q after the opened session was logged out", u)
		}
		_, err = m.Open(ctx, id)
		wantErr(t, "Open of an ended session", err, holdfast.ErrNotFound)
	})
}

// TestOpenedSessionThatEndedStartsNoOther: nobody could be given its token.
func TestOpenedSessionThatEndedStartsNoOther(t *testing.T) {
	ctx := context.Background()
	store := mustMemory(t)
	m := mustManager(t, store, holdfast.Config{})
	s, err := m.Open(ctx, newVisitor(t, m).login("ada"))
	must(t, err)
	must(t, s.Logout(ctx))
	must(t, s.Logout(ctx))
	before := len(records(t, store))
	wantErr(t, "Set", visits.Set(s, 1), holdfast.ErrEnded)
	wantErr(t, "Save", s.Save(ctx), holdfast.ErrEnded)
	_, err = visits.Update(ctx, s, func(int) (int, error) { return 1, nil })
	wantErr(t, "Update", err, holdfast.ErrEnded)
	if n := len(records(t, store)); n != before {
		t.Errorf("%d records, want %d", n, before)
	}
}

// TestEncodePlain compares what is encoded without encoding/json with what that makes of it.
func TestEncodePlain(t *testing.T) {
	values := []any{"", "plain", "ü", "\u2028", "\xff", "a<b>&c", `"\`, 0, -1, 1 << 62, true, false, 1.5, nil, []int{1}}
	for c := range 256 {
		values = append(values, "x"+string([]byte{byte(c)})+"y")
	}
	for _, v := range values {
		want, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		if got, ok := holdfast.EncodePlain(v); ok && !bytes.Equal(got, want) {
			t.Errorf("EncodePlain(%q) = %s, want %s", v, got, want)
		}
	}
}
