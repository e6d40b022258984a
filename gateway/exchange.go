package gateway

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/http/httputil"
	"time"
)

// maxRepeats bounds how often one request is sent again after a connection broke under it. Failed connects are
// not counted: each upstream is tried once.
const maxRepeats = 3

// How a request ends without an answer from an upstream. Any other error means that the upstream failed when it
// may have had the request.
var (
	errUnreachable = errors.New("no upstream can be reached")
	errClientGone  = errors.New("client went away")
	errBadRequest  = errors.New("bad request")
	errLoop        = errors.New("it leads back to this gateway")
	errCut         = errors.New("upstream is out of service")
)

// exchange is one request and what becomes of it.
type exchange struct {
	gateway    *Gateway
	in         *http.Request
	writer     clientWriter
	origin     origin
	id         string    // of the request
	forwarded  [4]string // values of headers for upstreams, in one place
	cancel     context.CancelFunc
	unwatch    func() bool // undoes server.watch, or nil
	began      time.Time
	table      *table      // of when the request came
	served     *upstream   // that answered
	holds      *upstream   // that counts this request among those it has now
	body       *replay     // of the request, or nil
	clientBody *clientBody // what body reads from, or nil
	duplex     bool        // the answer begins while the client is still sending, over HTTP/1
	attempts   int
	bound      bool          // the answer binds the client to served
	answeredIn time.Duration // from the beginning of the last attempt until the header of its answer
	status     int

	attempt attempt
	known   known // what the affinity found out about the client
}

// attempt is what the transport did with a request, as it tells on the goroutine that sends.
type attempt struct {
	asked  int // for a connection; if not, the request itself was refused
	conn   *conn
	mark   int64  // what had been sent on conn before
	reused bool   // conn
	sent   bool   // bytes of the request, on an earlier connection
	giveUp func() // or nil
}

// maxAsked is how many connections of HTTP/2 one attempt may use. The transport itself would go on for ever with an
// upstream that resets each stream for a breach of protocol.
const maxAsked = 4

var errAsked = errors.New("breaks every connection of HTTP/2")

// mayHaveArrived reports whether any of the request was sent.
func (a *attempt) mayHaveArrived() bool {
	return a.sent || a.conn != nil && a.conn.sent.Load() != a.mark
}

// ask notes that a connection is asked for. http.Transport itself repeats some requests on another one.
func (a *attempt) ask() {
	a.sent = a.mayHaveArrived()
	a.conn = nil
	if a.asked++; a.asked > maxAsked && a.giveUp != nil {
		a.giveUp()
	}
}

// got notes which connection there is.
func (a *attempt) got(nc net.Conn, reused bool) {
	c, _ := trackedConn(nc)
	a.conn, a.mark, a.reused = c, c.sent.Load(), reused
}

func (a *attempt) trace() *httptrace.ClientTrace {
	return &httptrace.ClientTrace{
		GetConn: func(string) { a.ask() },
		GotConn: func(info httptrace.GotConnInfo) {
			a.got(info.Conn, info.Reused)
			if _, secure := trackedConn(info.Conn); info.WasIdle && stale(a.conn.Conn, secure) {
				_ = a.conn.Conn.Close() // nothing can be written on it: the request is not lost
			}
		},
	}
}

type exchangeKey struct{}

func exchangeOf(ctx context.Context) *exchange { return ctx.Value(exchangeKey{}).(*exchange) }

// forwarder is the transport of the ReverseProxy. It picks an upstream, and goes on to others while that does no
// harm.
type forwarder struct{ *Gateway }

