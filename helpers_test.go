package holdfast_test

import (
	"context"
	"errors"
	"io"
	"log"
	"log/slog"
	"mime/multipart"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/holdfast-sessions/holdfast"
	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/store/memory"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	visits = holdfast.NewField[int]("visits")
	cart   = holdfast.NewField[[]string]("cart")
	owner  = holdfast.NewField[string]("owner")
)

const cookieName = "__Host-Http-session"

// site is where visitors think they are.
var site = &url.URL{Scheme: "https", Host: "www.example.com", Path: "/"}

func mustMemory(t testing.TB) *memory.Store {
	t.Helper()
	s := memory.New()
	t.Cleanup(func() { _ = s.Close() }) // never fails
	return s
}

// mustManager returns a Manager that logs nothing, unless c says where.
func mustManager(t testing.TB, s driver.Store, c holdfast.Config) *holdfast.Manager {
	t.Helper()
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	m, err := holdfast.New(s, c)
	must(t, err)
	return m
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantErr(t testing.TB, what string, got, want error) {
	t.Helper()
	if !errors.Is(got, want) {
		t.Errorf("%s: error %v, want %v", what, got, want)
	}
}

func wantField[T comparable](t testing.TB, f holdfast.Field[T], s *holdfast.Session, want T) {
	t.Helper()
	if got, err := f.Get(s); err != nil || got != want {
		t.Errorf("field %s = %v, %v, want %v", f.Name(), got, err, want)
	}
}

// page is a handler that has its session.
type page func(w http.ResponseWriter, r *http.Request, s *holdfast.Session)

// visitor is a browser: it keeps cookies, and calls handlers without a network.
type visitor struct {
	t      testing.TB
	m      *holdfast.Manager
	jar    http.CookieJar
	header http.Header
	path   string
}

func newVisitor(t testing.TB, m *holdfast.Manager) *visitor {
	t.Helper()
	jar, err := cookiejar.New(nil)
	must(t, err)
	return &visitor{t: t, m: m, jar: jar, header: make(http.Header), path: "/"}
}

func (v *visitor) request(ctx context.Context) *http.Request {
	r := httptest.NewRequestWithContext(ctx, "GET", site.Scheme+"://"+site.Host+v.path, nil)
	for name, values := range v.header {
		r.Header[name] = slices.Clone(values)
	}
	for _, c := range v.jar.Cookies(site) {
		r.AddCookie(c)
	}
	return r
}

// visit has the visitor see a page and keep the cookies that came with it. A session that cannot be known is
// answered by Manager.Error.
func (v *visitor) visit(f page) *http.Response {
	v.t.Helper()
	return v.visitWith(v.request(context.Background()), f)
}

func (v *visitor) visitWith(r *http.Request, f page) *http.Response {
	v.t.Helper()
	res := v.handle(r, func(w http.ResponseWriter, r *http.Request) {
		s, err := v.m.Get(r)
		if err != nil {
			v.m.Error(w, r, err)
			return
		}
		f(w, r, s)
	})
	v.jar.SetCookies(site, res.Cookies())
	return res
}

// handle runs a handler that gets its session itself.
func (v *visitor) handle(r *http.Request, f http.HandlerFunc) *http.Response {
	rec := httptest.NewRecorder()
	v.m.Handler(f).ServeHTTP(rec, r)
	return rec.Result()
}

// token returns the visitor's session cookie, "" if there is none.
func (v *visitor) token() string {
	for _, c := range v.jar.Cookies(site) {
		if c.Name == cookieName {
			return c.Value
		}
	}
	return ""
}

// copy returns a second browser with the same cookies.
func (v *visitor) copy() *visitor {
	o := newVisitor(v.t, v.m)
	o.jar.SetCookies(site, v.jar.Cookies(site))
	return o
}

func (v *visitor) login(user string, o ...holdfast.LoginOptions) (id driver.ID) {
	v.t.Helper()
	v.visit(func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) {
		must(v.t, s.Login(r.Context(), user, o...))
		id = s.ID()
	})
	return id
}

func (v *visitor) logout() {
	v.t.Helper()
	v.visit(func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) { must(v.t, s.Logout(r.Context())) })
}

// user returns who the visitor is logged in as.
func (v *visitor) user() (user string) {
	v.t.Helper()
	v.visit(func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) { user = s.User() })
	return user
}

func (v *visitor) set(n int) {
	v.t.Helper()
	v.visit(func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) { must(v.t, visits.Set(s, n)) })
}

// visits returns the field visits, 0 for an anonymous visitor.
func (v *visitor) visits() (n int) {
	v.t.Helper()
	v.visit(func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) {
		var err error
		n, err = visits.Get(s)
		must(v.t, err)
	})
	return n
}

func wantStatus(t testing.TB, res *http.Response, want int) {
	t.Helper()
	if res.StatusCode != want {
		body, _ := io.ReadAll(res.Body) // for the message only
		t.Errorf("status %d, want %d; body %q", res.StatusCode, want, body)
	}
}

// wantCookies checks how many cookies a response sets.
func wantCookies(t testing.TB, res *http.Response, want int) {
	t.Helper()
	if got := res.Header["Set-Cookie"]; len(got) != want {
		t.Errorf("%d Set-Cookie headers, want %d: %q", len(got), want, got)
	}
}

func wantHeader(t testing.TB, res *http.Response, name, want string) {
	t.Helper()
	if got := res.Header.Get(name); got != want {
		t.Errorf("header %s = %q, want %q", name, got, want)
	}
}

