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
	turns     *turns
	clock     clock
	bounded   bool // the affinity knows no clients: LoadFactor goes before it
}

// clock is not moved by changes of the wall clock.
type clock struct{ start time.Time }

func (c clock) now() time.Duration { return time.Since(c.start) }

// choice is the choice of an upstream for one attempt at a request.
type choice struct {
	*table
	now   time.Duration
	tried []*upstream
	say   *steps // not nil: nothing is changed by the choice

	local bool // enough of the own zone is up
	// load and weights are the requests in flight and the weights of the upstreams that are up, where load is bounded.
	load    int64
	weights int
}

func (t *table) choose(tried []*upstream, say *steps) choice {
	c := choice{table: t, now: t.clock.now(), tried: tried, say: say}
	if t.config.Zone == "" && t.config.LoadFactor == 0 {
		return c
	}
	own, ownUp := 0, 0
	for _, u := range t.upstreams {
		up := c.up(u)
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

// up reports whether requests may go to u.
func (c *choice) up(u *upstream) bool { return u.ready(c.now) }

func (c *choice) untried(u *upstream) bool { return !slices.Contains(c.tried, u) }

// preferable reports whether the affinity may send the request to u.
func (c *choice) preferable(u *upstream) bool {
	return c.untried(u) && c.up(u) && (!c.bounded || c.light(u))
}

// light reports whether u may take one more request under the bound on load: no more than
// ⌈LoadFactor × (requests in flight + 1) × its share of the weight⌉, of the upstreams that are up (consistent hashing with bounded loads,
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
// affinity if it is up, else one of those that are up by the policy of Config.Balance, and when none is left one of those that are down.
func (t *table) pick(r *http.Request, tried []*upstream, say *steps) *upstream {
	c := t.choose(tried, say)
	if home := t.affinity.prefer(r, c.preferable, say); home != nil && c.claim(home) {
		return home
	}
	for {
		u := c.balance()
		if u == nil {
			break
		}
		if c.claim(u) {
			return u
		}
	}
	u := c.turn(func(u *upstream) bool { return c.untried(u) })
	if u != nil && say != nil {
		say.add("no upstream is up: those that are down are tried all the same, upstream %s first", u.id)
	}
	return u
}

func (c *choice) claim(u *upstream) bool { return c.say != nil || u.claim(c.now) }
