package gateway

import (
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/url"
	"sync"
	"sync/atomic"
	"time"
)

// upstream is an application server as one table knows it. It does not change: when its weight does, the next table
// has another one in its place, with the same live part. Across tables, compare IDs or live parts, not upstreams.
type upstream struct {
	id     string
	url    *url.URL
	weight int // at least 1
	zone   string
	route  string // in session IDs, for AffinityRoute
	// maxRequests is how many requests it gets at once; 0: no limit.
	maxRequests int64
	transport   *http.Transport
	*live
}

// live is what an upstream does at the moment. It lives on over every change of the configuration that leaves the
// upstream its ID and URL.
type live struct {
	name   string // its ID, for the log
	logger *slog.Logger
	clock  clock

	active atomic.Int64 // requests that it has now, until the last byte of their answers
	turn   int64        // of round robin; turns.mu guards it
	heard  atomic.Int64 // when it last sent anything
	since  atomic.Int64 // when it came back, for slow start; 0: it was there from the beginning

	// out is 0, or the time until which it is left out of everything, after which one request or check may try it.
	out atomic.Int64

	// mu guards the fields below, and every change of out.
	mu    sync.Mutex
	why   reason // of out
	tries int32  // connects that failed since it was last there, as far as the back-off counts them

	requests, failures, repeats atomic.Uint64
}

// reason is why an upstream is left out.
type reason int

const (
	refused reason = iota // a connect failed
)

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

// ready reports whether u is there, or may be tried again.
func (l *live) ready(now time.Duration) bool {
	out := l.out.Load()
	return out == 0 || int64(now) >= out
}

// claim reports whether a request may go to l now. Of all requests that come after a back-off only the first may,
// as a probe; l counts as failed again until that one is answered.
func (l *live) claim(now time.Duration) bool {
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
	l.tries++
	l.out.Store(int64(now + backoff(l.tries, backoffMin, backoffMax)))
	return true
}

// refused notes a failed connect. Many requests at once may see the same failure; it counts once.
func (u *upstream) refused(now time.Duration, err error) {
	u.mu.Lock()
	first := u.out.Load() == 0
	d := backoff(1, backoffMin, backoffMax)
	if first {
		u.why, u.tries = refused, 1
		u.out.Store(int64(now + d))
	}
	u.mu.Unlock()
	if first {
		u.transport.CloseIdleConnections()
		u.logger.Warn("upstream down", "upstream", u.id, "retry_in", d.Round(time.Millisecond), "err", err)
	}
}

// answered notes an answer: whatever u was left out for is over.
func (l *live) answered() {
	l.requests.Add(1)
	if l.out.Load() != 0 {
		l.back()
	}
}

// back ends that l is left out.
func (l *live) back() {
	l.mu.Lock()
	was := l.out.Swap(0) != 0
	l.tries = 0
	l.mu.Unlock()
	if was {
		l.since.Store(int64(l.clock.now()))
		l.logger.Info("upstream up", "upstream", l.name)
	}
}
