package holdfast_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/textproto"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-sessions/holdfast"
)

// firstBytes are the ways in which a handler can begin its response.
var firstBytes = []struct {
	name   string
	method string
	status int
	send   func(w http.ResponseWriter, r *http.Request) error
}{
	{"nothing", "GET", 200, func(http.ResponseWriter, *http.Request) error { return nil }},
	{"Write", "GET", 200, func(w http.ResponseWriter, r *http.Request) error {
		_, err := w.Write([]byte("hello"))
		return err
	}},
	{"Write of nothing", "GET", 200, func(w http.ResponseWriter, r *http.Request) error {
		_, err := w.Write(nil)
		return err
	}},
	{"WriteString", "GET", 200, func(w http.ResponseWriter, r *http.Request) error {
		_, err := w.(io.StringWriter).WriteString("hello")
		return err
	}},
	{"WriteHeader", "GET", 201, func(w http.ResponseWriter, r *http.Request) error {
		w.WriteHeader(201)
		_, err := io.WriteString(w, "hello")
		return err
	}},
	{"ReadFrom", "GET", 200, func(w http.ResponseWriter, r *http.Request) error {
		_, err := io.Copy(w, struct{ io.Reader }{strings.NewReader("hello")}) // no WriterTo
		return err
	}},
	{"WriteTo", "GET", 200, func(w http.ResponseWriter, r *http.Request) error {
		_, err := io.Copy(w, strings.NewReader("hello"))
		return err
	}},
	{"Flusher", "GET", 200, func(w http.ResponseWriter, r *http.Request) error {
		w.(http.Flusher).Flush()
		_, err := io.WriteString(w, "hello")
		return err
	}},
	{"ResponseController", "GET", 200, func(w http.ResponseWriter, r *http.Request) error {
		if err := http.NewResponseController(w).Flush(); err != nil {
			return err
		}
		_, err := io.WriteString(w, "hello")
		return err
	}},
	{"Redirect", "GET", 303, func(w http.ResponseWriter, r *http.Request) error {
		http.Redirect(w, r, "/next", http.StatusSeeOther)
		return nil
	}},
	{"ServeContent", "GET", 200, func(w http.ResponseWriter, r *http.Request) error {
		http.ServeContent(w, r, "a.txt", time.Unix(1, 0), strings.NewReader("hello"))
		return nil
	}},
	{"HEAD", "HEAD", 200, func(w http.ResponseWriter, r *http.Request) error {
		_, _ = w.Write([]byte("hello"))
		return nil
	}},
	{"204", "POST", 204, func(w http.ResponseWriter, r *http.Request) error { w.WriteHeader(204); return nil }},
	{"304", "GET", 304, func(w http.ResponseWriter, r *http.Request) error { w.WriteHeader(304); return nil }},
	{"nested ResponseWriter", "GET", 200, func(w http.ResponseWriter, r *http.Request) error {
		_, err := io.WriteString(struct{ http.ResponseWriter }{w}, "hello")
		return err
	}},
}

// watched tells before the first byte, and has all that net/http's own writer has, by Unwrap.
type watched struct {
	http.ResponseWriter
	first func()
}

func (w *watched) Unwrap() http.ResponseWriter { return w.ResponseWriter }
func (w *watched) WriteHeader(status int)      { w.first(); w.ResponseWriter.WriteHeader(status) }
func (w *watched) Write(b []byte) (int, error) { w.first(); return w.ResponseWriter.Write(b) }
func (w *watched) Flush()                      { w.first(); _ = http.NewResponseController(w.ResponseWriter).Flush() }

// TestCommitBeforeTheFirstByte is part of attack 29: however a response begins, the session is stored by then, and
// the cookie is in the header once.
func TestCommitBeforeTheFirstByte(t *testing.T) {
	for _, tt := range firstBytes {
		t.Run(tt.name, func(t *testing.T) {
			run(t, func(t *testing.T, start func(http.Handler) *server) {
				store := mustMemory(t)
				m := mustManager(t, store, holdfast.Config{})
				h := m.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					s, err := m.Get(r)
					err = errors.Join(err, visits.Set(s, 1), tt.send(w, r))
					if err != nil {
						t.Error(err)
					}
				}))
				sv := start(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					h.ServeHTTP(&watched{w, func() {
						if n := m.Stats().Saves; n != 1 {
							t.Errorf("the first byte goes out after %d saves", n)
						}
					}}, r)
				}))
				r, err := http.NewRequest(tt.method, sv.URL, nil)
				must(t, err)
				res, body := sv.do(t, r)
				wantStatus(t, res, tt.status)
				wantCookies(t, res, 1)
				wantHeader(t, res, "Cache-Control", "no-store")
				if tt.method == "GET" && tt.status == 200 && !strings.HasSuffix(tt.name, "nothing") && body != "hello" {
					t.Errorf("body %q", body)
				}
				if n := len(records(t, store)); n != 1 {
					t.Errorf("%d sessions are stored, want 1", n)
				}
			})
		})
	}
}

