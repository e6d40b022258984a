package gateway

import (
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// maxCookies is how many cookies a request may carry. Browsers keep 180 for a site; with more than 3000, Go's
// http.Request.Cookies is silently empty, which looks like a logout.
const maxCookies = 1000

func (c *Config) withLimitDefaults() {
	def := func(n *int, v int) {
		if *n == 0 {
			*n = v
		}
	}
	def(&c.MaxHeaderBytes, 64<<10)
	def(&c.MaxHeaders, 200)
	def(&c.MinBodyRate, 500)
	if c.BodyTimeout == 0 {
		c.BodyTimeout = 30 * time.Second
	}
}

func (c Config) validateLimits(bad badFunc) {
	for _, n := range []struct {
		field, name string
		n           int64
	}{
		{"MaxHeaderBytes", "max header bytes", int64(c.MaxHeaderBytes)},
		{"MaxHeaders", "max headers", int64(c.MaxHeaders)},
		{"MaxBodyBytes", "max body bytes", c.MaxBodyBytes},
		{"MaxConnections", "max connections", int64(c.MaxConnections)},
		{"MaxConnectionsPerClient", "max connections per client", int64(c.MaxConnectionsPerClient)},
	} {
		if n.n < 0 {
			bad(n.field, "%s %d is negative", n.name, n.n)
		}
	}
}

// Rejections counts what the gateway refused to do for clients, by why.
type Rejections struct {
	// Framing counts messages that two programs might read differently, 400.
	Framing uint64
	// Headers counts requests with too many or too large headers or too many cookies, 431. Those larger than twice
	// Config.MaxHeaderBytes are refused by net/http, and not counted.
	Headers uint64
	// Body counts requests whose body is too large, 413.
	Body uint64
	// Slow counts requests whose body came too slowly, 408.
	Slow uint64
	// Connections counts connections beyond Config.MaxConnections, 503, and PerClient those beyond
	// Config.MaxConnectionsPerClient, 429.
	Connections, PerClient uint64
}

// rejections are the counters behind Rejections.
type rejections struct {
	framing, headers, body, slow, connections, perClient atomic.Uint64
}

func (r *rejections) stats() Rejections {
	return Rejections{
		Framing: r.framing.Load(), Headers: r.headers.Load(), Body: r.body.Load(), Slow: r.slow.Load(),
		Connections: r.connections.Load(), PerClient: r.perClient.Load(),
	}
}

// tooLargeHeader reports whether a header is beyond the limits.
func (c *Config) tooLargeHeader(r *http.Request) bool {
	n, bytes, cookies := 0, len(r.RequestURI)+len(r.Host), 0
	for name, values := range r.Header {
		n += len(values)
		for _, v := range values {
			bytes += len(name) + len(v) + len(": \r\n")
		}
		if name == "Cookie" {
			cookies += len(values)
			for _, v := range values {
				cookies += strings.Count(v, ";")
			}
		}
	}
	return n > c.MaxHeaders || bytes > c.MaxHeaderBytes || cookies > maxCookies
}

// serverHeaderBytes is what http.Server may read of a header: more than is allowed, so that it is the gateway that refuses
// it, and counts that.
func (g *Gateway) serverHeaderBytes() int { return 2 * g.config.MaxHeaderBytes }

// bodyError is how a client's body ends the request: by the status of the answer.
type bodyError int32

const (
	errBodyTooLarge bodyError = http.StatusRequestEntityTooLarge
	errBodyTooSlow  bodyError = http.StatusRequestTimeout
)

func (e bodyError) Error() string {
	if e == errBodyTooLarge {
		return "request body is too large"
	}
	return "request body came too slowly"
}

// clientBody is the body of a request, which must not be too large and must not come too slowly.
//
// A client may keep the gateway waiting for Config.BodyTimeout. Each byte that it sends gives it 1/MinBodyRate of a
// second back, up to BodyTimeout. The time in which nobody asks for the body does not count.
type clientBody struct {
	src       io.ReadCloser
	control   *http.ResponseController
	limit     int64         // bytes; 0: none
	patience  time.Duration // at most; negative: without end
	perByte   time.Duration // 0: no lower bound of the rate
	remaining time.Duration // of the patience
	timer     *time.Timer   // of a Read that waits
	n         atomic.Int64  // bytes read
	fault     atomic.Int32  // a bodyError, or 0
	ended     atomic.Bool   // read to its end, or as far as it goes

	// mu guards the fields below, and is held to set deadlines: after the request, the connection is another's.
	mu      sync.Mutex
	reading bool
	expired bool // a deadline in the past is set
	over    bool // the request
}

func (c *Config) newClientBody(w http.ResponseWriter, r *http.Request) *clientBody {
	b := &clientBody{src: r.Body, control: http.NewResponseController(w), limit: c.MaxBodyBytes, patience: c.BodyTimeout, remaining: c.BodyTimeout}
	if c.MinBodyRate > 0 {
		b.perByte = time.Second / time.Duration(c.MinBodyRate)
	}
	return b
}

func (b *clientBody) Read(p []byte) (int, error) {
	if err := b.failed(); err != nil {
		return 0, err
	}
	began := time.Now()
	b.await()
	n, err := b.src.Read(p)
	b.came()
	total := b.n.Add(int64(n))
	b.remaining = min(b.patience, b.remaining-time.Since(began)+time.Duration(n)*b.perByte)
	b.ended.Store(err != nil)
	var timeout net.Error
	switch {
	case b.limit > 0 && total > b.limit:
		b.fault.Store(int32(errBodyTooLarge))
		return 0, errBodyTooLarge
	case errors.As(err, &timeout) && timeout.Timeout():
		b.fault.Store(int32(errBodyTooSlow))
		return n, errBodyTooSlow
	}
	return n, err
}

// await begins to wait for the client. A deadline would be simpler, but HTTP/2 ends the body at one also while nobody reads.
func (b *clientBody) await() {
	if b.patience < 0 {
		return
	}
	b.mu.Lock()
	b.reading = true
	b.mu.Unlock()
	if b.timer == nil {
		b.timer = time.AfterFunc(b.remaining, b.expire)
	} else {
		b.timer.Reset(b.remaining)
	}
}

func (b *clientBody) came() {
	if b.patience < 0 {
		return
	}
	b.timer.Stop()
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.reading = false; b.expired && !b.over {
		// It came at the last moment. http.Server would take the deadline for the client's end.
		_ = b.control.SetReadDeadline(time.Time{})
	}
}

func (b *clientBody) expire() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.reading && !b.over {
		b.expired = true
		_ = b.control.SetReadDeadline(time.Unix(1, 0))
	}
}

