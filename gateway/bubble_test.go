package gateway_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/holdfast-sessions/holdfast/gateway"
)

// bubble is a network of application servers within a synctest bubble, and a gateway in front of them.
type bubble struct {
	*gateway.Gateway
	t    *testing.T
	log  lockedBuffer
	stop func()

	mu   sync.Mutex
	apps map[string]*bubbleApp // by address
}

// bubbleApp is an application server at name:1. It answers with its name.
type bubbleApp struct {
	*pipeListener
	name string

	mu      sync.Mutex
	refuses bool // connections
	frozen  chan struct{}
	status  int // of its answers; 0: 200
	arrived int
	dials   int
	handler http.HandlerFunc // instead
}

// inBubble runs f with upstreams called a, b, c ... in a bubble. The gateway runs if run is set.
func inBubble(t *testing.T, n int, c gateway.Config, run bool, f func(t *testing.T, b *bubble)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		b := &bubble{t: t, apps: make(map[string]*bubbleApp)}
		if c.Upstreams == nil {
			c.Upstreams = weighted(make([]int, n)...)
		}
		for i := range n {
			b.add(string(rune('a' + i)))
		}
		c.Dial = b.dial
		c.Logger = slog.New(slog.NewTextHandler(&b.log, nil))
		if c.Affinity == gateway.AffinityCookie {
			c.Key, c.Cookie.AllowPlainLocalhost = testKey, true
		}
		g, err := gateway.New(c)
		if err != nil {
			t.Fatal(err)
		}
		b.Gateway = g
		b.stop = func() {}
		if run {
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error, 1)
			go func() { done <- g.Run(ctx, newPipeListener()) }()
			b.stop = sync.OnceFunc(func() {
				cancel()
				if err := <-done; err != nil {
					t.Errorf("Run: %v", err)
				}
			})
			synctest.Wait()
		}
		defer func() {
			b.mu.Lock()
			apps := b.apps
			b.mu.Unlock()
			for _, a := range apps {
				a.thaw()
			}
			b.stop()
			_ = g.Close()
			for _, a := range apps {
				_ = a.Close()
			}
			synctest.Wait()
			if t.Failed() {
				t.Logf("log of the gateway:\n%s", &b.log)
			}
		}()
		f(t, b)
	})
}

func (b *bubble) add(name string) *bubbleApp {
	a := &bubbleApp{pipeListener: newPipeListener(), name: name}
	b.mu.Lock()
	b.apps[name+":1"] = a
	b.mu.Unlock()
	srv := &http.Server{Handler: a, DisableGeneralOptionsHandler: true, ErrorLog: log.New(io.Discard, "", 0)}
	go func() {
		_ = srv.Serve(a.pipeListener)
		_ = srv.Close()
	}()
	return a
}

func (b *bubble) app(name string) *bubbleApp {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.apps[name+":1"]
}

func (b *bubble) dial(ctx context.Context, _, address string) (net.Conn, error) {
	b.mu.Lock()
	a := b.apps[address]
	b.mu.Unlock()
	if a == nil {
		return nil, fmt.Errorf("nobody at %s", address)
	}
	a.mu.Lock()
	a.dials++
	refuses := a.refuses
	a.mu.Unlock()
	if refuses {
		return nil, errors.New("connection refused")
	}
	near, far := net.Pipe()
	select {
	case a.conns <- far:
		return near, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (a *bubbleApp) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	a.arrived++
	frozen, status, handler := a.frozen, a.status, a.handler
	a.mu.Unlock()
	if frozen != nil {
		<-frozen
	}
	if handler != nil {
		handler(w, r)
		return
	}
	if status != 0 {
		w.WriteHeader(status)
	}
	_, _ = io.WriteString(w, a.name)
}

func (a *bubbleApp) set(f func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	f()
}

func (a *bubbleApp) freeze() { a.set(func() { a.frozen = make(chan struct{}) }) }

func (a *bubbleApp) thaw() {
	a.set(func() {
		if a.frozen != nil {
			close(a.frozen)
			a.frozen = nil
		}
	})
}

func (a *bubbleApp) arrivals() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.arrived
}

// send makes a request without the server of the gateway; header is name, value, name, value.
func (b *bubble) send(method string, header ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, "http://localhost/", nil).WithContext(b.t.Context())
	for i := 0; i < len(header); i += 2 {
		r.Header.Add(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	b.ServeHTTP(w, r)
	return w
}

// want makes n GETs and wants the answers of these upstreams, in any order.
func (b *bubble) want(n int, ids string) {
	b.t.Helper()
	seen := make(map[string]int)
	for range n {
		w := b.send("GET")
		if w.Code != 200 {
			b.t.Fatalf("status %d: %s", w.Code, w.Body)
		}
		seen[w.Body.String()]++
	}
	for _, id := range ids {
		if seen[string(id)] == 0 {
			b.t.Fatalf("answers %v, want some of each of %s", seen, ids)
		}
	}
	if len(seen) != len(ids) {
		b.t.Fatalf("answers %v, want only of %s", seen, ids)
	}
}

func (b *bubble) upstream(id string) gateway.UpstreamStats {
	for _, u := range b.Upstreams() {
		if u.ID == id {
			return u
		}
	}
	return gateway.UpstreamStats{}
}

func (b *bubble) wantState(id string, want gateway.State) {
	b.t.Helper()
	if got := b.upstream(id).State; got != want {
		b.t.Fatalf("upstream %s is %s, want %s", id, got, want)
	}
}

// pipeListener accepts the ends of pipes.
type pipeListener struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newPipeListener() *pipeListener {
	return &pipeListener{conns: make(chan net.Conn), closed: make(chan struct{})}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error   { l.once.Do(func() { close(l.closed) }); return nil }
func (l *pipeListener) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1} }
