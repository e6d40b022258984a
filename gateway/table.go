package gateway

import (
	"math"
	"net/http"
	"slices"
	"time"
)

// table is the upstreams at a moment, and how clients are assigned to them. It does not change; a request keeps the one
// that it began with.
type table struct {
	config    Config // as far as it may change while the gateway runs
	upstreams []*upstream
	affinity  affinity
	places    places
	turns     *turns
	clock     clock
	bounded   bool // the affinity knows no clients: LoadFactor goes before it
}

// clock is not moved by changes of the wall clock.
type clock struct{ start time.Time }

func (c clock) now() time.Duration { return time.Since(c.start) }

// find returns the upstream of t that l is the live part of, or nil.
func (t *table) find(l *live) *upstream {
	for _, u := range t.upstreams {
		if u.live == l {
			return u
		}
	}
	return nil
}

// choice is the choice of an upstream for one attempt at a request.
type choice struct {
	*table
	now   time.Duration
	tried []*live
	say   *steps // not nil: nothing is changed by the choice

	local bool // enough of the own zone is up
	panic bool // too little is up to believe it
	// load and weights are the requests in flight and the weights of the upstreams that are up, where load is bounded.
	load    int64
	weights int
}

func (t *table) choose(tried []*live, say *steps) choice {
	c := choice{table: t, now: t.clock.now(), tried: tried, say: say}
	if t.config.Zone == "" && t.config.LoadFactor == 0 && t.config.PanicThreshold == 0 {
		return c
	}
	if t.config.PanicThreshold > 0 {
		all, up := 0, 0
		for _, u := range t.upstreams {
			if mode(u.mode.Load()) != ready {
				continue
			}
			all += u.weight
			if u.up(c.now) {
				up += u.weight
			}
		}
		c.panic = float64(up) < t.config.PanicThreshold*float64(all)
		if c.panic && say != nil {
			say.add("less than %v of the weight is up: health checks and ejections are not believed", t.config.PanicThreshold)
		}
	}
	own, ownUp := 0, 0
	for _, u := range t.upstreams {
		up := c.open(u)
		if up {
			c.load += u.active.Load()
			c.weights += u.weight
		}
		if u.zone == t.config.Zone {
			own += u.weight
			if up {
				ownUp += u.weight
			}
		}
	}
	c.local = t.config.Zone != "" && ownUp > 0 && float64(ownUp) >= t.config.ZoneMinimum*float64(own)
	return c
}

// up reports whether u answers, as far as is believed.
func (c *choice) up(u *upstream) bool { return u.up(c.now) || c.panic && u.reachable() }

// open reports whether u takes requests of clients that belong nowhere.
func (c *choice) open(u *upstream) bool { return mode(u.mode.Load()) == ready && c.up(u) }

func (c *choice) untried(u *upstream) bool {
	return len(c.tried) == 0 || !slices.Contains(c.tried, u.live)
}

// preferable reports whether the affinity may send the request to u. One that binds its clients also may while u drains,
// and when u has no room: the client waits.
func (c *choice) preferable(u *upstream) bool {
	if !c.untried(u) || !c.up(u) {
		return false
	}
	m := mode(u.mode.Load())
	if c.affinity.binds() {
		return m == ready || m == draining
	}
	return m == ready && u.room() && (!c.bounded || c.light(u))
}

// light reports whether u may take one more request under the bound on load: no more than ⌈LoadFactor × (requests in
// flight + 1) × its share of the weight⌉, of the upstreams that are up (consistent hashing with bounded loads,
// Mirrokni, Thorup, Zadimoghaddam 2016). There is always one that may.
func (c *choice) light(u *upstream) bool {
	if c.config.LoadFactor == 0 || c.weights == 0 {
		return true
	}
	return u.active.Load()+1 <= bound(c.config.LoadFactor, c.load+1, u.weight, c.weights)
}

// bound returns how many of all requests an upstream may have.
func bound(factor float64, requests int64, weight, weights int) int64 {
	return int64(math.Ceil(factor * float64(requests) * float64(weight) / float64(weights)))
}

// pick returns the upstream that r is to be sent to next, or nil when all have been tried: the one of the client's
// affinity if it is up, else one of those that are up by the policy of Config.Balance. When none is left, one that
// drains, and then one that is down: a request is never refused because of what the gateway believes. An upstream in
// maintenance gets none.
//
// If the request has to wait, it is for u, or for any of several of which u is one.
func (t *table) pick(r *http.Request, tried []*live, say *steps) (u *upstream, wait waitFor) {
	c := t.choose(tried, say)
	if home := t.affinity.prefer(r, c.preferable, say); home != nil {
		if !home.room() {
			if say != nil {
				say.add("upstream %s has as many requests as it may (%d): the request waits", home.id, home.maxRequests)
			}
			return home, waitHome
		}
		if c.claim(home) {
			return home, waitNot
		}
	}
	for {
		u, full := c.balance()
		if u == nil {
			break
		}
		if full {
			return u, waitAny
		}
		if c.claim(u) {
			return u, waitNot
		}
	}
	if u := c.turn(func(u *upstream) bool { return c.untried(u) && mode(u.mode.Load()) == draining && c.up(u) && u.room() }); u != nil {
		if say != nil {
			say.add("no other upstream is up: upstream %s, which drains, is taken all the same", u.id)
		}
		return u, waitNot
	}
	u = c.turn(func(u *upstream) bool { return c.untried(u) && mode(u.mode.Load()) <= draining && u.room() })
	if say != nil {
		switch {
		case u != nil:
			say.add("no upstream is up: those that are down are tried all the same, upstream %s first", u.id)
		case len(t.upstreams) == 0:
			say.add("there is no upstream")
		default:
			say.add("all upstreams are in maintenance or full: the request is answered 503")
		}
	}
	return u, waitNot
}

// waitFor says what a request has to wait for.
type waitFor int

const (
	waitNot  waitFor = iota
	waitHome         // a place at its upstream
	waitAny          // a place anywhere
)

// claim reports whether the request may go to u now, which is up.
func (c *choice) claim(u *upstream) bool {
	return c.say != nil || u.claim(c.now, c.config.Ejection) || c.panic && u.reachable()
}
