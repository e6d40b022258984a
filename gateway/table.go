package gateway

import (
	"net/http"
	"slices"
	"sync/atomic"
	"time"
)

// table is the upstreams at a moment, and how clients are assigned to them. It does not change; a request keeps the one
// that it began with.
type table struct {
	upstreams []*upstream
	affinity  affinity
	turns     *atomic.Uint64 // of round robin
	clock     clock
}

// clock is not moved by changes of the wall clock.
type clock struct{ start time.Time }

func (c clock) now() time.Duration { return time.Since(c.start) }

// pick returns the upstream that r is to be sent to next, or nil when all have been tried: the one of the client's
// affinity if it is up, else the upstreams that are up in turn, and when none is left those that are down.
func (t *table) pick(r *http.Request, tried []*upstream, say *steps) *upstream {
	now := t.clock.now()
	untried := func(u *upstream) bool { return !slices.Contains(tried, u) }
	home := t.affinity.prefer(r, func(u *upstream) bool { return untried(u) && u.ready(now) }, say)
	if home != nil && home.claim(now) {
		return home
	}
	turn := t.turns.Add(1) - 1
	for {
		u := t.nth(turn, func(u *upstream) bool { return u.ready(now) && untried(u) })
		if u == nil {
			return t.nth(turn, untried)
		}
		if u.claim(now) {
			return u
		}
	}
}

// nth returns one of the upstreams that ok accepts, each equally often over successive turns.
func (t *table) nth(turn uint64, ok func(*upstream) bool) *upstream {
	n := uint64(0)
	for _, u := range t.upstreams {
		if ok(u) {
			n++
		}
	}
	if n == 0 {
		return nil
	}
	skip := turn % n
	var last *upstream
	for _, u := range t.upstreams {
		if !ok(u) {
			continue
		}
		last = u
		if skip == 0 {
			break
		}
		skip--
	}
	return last
}