// TestFailedCommit is attack 29: where the session cannot be saved, nothing of the handler's response goes out, on
// whatever path.
func TestFailedCommit(t *testing.T) {
	for _, tt := range firstBytes {
		t.Run(tt.name, func(t *testing.T) {
			run(t, func(t *testing.T, start func(http.Handler) *server) {
				store := tapped{mustMemory(t), func(_ context.Context, c storeCall) error {
					if c.op == "save" {
						return errDown
					}
					return nil
				}}
				m := mustManager(t, store, holdfast.Config{})
				sv := start(m.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					s, err := m.Get(r)
					if err = errors.Join(err, visits.Set(s, 1)); err != nil {
						t.Error(err)
					}
					for name, v := range map[string]string{
						"X-Page": "hello", "Content-Length": "5", "Etag": `"1"`, "Content-Type": "image/png",
						"Set-Cookie": "a=b", "Trailer": "X-Sum", "Content-Encoding": "gzip",
					} {
						w.Header().Set(name, v)
					}
					err = tt.send(w, r)
					if err != nil && !errors.Is(err, holdfast.ErrUnavailable) {
						t.Errorf("the handler got %v, want ErrUnavailable", err)
					}
					w.Header().Set("X-Sum", "5")
					_, err = w.Write([]byte("hello"))
					wantErr(t, "Write after a failed commit", err, holdfast.ErrUnavailable)
				})))
				r, err := http.NewRequest(tt.method, sv.URL, nil)
				must(t, err)
				res, body := sv.do(t, r)
				wantStatus(t, res, 503)
				wantCookies(t, res, 0)
				wantHeader(t, res, "Retry-After", "2")
				wantHeader(t, res, "Cache-Control", "no-store")
				wantHeader(t, res, "Content-Type", "text/plain; charset=utf-8")
				for _, name := range []string{"X-Page", "Etag", "Content-Encoding"} {
					wantHeader(t, res, name, "")
				}
				if strings.Contains(body, "hello") || tt.method == "GET" && !strings.Contains(body, "unavailable") {
					t.Errorf("body %q", body)
				}
				if len(res.Trailer) != 0 {
					t.Errorf("trailers %v", res.Trailer)
				}
			})
		})
	}
}

// TestFailedCommitKeepsTheLogin: the login is stored when the rest cannot be. Without its cookie the client would be
// left with a token that the login ended.
func TestFailedCommitKeepsTheLogin(t *testing.T) {
	down := false
	store := tapped{mustMemory(t), func(_ context.Context, c storeCall) error {
		if down {
			return errDown
		}
		return nil
	}}
	v := newVisitor(t, mustManager(t, store, holdfast.Config{}))
	v.set(1)
	res := v.visit(func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) {
		must(t, s.Login(r.Context(), "ada"))
		must(t, visits.Set(s, 2))
		w.Header().Set("X-Page", "hello")
		down = true
		_, err := w.Write([]byte("hello"))
		wantErr(t, "Write", err, holdfast.ErrUnavailable)
		down = false
	})
	wantStatus(t, res, 503)
	wantCookies(t, res, 1)
	wantHeader(t, res, "X-Page", "")
	wantHeader(t, res, "Cache-Control", "no-store")
	if u, n := v.user(), v.visits(); u != "ada" || n != 1 {
		t.Errorf("afterwards user %q with visits %d, want ada, who was told that the login holds, with 1", u, n)
	}
}

