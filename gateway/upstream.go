package gateway

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/url"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// upstream is an application server as one table knows it. It does not change: when its weight does, the next table
// has another one in its place, with the same live part. Across tables, compare IDs or live parts, not upstreams.
type upstream struct {
	id     string
	url    *url.URL
	host   string // of the URL in the configuration, with the port
	http2  bool   // is allowed
	weight int    // at least 1
	zone   string
	route  string // in session IDs, for AffinityRoute
	// maxRequests is how many requests it gets at once; 0: no limit.
	maxRequests int64
	transport   *transport
	*live
}

// live is what an upstream does at the moment. It lives on over every change of the configuration that leaves the
// upstream its ID and URL.
type live struct {
	name   string // its ID, for the log
	logger *slog.Logger
	clock  clock

	active  atomic.Int64 // requests that it has now, until the last byte of their answers
	waiting atomic.Int64 // requests that wait for it and nobody else
	turn    int64        // of round robin; turns.mu guards it
	heard   atomic.Int64 // when it last sent anything
	since   atomic.Int64 // when it came back, for slow start; 0: it was there from the beginning

	mode atomic.Int32 // a mode
	sick atomic.Bool  // by its health checks
	// out is 0, or the time until which it is left out of everything, after which one request or probe may try it.
	out    atomic.Int64
	why    atomic.Int32  // a reason, of out
	tries  atomic.Int32  // how often in a row it was left out
	probed atomic.Bool   // a watcher tries it when it is out, so requests need not
	streak atomic.Int32  // failures in a row that count towards an ejection
	wake   chan struct{} // tells the watcher that out has changed; holds one

	// mu guards the fields below, and every change of mode, out, why and tries.
	mu       sync.Mutex
	returned time.Duration // when out ended
	drained  *time.Timer   // until the next step of a drain, or nil
	drainEnd time.Time     // that deadline
	conns    map[*conn]struct{}
	cut      bool // conns are closed, and new ones as they come

	requests, failures, repeats, ejections, checks, failedChecks atomic.Uint64
}

func newLive(id string, logger *slog.Logger, c clock) *live {
	return &live{name: id, logger: logger, clock: c, wake: make(chan struct{}, 1), conns: make(map[*conn]struct{})}
}

// mode is what an operator wants of an upstream.
type mode int32

const (
	ready       mode = iota
	draining         // only clients that belong to it, until a deadline
	maintenance      // no requests
	removed          // not in the configuration any more
)

// reason is why an upstream is left out.
type reason int

const (
	refused reason = iota // a connect failed
	silent                // it sent nothing at all for as long as a request may wait
	failing               // too many failures in a row
	looping               // it leads back to this gateway
)

// String completes "upstream ...".
func (r reason) String() string {
	return [...]string{"cannot be connected", "sends nothing", "fails", "leads back to this gateway"}[r]
}

// An upstream that refused a connection is left out for a while: 250 ms after the first failure, twice as long
// after each further one, at most 10 s.
const (
	backoffMin = 250 * time.Millisecond
	backoffMax = 10 * time.Second
)

// backoff returns how long to leave an upstream out for the nth time: shortest × 2^(n-1), at most longest, and of
// that a random time between half and all, so that several gateways do not come back at once.
func backoff(n int32, shortest, longest time.Duration) time.Duration {
	d := longest
	if n <= 16 && shortest<<(n-1) < longest {
		d = shortest << (n - 1)
	}
	return d/2 + rand.N(d/2+1)
}

// maxProbes is how many probes in a row may fail before requests try an ejected upstream in their place: it may be one
// that answers requests but no probe.
const maxProbes = 8

// up reports whether l can be taken to answer. If its time out is over, one request may try.
func (l *live) up(now time.Duration) bool {
	if l.sick.Load() {
		return false
	}
	out := l.out.Load()
	return out == 0 || int64(now) >= out && (!l.probed.Load() || l.unprobeable())
}

// unprobeable reports whether probes of l are given up.
func (l *live) unprobeable() bool {
	return l.tries.Load() > maxProbes && reason(l.why.Load()) != refused
}

// takesNew reports whether clients that do not belong to u may go there: not while it drains or is full.
func (u *upstream) takesNew() bool { return mode(u.mode.Load()) == ready && u.room() }

// reachable reports whether l can be connected as far as is known, well or not.
func (l *live) reachable() bool {
	if l.out.Load() == 0 {
		return true
	}
	why := reason(l.why.Load())
	return why != refused && why != looping
}

