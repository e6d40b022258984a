package holdfast_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-sessions/holdfast"
	"github.com/holdfast-sessions/holdfast/driver"
)

// TestWriterBelow: what the writer below can do is reached, and nothing else is pretended.
func TestWriterBelow(t *testing.T) {
	run(t, func(t *testing.T, start func(http.Handler) *server) {
		m := mustManager(t, mustMemory(t), holdfast.Config{})
		sv := start(m.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			c := http.NewResponseController(w)
			soon := time.Now().Add(time.Minute)
			if err := errors.Join(c.SetReadDeadline(soon), c.SetWriteDeadline(soon), c.EnableFullDuplex(), c.Flush()); err != nil {
				t.Errorf("by ResponseController: %v", err)
			}
			if _, ok := w.(http.Flusher); !ok {
				t.Error("the writer is no http.Flusher over one that is")
			}
		})))
		res, _ := sv.get(t, "/")
		wantStatus(t, res, 200)
	})
	t.Run("cannot flush", func(t *testing.T) {
		m := mustManager(t, mustMemory(t), holdfast.Config{})
		rec := httptest.NewRecorder()
		m.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if _, ok := w.(http.Flusher); ok {
				t.Error("the writer is an http.Flusher over one that is not")
			}
			err := http.NewResponseController(w).Flush()
			wantErr(t, "Flush", err, http.ErrNotSupported)
			_, _, err = http.NewResponseController(w).Hijack()
			wantErr(t, "Hijack", err, http.ErrNotSupported)
		})).ServeHTTP(struct{ http.ResponseWriter }{rec}, httptest.NewRequest("GET", "/", nil))
	})
	t.Run("can read from", func(t *testing.T) {
		m := mustManager(t, mustMemory(t), holdfast.Config{})
		w := &readerFrom{ResponseWriter: httptest.NewRecorder()}
		m.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if n, err := io.Copy(w, struct{ io.Reader }{strings.NewReader("hello")}); n != 5 || err != nil {
				t.Errorf("Copy = %d, %v", n, err)
			}
		})).ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
		if !w.used {
			t.Error("io.Copy does not reach the ReadFrom below, which can do it without copying")
		}
	})
}

type readerFrom struct {
	http.ResponseWriter
	used bool
}

func (w *readerFrom) ReadFrom(r io.Reader) (int64, error) {
	w.used = true
	return io.Copy(struct{ io.Writer }{w.ResponseWriter}, r)
}

// TestMultipartFilesAreRemoved: the server removes those of its own request, while handlers parse the form of a copy.
func TestMultipartFilesAreRemoved(t *testing.T) {
	run(t, func(t *testing.T, start func(http.Handler) *server) {
		dir := t.TempDir()
		t.Setenv("TMPDIR", dir)
		m := mustManager(t, mustMemory(t), holdfast.Config{})
		var inDir int
		sv := start(m.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if err := r.ParseMultipartForm(1); err != nil {
				t.Error(err)
			}
			inDir = len(mustReadDir(t, dir))
		})))
		var body bytes.Buffer
		form := newMultipart(t, &body)
		r, err := http.NewRequest("POST", sv.URL, &body)
		must(t, err)
		r.Header.Set("Content-Type", form)
		sv.do(t, r)
		sv.Close() // waits for the server's own clean-up
		if inDir != 1 {
			t.Fatalf("%d temporary files while the handler ran, want 1", inDir)
		}
		if left := mustReadDir(t, dir); len(left) != 0 {
			t.Errorf("temporary files left behind: %v", left)
		}
	})
}

func TestPatternIsVisibleOutside(t *testing.T) {
	m := mustManager(t, mustMemory(t), holdfast.Config{})
	mux := http.NewServeMux()
	mux.HandleFunc("GET /item/{id}", func(w http.ResponseWriter, r *http.Request) {
		if r.PathValue("id") != "7" {
			t.Errorf("path value %q", r.PathValue("id"))
		}
	})
	mux.HandleFunc("GET /panic", func(http.ResponseWriter, *http.Request) { panic("boom") })
	for path, want := range map[string]string{"/item/7": "GET /item/{id}", "/panic": "GET /panic"} {
		r := httptest.NewRequest("GET", path, nil)
		func() {
			defer func() { _ = recover() }()
			m.Handler(mux).ServeHTTP(httptest.NewRecorder(), r)
		}()
		if r.Pattern != want {
			t.Errorf("pattern %q, want %q", r.Pattern, want)
		}
	}
}