func TestFailedCommitIsAnsweredByOnError(t *testing.T) {
	store := tapped{mustMemory(t), func(_ context.Context, c storeCall) error {
		if c.op == "save" {
			return errDown
		}
		return nil
	}}
	m := mustManager(t, store, holdfast.Config{OnError: func(w http.ResponseWriter, r *http.Request, err error) {
		if len(w.Header()) != 0 {
			t.Errorf("OnError finds the header %v", w.Header())
		}
		wantErr(t, "OnError", err, holdfast.ErrUnavailable)
		w.Header().Set("Location", "/maintenance")
		w.WriteHeader(http.StatusTemporaryRedirect)
	}})
	v := newVisitor(t, m)
	res := v.visit(func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) {
		must(t, visits.Set(s, 1))
		w.Header().Set("X-Page", "hello")
		w.WriteHeader(201)
	})
	wantStatus(t, res, http.StatusTemporaryRedirect)
	wantHeader(t, res, "Location", "/maintenance")
	wantHeader(t, res, "X-Page", "")
}

// TestPanic: before the first byte it discards what is pending, after it what came since.
func TestPanic(t *testing.T) {
	run(t, func(t *testing.T, start func(http.Handler) *server) {
		store := mustMemory(t)
		m := mustManager(t, store, holdfast.Config{})
		sv := start(m.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			s, err := m.Get(r)
			if err = errors.Join(err, visits.Set(s, 1)); err != nil {
				t.Error(err)
			}
			switch r.URL.Path {
			case "/before":
				panic(http.ErrAbortHandler)
			case "/after":
				err = http.NewResponseController(w).Flush()
				if err = errors.Join(err, visits.Set(s, 2)); err != nil {
					t.Error(err)
				}
				panic(http.ErrAbortHandler)
			}
		})))
		if res, err := sv.client.Get(sv.URL + "/before"); err == nil {
			_ = res.Body.Close()
			t.Errorf("a panic before the first byte is answered with status %d", res.StatusCode)
		}
		if n := len(records(t, store)); n != 0 {
			t.Errorf("%d sessions are stored after a panic before the first byte", n)
		}
		res, err := sv.client.Get(sv.URL + "/after")
		must(t, err)
		if _, err := io.ReadAll(res.Body); err == nil {
			t.Error("a panic after the first byte looks like a whole response")
		}
		_ = res.Body.Close()
		wantCookies(t, res, 1)
		all := records(t, store)
		if len(all) != 1 {
			t.Fatalf("%d sessions are stored, want 1", len(all))
		}
		for _, rec := range all {
			if got, _ := rec.Fields.Get(visits.Name()); string(got) != "1" {
				t.Errorf("visits = %s, want 1: what was set before the first byte", got)
			}
		}
	})
}

// TestInformationalResponses is part of attack 29: a 103 carries no cookie, the final response carries it once.
func TestInformationalResponses(t *testing.T) {
	run(t, func(t *testing.T, start func(http.Handler) *server) {
		m := mustManager(t, mustMemory(t), holdfast.Config{})
		sv := start(m.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			s, err := m.Get(r)
			if err = errors.Join(err, visits.Set(s, 1)); err != nil {
				t.Error(err)
			}
			for range 2 {
				w.Header().Set("Link", "</style.css>; rel=preload")
				w.WriteHeader(http.StatusEarlyHints)
				if n := m.Stats().Saves; n != 0 {
					t.Errorf("%d saves before the final response", n)
				}
			}
			if err := visits.Set(s, 2); err != nil {
				t.Errorf("Set after a 103: %v", err)
			}
			_, _ = w.Write([]byte("hello"))
		})))
		hints := 0
		ctx := httptrace.WithClientTrace(context.Background(), &httptrace.ClientTrace{
			Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
				if hints++; code != 103 || h.Get("Link") == "" || h.Get("Set-Cookie") != "" {
					t.Errorf("informational response %d with header %v", code, h)
				}
				return nil
			},
		})
		r, err := http.NewRequestWithContext(ctx, "GET", sv.URL, nil)
		must(t, err)
		res, _ := sv.do(t, r)
		wantStatus(t, res, 200)
		wantCookies(t, res, 1)
		if hints != 2 {
			t.Errorf("%d informational responses, want 2", hints)
		}
	})
}