func (g forwarder) RoundTrip(req *http.Request) (*http.Response, error) {
	ctx := req.Context()
	x := exchangeOf(ctx)
	body := newReplay(req, x.in.Trailer, x.table.config.trailerNames(x.in.Trailer))
	x.body = body
	var tried []*live
	u, err := x.next(ctx, nil)
	if err == nil && u == nil {
		err = errUnreachable
	}
	if err != nil {
		return nil, x.orGone(ctx, err)
	}
	x.hold(u)
	for repeats := 0; ; {
		began := x.table.clock.now()
		res, err := x.send(u, req, body)
		if err == nil {
			if !g.looped(res) {
				x.served, x.answeredIn = u, x.table.clock.now()-began
				g.answered(x.table, u, res.StatusCode)
				return res, nil
			}
			_ = res.Body.Close()
			err = errLoop
		}
		a := &x.attempt
		switch {
		case x.clientFault() != nil:
			return nil, fmt.Errorf("%w: %w", x.clientFault(), err)
		case ctx.Err() != nil:
			return nil, x.orGone(ctx, err)
		case body.clientError() != nil || a.asked == 0:
			return nil, fmt.Errorf("%w: %w", errBadRequest, err)
		}
		loop := errors.Is(err, errLoop)
		unconnected := a.conn == nil
		g.attemptFailed(x.table, u, a, began, err)
		err = fmt.Errorf("upstream %s: %w", u.id, err)
		if a.mayHaveArrived() && !repeatable(req, a) && !loop || !body.rewindable() {
			return nil, err
		}
		if !unconnected && !loop {
			if repeats++; repeats > maxRepeats {
				return nil, err
			}
		}
		if !unconnected && !loop && a.reused && !timeout(err) && !u.isCut() {
			// The connection was an old one, which says nothing about the upstream: try it on a new one.
			u.transport.CloseIdleConnections()
			u.repeats.Add(1)
			continue
		}
		tried = append(tried, u.live)
		next, full := x.next(ctx, tried)
		switch {
		case full != nil:
			return nil, x.orGone(ctx, full)
		case next == nil && unconnected:
			return nil, fmt.Errorf("%w: %w", errUnreachable, err)
		case next == nil:
			return nil, err
		}
		u.repeats.Add(1)
		u = next
		x.hold(u)
	}
}

// orGone returns err, or that the client went away if it did.
func (x *exchange) orGone(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("%w: %w", errClientGone, err)
	}
	return err
}

// send makes one attempt.
func (x *exchange) send(u *upstream, req *http.Request, body *replay) (*http.Response, error) {
	x.attempts++
	x.attempt = attempt{}
	ctx := req.Context()
	if u.http2 {
		given, giveUp := context.WithCancelCause(ctx) // ends with the request
		ctx, x.attempt.giveUp = given, func() { giveUp(errAsked) }
	}
	out := req.WithContext(ctx) // a shallow copy
	target := *req.URL
	out.URL = &target
	(&httputil.ProxyRequest{Out: out}).SetURL(u.url)
	out.Host = cmp.Or(req.Host, u.host)
	if body != nil {
		a := body.attempt()
		out.Body, out.Trailer = a, a.trailer
	}
	res, err := u.transport.send(out, &x.attempt)
	if err != nil && context.Cause(ctx) == errAsked {
		err = errAsked
	}
	if err == nil && idempotent(req.Method) {
		err = readSmall(res, req.Method)
	}
	return res, err
}

// readSmall reads the body of a small answer, so that an upstream that dies over it can be replaced.
func readSmall(res *http.Response, method string) error {
	n := res.ContentLength
	if n <= 0 || n > maxReplay || method == http.MethodHead || res.StatusCode == http.StatusSwitchingProtocols {
		return nil
	}
	defer res.Body.Close()
	b := &smallBody{}
	if n <= bufferSize {
		b.pooled = copies.Get()
		b.rest = b.pooled[:n]
	} else {
		b.rest = make([]byte, n)
	}
	if _, err := io.ReadFull(res.Body, b.rest); err != nil {
		_ = b.Close() // of nothing
		return fmt.Errorf("read answer: %w", err)
	}
	res.Body = b
	return nil
}

// smallBody is the body of an answer that was read already. It is used by one goroutine.
type smallBody struct {
	rest   []byte
	pooled []byte // what rest is part of, to be put back; or nil
}

func (b *smallBody) Read(p []byte) (int, error) {
	n := copy(p, b.rest)
	b.rest = b.rest[n:]
	if len(b.rest) == 0 {
		return n, io.EOF
	}
	return n, nil
}

func (b *smallBody) Close() error {
	if b.pooled != nil {
		copies.Put(b.pooled)
	}
	b.rest, b.pooled = nil, nil
	return nil
}

// repeatable reports whether a request may be sent again that may have arrived. Of one with an Idempotency-Key, the client says
// that it may; that is believed where an old connection broke, as net/http does.
func repeatable(r *http.Request, a *attempt) bool {
	return idempotent(r.Method) || a.reused && (r.Header["Idempotency-Key"] != nil || r.Header["X-Idempotency-Key"] != nil)
}

// idempotent reports whether a request may be repeated when it is not known whether it arrived (RFC 9110, 9.2.2).
func idempotent(method string) bool {
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace, http.MethodPut, http.MethodDelete:
		return true
	}
	return false
}

func timeout(err error) bool {
	var t net.Error
	return errors.As(err, &t) && t.Timeout()
}
