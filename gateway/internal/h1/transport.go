// Package h1 sends requests without a body to one server over plain HTTP/1.1, and does so in the goroutine of the caller.
//
// http.Transport has two goroutines for each connection, so that it can send and receive at once, speak TLS, wait for
// 100-continue, and switch protocols. Most requests through a proxy need none of that, and pay for it: the hand-overs
// between three goroutines are a quarter of the CPU that a request costs (docs/BENCHMARKS.md). For the others, take http.Transport.
//
// Requests are written, and answers read, by net/http. What is here is the pool of idle connections, deadlines, and the
// end of a request by its context.
package h1

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"sync"
	"time"
)

// Transport sends requests to one server. Its fields must be set before the first request.
type Transport struct {
	// Dial connects to the server.
	Dial func(ctx context.Context) (net.Conn, error)
	// Stale reports whether the server has closed an idle connection, or sent something that nobody asked for. Such a one is not used.
	Stale func(net.Conn) bool
	// ResponseHeaderTimeout is from the end of the request until the header of its answer is there. 0: no limit.
	ResponseHeaderTimeout time.Duration
	// MaxIdle is how many connections are kept for further requests, IdleTimeout for how long.
	MaxIdle     int
	IdleTimeout time.Duration
	// MaxResponseHeaderBytes bounds the header of an answer.
	MaxResponseHeaderBytes int64

	mu sync.Mutex

	// mu guards the fields below.
	idle  []*conn // those that were used last are at the end
	timer *time.Timer
}

// Takes reports whether Send can send r: it has no body, expects nothing, and does not switch protocols.
func Takes(r *http.Request) bool {
	return (r.Body == nil || r.Body == http.NoBody) && r.Header["Upgrade"] == nil && r.Header["Expect"] == nil &&
		r.Method != http.MethodConnect
}

// A conn is a connection to the server, used by one request at a time.
type conn struct {
	net.Conn
	transport *Transport
	limit     io.LimitedReader // of Conn; of the header of an answer
	r         *bufio.Reader
	w         *bufio.Writer
	since     time.Time // idle
}

// errSwitched is for a server that switches protocols without having been asked to.
var errSwitched = errors.New("server switched protocols, which the request did not ask for")

// Send sends r and returns its answer. r must be one that Takes accepts; its URL's host is not looked at. It calls got once it
// has a connection, and of httptrace the hook Got1xxResponse. It never repeats a request: if the server closes an idle
// connection just when it is used, that is an error like any other.
func (t *Transport) Send(r *http.Request, got func(c net.Conn, reused bool)) (*http.Response, error) {
	ctx := r.Context()
	c, reused, err := t.connection(ctx)
	if err != nil {
		return nil, err
	}
	got(c.Conn, reused)
	// A deadline in the past ends what is waiting for the connection.
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	res, err := c.send(r)
	if err != nil {
		stop()
		_ = c.Close() // it is of no more use
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return nil, err
	}
	b := &body{ReadCloser: res.Body, conn: c, ctx: ctx, stop: stop, keep: !res.Close && !r.Close}
	if res.Body == http.NoBody {
		b.over(io.EOF)
	} else {
		res.Body = b
	}
	return res, nil
}

func (c *conn) send(r *http.Request) (*http.Response, error) {
	if err := r.Write(c.w); err != nil {
		return nil, err
	}
	if err := c.w.Flush(); err != nil {
		return nil, err
	}
	limited := c.transport.ResponseHeaderTimeout > 0
	if limited {
		if err := c.readUntil(r.Context(), time.Now().Add(c.transport.ResponseHeaderTimeout)); err != nil {
			return nil, err
		}
	}
	for {
		c.limit.N = c.transport.MaxResponseHeaderBytes
		res, err := http.ReadResponse(c.r, r)
		switch {
		case err != nil && c.limit.N <= 0:
			return nil, fmt.Errorf("header of the answer is larger than %d bytes", c.transport.MaxResponseHeaderBytes)
		case errors.Is(err, io.EOF):
			return nil, io.ErrUnexpectedEOF
		case err != nil:
			return nil, err
		case res.StatusCode == http.StatusSwitchingProtocols:
			return nil, errSwitched
		case res.StatusCode < 200:
			if trace := httptrace.ContextClientTrace(r.Context()); trace != nil && trace.Got1xxResponse != nil {
				if err := trace.Got1xxResponse(res.StatusCode, textproto.MIMEHeader(res.Header)); err != nil {
					return nil, err
				}
			}
			continue
		}
		c.limit.N = math.MaxInt64
		// Of an answer that is here already nothing more is waited for, and the next request sets a deadline of its own.
		if here := int64(c.r.Buffered()); limited && (res.ContentLength < 0 || res.ContentLength > here) {
			err = c.readUntil(r.Context(), time.Time{})
		}
		return res, err
	}
}

