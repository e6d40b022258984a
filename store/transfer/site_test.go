package transfer_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/holdfast-sessions/holdfast"
	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/internal/testserver"
	"github.com/holdfast-sessions/holdfast/store/filestore"
	"github.com/holdfast-sessions/holdfast/store/memory"
	"github.com/holdfast-sessions/holdfast/store/redisstore"
	"github.com/holdfast-sessions/holdfast/store/transfer"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// site is an application over a store.
type site struct {
	m     *holdfast.Manager
	store driver.Store
}

var value = holdfast.NewField[int]("value")

func newSite(t testing.TB, s driver.Store, c holdfast.Config) *site {
	t.Helper()
	m, err := holdfast.New(s, c)
	if err != nil {
		t.Fatal(err)
	}
	return &site{m, s}
}

// do makes a request with a token, which may be "", and returns the token to go on with.
func (s *site) do(ctx context.Context, token string, f func(context.Context, *holdfast.Session) error) (string, error) {
	const name = "__Host-Http-session"
	var failed error
	h := s.m.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		session, err := s.m.Get(r)
		if err == nil {
			err = f(r.Context(), session)
		}
		failed = err
	}))
	req := httptest.NewRequestWithContext(ctx, "GET", "https://site.example/", nil)
	if token != "" {
		req.AddCookie(&http.Cookie{Name: name, Value: token})
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, req)
	if failed == nil && w.Code != http.StatusOK {
		failed = fmt.Errorf("status %d", w.Code)
	}
	for _, c := range w.Result().Cookies() {
		if c.Name == name {
			token = c.Value
		}
	}
	return token, failed
}

// who returns whose session a token is of, and its value.
func (s *site) who(ctx context.Context, token string) (user string, v int, err error) {
	_, err = s.do(ctx, token, func(_ context.Context, x *holdfast.Session) error {
		user = x.User()
		var err error
		v, err = value.Get(x)
		return err
	})
	return user, v, err
}

func (s *site) set(t testing.TB, token string, v int) string {
	t.Helper()
	token, err := s.do(t.Context(), token, func(_ context.Context, x *holdfast.Session) error { return value.Set(x, v) })
	if err != nil {
		t.Fatalf("set: %v", err)
	}
	return token
}

func (s *site) login(t testing.TB, token, user string) string {
	t.Helper()
	token, err := s.do(t.Context(), token, func(ctx context.Context, x *holdfast.Session) error { return x.Login(ctx, user) })
	if err != nil {
		t.Fatalf("login: %v", err)
	}
	return token
}

func (s *site) logout(t testing.TB, token string) {
	t.Helper()
	if _, err := s.do(t.Context(), token, func(ctx context.Context, x *holdfast.Session) error { return x.Logout(ctx) }); err != nil {
		t.Fatalf("logout: %v", err)
	}
}

func mustID(t testing.TB, token string) driver.ID {
	t.Helper()
	id, ok := holdfast.TokenID(token)
	if !ok {
		t.Fatalf("not a token")
	}
	return id
}

// openers open empty stores of each kind.
var openers = map[string]func(t testing.TB) driver.Store{
	"memory": func(t testing.TB) driver.Store { return closing(t, memory.New()) },
	"file": func(t testing.TB) driver.Store {
		s, err := filestore.Open(t.Context(), filepath.Join(t.TempDir(), "sessions"), filestore.Config{})
		if err != nil {
			t.Fatal(err)
		}
		return closing(t, s)
	},
	"redis": func(t testing.TB) driver.Store {
		s, err := redisstore.Open(t.Context(), "redis://"+testserver.Redis(t).Addr)
		if err != nil {
			t.Fatal(err)
		}
		return closing(t, s)
	},
}

func closing(t testing.TB, s driver.Store) driver.Store {
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// plain is a store without its optional interfaces but List.
type plain struct {
	driver.Store
}

func (p plain) List(ctx context.Context) iter.Seq2[driver.Item, error] {
	return p.Store.(driver.Lister).List(ctx)
}

func mustRun(t testing.TB, from, to driver.Store, c transfer.Config) transfer.Result {
	t.Helper()
	r, err := transfer.Run(t.Context(), from, to, c)
	if err != nil {
		t.Fatalf("Run: %v (%+v)", err, r)
	}
	wantSum(t, r)
	return r
}

// wantSum checks that each record met is counted once.
func wantSum(t testing.TB, r transfer.Result) {
	t.Helper()
	if sum := r.Copied + r.Same + r.Ended + r.EndedThere + r.Kept + r.Expired + r.Unlisted + r.Failed; sum != r.Met {
		t.Errorf("%d records met, but %d counted: %+v", r.Met, sum, r)
	}
}

func mustJournal(t testing.TB, path string) *transfer.Journal {
	t.Helper()
	j, err := transfer.OpenJournal(path, "from", "to")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = j.Close() }) // for the second time, where it matters
	return j
}

func listed(t testing.TB, s driver.Store) map[driver.ID]driver.Record {
	t.Helper()
	all := make(map[driver.ID]driver.Record)
	for item, err := range s.(driver.Lister).List(context.WithoutCancel(t.Context())) {
		if err != nil {
			t.Fatal(err)
		}
		all[item.ID] = item.Record
	}
	return all
}

