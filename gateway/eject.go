package gateway

import (
	"fmt"
	"io"
	"net/http"
	"slices"
	"time"
)

// Ejection leaves out an upstream that accepts connections but does not answer, or answers badly. The zero value
// ejects.
//
// One that sent nothing at all while a request waited for the whole of its deadline is ejected at once; one that
// answers others meanwhile was only slow. Broken connections and answers that are not HTTP count, and so do Statuses;
// any other answer ends the row. A client's own failure never counts.
type Ejection struct {
	// Disable ejects none.
	Disable bool
	// Failures is how many failures in a row eject. Default 5.
	Failures int
	// Statuses are answers that count as failures, such as 502, 503 and 504. Whoever can make the application answer
	// so can have upstreams ejected, as far as MaxShare allows. Empty: none.
	Statuses []int
	// Time is how long the first ejection lasts, MaxTime the longest: Time × 2^(n-1) for the nth, and of that a random
	// time between half and all. One that stayed for MaxTime begins at the first again. Default 10 s and 5 min.
	Time, MaxTime time.Duration
	// MaxShare is how much of all upstreams may be ejected at once, but one of two or more always may. Default 0.5.
	MaxShare float64
}

func (e Ejection) withDefaults() Ejection {
	if e.Failures == 0 {
		e.Failures = 5
	}
	if e.Time == 0 {
		e.Time = 10 * time.Second
	}
	if e.MaxTime == 0 {
		e.MaxTime = max(5*time.Minute, e.Time)
	}
	if e.MaxShare == 0 {
		e.MaxShare = 0.5
	}
	return e
}

func (e Ejection) validate(bad badFunc) {
	if e.Failures < 0 {
		bad("Ejection.Failures", "ejection: failures %d is negative", e.Failures)
	}
	for _, s := range e.Statuses {
		if s < 500 || s > 599 {
			bad("Ejection.Statuses", "ejection: status %d: want 500 to 599; others are a client's", s)
		}
	}
	if e.Time < 0 {
		bad("Ejection.Time", "ejection: time %v is negative", e.Time)
	}
	if e.MaxTime < e.Time {
		bad("Ejection.MaxTime", "ejection: max time %v is less than time %v", e.MaxTime, e.Time)
	}
	if !(e.MaxShare >= 0 && e.MaxShare <= 1) {
		bad("Ejection.MaxShare", "ejection: max share %v: want 0 to 1", e.MaxShare)
	}
}

// most returns how many of n upstreams may be ejected at once.
func (e Ejection) most(n int) int {
	switch {
	case e.Disable || n < 2:
		return 0
	default:
		return max(int(e.MaxShare*float64(n)), 1)
	}
}

// answered notes an answer of u.
func (g *Gateway) answered(t *table, u *upstream, status int) {
	u.requests.Add(1)
	if status >= 500 && slices.Contains(t.config.Ejection.Statuses, status) {
		g.count(t, u, fmt.Errorf("status %d", status))
		return
	}
	if u.sign() {
		g.queue.kick()
	}
}

// attemptFailed notes an attempt that brought no answer, not because of the client.
func (g *Gateway) attemptFailed(t *table, u *upstream, a *attempt, began time.Duration, err error) {
	u.failures.Add(1)
	switch {
	case u.isCut():
	case err == errLoop:
		u.leave(t.clock.now(), looping, t.config.Ejection, err)
		g.queue.kick()
	case a.conn == nil:
		u.leave(t.clock.now(), refused, t.config.Ejection, err)
		g.queue.kick()
	case timeout(err):
		g.stalled(t, u, began, err)
	case !a.reused: // an old connection says nothing about the upstream
		g.count(t, u, err)
	}
}

// stalled notes that u made a request wait for too long, from began.
func (g *Gateway) stalled(t *table, u *upstream, began time.Duration, err error) {
	if time.Duration(u.heard.Load()) <= began {
		g.eject(t, u, silent, err)
	}
}

func (g *Gateway) count(t *table, u *upstream, err error) {
	if int(u.streak.Add(1)) >= t.config.Ejection.Failures {
		g.eject(t, u, failing, err)
	}
}

// eject leaves u out, unless too many are.
func (g *Gateway) eject(t *table, u *upstream, why reason, err error) {
	g.ejecting.Lock()
	defer g.ejecting.Unlock()
	n := 0
	for _, o := range t.upstreams {
		if o.out.Load() != 0 && reason(o.why.Load()) != refused {
			n++
		}
	}
	if n < t.config.Ejection.most(len(t.upstreams)) {
		u.leave(t.clock.now(), why, t.config.Ejection, err)
		g.queue.kick()
	}
}

// idleBody is the body of an answer that is given up when the upstream sends nothing more of it for d.
type idleBody struct {
	io.ReadCloser
	timer *time.Timer
	d     time.Duration
}

func (b *idleBody) Read(p []byte) (int, error) {
	b.timer.Reset(b.d)
	n, err := b.ReadCloser.Read(p)
	b.timer.Stop()
	return n, err
}

// watchBody gives up the answer res if it stalls.
func (g *Gateway) watchBody(x *exchange, res *http.Response) {
	d := x.table.config.BodyIdleTimeout
	timer := time.AfterFunc(time.Hour, func() {
		err := fmt.Errorf("no more of an answer for %v", d)
		x.served.failures.Add(1)
		g.stalled(x.table, x.served, x.table.clock.now()-d, err)
		x.cancel()
	})
	timer.Stop()
	res.Body = &idleBody{res.Body, timer, d}
}
