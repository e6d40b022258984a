package gateway

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-sessions/holdfast/gateway/internal/framing"
)

// front is the listener that http.Server sees. It takes connections, does the TLS handshake, since only then it is known
// whether HTTP/1 or HTTP/2 is spoken, and puts the guard of HTTP/1's framing on top.
type front struct {
	net.Listener
	g     *Gateway
	tls   *tls.Config // or nil
	began time.Time

	ready   chan accepted
	ctx     context.Context // ends with Close
	close   context.CancelFunc
	workers sync.WaitGroup

	turnedAway atomic.Int32
}

type accepted struct {
	conn net.Conn
	err  error
}

// newFront begins to accept connections of l. Close ends that.
func (g *Gateway) newFront(l net.Listener, config *tls.Config) *front {
	f := &front{Listener: l, g: g, tls: config, began: time.Now(), ready: make(chan accepted)}
	f.ctx, f.close = context.WithCancel(context.Background())
	f.workers.Go(f.accept)
	return f
}

// Accept returns the next connection that is ready for HTTP: a *tls.Conn for HTTP/2, otherwise a guarded one.
func (f *front) Accept() (net.Conn, error) {
	select {
	case a := <-f.ready:
		return a.conn, a.err
	case <-f.ctx.Done():
		return nil, net.ErrClosed
	}
}

