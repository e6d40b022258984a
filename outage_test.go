package holdfast_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-sessions/holdfast"
	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/store/memory"
)

// TestStoreDown: requests that need the session get 503 with Retry-After, others work; it comes back by itself, and
// nobody is logged out.
func TestStoreDown(t *testing.T) {
	run(t, func(t *testing.T, start func(http.Handler) *server) {
		var down atomic.Bool
		store := tapped{mustMemory(t), func(context.Context, storeCall) error {
			if down.Load() {
				return errDown
			}
			return nil
		}}
		m := mustManager(t, store, holdfast.Config{})
		mux := http.NewServeMux()
		mux.HandleFunc("/static", func(w http.ResponseWriter, r *http.Request) { _, _ = w.Write([]byte("static")) })
		mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
			s, err := m.Get(r)
			if err == nil {
				switch r.URL.Path {
				case "/login":
					err = s.Login(r.Context(), "ada")
				case "/logout":
					err = s.Logout(r.Context())
				case "/visit":
					_, err = visits.Update(r.Context(), s, func(n int) (int, error) { return n + 1, nil })
				}
			}
			if err != nil {
				m.Error(w, r, err)
				return
			}
			n, _ := visits.Get(s)
			_, _ = fmt.Fprintf(w, "%s %d", s.User(), n)
		})
		sv := start(m.Handler(mux))
		sv.get(t, "/login")
		sv.get(t, "/visit")
		for range 2 {
			down.Store(true)
			for _, path := range []string{"/", "/login", "/logout", "/visit"} {
				res, body := sv.get(t, path)
				wantStatus(t, res, 503)
				wantHeader(t, res, "Retry-After", "2")
				wantCookies(t, res, 0)
				if strings.Contains(body, "refused") {
					t.Errorf("%s tells the client %q", path, body)
				}
			}
			if res, body := sv.get(t, "/static"); res.StatusCode != 200 || body != "static" {
				t.Errorf("a page without a session is answered %d", res.StatusCode)
			}
			down.Store(false)
			if _, body := sv.get(t, "/"); body != "ada 1" {
				t.Errorf("when the store is back: %q, want ada 1", body)
			}
		}
		if n := m.Stats().StoreErrors; n != 8 {
			t.Errorf("StoreErrors = %d, want 8", n)
		}
	})
}

func TestNewVisitorsWhileTheStoreIsDown(t *testing.T) {
	m := mustManager(t, tapped{mustMemory(t), func(context.Context, storeCall) error { return errDown }}, holdfast.Config{})
	v := newVisitor(t, m)
	res := v.visit(func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) {
		wantField(t, visits, s, 0) // nobody needs the store to know that
		_, _ = w.Write([]byte("hello"))
	})
	wantStatus(t, res, 200)
	res = v.visit(func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) { must(t, visits.Set(s, 1)) })
	wantStatus(t, res, 503)
	wantCookies(t, res, 0)
}

// TestGetErrorSticks: a session that could not be loaded refuses everything, so that a handler that ignores the error
// does not overwrite it.
func TestGetErrorSticks(t *testing.T) {
	ctx := context.Background()
	fails := 0
	store := tapped{mustMemory(t), func(_ context.Context, c storeCall) error {
		if fails > 0 {
			fails--
			return errDown
		}
		return nil
	}}
	v := newVisitor(t, mustManager(t, store, holdfast.Config{}))
	v.login("ada")
	fails = 1
	res := v.handle(v.request(ctx), func(w http.ResponseWriter, r *http.Request) {
		for range 2 {
			s, err := v.m.Get(r)
			wantErr(t, "Get", err, holdfast.ErrUnavailable)
			_, err = visits.Get(s)
			wantErr(t, "Field.Get", err, holdfast.ErrUnavailable)
			_, err = visits.Update(ctx, s, func(n int) (int, error) { return n, nil })
			wantErr(t, "Update", err, holdfast.ErrUnavailable)
			wantErr(t, "Set", visits.Set(s, 1), holdfast.ErrUnavailable)
			wantErr(t, "Delete", visits.Delete(s), holdfast.ErrUnavailable)
			wantErr(t, "Login", s.Login(ctx, "eve"), holdfast.ErrUnavailable)
			wantErr(t, "Renew", s.Renew(ctx), holdfast.ErrUnavailable)
			wantErr(t, "Logout", s.Logout(ctx), holdfast.ErrUnavailable)
			wantErr(t, "Save", s.Save(ctx), holdfast.ErrUnavailable)
		}
	})
	wantCookies(t, res, 0)
	if u := v.user(); u != "ada" {
		t.Errorf("user %q", u)
	}
}

