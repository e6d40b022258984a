package gateway

import "time"

// build makes the table of c, with the live parts of the upstreams of old (nil: none) that are in it, too.
func (g *Gateway) build(c Config, old *table) (*table, error) {
	t := &table{config: c, turns: new(turns), clock: clock{time.Now()}, bounded: c.Affinity == "hash" || c.Affinity == "header"}
	if old != nil {
		t.turns, t.clock = old.turns, old.clock
	}
	for _, u := range c.Upstreams {
		parsed, err := u.parse()
		if err != nil {
			return nil, err
		}
		n := &upstream{id: u.id(parsed), url: parsed, weight: u.share(), zone: u.Zone, maxRequests: int64(u.MaxRequests)}
		n.live = newLive(n.id, c.Logger, t.clock)
		n.transport = newTransport(&t.config, n.live)
		t.upstreams = append(t.upstreams, n)
	}
	t.affinity = noAffinity{}
	if c.Affinity == AffinityCookie {
		t.affinity = newCookieAffinity(c.Cookie, c.Key, t.upstreams)
	}
	return t, nil
}
