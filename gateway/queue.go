package gateway

import (
	"container/list"
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

var errFull = errors.New("every upstream has as many requests as it may")

// queue is where requests wait for a place at an upstream with Upstream.MaxRequests, the oldest first.
type queue struct {
	waiting atomic.Int64 // at least the length of all

	// mu guards the fields below.
	mu   sync.Mutex
	all  list.List // of *waiter
	open int       // waiters without a home
}

// waiter is a request that waits.
type waiter struct {
	table *table
	home  *live // the one that it waits for; nil: any
	tried []*live

	at    *list.Element // nil: not in the queue any more; queue.mu guards it
	got   *upstream     // that it has a place at, or nil: it is to choose anew
	ended chan struct{} // closed when it need not wait any more
}

// room reports whether u may have one more request.
func (u *upstream) room() bool { return u.maxRequests == 0 || u.active.Load() < u.maxRequests }

// take takes a place at u, if there is one.
func (u *upstream) take() bool {
	if u.maxRequests == 0 {
		u.active.Add(1)
		return true
	}
	for {
		n := u.active.Load()
		if n >= u.maxRequests {
			return false
		}
		if u.active.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

// release gives up a place at u, to the request that has waited longest for it.
func (q *queue) release(u *upstream) {
	if q.waiting.Load() > 0 && q.give(u, true) {
		return
	}
	u.active.Add(-1)
	if q.waiting.Load() > 0 { // it began to wait in between
		q.give(u, false)
	}
}

// give ends the waiting of the oldest request that may go to u, if there is a place for it: one that was taken before,
// or another.
func (q *queue) give(u *upstream, taken bool) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	for e := q.all.Front(); e != nil; e = e.Next() {
		w := e.Value.(*waiter)
		if w.home != nil && w.home != u.live || slices.Contains(w.tried, u.live) {
			continue
		}
		own := w.table.find(u.live)
		m := mode(u.mode.Load())
		if own == nil || m != ready && (m != draining || w.home == nil) {
			continue
		}
		if taken && own.maxRequests != 0 && u.active.Load() > own.maxRequests || !taken && !own.take() {
			return false
		}
		q.end(w, own)
		return true
	}
	return false
}

// end takes w out of the queue. q.mu is held.
func (q *queue) end(w *waiter, got *upstream) {
	q.all.Remove(w.at)
	w.at, w.got = nil, got
	q.waiting.Add(-1)
	if w.home == nil {
		q.open--
	} else {
		w.home.waiting.Add(-1)
	}
	close(w.ended)
}

// kick makes all that wait choose anew, because what they can choose from has changed.
func (q *queue) kick() {
	if q.waiting.Load() == 0 {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	for q.all.Len() > 0 {
		q.end(q.all.Front().Value.(*waiter), nil)
	}
}

// join makes w wait, unless most wait for the same already.
func (q *queue) join(w *waiter, most int) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	n := q.open
	if w.home != nil {
		n = int(w.home.waiting.Load())
	}
	if n >= most {
		return false
	}
	w.ended = make(chan struct{})
	w.at = q.all.PushBack(w)
	q.waiting.Add(1)
	if w.home == nil {
		q.open++
	} else {
		w.home.waiting.Add(1)
	}
	return true
}

// leave takes w out of the queue if it still waits, and returns the place that it got before, or nil.
func (q *queue) leave(w *waiter) *upstream {
	q.mu.Lock()
	defer q.mu.Unlock()
	if w.at != nil {
		q.end(w, nil)
	}
	return w.got
}

// next chooses the upstream for the next attempt and takes a place there, waiting for one if need be. It returns nil
// when no upstream is left.
func (x *exchange) next(ctx context.Context, tried []*live) (*upstream, error) {
	var deadline *time.Timer
	for {
		u, wait := x.table.pick(x.in, tried, nil)
		if u == nil {
			// All of a table may have been replaced by another.
			if now := x.gateway.table.Load(); now != x.table {
				x.table = now
				continue
			}
			return nil, nil
		}
		if wait == waitNot {
			if u.take() {
				return u, nil
			}
			continue
		}
		c := &x.table.config
		if deadline == nil {
			deadline = time.NewTimer(c.QueueTimeout)
			defer deadline.Stop()
		}
		w := &waiter{table: x.table, tried: tried}
		if wait == waitHome {
			w.home = u.live
		}
		if !x.gateway.queue.join(w, c.MaxQueued) {
			return nil, errFull
		}
		// A place that was given up before w could be seen would not be offered to it.
		if u, wait := x.table.pick(x.in, tried, nil); u != nil && wait == waitNot && u.take() {
			if got := x.gateway.queue.leave(w); got != nil {
				x.gateway.queue.release(got)
			}
			return u, nil
		}
		select {
		case <-w.ended:
		case <-deadline.C:
			if got := x.gateway.queue.leave(w); got != nil {
				return got, nil
			}
			return nil, errFull
		case <-ctx.Done():
			if got := x.gateway.queue.leave(w); got != nil {
				x.gateway.queue.release(got)
			}
			return nil, ctx.Err()
		}
		if w.got != nil {
			return w.got, nil
		}
		x.table = x.gateway.table.Load()
	}
}

// hold makes u, at which a place was taken, the one that has this request; nil: none has.
func (x *exchange) hold(u *upstream) {
	if x.holds != nil {
		x.gateway.queue.release(x.holds)
	}
	x.holds = u
}

func (c Config) validateQueue(bad badFunc) {
	if c.MaxQueued < -1 {
		bad("MaxQueued", "max queued %d: want a number of requests, or -1 for none", c.MaxQueued)
	}
	if c.QueueTimeout < 0 {
		bad("QueueTimeout", "queue timeout %v is negative", c.QueueTimeout)
	}
}