// TestSlowStore: no call of the Manager takes longer than StoreTimeout, retries included, however it was called.
func TestSlowStore(t *testing.T) {
	const timeout = 3 * time.Second
	background := context.Background()
	var id driver.ID
	calls := map[string]func(*testing.T, *visitor) error{
		"get": func(t *testing.T, v *visitor) (err error) {
			v.handle(v.request(background), func(w http.ResponseWriter, r *http.Request) { _, err = v.m.Get(r) })
			return err
		},
		"open":        func(t *testing.T, v *visitor) error { _, err := v.m.Open(background, id); return err },
		"list":        func(t *testing.T, v *visitor) error { _, err := v.m.List(background, "ada"); return err },
		"revoke":      func(t *testing.T, v *visitor) error { return v.m.Revoke(background, id) },
		"revoke user": func(t *testing.T, v *visitor) error { return v.m.RevokeUser(background, "ada") },
	}
	inRequest := map[string]func(context.Context, *holdfast.Session) error{
		"login":  func(ctx context.Context, s *holdfast.Session) error { return s.Login(ctx, "ada") },
		"renew":  func(ctx context.Context, s *holdfast.Session) error { return s.Renew(ctx) },
		"logout": func(ctx context.Context, s *holdfast.Session) error { return s.Logout(ctx) },
		"save": func(ctx context.Context, s *holdfast.Session) error {
			must(t, visits.Set(s, 5))
			return s.Save(ctx)
		},
		"update": func(ctx context.Context, s *holdfast.Session) error {
			_, err := visits.Update(ctx, s, func(n int) (int, error) { return n + 1, nil })
			return err
		},
	}
	for name, kind := range map[string]func(context.Context) error{
		"hangs": func(ctx context.Context) error {
			<-ctx.Done()
			return driver.Unavailable(ctx.Err())
		},
		"conflicts for ever": func(ctx context.Context) error {
			select {
			case <-ctx.Done():
				return driver.Unavailable(ctx.Err())
			case <-time.After(10 * time.Millisecond):
				return driver.ErrConflict
			}
		},
	} {
		check := func(what string, f func(*testing.T, *visitor, *bool) error) {
			t.Run(what+", store "+name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					slow := false
					store := tapped{mustMemory(t), func(ctx context.Context, c storeCall) error {
						if slow && (c.op == "save" || name == "hangs") {
							return kind(ctx)
						}
						return nil
					}}
					v := newVisitor(t, mustManager(t, store, holdfast.Config{StoreTimeout: timeout}))
					id = v.login("ada")
					began := time.Now()
					err := f(t, v, &slow)
					took := time.Since(began)
					if name == "hangs" && (!errors.Is(err, holdfast.ErrUnavailable) || took < timeout) || took > 2*timeout {
						t.Errorf("%v after %v, want ErrUnavailable after %v", err, took, timeout)
					}
					slow = false
					if err != nil && what != "revoke user" && v.user() != "ada" { // which ends them before it fails
						t.Error("logged out")
					}
				})
			})
		}
		for what, call := range calls {
			check(what, func(t *testing.T, v *visitor, slow *bool) error { *slow = true; return call(t, v) })
		}
		for what, call := range inRequest {
			check(what, func(t *testing.T, v *visitor, slow *bool) (err error) {
				v.visit(func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) {
					*slow = true
					err = call(background, s)
					*slow = false
				})
				return err
			})
		}
		check("commit", func(t *testing.T, v *visitor, slow *bool) (err error) {
			res := v.visit(func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) {
				must(t, visits.Set(s, 7))
				*slow = true
				_, err = w.Write([]byte("hello"))
				*slow = false
			})
			wantStatus(t, res, 503)
			return err
		})
	}
}