// Close closes the listener and the connections that are not ready. It may be called again.
func (f *front) Close() error {
	f.close()
	if err := f.Listener.Close(); !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

// wait returns when nothing of f runs any more. It is for after Close.
func (f *front) wait() { f.workers.Wait() }

func (f *front) accept() {
	for {
		c, err := f.Listener.Accept()
		if err != nil {
			f.hand(accepted{err: err}) // http.Server decides whether to go on, and waits before it does
			if errors.Is(err, net.ErrClosed) || f.ctx.Err() != nil {
				return
			}
			continue
		}
		if f.tls == nil && !f.g.config.ProxyProtocol {
			f.prepare(c) // which does not wait
		} else {
			f.workers.Go(func() { f.prepare(c) })
		}
	}
}

func (f *front) hand(a accepted) {
	select {
	case f.ready <- a:
	case <-f.ctx.Done():
		if a.conn != nil {
			_ = a.conn.Close()
		}
	}
}

// prepare makes a connection ready for HTTP, which may take until ReadHeaderTimeout, twice.
func (f *front) prepare(socket net.Conn) {
	stop := context.AfterFunc(f.ctx, func() { _ = socket.Close() })
	defer stop()
	// Once handed over, a connection is no longer ended by Close, but by http.Server.
	ready := func(c net.Conn) {
		if stop() {
			f.hand(accepted{conn: c})
		} else {
			_ = c.Close() // it is
		}
	}
	g := f.g
	c := &clientConn{Conn: socket, socket: socket, remote: socket.RemoteAddr(), deadline: writeDeadline{timeout: g.config.WriteTimeout, clock: clock{f.began}}}
	if !g.seats.take() {
		g.rejections.connections.Add(1)
		f.turnAway(socket, "503 Service Unavailable", "Too many connections. Please try again later.")
		return
	}
	var counted netip.Addr // for which a seat is taken, too
	c.release = func() { g.seats.leave(counted) }
	addr := addrOf(c.remote)
	if g.config.ProxyProtocol && g.settings().trustedAddr(addr) {
		var err error
		if c.Conn, c.remote, err = g.readProxyHeader(socket); err != nil {
			g.config.Logger.Debug("no PROXY header from a trusted proxy", "proxy", addr.String(), "err", err)
			_ = c.Close()
			return
		}
		addr = addrOf(c.remote)
	}
	if g.seats.perClient > 0 && addr.IsValid() && !g.settings().trustedAddr(addr) {
		if !g.seats.takeFor(clientNetwork(addr)) {
			g.rejections.perClient.Add(1)
			c.once.Do(c.release)
			f.turnAway(socket, "429 Too Many Requests", "Too many connections from this address. Please close some.")
			return
		}
		counted = clientNetwork(addr)
	}
	if f.tls == nil {
		ready(framing.NewConn(c, g.serverHeaderBytes(), g.refusedFraming))
		return
	}
	ctx, cancel := context.WithTimeout(f.ctx, g.config.ReadHeaderTimeout)
	defer cancel()
	secure := tls.Server(c, f.tls)
	if err := secure.HandshakeContext(ctx); err != nil {
		var plain tls.RecordHeaderError
		if errors.As(err, &plain) && plain.Conn != nil && looksLikeHTTP(plain.RecordHeader) {
			_, _ = io.WriteString(plain.Conn, "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\nThis port speaks https, not http.\n")
		}
		g.config.Logger.Debug("tls handshake failed", "err", err)
		_ = c.Close()
		return
	}
	if secure.ConnectionState().NegotiatedProtocol == "h2" {
		ready(secure)
		return
	}
	ready(framing.NewTLSConn(secure, g.serverHeaderBytes(), g.refusedFraming))
}

// maxTurnedAway bounds how many connections that were turned away are kept for a second, for their clients to read why.
const maxTurnedAway = 64

// turnAway ends a connection that there is no place for. Without TLS, its client is told why.
func (f *front) turnAway(c net.Conn, status, why string) {
	if f.tls != nil || f.turnedAway.Add(1) > maxTurnedAway {
		if f.tls == nil {
			f.turnedAway.Add(-1)
		}
		_ = c.Close()
		return
	}
	f.workers.Go(func() {
		defer f.turnedAway.Add(-1)
		defer c.Close()
		stop := context.AfterFunc(f.ctx, func() { _ = c.Close() })
		defer stop()
		_ = c.SetDeadline(time.Now().Add(time.Second))
		_, _ = fmt.Fprintf(c, "HTTP/1.1 %s\r\nContent-Type: text/plain; charset=utf-8\r\nRetry-After: 10\r\nConnection: close\r\n\r\n%s\n", status, why)
		if cw, ok := c.(interface{ CloseWrite() error }); ok {
			_ = cw.CloseWrite()
		}
		_, _ = io.Copy(io.Discard, io.LimitReader(c, 64<<10)) // closing before would drop the answer
	})
}

// addrOf returns the address in a, or the zero Addr if it is none of IP.
func addrOf(a net.Addr) netip.Addr {
	p, _ := netip.ParseAddrPort(a.String())
	return p.Addr().Unmap().WithZone("")
}

// guard is what a request needs to know of the connection that it came by.
type guard interface {
	Pass()
	Refused() bool
}

type guardKey struct{}

// misframed reports whether the client of r broke the rules of framing in its body.
func misframed(r *http.Request) bool {
	g, ok := r.Context().Value(guardKey{}).(guard)
	return ok && g.Refused()
}

// misframed2 reports what net/http lets pass of HTTP/2 although an upstream might read it differently. Over HTTP/1, the guard
// has refused it.
func misframed2(r *http.Request) bool {
	if v := r.Header["Content-Length"]; len(v) > 1 || len(v) == 1 && v[0] != strconv.FormatInt(r.ContentLength, 10) {
		return true
	}
	for name, values := range r.Header {
		switch name {
		case "Content_length", "Content_Length", "Transfer_encoding", "Transfer_Encoding":
			return true
		case "Host":
			if len(values) != 1 || !strings.EqualFold(values[0], r.Host) {
				return true
			}
		}
	}
	return false
}

// looksLikeHTTP reports whether the first bytes of what should be TLS are those of a request.
func looksLikeHTTP(first [5]byte) bool {
	switch string(first[:]) {
	case "GET /", "HEAD ", "POST ", "PUT /", "OPTIO", "DELET", "PATCH", "TRACE":
		return true
	}
	return false
}

// refusedFraming notes a message that was refused before it became a request.
func (g *Gateway) refusedFraming(err error) {
	g.rejected.Add(1)
	g.rejections.framing.Add(1)
	g.config.Logger.Debug("request refused", "err", err)
}