func TestNestedHandlerIsOne(t *testing.T) {
	store := mustMemory(t)
	m := mustManager(t, store, holdfast.Config{})
	rec := httptest.NewRecorder()
	var first *holdfast.Session
	m.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var err error
		first, err = m.Get(r)
		must(t, err)
		must(t, visits.Set(first, 1))
		m.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			s, err := m.Get(r)
			must(t, err)
			wantField(t, visits, s, 1)
		})).ServeHTTP(w, r)
		must(t, owner.Set(first, "ada"))
	})).ServeHTTP(rec, httptest.NewRequest("GET", "/", nil))
	wantCookies(t, rec.Result(), 1)
	if m.Stats().Saves != 1 || len(records(t, store)) != 1 {
		t.Errorf("%d saves, %d records, want 1 and 1", m.Stats().Saves, len(records(t, store)))
	}
}

// TestTwoManagers has two in one request, each with its own cookie and store.
func TestTwoManagers(t *testing.T) {
	a := mustManager(t, mustMemory(t), holdfast.Config{Cookie: holdfast.Cookie{Name: "a"}})
	b := mustManager(t, mustMemory(t), holdfast.Config{Cookie: holdfast.Cookie{Name: "b"}})
	rec := httptest.NewRecorder()
	a.Handler(b.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		sa, err := a.Get(r)
		must(t, err)
		sb, err := b.Get(r)
		must(t, err)
		must(t, visits.Set(sa, 1))
		wantField(t, visits, sb, 0)
		must(t, visits.Set(sb, 2))
	}))).ServeHTTP(rec, httptest.NewRequest("GET", "/", nil))
	wantCookies(t, rec.Result(), 2)
}

// TestTimeoutHandlerOutside has a handler write to its session and its response while TimeoutHandler answers for it;
// the race detector looks on.
func TestTimeoutHandlerOutside(t *testing.T) {
	run(t, func(t *testing.T, start func(http.Handler) *server) {
		m := mustManager(t, mustMemory(t), holdfast.Config{})
		var late sync.WaitGroup
		late.Add(1)
		h := m.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			defer late.Done()
			s, err := m.Get(r)
			if err != nil {
				t.Error(err)
			}
			<-r.Context().Done()
			for i := range 100 {
				_ = visits.Set(s, i) // it may be too late
				w.Header().Set("X-Try", fmt.Sprint(i))
				_, _ = w.Write([]byte("hello"))
			}
		}))
		sv := start(http.TimeoutHandler(h, 5*time.Millisecond, "too slow"))
		res, body := sv.get(t, "/")
		wantStatus(t, res, 503)
		wantCookies(t, res, 0)
		if body != "too slow" {
			t.Errorf("body %q", body)
		}
		late.Wait()
	})
}

// TestClientThatGoesAway: what the handler did is done, and stored.
func TestClientThatGoesAway(t *testing.T) {
	stores(t, func(t *testing.T, store driver.Store) {
		v := newVisitor(t, mustManager(t, store, holdfast.Config{}))
		v.set(1)
		ctx, cancel := context.WithCancel(context.Background())
		res := v.visitWith(v.request(ctx), func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) {
			must(t, visits.Set(s, 2))
			cancel()
			if r.Context().Err() == nil {
				t.Error("the handler does not see that the client is gone")
			}
		})
		wantStatus(t, res, 200)
		if n := v.visits(); n != 2 {
			t.Errorf("visits = %d, want 2", n)
		}
	})
}

// TestRequestContext: values and cancellation of the request's context reach handlers as ever.
func TestRequestContext(t *testing.T) {
	type key struct{}
	v := newVisitor(t, mustManager(t, mustMemory(t), holdfast.Config{}))
	ctx, cancel := context.WithTimeout(context.WithValue(context.Background(), key{}, "v"), time.Hour)
	v.visitWith(v.request(ctx), func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) {
		inner, stop := context.WithCancel(r.Context())
		defer stop()
		if inner.Value(key{}) != "v" {
			t.Error("a value of the request's context is not there")
		}
		if _, ok := inner.Deadline(); !ok {
			t.Error("the deadline of the request's context is not there")
		}
		cancel()
		<-inner.Done()
		wantErr(t, "inner context", inner.Err(), context.Canceled)
		if _, err := v.m.Get(r.WithContext(inner)); err != nil {
			t.Errorf("Get with a derived context: %v", err)
		}
	})
}