// TestCallersDeadline: it counts where it is earlier than StoreTimeout.
func TestCallersDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slow := false
		store := tapped{mustMemory(t), func(ctx context.Context, c storeCall) error {
			if slow {
				<-ctx.Done()
				return driver.Unavailable(ctx.Err())
			}
			return nil
		}}
		v := newVisitor(t, mustManager(t, store, holdfast.Config{}))
		v.set(1)
		v.visit(func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) {
			ctx, cancel := context.WithTimeout(r.Context(), time.Second)
			defer cancel()
			slow = true
			began := time.Now()
			_, err := visits.Update(ctx, s, func(n int) (int, error) { return n + 1, nil })
			wantErr(t, "Update", err, holdfast.ErrUnavailable)
			wantErr(t, "Update", err, context.DeadlineExceeded)
			if took := time.Since(began); took != time.Second {
				t.Errorf("after %v", took)
			}
			slow = false
		})
	})
}

// TestCorruptRecord is part of attack 24: it is ended and counted, and the visitor starts anew.
func TestCorruptRecord(t *testing.T) {
	ctx := context.Background()
	corrupt := false
	memory := mustMemory(t)
	var calls journal
	var id driver.ID
	store := tapped{memory, func(ctx context.Context, c storeCall) error {
		must(t, calls.note(ctx, c))
		if _, err := memory.Load(ctx, c.id); err == nil && corrupt && c.op == "load" && c.id == id {
			return fmt.Errorf("%w: field runs past the end", driver.ErrCorrupt)
		}
		return nil
	}}
	var events []holdfast.Event
	m := mustManager(t, store, holdfast.Config{OnEvent: func(_ context.Context, e holdfast.Event) { events = append(events, e) }})
	v := newVisitor(t, m)
	v.set(1)
	id = holdfast.MustTokenID(v.token())
	calls.take()
	events, corrupt = nil, true
	res := v.visit(func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) { wantField(t, visits, s, 0) })
	wantStatus(t, res, 200)
	if ops := fmt.Sprint(calls.take()); ops != "[load delete]" {
		t.Errorf("store calls %v, want load and delete", ops)
	}
	if len(events) == 0 || events[0] != (holdfast.Event{Kind: holdfast.EventEnded, Cause: "corrupt", ID: id}) {
		t.Errorf("events %v", events)
	}
	if got := m.Stats(); got.Corrupt != 1 || got.Ended != 1 {
		t.Errorf("Corrupt = %d, Ended = %d, want 1 and 1", got.Corrupt, got.Ended)
	}
	v.set(2)
	if n := v.visits(); n != 2 || holdfast.MustTokenID(v.token()) == id {
		t.Errorf("visits = %d under the ID %v, want 2 under a new one", n, holdfast.MustTokenID(v.token()))
	}
	_, err := m.Open(ctx, id)
	wantErr(t, "Open", err, holdfast.ErrNotFound)
}

// TestRecordOfANewerRelease is part of attack 24: a 503, and the record is left alone.
func TestRecordOfANewerRelease(t *testing.T) {
	newer := false
	var calls journal
	store := tapped{mustMemory(t), func(ctx context.Context, c storeCall) error {
		if newer && c.op == "load" {
			return fmt.Errorf("%w: version 2", driver.ErrVersion)
		}
		return calls.note(ctx, c)
	}}
	v := newVisitor(t, mustManager(t, store, holdfast.Config{}))
	v.set(1)
	calls.take()
	newer = true
	res := v.visit(func(http.ResponseWriter, *http.Request, *holdfast.Session) { t.Error("the session can be used") })
	wantStatus(t, res, 503)
	wantCookies(t, res, 0)
	if ops := calls.take(); len(ops) != 0 {
		t.Errorf("store calls %v", ops)
	}
	newer = false
	if n := v.visits(); n != 1 {
		t.Errorf("visits = %d, want 1", n)
	}
}

