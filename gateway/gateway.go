// Package gateway is a reverse proxy for applications that keep sessions: it sends a client's requests to the
// same upstream where that is wanted, and never lets a client depend on an upstream that is gone.
//
// An upstream that refuses a connection is left at once, in the same request, and the client's affinity cookie is
// rewritten in the answer. A request that may have reached an upstream is repeated only if its method is
// idempotent and its body can be sent again. One that accepts connections but does not answer is left, too, after one
// request has paid for it; health checks find out before. docs/gateway.md has the tables.
//
//	g, err := gateway.New(gateway.Config{
//		Upstreams: []gateway.Upstream{{ID: "a", URL: "http://10.0.0.1:3000"}, {ID: "b", URL: "http://10.0.0.2:3000"}},
//		Affinity:  gateway.AffinityCookie,
//		Key:       key,
//	})
//	...
//	err = g.Run(ctx, listener)
package gateway

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Gateway is the reverse proxy, an http.Handler. Run serves it with timeouts and a graceful end.
type Gateway struct {
	config Config // of New; what Reload may change is in the table
	table  atomic.Pointer[table]
	proxy  *httputil.ReverseProxy
	queue  queue
	hop    []string // the value of hopHeader; not to be changed

	ejecting sync.Mutex // so that no more are ejected than may be

	// mu guards the fields below, and every change of table.
	mu         sync.Mutex
	watchers   watchers
	resolved   map[string][]netip.Addr   // by name, in order
	unresolved map[string]bool           // names whose last look-up failed
	weights    map[string]int            // by ID, that are not those of the configuration
	leaving    map[*upstream]*time.Timer // not in the table any more; the timer cuts them off
	listening  map[net.Listener]bool

	requests, unavailable, failed, rejected atomic.Uint64

	seats      seats
	rejections rejections

	certificates *certificates // or nil
	access       *accessLog    // or nil
}

// New returns a Gateway, or everything that is wrong with c. It connects to nothing.
func New(c Config) (*Gateway, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	c = c.withDefaults().clone()
	g := &Gateway{config: c, hop: []string{rand.Text()}, seats: seats{total: c.MaxConnections, perClient: c.MaxConnectionsPerClient}}
	var err error
	if g.certificates, err = loadCertificates(c); err != nil {
		return nil, err
	}
	g.access = newAccessLog(c)
	t, err := g.build(c, nil)
	if err != nil {
		return nil, err
	}
	g.table.Store(t)
	g.proxy = &httputil.ReverseProxy{
		Rewrite:        g.rewrite,
		Transport:      forwarder{g},
		ModifyResponse: g.answer,
		ErrorHandler:   g.fail,
		ErrorLog:       slog.NewLogLogger(c.Logger.Handler(), slog.LevelDebug), // broken off copies
		BufferPool:     &copies,
	}
	return g, nil
}

// ServeHTTP passes r on to an upstream.
func (g *Gateway) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	g.requests.Add(1)
	if s := serverOf(r.Context()); s != nil {
		s.handlers.Add(1)
		defer s.handlers.Done()
	}
	x := &exchange{gateway: g, in: r, began: time.Now(), table: g.table.Load()}
	x.writer = clientWriter{ResponseWriter: w, timeout: g.config.WriteTimeout, http2: r.ProtoMajor == 2}
	w = &x.writer
	x.origin = x.table.config.originOf(r)
	x.id = requestID(r, &x.origin)
	defer g.over(x)
	defer x.writer.end()
	status, why := g.refuse(r, &x.table.config)
	if status == 0 && g.beenHere(r) {
		status, why = http.StatusLoopDetected, "This request has been here before: the address of a server behind this gateway leads back to the gateway."
		w.Header()[hopHeader] = g.hop
	}
	if status != 0 {
		g.rejected.Add(1)
		x.status = status
		refuseReferrer(w.Header())
		http.Error(w, why, status)
		return
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	x.cancel = cancel
	ctx = context.WithValue(ctx, exchangeKey{}, x)
	r = r.WithContext(ctx)
	x.in = r
	if r.Body != nil && r.Body != http.NoBody {
		x.clientBody = x.table.config.newClientBody(w, r)
		r.Body = x.clientBody
		defer x.clientBody.end()
	}
	g.proxy.ServeHTTP(w, r)
	if x.duplex {
		// Or http.Server reads the rest when it no longer expects to, and panics (golang.org/issue/68560). The client
		// may be waiting for the answer, so that goes out first.
		_ = http.NewResponseController(w).Flush()
		_ = r.Body.Close()
	}
}