// claim reports whether a request may go to l now. Of all requests that come after a back-off only the first may,
// as a probe; l counts as failed again until that one is answered.
func (l *live) claim(now time.Duration, e Ejection) bool {
	if l.out.Load() == 0 {
		return true
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	out := l.out.Load()
	if out == 0 {
		return true
	}
	if int64(now) < out {
		return false
	}
	l.again(now, e)
	return true
}

// again leaves l out once more, for longer. l.mu is held.
func (l *live) again(now time.Duration, e Ejection) time.Duration {
	shortest, longest := backoffMin, backoffMax
	if reason(l.why.Load()) != refused {
		shortest, longest = e.Time, e.MaxTime
	}
	d := backoff(l.tries.Add(1), shortest, longest)
	l.out.Store(int64(now + d))
	return d
}

// leave leaves u out for why, if it is not left out already. Many requests at once may see the same failure; it
// counts once.
func (u *upstream) leave(now time.Duration, why reason, e Ejection, err error) {
	u.mu.Lock()
	if u.out.Load() != 0 {
		u.mu.Unlock()
		return
	}
	// One that was back only for a short time is left out for longer than the last time.
	if why == refused || why != reason(u.why.Load()) || now-u.returned > e.MaxTime {
		u.tries.Store(0)
	}
	u.why.Store(int32(why))
	d := u.again(now, e)
	u.mu.Unlock()
	u.streak.Store(0)
	if why != refused {
		u.ejections.Add(1)
	}
	u.transport.CloseIdleConnections()
	u.logger.Warn("upstream left out", "upstream", u.id, "because_it", why.String(), "retry_in", d.Round(time.Millisecond), "err", err)
	u.poke()
}

// poke tells the watcher to look again.
func (l *live) poke() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// sign notes a good answer. If l was left out because nothing came from it, it is back; so it is if the answer is to
// a request that was sent as a probe. It reports whether l is back.
func (l *live) sign() bool {
	if l.streak.Load() != 0 {
		l.streak.Store(0)
	}
	if l.out.Load() == 0 {
		return false
	}
	if l.probed.Load() {
		return l.back(refused, silent)
	}
	return l.back(anyReason...)
}

// back ends that l is left out, if it is for one of these reasons.
func (l *live) back(reasons ...reason) bool {
	l.mu.Lock()
	if l.out.Load() == 0 || !slices.Contains(reasons, reason(l.why.Load())) {
		l.mu.Unlock()
		return false
	}
	now := l.clock.now()
	l.out.Store(0)
	l.returned = now
	l.since.Store(int64(now))
	l.mu.Unlock()
	l.streak.Store(0)
	l.logger.Info("upstream up", "upstream", l.name)
	return true
}

var anyReason = []reason{refused, silent, failing, looping}

// setMode changes the mode and stops a drain.
func (l *live) setMode(m mode) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.drained != nil {
		l.drained.Stop()
		l.drained = nil
	}
	was := mode(l.mode.Swap(int32(m)))
	if m == ready || m == draining {
		l.cut = false
	}
	if m == ready && was != ready {
		l.since.Store(int64(l.clock.now()))
	}
}

// later makes f the next step of a drain, after d: it is called with l.mu held, and what it returns without. l.mu is
// held.
func (l *live) later(d time.Duration, f func() func()) {
	var timer *time.Timer
	timer = time.AfterFunc(d, func() {
		l.mu.Lock()
		then := func() {}
		if l.drained == timer { // or the drain was stopped
			then = f()
		}
		l.mu.Unlock()
		then()
	})
	l.drained = timer
}

// isCut reports whether connections to l are closed by us.
func (l *live) isCut() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.cut
}

// dial opens a connection that dies with the upstream.
func (l *live) dial(ctx context.Context, c *Config, network, address string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, c.DialTimeout)
	defer cancel()
	nc, err := c.Dial(ctx, network, address)
	if err != nil {
		return nil, err
	}
	tracked := &conn{Conn: nc, live: l, deadline: writeDeadline{timeout: c.BodyIdleTimeout, clock: l.clock}}
	l.mu.Lock()
	cut := l.cut && ctx.Value(probeKey{}) == nil
	if !cut {
		l.conns[tracked] = struct{}{}
	}
	l.mu.Unlock()
	if cut {
		_ = nc.Close()
		return nil, errCut
	}
	return tracked, nil
}

// cutOff closes the connections to l that are still to come, and returns those that are to be closed. l.mu is held.
func (l *live) cutOff() map[*conn]struct{} {
	l.cut = true
	conns := l.conns
	l.conns = make(map[*conn]struct{})
	return conns
}

func closeAll(conns map[*conn]struct{}) {
	for c := range conns {
		_ = c.Conn.Close()
	}
}

// State is what an upstream is for clients.
type State string

const (
	// StateUp: it gets requests.
	StateUp State = "up"
	// StateDown: connects or health checks fail.
	StateDown State = "down"
	// StateEjected: it accepts connections but does not answer, or answers badly.
	StateEjected State = "ejected"
	// StateDraining: only clients that belong to it get there, until the deadline.
	StateDraining State = "draining"
	// StateMaintenance: an operator took it out, or its drain is over.
	StateMaintenance State = "maintenance"
)

// state returns also until when it drains.
func (l *live) state() (State, time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var never time.Time
	switch m := mode(l.mode.Load()); {
	case l.drained != nil:
		return StateDraining, l.drainEnd
	case m != ready:
		return StateMaintenance, never
	case l.out.Load() != 0 && reason(l.why.Load()) != refused:
		return StateEjected, never
	case l.out.Load() != 0 || l.sick.Load():
		return StateDown, never
	}
	return StateUp, never
}