// TestStoreErrors: what a store answers is to be found in the error, with the call and the short ID.
func TestStoreErrors(t *testing.T) {
	cause := errors.New("connection refused")
	m := mustManager(t, tapped{mustMemory(t), func(context.Context, storeCall) error { return driver.Unavailable(cause) }}, holdfast.Config{})
	id := driver.ID{0xab, 0xcd, 0xef, 0x01, 0x99}
	_, err := m.Open(context.Background(), id)
	var se *holdfast.StoreError
	if !errors.As(err, &se) || se.Op != "load" || se.ID != id || !errors.Is(err, cause) || !errors.Is(err, holdfast.ErrUnavailable) {
		t.Fatalf("Open = %#v", err)
	}
	if got, want := err.Error(), "load session abcdef01: store unavailable: connection refused"; got != want {
		t.Errorf("error %q, want %q", got, want)
	}
}

// TestError is the table of what Manager.Error answers.
func TestError(t *testing.T) {
	m := mustManager(t, mustMemory(t), holdfast.Config{})
	for _, tt := range []struct {
		err   error
		want  int
		retry string
	}{
		{holdfast.ErrUnavailable, 503, "2"},
		{driver.ErrClosed, 503, "2"},
		{holdfast.ErrVersion, 503, "2"},
		{holdfast.ErrReadOnly, 503, "2"},
		{context.Canceled, 503, "2"},
		{context.DeadlineExceeded, 503, "2"},
		{holdfast.ErrEnded, 409, ""},
		{holdfast.ErrTooLarge, 413, ""},
		{holdfast.ErrCookies, 431, ""},
		{holdfast.ErrLimit, 403, ""},
		{holdfast.ErrTampered, 500, ""},
		{holdfast.ErrNoMiddleware, 500, ""},
		{errors.New("password hunter2"), 500, ""},
	} {
		err := fmt.Errorf("login: %w", &holdfast.StoreError{Op: "save", ID: driver.ID{1}, Err: tt.err})
		v := newVisitor(t, m)
		res := v.visit(func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) {
			w.Header().Set("Etag", `"1"`)
			w.Header().Set("Content-Length", "7")
			m.Error(w, r, err)
		})
		wantStatus(t, res, tt.want)
		wantHeader(t, res, "Retry-After", tt.retry)
		wantHeader(t, res, "Cache-Control", "no-store")
		wantHeader(t, res, "Content-Type", "text/plain; charset=utf-8")
		wantHeader(t, res, "X-Content-Type-Options", "nosniff")
		var body [500]byte
		n, _ := res.Body.Read(body[:])
		if text := string(body[:n]); strings.Contains(text, "hunter2") || strings.Contains(text, "01000000") || len(text) < 20 {
			t.Errorf("%v: body %q", tt.err, text)
		}
	}
}

// A session that could not be made may be stored all the same: its answer was lost. The next attempt must not meet it.
func TestStartAfterALostAnswer(t *testing.T) {
	lose := true
	store := mustMemory(t)
	m := mustManager(t, losesAnswers{store, &lose}, holdfast.Config{})
	v := newVisitor(t, m)
	v.visit(func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) {
		must(t, visits.Set(s, 1))
		wantErr(t, "Save", s.Save(r.Context()), holdfast.ErrUnavailable)
		lose = false
		must(t, s.Save(r.Context()))
	})
	if n := v.visits(); n != 1 {
		t.Errorf("visits = %d, want 1", n)
	}
}

// losesAnswers saves and says that it could not.
type losesAnswers struct {
	*memory.Store
	lose *bool
}

func (s losesAnswers) Save(ctx context.Context, id driver.ID, rec driver.Record, prev uint64) error {
	err := s.Store.Save(ctx, id, rec, prev)
	if *s.lose {
		return errDown
	}
	return err
}

// An operator can end what this release cannot read.
func TestRevokeOfANewerRelease(t *testing.T) {
	store := mustMemory(t)
	newer := tapped{store, func(_ context.Context, c storeCall) error {
		if c.op == "load" {
			return fmt.Errorf("%w: version 2", driver.ErrVersion)
		}
		return nil
	}}
	v := newVisitor(t, mustManager(t, store, holdfast.Config{}))
	v.set(1)
	must(t, mustManager(t, newer, holdfast.Config{}).Revoke(context.Background(), holdfast.MustTokenID(v.token())))
	if n := v.visits(); n != 0 {
		t.Error("the session lives")
	}
}
