package h1_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/textproto"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/holdfast-sessions/holdfast/gateway/internal/h1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// mustServe returns a transport to a server with the given handler.
func mustServe(t testing.TB, h http.HandlerFunc) *h1.Transport {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return mustTransport(t, s.Listener.Addr().String())
}

func mustTransport(t testing.TB, addr string) *h1.Transport {
	tr := &h1.Transport{
		Dial:  func(ctx context.Context) (net.Conn, error) { return (&net.Dialer{}).DialContext(ctx, "tcp", addr) },
		Stale: func(net.Conn) bool { return false }, ResponseHeaderTimeout: 10 * time.Second, MaxIdle: 2, IdleTimeout: time.Minute, MaxResponseHeaderBytes: 64 << 10,
	}
	t.Cleanup(tr.CloseIdleConnections)
	return tr
}

// mustAnswer returns a transport to a server that reads a request from each connection and then writes the raw answers, one for each
// request, and closes the connection.
func mustAnswer(t testing.TB, answers ...string) *h1.Transport {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	t.Cleanup(func() { l.Close(); serving.Wait() })
	serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			r := bufio.NewReader(c)
			for _, a := range answers {
				if _, err := http.ReadRequest(r); err != nil {
					break
				}
				_, _ = io.WriteString(c, a)
			}
			c.Close()
		}
	})
	return mustTransport(t, l.Addr().String())
}

// get returns the answer to a request, with its body read, and whether it went over a connection that was there.
func get(t testing.TB, tr *h1.Transport, method string) (res *http.Response, text string, reused bool, err error) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, "http://app/path?q=1", nil)
	if err != nil {
		t.Fatal(err)
	}
	if res, err = tr.Send(r, func(_ net.Conn, was bool) { reused = was }); err != nil {
		return nil, "", reused, err
	}
	b, err := io.ReadAll(res.Body)
	res.Body.Close()
	return res, string(b), reused, err
}

// Whatever the form of an answer, it arrives whole, and the connection is used again if it can be.
func TestAnswers(t *testing.T) {
	long := strings.Repeat("x", 100_000)
	for _, tt := range []struct {
		name, method string
		h            http.HandlerFunc
		want         string
		reuse        bool
	}{
		{"length", "GET", func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.Host, r.URL) }, "app/path?q=1", true},
		{"empty", "GET", func(w http.ResponseWriter, r *http.Request) {}, "", true},
		{"long", "GET", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", fmt.Sprint(len(long)))
			fmt.Fprint(w, long)
		}, long, true},
		{"chunks", "GET", func(w http.ResponseWriter, r *http.Request) {
			for range 3 {
				fmt.Fprint(w, "abc")
				w.(http.Flusher).Flush()
			}
		}, "abcabcabc", true},
		{"HEAD", "HEAD", func(w http.ResponseWriter, r *http.Request) { w.Header().Set("Content-Length", "7") }, "", true},
		{"204", "DELETE", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(204) }, "", true},
		{"304", "GET", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(304) }, "", true},
		{"close", "GET", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Connection", "close")
			fmt.Fprint(w, "bye")
		}, "bye", false},
		{"POST", "POST", func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.Method, r.ContentLength) }, "POST0", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tr := mustServe(t, tt.h)
			for i := range 3 {
				_, got, reused, err := get(t, tr, tt.method)
				if err != nil || got != tt.want {
					t.Fatalf("request %d: %d bytes %.20q, %v, want %.20q", i, len(got), got, err, tt.want)
				}
				if reused != (tt.reuse && i > 0) {
					t.Errorf("request %d: reused = %v", i, reused)
				}
			}
		})
	}
}

func TestTrailerAndInformation(t *testing.T) {
	tr := mustServe(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Link", "</style.css>; rel=preload")
		w.WriteHeader(http.StatusEarlyHints)
		w.Header().Set("Trailer", "Sum")
		fmt.Fprint(w, "body")
		w.Header().Set("Sum", "4")
	})
	var hints []string
	ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
		hints = append(hints, fmt.Sprint(code, h.Get("Link")))
		return nil
	}})
	r, _ := http.NewRequestWithContext(ctx, "GET", "http://app/", nil)
	res, err := tr.Send(r, func(net.Conn, bool) {})
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(res.Body)
	if string(b) != "body" || err != nil || res.Trailer.Get("Sum") != "4" || len(hints) != 1 || hints[0] != "103</style.css>; rel=preload" {
		t.Errorf("body %q, %v, trailer %v, hints %q", b, err, res.Trailer, hints)
	}
}