// refuse says which requests are not for a reverse proxy, and which are beyond the limits.
func (g *Gateway) refuse(r *http.Request, c *Config) (status int, why string) {
	switch {
	case r.Method == http.MethodConnect:
		return http.StatusNotImplemented, "CONNECT is not supported."
	case r.URL.Opaque != "" || r.URL.User != nil || !strings.HasPrefix(r.URL.Path, "/") && r.URL.Host == "":
		return http.StatusBadRequest, "The request target is not a path."
	case r.ProtoMajor == 2 && misframed2(r):
		g.rejections.framing.Add(1)
		return http.StatusBadRequest, "What the request says about its length or host contradicts itself."
	case c.tooLargeHeader(r):
		g.rejections.headers.Add(1)
		return http.StatusRequestHeaderFieldsTooLarge, "The request has too large a header, or too many headers or cookies. Deleting this site's cookies may help."
	case c.MaxBodyBytes > 0 && r.ContentLength > c.MaxBodyBytes:
		g.rejections.body.Add(1)
		return http.StatusRequestEntityTooLarge, "The request is too large."
	}
	return 0, ""
}

// answer looks at the header of an upstream's answer before it goes to the client.
func (g *Gateway) answer(res *http.Response) error {
	ctx := res.Request.Context()
	x := exchangeOf(ctx)
	x.status = res.StatusCode
	if res.StatusCode == http.StatusSwitchingProtocols &&
		!strings.EqualFold(res.Header.Get("Upgrade"), res.Request.Header.Get("Upgrade")) {
		return fmt.Errorf("upstream %s switched to a protocol that it was not asked for", x.served.id)
	}
	if x.in.ProtoMajor == 1 && x.body.streaming() {
		// By default http.Server takes up to 256 KiB of the body away before it writes a header.
		x.duplex = http.NewResponseController(&x.writer).EnableFullDuplex() == nil
	}
	cookies := len(res.Header["Set-Cookie"])
	x.table.affinity.answered(x.in, x.served, res)
	x.bound = len(res.Header["Set-Cookie"]) > cookies
	if endless(res) && res.StatusCode != http.StatusSwitchingProtocols {
		res.Body = &eventStream{res.Body, x.served, serverOf(ctx)}
	}
	if _, small := res.Body.(*smallBody); !small && !endless(res) {
		g.watchBody(x, res)
	}
	if s := serverOf(ctx); s != nil {
		s.watch(x, res)
	}
	return nil
}

// fail answers a request that no upstream answered.
func (g *Gateway) fail(w http.ResponseWriter, r *http.Request, err error) {
	x := exchangeOf(r.Context())
	logger, level, why := g.config.Logger, slog.LevelDebug, ""
	switch {
	case errors.Is(err, errClientGone):
		x.status = 499 // nobody reads it; known from nginx
	case errors.Is(err, errBodyTooLarge):
		g.rejected.Add(1)
		g.rejections.body.Add(1)
		x.status, why = http.StatusRequestEntityTooLarge, "The request is too large."
	case errors.Is(err, errBodyTooSlow):
		g.rejected.Add(1)
		g.rejections.slow.Add(1)
		x.status, why = http.StatusRequestTimeout, "The request came too slowly."
		w.Header().Set("Connection", "close")
	case errors.Is(err, errBadRequest):
		if !misframed(x.in) { // which was counted
			g.rejected.Add(1)
		}
		x.status, why = http.StatusBadRequest, "The request could not be read to its end."
	case errors.Is(err, errUnreachable):
		g.unavailable.Add(1)
		x.status, why = http.StatusServiceUnavailable, "No server can be reached at the moment. Please try again in a few seconds."
		w.Header().Set("Retry-After", "1")
	case errors.Is(err, errFull):
		g.unavailable.Add(1)
		x.status, why = http.StatusServiceUnavailable, "All servers are busy at the moment. Please try again in a few seconds."
		w.Header().Set("Retry-After", strconv.Itoa(int(max(x.table.config.QueueTimeout.Round(time.Second)/time.Second, 1))))
	case errors.Is(err, errLoop):
		g.failed.Add(1)
		level = slog.LevelWarn
		x.status, why = http.StatusLoopDetected, "The address of a server behind this gateway leads back to the gateway."
	case timeout(err):
		g.failed.Add(1)
		level = slog.LevelWarn
		x.status, why = http.StatusGatewayTimeout, "The server did not answer in time. It may or may not have done what was asked."
	default:
		g.failed.Add(1)
		level = slog.LevelWarn
		x.status, why = http.StatusBadGateway, "The server broke off before it answered. It may or may not have done what was asked."
	}
	logger.Log(r.Context(), level, "request not answered",
		"status", x.status, "method", r.Method, "path", pathOf(x.in), "attempts", x.attempts, "err", err)
	if why == "" {
		// Or a client that is there all the same, when the gateway ends, takes it for an answer.
		if r.Context().Value(http.ServerContextKey) != nil {
			panic(http.ErrAbortHandler)
		}
		w.WriteHeader(x.status)
		return
	}
	refuseReferrer(w.Header())
	w.Header().Set("Cache-Control", "no-store")
	http.Error(w, why, x.status)
}

