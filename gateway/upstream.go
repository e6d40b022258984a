package gateway

import (
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/url"
	"sync/atomic"
	"time"
)

// An upstream that refused a connection is left out for a while: 250 ms after the first failure, twice as long
// after each further one, at most 10 s, and then a random time between half of that and all of it, so that
// several gateways do not come back at once.
const (
	backoffMin = 250 * time.Millisecond
	backoffMax = 10 * time.Second
)

func backoff(fails int32) time.Duration {
	d := min(backoffMin<<min(fails-1, 10), backoffMax)
	return d/2 + rand.N(d/2+1)
}

type upstream struct {
	id        string
	url       *url.URL
	transport *http.Transport
	logger    *slog.Logger

	// down is 0, or the time on the pool's clock until which to leave this upstream out.
	down  atomic.Int64
	fails atomic.Int32 // connects that failed since the last answer, as far as the back-off counts them

	requests, failures, repeats atomic.Uint64
}

func (u *upstream) ready(now time.Duration) bool {
	down := u.down.Load()
	return down == 0 || int64(now) >= down
}

// claim reports whether a request may go to u now. Of all requests that come after a back-off only the first may,
// as a probe; u counts as failed again until that one is answered.
func (u *upstream) claim(now time.Duration) bool {
	down := u.down.Load()
	if down == 0 {
		return true
	}
	return int64(now) >= down && u.down.CompareAndSwap(down, int64(now+backoff(u.fails.Add(1))))
}

// refused notes a failed connect. Many requests at once may see the same failure; it counts once.
func (u *upstream) refused(now time.Duration, err error) {
	d := backoff(1)
	if u.down.CompareAndSwap(0, int64(now+d)) {
		u.fails.Store(1)
		u.transport.CloseIdleConnections()
		u.logger.Warn("upstream down", "upstream", u.id, "retry_in", d.Round(time.Millisecond), "err", err)
	}
}

func (u *upstream) answered() {
	u.requests.Add(1)
	if u.down.Load() != 0 && u.down.Swap(0) != 0 {
		u.fails.Store(0)
		u.logger.Info("upstream up", "upstream", u.id)
	}
}