// What is wrong with an answer is an error, and its connection is not used again.
func TestBrokenAnswers(t *testing.T) {
	for _, tt := range []struct{ name, answer, want string }{
		{"nothing", "", "EOF"},
		{"half a header", "HTTP/1.1 200 OK\r\nContent-", "missing colon"},
		{"not HTTP", "hello\r\n\r\n", "malformed HTTP response"},
		{"short body", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc", "unexpected EOF"},
		{"short chunk", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabc", "unexpected EOF"},
		{"large header", "HTTP/1.1 200 OK\r\nA: " + strings.Repeat("x", 70<<10) + "\r\n\r\n", "larger than 65536 bytes"},
		{"switched", "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n", "switched protocols"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tr := mustAnswer(t, tt.answer)
			for range 2 {
				_, _, reused, err := get(t, tr, "GET")
				if err == nil || !strings.Contains(err.Error(), tt.want) || reused {
					t.Fatalf("error %v, reused = %v, want %q over a new connection", err, reused, tt.want)
				}
			}
		})
	}
}

// A connection on which more came than was asked for is not used again, and one that ends with the body cannot be.
func TestNotReused(t *testing.T) {
	for name, answer := range map[string]string{
		"more than asked for": "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
		"ends with the body":  "HTTP/1.0 200 OK\r\n\r\nok",
		"HTTP/1.0":            "HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
	} {
		t.Run(name, func(t *testing.T) {
			tr := mustAnswer(t, answer)
			for range 3 {
				if _, got, reused, err := get(t, tr, "GET"); got != "ok" || reused || err != nil {
					t.Fatalf("got %q, reused = %v, %v", got, reused, err)
				}
			}
		})
	}
}

// An answer that is given up takes its connection with it, so that the next request does not get the rest.
func TestGivenUp(t *testing.T) {
	tr := mustServe(t, func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, strings.Repeat("x", 1<<20)) })
	for range 3 {
		r, _ := http.NewRequestWithContext(t.Context(), "GET", "http://app/", nil)
		res, err := tr.Send(r, func(net.Conn, bool) {})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(res.Body, make([]byte, 10)); err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if n, err := res.Body.Read(make([]byte, 1)); n != 0 || err == nil || err == io.EOF {
			t.Errorf("Read after Close: %d, %v", n, err)
		}
	}
}

// The end of the context ends a request wherever it is, with the context's error, and nothing is left behind.
func TestCancel(t *testing.T) {
	for _, where := range []string{"before", "header", "body"} {
		t.Run(where, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			reached := make(chan struct{}, 1)
			tr := mustServe(t, func(w http.ResponseWriter, r *http.Request) {
				if where == "body" {
					fmt.Fprint(w, "begun")
					w.(http.Flusher).Flush()
				}
				reached <- struct{}{}
				<-r.Context().Done()
			})
			if where == "before" {
				cancel()
			}
			go func() {
				select {
				case <-reached:
					cancel()
				case <-ctx.Done():
				}
			}()
			r, _ := http.NewRequestWithContext(ctx, "GET", "http://app/", nil)
			res, err := tr.Send(r, func(net.Conn, bool) {})
			if where == "body" && err == nil {
				_, err = io.ReadAll(res.Body)
			}
			if !errors.Is(err, context.Canceled) {
				t.Errorf("error %v", err)
			}
		})
	}
}

// pipes are connections to a server in the bubble of a test.
func pipes(serve func(net.Conn)) func(context.Context) (net.Conn, error) {
	return func(context.Context) (net.Conn, error) {
		a, b := net.Pipe()
		go serve(b)
		return a, nil
	}
}

func TestHeaderTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		closed := make(chan struct{})
		tr := &h1.Transport{
			Dial: pipes(func(c net.Conn) {
				_, _ = http.ReadRequest(bufio.NewReader(c))
				_, _ = io.Copy(io.Discard, c) // until it is closed
				c.Close()
				close(closed)
			}),
			Stale: func(net.Conn) bool { return false }, ResponseHeaderTimeout: 3 * time.Second, MaxIdle: 1, IdleTimeout: time.Minute, MaxResponseHeaderBytes: 4096,
		}
		start := time.Now()
		_, _, _, err := get(t, tr, "GET")
		if !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(start) != 3*time.Second {
			t.Errorf("error %v after %v", err, time.Since(start))
		}
		<-closed
	})
}

// The deadline is for the header: a body may take longer.
func TestSlowBody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tr := &h1.Transport{
			Dial: pipes(func(c net.Conn) {
				_, _ = http.ReadRequest(bufio.NewReader(c))
				_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\n")
				time.Sleep(time.Hour)
				_, _ = io.WriteString(c, "ok")
				c.Close()
			}),
			Stale: func(net.Conn) bool { return false }, ResponseHeaderTimeout: 3 * time.Second, MaxIdle: 1, IdleTimeout: time.Minute, MaxResponseHeaderBytes: 4096,
		}
		if _, got, _, err := get(t, tr, "GET"); got != "ok" || err != nil {
			t.Errorf("%q, %v", got, err)
		}
	})
}

