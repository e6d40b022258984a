package gateway

import (
	"cmp"
	"time"
)

// build makes the table of c, with the live parts of the upstreams of old (nil: none) that are in it, too.
func (g *Gateway) build(c Config, old *table) (*table, error) {
	t := &table{config: c, turns: new(turns), clock: clock{time.Now()}, bounded: c.Affinity == AffinityHash || c.Affinity == AffinityHeader}
	if old != nil {
		t.turns, t.clock = old.turns, old.clock
	}
	for _, u := range c.Upstreams {
		parsed, err := u.parse()
		if err != nil {
			return nil, err
		}
		n := &upstream{id: u.id(parsed), url: parsed, weight: u.share(), zone: u.Zone, maxRequests: int64(u.MaxRequests)}
		n.route = cmp.Or(u.Route, n.id)
		n.live = newLive(n.id, c.Logger, t.clock)
		n.transport = newTransport(&t.config, n.live)
		t.upstreams = append(t.upstreams, n)
	}
	var before affinity
	if old != nil {
		before = old.affinity
	}
	t.affinity = newAffinity(c, t.upstreams, before)
	return t, nil
}