// records returns what a store keeps: sessions, markers and user records.
func records(t testing.TB, s driver.Lister) map[driver.ID]driver.Record {
	t.Helper()
	all := make(map[driver.ID]driver.Record)
	for item, err := range s.List(context.Background()) {
		must(t, err)
		all[item.ID] = item.Record
	}
	return all
}

// storeCall is a call of a store.
type storeCall struct {
	op  string
	id  driver.ID
	rec driver.Record // what is to be stored
}

// tapped is a store whose calls are seen first by before, which may refuse them. It has none of the optional
// interfaces of the store below; tappedMerger and tappedToucher have one.
type tapped struct {
	driver.Store
	before func(context.Context, storeCall) error
}

func (s tapped) Load(ctx context.Context, id driver.ID) (driver.Record, error) {
	if err := s.before(ctx, storeCall{op: "load", id: id}); err != nil {
		return driver.Record{}, err
	}
	return s.Store.Load(ctx, id)
}

func (s tapped) Save(ctx context.Context, id driver.ID, rec driver.Record, prev uint64) error {
	if err := s.before(ctx, storeCall{op: "save", id: id, rec: rec}); err != nil {
		return err
	}
	return s.Store.Save(ctx, id, rec, prev)
}

func (s tapped) Delete(ctx context.Context, id driver.ID) error {
	if err := s.before(ctx, storeCall{op: "delete", id: id}); err != nil {
		return err
	}
	return s.Store.Delete(ctx, id)
}

type tappedMerger struct{ tapped }

func (s tappedMerger) Merge(ctx context.Context, id driver.ID, base, next driver.Record, changes []driver.Change) (driver.Record, error) {
	if err := s.before(ctx, storeCall{op: "merge", id: id, rec: next}); err != nil {
		return driver.Record{}, err
	}
	return s.Store.(driver.Merger).Merge(ctx, id, base, next, changes)
}

type tappedToucher struct{ tappedMerger }

func (s tappedToucher) Touch(ctx context.Context, id driver.ID, next driver.Record, prev uint64) error {
	if err := s.before(ctx, storeCall{op: "touch", id: id, rec: next}); err != nil {
		return err
	}
	return s.Store.Save(ctx, id, next, prev)
}

// journal is the order in which a store was called.
type journal struct {
	mu    sync.Mutex
	calls []storeCall
}

func (j *journal) note(_ context.Context, c storeCall) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.calls = append(j.calls, c)
	return nil
}

// take returns the names of the calls since it was last called.
func (j *journal) take() []string {
	j.mu.Lock()
	defer j.mu.Unlock()
	ops := make([]string, len(j.calls))
	for i, c := range j.calls {
		ops[i] = c.op
	}
	j.calls = nil
	return ops
}

// stores runs f over a store that merges by itself and over one that does not.
func stores(t *testing.T, f func(t *testing.T, s driver.Store)) {
	pass := func(context.Context, storeCall) error { return nil }
	t.Run("merger", func(t *testing.T) { f(t, mustMemory(t)) })
	t.Run("no merger", func(t *testing.T) { f(t, tapped{mustMemory(t), pass}) })
}

// server is a server and a browser of it.
type server struct {
	*httptest.Server
	client *http.Client
	h2     bool
}

// run runs f over HTTP/1.1 and over HTTP/2. Servers are closed when f returns.
func run(t *testing.T, f func(t *testing.T, start func(http.Handler) *server)) {
	for _, h2 := range []bool{false, true} {
		t.Run(map[bool]string{false: "http1", true: "http2"}[h2], func(t *testing.T) {
			f(t, func(h http.Handler) *server {
				s := &server{Server: httptest.NewUnstartedServer(h), h2: h2}
				s.EnableHTTP2 = h2
				s.Config.ErrorLog = log.New(io.Discard, "", 0)
				s.StartTLS()
				t.Cleanup(s.Close)
				s.client = s.Client()
				s.client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
				var err error
				s.client.Jar, err = cookiejar.New(nil)
				must(t, err)
				return s
			})
		})
	}
}

// get fetches a path with its body read.
func (s *server) get(t testing.TB, path string) (*http.Response, string) {
	t.Helper()
	r, err := http.NewRequest("GET", s.URL+path, nil)
	must(t, err)
	return s.do(t, r)
}

func (s *server) do(t testing.TB, r *http.Request) (*http.Response, string) {
	t.Helper()
	res, err := s.client.Do(r)
	must(t, err)
	defer func() { _ = res.Body.Close() }() // read to the end
	body, err := io.ReadAll(res.Body)
	must(t, err)
	if want := map[bool]int{false: 1, true: 2}[s.h2]; res.ProtoMajor != want {
		t.Fatalf("answered over HTTP/%d, want %d", res.ProtoMajor, want)
	}
	return res, string(body)
}

// errDown is what a store answers that cannot be reached.
var errDown = driver.Unavailable(errors.New("connection refused"))

// sleep lets time pass in a bubble.
func sleep(d time.Duration) { time.Sleep(d) }

// newMultipart writes a form with one file to body and returns its content type.
func newMultipart(t testing.TB, body io.Writer) string {
	t.Helper()
	form := multipart.NewWriter(body)
	file, err := form.CreateFormFile("file", "a.bin")
	must(t, err)
	_, err = file.Write(make([]byte, 1000))
	must(t, err)
	must(t, form.Close())
	return form.FormDataContentType()
}

func mustReadDir(t testing.TB, dir string) []os.DirEntry {
	t.Helper()
	list, err := os.ReadDir(dir)
	must(t, err)
	return list
}