func TestTrailers(t *testing.T) {
	run(t, func(t *testing.T, start func(http.Handler) *server) {
		m := mustManager(t, mustMemory(t), holdfast.Config{})
		sv := start(m.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			s, err := m.Get(r)
			if err = errors.Join(err, visits.Set(s, 1)); err != nil {
				t.Error(err)
			}
			w.Header().Set("Trailer", "X-Sum")
			_, _ = w.Write([]byte("hello"))
			w.Header().Set("X-Sum", "5")
			w.Header().Set(http.TrailerPrefix+"X-More", "yes")
		})))
		res, _ := sv.get(t, "/")
		wantCookies(t, res, 1)
		if res.Trailer.Get("X-Sum") != "5" || res.Trailer.Get("X-More") != "yes" || res.Trailer.Get("Set-Cookie") != "" {
			t.Errorf("trailers %v", res.Trailer)
		}
	})
}

// TestHijack is part of attack 29: a connection that is taken over with its header unsent would lose the cookie.
func TestHijack(t *testing.T) {
	m := mustManager(t, mustMemory(t), holdfast.Config{})
	sv := httptest.NewServer(m.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s, err := m.Get(r)
		if err = errors.Join(err, visits.Set(s, 1)); err != nil {
			t.Error(err)
		}
		if r.URL.Path == "/101" {
			w.Header().Set("Connection", "Upgrade")
			w.Header().Set("Upgrade", "echo")
			w.WriteHeader(http.StatusSwitchingProtocols)
		}
		conn, buf, err := w.(http.Hijacker).Hijack()
		if r.URL.Path == "/refused" {
			wantErr(t, "Hijack with a new session", err, holdfast.ErrUnsupported)
			http.Error(w, "no", 500)
			return
		}
		if err != nil {
			t.Error(err)
			return
		}
		defer func() { _ = conn.Close() }() // the client has read all
		if r.URL.Path != "/101" {
			_, _ = buf.WriteString("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
		}
		line, _ := buf.ReadString('\n')
		_, _ = buf.WriteString("echo " + line)
		_ = buf.Flush()
		if err := visits.Set(s, 2); err != nil {
			t.Errorf("Set after Hijack: %v", err)
		}
	})))
	defer sv.Close()

	res, err := http.Get(sv.URL + "/refused")
	must(t, err)
	_ = res.Body.Close()
	wantStatus(t, res, 500)
	wantCookies(t, res, 1)
	http.DefaultClient.CloseIdleConnections()

	talk := func(path, cookie string) string {
		conn, err := net.Dial("tcp", sv.Listener.Addr().String())
		must(t, err)
		defer func() { _ = conn.Close() }() // read to the end
		_, err = fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: a\r\nCookie: %s\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\nhi\n", path, cookie)
		must(t, err)
		all, err := io.ReadAll(conn)
		must(t, err)
		return string(all)
	}
	got := talk("/101", "")
	if !strings.HasPrefix(got, "HTTP/1.1 101 ") || strings.Count(got, "Set-Cookie: "+cookieName) != 1 || !strings.HasSuffix(got, "echo hi\n") {
		t.Errorf("after 101 the client got %q", got)
	}
	cookie, _, _ := strings.Cut(res.Header.Get("Set-Cookie"), ";")
	if got := talk("/known", cookie); !strings.HasSuffix(got, "echo hi\n") || strings.Contains(got, "Set-Cookie") {
		t.Errorf("with a known session the client got %q", got)
	}
	id := holdfast.MustTokenID(strings.TrimPrefix(cookie, cookieName+"="))
	waitFor(t, func() bool {
		s, err := m.Open(context.Background(), id)
		must(t, err)
		n, err := visits.Get(s)
		must(t, err)
		return n == 2
	})
}

// waitFor waits until something that happens after the response has happened.
func waitFor(t testing.TB, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	deadline := time.After(10 * time.Second)
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal("not so after 10 s")
		}
	}
}

func TestHijackOfAFailedCommit(t *testing.T) {
	store := tapped{mustMemory(t), func(_ context.Context, c storeCall) error {
		if c.op == "save" {
			return errDown
		}
		return nil
	}}
	m := mustManager(t, store, holdfast.Config{})
	sv := httptest.NewServer(m.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s, err := m.Get(r)
		if err = errors.Join(err, visits.Set(s, 1)); err != nil {
			t.Error(err)
		}
		_, _, err = http.NewResponseController(w).Hijack()
		wantErr(t, "Hijack", err, holdfast.ErrUnavailable)
	})))
	defer sv.Close()
	res, err := sv.Client().Get(sv.URL)
	must(t, err)
	_ = res.Body.Close()
	wantStatus(t, res, 503)
}
