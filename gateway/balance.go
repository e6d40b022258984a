package gateway

import (
	"math/rand/v2"
	"sync"
	"time"
)

// Balance says which upstream a request gets that belongs to none.
type Balance string

const (
	// BalanceRoundRobin takes the upstreams in turn, each as often as its weight says, and spreads those of a heavy
	// one over the round as nginx does: a a b a c a a for weights 5, 1, 1. It is what the zero value means.
	BalanceRoundRobin Balance = "round-robin"
	// BalanceLeastRequests takes the one with the fewest requests in flight for its weight; of several, in turn.
	BalanceLeastRequests Balance = "least-requests"
	// BalanceTwoChoices draws two at random, by weight, and takes the one with fewer requests in flight for its weight.
	// Several gateways that do not know of each other's requests do not run to the same one.
	BalanceTwoChoices Balance = "two-choices"
)

const maxWeight = 1000

func (c Config) validateBalance(bad badFunc) {
	switch c.Balance {
	case BalanceRoundRobin, BalanceLeastRequests, BalanceTwoChoices:
	default:
		bad("Balance", "balance %q unknown (want round-robin, least-requests, two-choices)", c.Balance)
	}
	zones := make(map[string]bool)
	for i, u := range c.Upstreams {
		zones[u.Zone] = true
		if u.Weight < 0 || u.Weight > maxWeight {
			bad(upstreamField(i, "Weight"), "upstream %d: weight %d: want 1 to %d", i+1, u.Weight, maxWeight)
		}
		if u.MaxRequests < 0 {
			bad(upstreamField(i, "MaxRequests"), "upstream %d: max requests %d is negative (0: no limit)", i+1, u.MaxRequests)
		}
	}
	if c.Zone != "" && len(c.Upstreams) > 0 && !zones[c.Zone] {
		bad("Zone", "zone %q: no upstream is in it", c.Zone)
	}
	if !(c.ZoneMinimum >= 0 && c.ZoneMinimum <= 1) {
		bad("ZoneMinimum", "zone minimum %v: want a share, 0 to 1", c.ZoneMinimum)
	}
	if f := c.LoadFactor; f != 0 && !(f >= 1 && f <= 100) {
		bad("LoadFactor", "load factor %v: want 0 for no bound, or 1 to 100, such as 1.25", f)
	}
	if c.SlowStart < 0 {
		bad("SlowStart", "slow start %v is negative", c.SlowStart)
	}
}

// turns is the state of the round robin. It lives on from table to table.
type turns struct {
	// mu guards live.turn of every upstream.
	mu sync.Mutex
}

// weigh returns the weight of u at the moment, in 1/1024: that of the configuration, or while u starts slowly that
// times the part of Config.SlowStart which is over, at least a tenth.
func (c *choice) weigh(u *upstream) int64 {
	w := int64(u.weight) << 10
	if c.config.SlowStart > 0 {
		if since := u.since.Load(); since != 0 {
			if age := c.now - time.Duration(since); age < c.config.SlowStart {
				return max(int64(float64(w)*age.Seconds()/c.config.SlowStart.Seconds()), w/10)
			}
		}
	}
	return w
}

// balance picks one of the upstreams that are open and not tried, or nil: by zone and load first, then without asking
// for these. It reports whether all of them have as many requests as they may.
func (c *choice) balance() (u *upstream, full bool) {
	free := func(u *upstream) bool { return c.untried(u) && c.open(u) && u.room() }
	if c.local {
		if u := c.among(func(u *upstream) bool { return free(u) && u.zone == c.config.Zone && c.light(u) }); u != nil {
			return c.picked(u, c.config.Zone), false
		}
	}
	if c.config.LoadFactor != 0 {
		if u := c.among(func(u *upstream) bool { return free(u) && c.light(u) }); u != nil {
			return c.picked(u, ""), false
		}
	}
	if u := c.among(free); u != nil {
		return c.picked(u, ""), false
	}
	for _, u := range c.upstreams {
		if c.untried(u) && c.open(u) {
			if c.say != nil {
				c.say.add("every upstream that is up has as many requests as it may: the request waits")
			}
			return u, true
		}
	}
	return nil, false
}

// picked says why u, or nil, was picked.
func (c *choice) picked(u *upstream, zone string) *upstream {
	if c.say != nil && u != nil {
		if zone != "" {
			c.say.add("enough of zone %s is up: only its upstreams are considered", zone)
		}
		c.say.add("balance %s: upstream %s, weight %d, %d requests in flight", c.config.Balance, u.id, u.weight, u.active.Load())
	}
	return u
}

// among picks one of the upstreams that ok accepts, or nil.
func (c *choice) among(ok func(*upstream) bool) *upstream {
	switch c.config.Balance {
	case BalanceLeastRequests:
		return c.least(ok)
	case BalanceTwoChoices:
		return c.twoChoices(ok)
	}
	return c.turn(ok)
}

// turn is smooth weighted round robin: each upstream gains its weight, the one that has most is next and pays the
// sum of all.
func (c *choice) turn(ok func(*upstream) bool) *upstream {
	c.turns.mu.Lock()
	defer c.turns.mu.Unlock()
	var best *upstream
	var most, sum int64
	for _, u := range c.upstreams {
		if !ok(u) {
			continue
		}
		w := c.weigh(u)
		sum += w
		has := u.turn + w
		if best == nil || has > most {
			best, most = u, has
		}
		if c.say == nil {
			u.live.turn = has
		}
	}
	if best != nil && c.say == nil {
		best.live.turn -= sum
	}
	return best
}

// lighter compares requests in flight for the weight, before the request that is to come.
func (c *choice) lighter(a, b *upstream) int {
	x, y := a.active.Load()*c.weigh(b), b.active.Load()*c.weigh(a)
	switch {
	case x < y:
		return -1
	case x > y:
		return 1
	}
	return 0
}

func (c *choice) least(ok func(*upstream) bool) *upstream {
	var best *upstream
	for _, u := range c.upstreams {
		if ok(u) && (best == nil || c.lighter(u, best) < 0) {
			best = u
		}
	}
	if best == nil {
		return nil
	}
	if u := c.turn(func(u *upstream) bool { return ok(u) && c.lighter(u, best) <= 0 }); u != nil {
		return u
	}
	return best // it got a request meanwhile
}

func (c *choice) twoChoices(ok func(*upstream) bool) *upstream {
	a := c.random(ok)
	if a == nil {
		return nil
	}
	b := c.random(func(u *upstream) bool { return ok(u) && u != a })
	if b != nil && c.lighter(b, a) < 0 {
		return b
	}
	return a
}

// random draws one of the upstreams that ok accepts, by weight.
func (c *choice) random(ok func(*upstream) bool) *upstream {
	var sum int64
	for _, u := range c.upstreams {
		if ok(u) {
			sum += c.weigh(u)
		}
	}
	if sum == 0 {
		return nil
	}
	at := rand.N(sum)
	var last *upstream
	for _, u := range c.upstreams {
		if !ok(u) {
			continue
		}
		last = u
		if at -= c.weigh(u); at < 0 {
			break
		}
	}
	return last
}

// share is 1 weight where none was given.
func (u Upstream) share() int { return max(u.Weight, 1) }