// readUntil sets the deadline for reading, and not over the one of a context that has ended.
func (c *conn) readUntil(ctx context.Context, deadline time.Time) error {
	_ = c.SetReadDeadline(deadline) // on a closed connection the next read fails anyway
	return ctx.Err()
}

// body is the body of an answer. At its end the connection becomes idle.
type body struct {
	io.ReadCloser
	conn *conn
	ctx  context.Context
	stop func() bool
	keep bool // the connection, after the whole answer

	mu sync.Mutex

	// mu guards the fields below.
	done bool
	err  error // of Read, once done
}

func (b *body) Read(p []byte) (int, error) {
	if err := b.ended(); err != nil {
		return 0, err
	}
	n, err := b.ReadCloser.Read(p)
	if err != nil {
		if err != io.EOF && b.ctx.Err() != nil {
			err = b.ctx.Err()
		}
		b.over(err)
	}
	return n, err
}

func (b *body) ended() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.err
}

// Close gives up what was not read, and the connection with it. A Read that waits meanwhile returns.
func (b *body) Close() error {
	b.over(errClosed)
	return nil
}

var errClosed = errors.New("read after Close")

// over ends the use of the connection: for good, unless err is io.EOF and nothing else is wrong.
func (b *body) over(err error) {
	b.mu.Lock()
	done := b.done
	if !done {
		b.done, b.err = true, err
	}
	b.mu.Unlock()
	switch {
	case done:
	case b.stop() && b.keep && err == io.EOF && b.conn.r.Buffered() == 0: // stop: or a deadline in the past is or will be set
		b.conn.transport.put(b.conn)
	default:
		_ = b.conn.Close() // it is of no more use
	}
}

// connection returns an idle connection, or a new one.
func (t *Transport) connection(ctx context.Context) (c *conn, reused bool, err error) {
	for {
		c = t.take()
		if c == nil {
			break
		}
		if !t.Stale(c.Conn) {
			return c, true, nil
		}
		_ = c.Close() // by the server already
	}
	nc, err := t.Dial(ctx)
	if err != nil {
		return nil, false, err
	}
	c = &conn{Conn: nc, transport: t, limit: io.LimitedReader{R: nc}}
	c.r, c.w = bufio.NewReader(&c.limit), bufio.NewWriter(nc)
	return c, false, nil
}

// take returns the idle connection that was used last, or nil.
func (t *Transport) take() *conn {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := len(t.idle)
	if n == 0 {
		return nil
	}
	c := t.idle[n-1]
	t.idle[n-1] = nil
	t.idle = t.idle[:n-1]
	return c
}

func (t *Transport) put(c *conn) {
	c.since = time.Now()
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.idle) >= t.MaxIdle {
		_ = c.Close() // one too many
		return
	}
	t.idle = append(t.idle, c)
	if t.timer == nil {
		t.timer = time.AfterFunc(t.IdleTimeout, t.expire)
	}
}

// expire closes what has been idle for too long. It runs for as long as anything is idle.
func (t *Transport) expire() {
	t.mu.Lock()
	defer t.mu.Unlock()
	n, now := 0, time.Now()
	for n < len(t.idle) && now.Sub(t.idle[n].since) >= t.IdleTimeout {
		_ = t.idle[n].Close()
		n++
	}
	t.idle = append(t.idle[:0], t.idle[n:]...)
	clear(t.idle[len(t.idle):cap(t.idle)])
	t.timer = nil
	if len(t.idle) > 0 {
		t.timer = time.AfterFunc(t.IdleTimeout-now.Sub(t.idle[0].since), t.expire)
	}
}

// CloseIdleConnections closes those that no request uses.
func (t *Transport) CloseIdleConnections() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, c := range t.idle {
		_ = c.Close()
	}
	clear(t.idle)
	t.idle = nil
	if t.timer != nil {
		t.timer.Stop()
		t.timer = nil
	}
}