// A connection is used again after the deadline of the request before has passed.
func TestReusedLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tr := &h1.Transport{
			Dial: pipes(func(c net.Conn) {
				defer c.Close()
				for r := bufio.NewReader(c); ; {
					if _, err := http.ReadRequest(r); err != nil {
						return
					}
					_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
				}
			}),
			Stale: func(net.Conn) bool { return false }, ResponseHeaderTimeout: 3 * time.Second, MaxIdle: 1, IdleTimeout: time.Minute, MaxResponseHeaderBytes: 4096,
		}
		for i := range 3 {
			if _, got, reused, err := get(t, tr, "GET"); got != "ok" || reused != (i > 0) || err != nil {
				t.Errorf("request %d: %q, reused = %v, %v", i, got, reused, err)
			}
			time.Sleep(10 * time.Second)
		}
		tr.CloseIdleConnections()
	})
}

// Of idle connections MaxIdle are kept, for IdleTimeout.
func TestIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex // mu guards open
		open := 0
		count := func(n int) {
			mu.Lock()
			defer mu.Unlock()
			open += n
		}
		tr := &h1.Transport{
			Dial: pipes(func(c net.Conn) {
				count(1)
				r := bufio.NewReader(c)
				for {
					if _, err := http.ReadRequest(r); err != nil {
						break
					}
					_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
				}
				c.Close()
				count(-1)
			}),
			Stale: func(net.Conn) bool { return false }, ResponseHeaderTimeout: 3 * time.Second, MaxIdle: 2, IdleTimeout: time.Minute, MaxResponseHeaderBytes: 4096,
		}
		var all sync.WaitGroup
		for range 5 {
			all.Go(func() {
				time.Sleep(time.Millisecond) // all at once
				if _, _, _, err := get(t, tr, "GET"); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		want := func(n int) {
			t.Helper()
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			if open > n || n == 0 && open != 0 {
				t.Errorf("%d connections are open, want %d", open, n)
			}
		}
		want(2)
		time.Sleep(59 * time.Second)
		if _, _, reused, err := get(t, tr, "GET"); !reused || err != nil {
			t.Errorf("after 59 s: reused = %v, %v", reused, err)
		}
		time.Sleep(59 * time.Second)
		want(1)
		if _, _, reused, err := get(t, tr, "GET"); !reused || err != nil {
			t.Errorf("the one that was used again, after 59 s more: reused = %v, %v", reused, err)
		}
		time.Sleep(time.Minute)
		want(0)
		if _, _, reused, err := get(t, tr, "GET"); reused || err != nil {
			t.Errorf("after a minute: reused = %v, %v", reused, err)
		}
		tr.CloseIdleConnections()
		want(0)
	})
}

func TestTakes(t *testing.T) {
	for _, tt := range []struct {
		method, header, body string
		want                 bool
	}{
		{"GET", "", "", true},
		{"POST", "", "", true},
		{"POST", "", "x", false},
		{"GET", "Upgrade", "", false},
		{"GET", "Expect", "", false},
		{"CONNECT", "", "", false},
	} {
		r := httptest.NewRequest(tt.method, "http://app/", nil)
		if tt.body != "" {
			r = httptest.NewRequest(tt.method, "http://app/", strings.NewReader(tt.body))
		}
		if tt.header != "" {
			r.Header.Set(tt.header, "x")
		}
		if got := h1.Takes(r); got != tt.want {
			t.Errorf("Takes(%s %s body %q) = %v", tt.method, tt.header, tt.body, got)
		}
	}
}

// BenchmarkTransport is beside http.Transport.
func BenchmarkTransport(b *testing.B) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "hello") }))
	defer s.Close()
	own := mustTransport(b, s.Listener.Addr().String())
	theirs := &http.Transport{}
	defer theirs.CloseIdleConnections()
	for name, send := range map[string]func(*http.Request) (*http.Response, error){
		"h1":   func(r *http.Request) (*http.Response, error) { return own.Send(r, func(net.Conn, bool) {}) },
		"http": theirs.RoundTrip,
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				r, _ := http.NewRequestWithContext(b.Context(), "GET", s.URL, nil)
				res, err := send(r)
				if err != nil {
					b.Fatal(err)
				}
				_, _ = io.Copy(io.Discard, res.Body)
				res.Body.Close()
			}
		})
	}
}