func isMarker(rec driver.Record) bool { return rec.Created.IsZero() }

func isUser(id driver.ID, rec driver.Record) bool {
	return rec.User != "" && holdfast.UserID(rec.User) == id
}

// wantEqual checks that two stores hold the same: sessions byte for byte, and user records, too, unless loose: then they list the same.
func wantEqual(t testing.TB, from, to driver.Store, loose bool) {
	t.Helper()
	a, b := listed(t, from), listed(t, to)
	wrong := 0
	complain := func(format string, args ...any) {
		t.Helper()
		if wrong++; wrong < 10 {
			t.Errorf(format, args...)
		}
	}
	for id, rec := range a {
		got, ok := b[id]
		switch {
		case isMarker(rec):
		case !ok:
			complain("%s (user %q) has not arrived", id, rec.User)
		case isUser(id, rec) && loose:
			// FROM's may still list what has ended, as one that is being ended.
			for name := range rec.Fields.All() {
				session := driver.ID([]byte(name))
				if _, ok := got.Fields.Get(name); !ok && !isMarker(a[session]) {
					complain("the record of user %s does not list %s", rec.User, session)
				}
			}
			for name := range got.Fields.All() {
				if _, ok := rec.Fields.Get(name); !ok {
					complain("the record of user %s lists %s, which FROM's does not", rec.User, driver.ID([]byte(name)))
				}
			}
		case !slices.Equal(mustEncode(t, got), mustEncode(t, rec)):
			complain("%s (user %q) has arrived in another state: revision %d, want %d", id, rec.User, got.Revision, rec.Revision)
		}
	}
	for id, rec := range b {
		if _, ok := a[id]; !ok && !isMarker(rec) {
			complain("%s (user %q) is only in TO", id, rec.User)
		}
		if rec.User != "" && !isUser(id, rec) {
			if _, ok := b[holdfast.UserID(rec.User)].Fields.Get(string(id[:])); !ok {
				complain("%s is not listed for its user %q in TO", id, rec.User)
			}
		}
	}
}

func mustEncode(t testing.TB, rec driver.Record) []byte {
	t.Helper()
	b, err := driver.Encode(rec)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// errKilled is what every call of a killed client returns.
var errKilled = fmt.Errorf("%w: killed", driver.ErrClosed)

// mortal is a client that is killed at a call, before it or right after it was carried out.
type mortal struct {
	driver.Store
	calls  atomic.Int64
	killAt int64 // 0: never
	after  bool
	onSave func(driver.ID, driver.Record) // may be nil
}

func (m *mortal) call(f func() error) error {
	switch n := m.calls.Add(1); {
	case m.killAt == 0 || n < m.killAt:
		return f()
	case n == m.killAt && m.after:
		return errors.Join(errKilled, f())
	}
	return errKilled
}

func (m *mortal) Load(ctx context.Context, id driver.ID) (rec driver.Record, err error) {
	err = m.call(func() error { rec, err = m.Store.Load(ctx, id); return err })
	return rec, err
}

func (m *mortal) Save(ctx context.Context, id driver.ID, rec driver.Record, prev uint64) error {
	return m.call(func() error {
		err := m.Store.Save(ctx, id, rec, prev)
		if err == nil && m.onSave != nil {
			m.onSave(id, rec)
		}
		return err
	})
}

func (m *mortal) Delete(ctx context.Context, id driver.ID) error {
	return m.call(func() error { return m.Store.Delete(ctx, id) })
}

// seed puts records of n sessions into a store, half of them anonymous, as a Manager would, without its calls.
func seed(t testing.TB, s driver.Store, n int) {
	t.Helper()
	now := time.UnixMilli(time.Now().UnixMilli())
	work := make(chan int)
	done := make(chan error, 8)
	for range cap(done) {
		go func() {
			var failed error
			for i := range work {
				if failed == nil {
					failed = seedOne(s, i, now)
				}
			}
			done <- failed
		}()
	}
	for i := range n {
		work <- i
	}
	close(work)
	for range cap(done) {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
}

func seedOne(s driver.Store, i int, now time.Time) error {
	var id driver.ID
	copy(id[:], fmt.Sprintf("seeded session number %010d", i))
	rec := driver.Record{Created: now, Seen: now, Expires: now.Add(time.Hour), Revision: driver.NewRevision(0)}
	rec.Fields = rec.Fields.With(driver.Change{Name: "value", Value: fmt.Append(nil, i)}, driver.Change{Name: "fill", Value: make([]byte, i%500)})
	if i%2 == 0 {
		return s.Save(context.Background(), id, rec, 0)
	}
	rec.User = fmt.Sprint("seeded-", i)
	if err := s.Save(context.Background(), id, rec, 0); err != nil {
		return err
	}
	entry := append([]byte{16}, append48(append48(nil, now), now.Add(time.Hour))...)
	rec.Fields = driver.Fields{}.With(driver.Change{Name: string(id[:]), Value: entry})
	rec.Expires = now.Add(2 * time.Hour)
	return s.Save(context.Background(), holdfast.UserID(rec.User), rec, 0)
}

func append48(b []byte, at time.Time) []byte {
	for shift := 40; shift >= 0; shift -= 8 {
		b = append(b, byte(at.UnixMilli()>>shift))
	}
	return b
}