// refuseReferrer keeps the address of a page of the gateway's own, which may hold a token, from what the page leads to.
func refuseReferrer(h http.Header) { h.Set("Referrer-Policy", "no-referrer") }

func (g *Gateway) over(x *exchange) {
	x.hold(nil)
	if x.unwatch != nil {
		x.unwatch()
	}
	if g.config.OnRequest == nil && g.access == nil {
		return
	}
	r := x.request()
	if g.access != nil {
		g.access.add(&entry{r, referrerOf(x.in), x.in.UserAgent()})
	}
	if g.config.OnRequest != nil {
		g.config.OnRequest(r)
	}
}

// UpstreamStats is the state of an upstream, in JSON as the admin API shows it.
type UpstreamStats struct {
	ID  string `json:"id"`
	URL string `json:"url"`
	// Up says that State is StateUp.
	Up    bool  `json:"-"`
	State State `json:"state"`
	// DrainUntil is when it has to be empty, while State is StateDraining.
	DrainUntil time.Time `json:"drain_until,omitzero"`
	// Weight and Zone are those of the configuration.
	Weight int    `json:"weight"`
	Zone   string `json:"zone,omitempty"`
	// Active counts the requests that it has now.
	Active int `json:"active"`
	// MaxRequests is that of the configuration, Waiting counts the requests that wait for a place at it.
	MaxRequests int `json:"max_requests,omitempty"`
	Waiting     int `json:"waiting"`
	// Requests counts its answers, Failures attempts that brought none, Repeats those that were repeated.
	Requests uint64 `json:"requests"`
	Failures uint64 `json:"failures"`
	Repeats  uint64 `json:"repeats"`
	// Ejections counts how often it was ejected, Checks its health checks, FailedChecks those that failed.
	Ejections    uint64 `json:"ejections"`
	Checks       uint64 `json:"checks"`
	FailedChecks uint64 `json:"failed_checks"`
}

// Upstreams returns the state of every upstream, in the order of the configuration.
func (g *Gateway) Upstreams() []UpstreamStats {
	upstreams := g.table.Load().upstreams
	all := make([]UpstreamStats, len(upstreams))
	for i, u := range upstreams {
		state, until := u.state()
		all[i] = UpstreamStats{
			ID: u.id, URL: urlText(u.url), Up: state == StateUp, State: state, DrainUntil: until,
			Weight: u.weight, Zone: u.zone, Active: int(u.active.Load()),
			Requests: u.requests.Load(), Failures: u.failures.Load(), Repeats: u.repeats.Load(),
			MaxRequests: int(u.maxRequests), Waiting: int(u.waiting.Load()),
			Ejections: u.ejections.Load(), Checks: u.checks.Load(), FailedChecks: u.failedChecks.Load(),
		}
	}
	return all
}

// Stats counts since New.
type Stats struct {
	// Requests counts all; Unavailable those answered 503 because no upstream could be reached or had room, Failed those
	// answered 502 or 504, Rejected those answered 4xx by the gateway itself.
	Requests, Unavailable, Failed, Rejected uint64
	// Rejections are by why, those of connections included, which are not in Rejected.
	Rejections Rejections
	// Connections are those of clients now.
	Connections int
	// AccessLogDropped counts lines of the access log that were dropped.
	AccessLogDropped uint64
	// Waiting is how many wait for a place at an upstream now.
	Waiting   int
	Upstreams []UpstreamStats
	Learned   LearnedStats
}

// Stats returns the counters.
func (g *Gateway) Stats() Stats {
	var dropped uint64
	if g.access != nil {
		dropped = g.access.dropped.Load()
	}
	return Stats{
		Requests: g.requests.Load(), Unavailable: g.unavailable.Load(), Failed: g.failed.Load(), Rejected: g.rejected.Load(),
		Rejections: g.rejections.stats(), Connections: g.seats.count(), AccessLogDropped: dropped, Waiting: int(g.queue.waiting.Load()),
		Upstreams: g.Upstreams(), Learned: learnedStats(g.table.Load().affinity),
	}
}

// Close closes idle connections to upstreams. Run does so at its end; only who serves the Gateway in another way
// needs it. Requests in flight go on.
func (g *Gateway) Close() error {
	for _, u := range g.table.Load().upstreams {
		u.transport.CloseIdleConnections()
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for u := range g.leaving {
		u.transport.CloseIdleConnections()
	}
	return nil
}

// buffers are for copying bodies.
type buffers struct{ pool sync.Pool }

var copies buffers

const bufferSize = 32 << 10

func (b *buffers) Get() []byte {
	if p, ok := b.pool.Get().(*[bufferSize]byte); ok {
		return p[:]
	}
	return make([]byte, bufferSize)
}

func (b *buffers) Put(p []byte) { b.pool.Put((*[bufferSize]byte)(p)) }