// Close closes the client's body. http.Server may read a part of what is left first, and waits for no longer than Read.
func (b *clientBody) Close() error {
	b.bound()
	return b.src.Close()
}

// end says that the request is over. What is left of the body is for http.Server.
func (b *clientBody) end() {
	b.bound()
	b.mu.Lock()
	defer b.mu.Unlock()
	b.over = true
}

// bound sets a deadline for what http.Server reads itself.
func (b *clientBody) bound() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.patience >= 0 && !b.over && !b.ended.Load() {
		_ = b.control.SetReadDeadline(time.Now().Add(b.patience))
	}
}

// failed returns how the body ended the request, or nil.
func (b *clientBody) failed() error {
	if b == nil || b.fault.Load() == 0 {
		return nil
	}
	return bodyError(b.fault.Load())
}

// clientFault returns why nothing more is taken from the client, or nil. To net/http, that looks as if the client had
// gone away.
func (x *exchange) clientFault() error {
	if misframed(x.in) {
		return errBadRequest
	}
	return x.clientBody.failed()
}

// seats counts the connections of clients.
type seats struct {
	total, perClient int // at most; 0: any number

	// mu guards the fields below.
	mu      sync.Mutex
	taken   int
	clients map[netip.Addr]int
}

// take takes a place for a connection, of any client.
func (s *seats) take() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.total > 0 && s.taken >= s.total {
		return false
	}
	s.taken++
	return true
}

// takeFor takes one more connection for a client. It comes after take.
func (s *seats) takeFor(client netip.Addr) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.clients[client] >= s.perClient {
		return false
	}
	if s.clients == nil {
		s.clients = make(map[netip.Addr]int)
	}
	s.clients[client]++
	return true
}

func (s *seats) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.taken
}

// leave undoes take, and takeFor if client is valid.
func (s *seats) leave(client netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.taken--
	if !client.IsValid() {
		return
	}
	if s.clients[client]--; s.clients[client] == 0 {
		delete(s.clients, client)
	}
}
