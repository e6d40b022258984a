package gateway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
)

// Run serves on l until ctx ends, and closes l. Then it takes no new requests, ends WebSockets and event streams,
// which would not end by themselves, lets the other requests finish, and cuts off what is left after
// Config.DrainTimeout, which it reports as an error. It returns nil after a clean end. Run may be called for
// several listeners at once.
func (g *Gateway) Run(ctx context.Context, l net.Listener) error {
	defer g.Close()
	if err := g.begin(ctx, l); err != nil {
		return errors.Join(err, l.Close())
	}
	defer g.end(l)
	base, cutOff := context.WithCancel(context.WithoutCancel(ctx))
	defer cutOff()
	draining, drainNow := context.WithCancel(base)
	defer drainNow()
	s := &server{draining: draining}
	srv := &http.Server{
		Handler:           g,
		BaseContext:       func(net.Listener) context.Context { return context.WithValue(base, serverKey{}, s) },
		ReadHeaderTimeout: g.config.ReadHeaderTimeout,
		IdleTimeout:       g.config.IdleTimeout,
		MaxHeaderBytes:    g.serverHeaderBytes(),
		HTTP2:             &http.HTTP2Config{MaxConcurrentStreams: maxStreams},
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			if guarded, ok := c.(guard); ok {
				ctx = context.WithValue(ctx, guardKey{}, guarded)
			}
			return ctx
		},
		ConnState: func(c net.Conn, state http.ConnState) {
			if guarded, ok := c.(guard); ok && state == http.StateHijacked {
				guarded.Pass()
			}
		},
		ErrorLog: slog.NewLogLogger(g.config.Logger.Handler(), slog.LevelDebug),
	}
	f := g.newFront(l, g.serverTLS())
	defer f.wait()
	var background sync.WaitGroup
	defer background.Wait()
	background.Go(func() { g.watchCertificates(draining) })
	if g.access != nil {
		background.Go(func() { g.access.run(base) }) // until the last request is over
		defer g.access.flush()
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(f) }()

	var failed error
	select {
	case failed = <-served:
	case <-ctx.Done():
	}
	_ = f.Close() // before anything ends: who connects again must not come here
	drainNow()
	drain, cancel := context.WithTimeout(base, g.settings().DrainTimeout)
	defer cancel()
	late := srv.Shutdown(drain)
	cutOff()
	_ = srv.Close() // what Shutdown left
	s.handlers.Wait()
	if failed != nil {
		return fmt.Errorf("gateway: serve on %s: %w", l.Addr(), failed)
	}
	<-served
	if late != nil {
		return fmt.Errorf("gateway: requests were cut off: not finished %v after the end", g.settings().DrainTimeout)
	}
	return nil
}

// maxStreams bounds the requests at once on one connection of HTTP/2: more than any browser makes.
const maxStreams = 128

// server is one Run.
type server struct {
	draining context.Context // ends when the server is to end
	handlers sync.WaitGroup  // also of connections that http.Server no longer knows, because they were upgraded
}

type serverKey struct{}

// serverOf returns the server a request came by, or nil if it did not come by Run.
func serverOf(ctx context.Context) *server {
	s, _ := ctx.Value(serverKey{}).(*server)
	return s
}

// endless reports whether res does not end by itself: an upgraded connection, or an event stream.
func endless(res *http.Response) bool {
	if res.StatusCode == http.StatusSwitchingProtocols {
		return true
	}
	t := res.Header.Get("Content-Type")
	return len(t) >= len(eventType) && strings.EqualFold(t[:len(eventType)], eventType)
}

const eventType = "text/event-stream"

// watch ends an answer that would not end by itself when the server drains.
func (s *server) watch(x *exchange, res *http.Response) {
	if !endless(res) {
		return
	}
	x.unwatch = context.AfterFunc(s.draining, x.cancel)
}

// eventStream ends without an error when the server, or its upstream, is taken out: its client connects again.
type eventStream struct {
	io.ReadCloser
	from   *upstream
	server *server // or nil
}

func (e *eventStream) Read(p []byte) (int, error) {
	n, err := e.ReadCloser.Read(p)
	if err != nil && (e.from.isCut() || e.server != nil && e.server.draining.Err() != nil && errors.Is(err, context.Canceled)) {
		err = io.EOF
	}
	return n, err
}
