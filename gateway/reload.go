package gateway

import (
	"cmp"
	"crypto/tls"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"
)

// Reload makes c the configuration, without dropping a request or moving a client that need not move. If anything is
// wrong with c it says so and the running configuration stays.
//
// An upstream that keeps its ID and URL keeps its connections and its state, drain and maintenance included. One that
// is not in c gets no new requests, and its last ones are cut off after DrainTimeout: drain it before where that is
// not enough. Upstreams and weights that were set by SetUpstream, RemoveUpstream and SetWeight are forgotten.
//
// TLS, Dial, OnRequest, Logger and AccessLog stay as they are. What else cannot change while the gateway runs is an error if it
// does.
func (g *Gateway) Reload(c Config) error {
	if err := c.Validate(); err != nil {
		return err
	}
	c = c.withDefaults().clone()
	if err := g.fixed(c); err != nil {
		return err
	}
	c.TLS, c.Dial, c.OnRequest, c.Logger = g.config.TLS, g.config.Dial, g.config.OnRequest, g.config.Logger
	c.AccessLog, c.AccessLogFormat = g.config.AccessLog, g.config.AccessLogFormat
	certificates, err := loadCertificates(c)
	if err != nil {
		return err
	}
	if err := g.resolveNew(c); err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	weights := g.weights
	g.weights = nil
	if err := g.install(c); err != nil {
		g.weights = weights
		return err
	}
	if certificates != nil { // and so before, see fixed
		g.certificates.take(certificates)
	}
	c.Logger.Info("configuration loaded", "upstreams", len(c.Upstreams), "affinity", c.Affinity)
	return nil
}

// settings returns the configuration of the moment. A request has that of its table.
func (g *Gateway) settings() *Config { return &g.table.Load().config }

// clone copies what a caller could change under the gateway.
func (c Config) clone() Config {
	c.Upstreams = slices.Clone(c.Upstreams)
	c.Key, c.SignatureKey = slices.Clone(c.Key), slices.Clone(c.SignatureKey)
	c.SessionCookies = slices.Clone(c.SessionCookies)
	c.TrustedProxies = slices.Clone(c.TrustedProxies)
	c.Ejection.Statuses = slices.Clone(c.Ejection.Statuses)
	c.Certificates = slices.Clone(c.Certificates)
	return c
}

// fixed reports what of c would have to be another http.Server.
func (g *Gateway) fixed(c Config) error {
	var errs []error
	for _, f := range []struct {
		field, name string
		was, now    any
	}{
		{"ReadHeaderTimeout", "read header timeout", g.config.ReadHeaderTimeout, c.ReadHeaderTimeout},
		{"IdleTimeout", "idle timeout", g.config.IdleTimeout, c.IdleTimeout},
		{"WriteTimeout", "write timeout", g.config.WriteTimeout, c.WriteTimeout},
		{"MaxHeaderBytes", "max header bytes", g.config.MaxHeaderBytes, c.MaxHeaderBytes},
		{"MaxConnections", "max connections", g.config.MaxConnections, c.MaxConnections},
		{"MaxConnectionsPerClient", "max connections per client", g.config.MaxConnectionsPerClient, c.MaxConnectionsPerClient},
		{"Certificates", "https by certificate files", len(g.config.Certificates) > 0, len(c.Certificates) > 0},
		{"ProxyProtocol", "PROXY protocol", g.config.ProxyProtocol, c.ProxyProtocol},
	} {
		if f.was != f.now {
			errs = append(errs, &ConfigError{f.field, fmt.Errorf("%s changes from %v to %v: restart the gateway for that", f.name, f.was, f.now)})
		}
	}
	return errors.Join(errs...)
}

// SetUpstream adds an upstream, or replaces the one with its ID, until the next Reload.
func (g *Gateway) SetUpstream(u Upstream) error {
	return g.edit(func(c *Config) error {
		parsed, err := u.parse()
		if err != nil {
			return fmt.Errorf("gateway: upstream %q: %w", u.ID, err)
		}
		i := slices.IndexFunc(c.Upstreams, func(o Upstream) bool { return o.is(u.id(parsed)) })
		if i < 0 {
			c.Upstreams = append(c.Upstreams, u)
		} else {
			c.Upstreams[i] = u
		}
		return nil
	})
}

// RemoveUpstream removes an upstream until the next Reload, as Reload does. The last one cannot be removed.
func (g *Gateway) RemoveUpstream(id string) error {
	return g.edit(func(c *Config) error {
		n := len(c.Upstreams)
		c.Upstreams = slices.DeleteFunc(c.Upstreams, func(u Upstream) bool { return u.is(id) })
		switch len(c.Upstreams) {
		case n:
			return fmt.Errorf("%w: %q", ErrNoUpstream, id)
		case 0:
			return fmt.Errorf("gateway: upstream %q is the last one: add another before, or drain it", id)
		}
		return nil
	})
}

func (g *Gateway) edit(f func(*Config) error) error {
	c := g.table.Load().config
	c.Upstreams = slices.Clone(c.Upstreams)
	if err := f(&c); err != nil {
		return err
	}
	if err := c.Validate(); err != nil {
		return err
	}
	if err := g.resolveNew(c); err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	// Another change may have come in between.
	c = g.table.Load().config
	c.Upstreams = slices.Clone(c.Upstreams)
	if err := f(&c); err != nil {
		return err
	}
	if err := c.Validate(); err != nil {
		return err
	}
	return g.install(c)
}

// is reports whether u has this ID in the configuration.
func (u Upstream) is(id string) bool {
	parsed, err := u.parse()
	return err == nil && u.id(parsed) == id
}

// ErrNoUpstream says that there is no upstream of this ID.
var ErrNoUpstream = errors.New("gateway: no such upstream")

// SetWeight gives an upstream another weight, 1 to 1000, until the next Reload. No client moves.
func (g *Gateway) SetWeight(id string, weight int) error {
	if weight < 1 || weight > maxWeight {
		return fmt.Errorf("gateway: weight %d: want 1 to %d", weight, maxWeight)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	t := g.table.Load()
	if !slices.ContainsFunc(t.upstreams, func(u *upstream) bool { return u.id == id }) {
		return fmt.Errorf("%w: %q", ErrNoUpstream, id)
	}
	if g.weights == nil {
		g.weights = make(map[string]int)
	}
	g.weights[id] = weight
	return g.install(t.config)
}

// install makes a table of c the one for requests to come. g.mu is held.
func (g *Gateway) install(c Config) error {
	old := g.table.Load()
	t, err := g.build(c, old)
	if err != nil {
		return err
	}
	if err := g.own(t); err != nil {
		return err
	}
	g.table.Store(t)
	for _, u := range old.upstreams {
		now := t.find(u.live)
		switch {
		case now == nil:
			g.retire(u, c.DrainTimeout)
		case now.transport != u.transport:
			u.transport.CloseIdleConnections()
		}
	}
	g.syncWatch(t)
	g.queue.kick()
	return nil
}

// retire lets u, which is not in the table any more, finish what it has. g.mu is held.
func (g *Gateway) retire(u *upstream, within time.Duration) {
	u.setMode(removed)
	u.transport.CloseIdleConnections()
	if g.leaving == nil {
		g.leaving = make(map[*upstream]*time.Timer)
	}
	g.leaving[u] = time.AfterFunc(within, func() {
		u.mu.Lock()
		conns := u.cutOff()
		u.mu.Unlock()
		closeAll(conns)
		g.mu.Lock()
		defer g.mu.Unlock()
		delete(g.leaving, u)
	})
	u.logger.Info("upstream removed", "upstream", u.id, "requests", u.active.Load())
}

// build makes the table of c, with the live parts of the upstreams of old (nil: none) that are in it, too.
func (g *Gateway) build(c Config, old *table) (*table, error) {
	t := &table{
		config: c, places: placesOf(c), turns: new(turns), clock: clock{time.Now()},
		bounded: c.Affinity == AffinityHash || c.Affinity == AffinityHeader,
	}
	var before affinity
	if old != nil {
		t.turns, t.clock, before = old.turns, old.clock, old.affinity
	}
	all, err := g.expand(c)
	if err != nil {
		return nil, err
	}
	seen := make(map[string]bool)
	for _, e := range all {
		if seen[e.id] {
			return nil, fmt.Errorf("gateway: two upstreams have the ID %q, one of them from a name with resolve: give it another", e.id)
		}
		seen[e.id] = true
		u := &upstream{
			id: e.id, url: e.to, host: hostOf(e.url), http2: e.HTTP2, weight: e.share(), zone: e.Zone, maxRequests: int64(e.MaxRequests),
			route: cmp.Or(e.Route, e.id),
		}
		if w := g.weights[u.id]; w != 0 {
			u.weight = w
		}
		var was *upstream
		if old != nil {
			if i := slices.IndexFunc(old.upstreams, func(o *upstream) bool {
				return o.id == u.id && o.url.String() == u.url.String() && o.host == u.host && o.http2 == u.http2
			}); i >= 0 {
				was = old.upstreams[i]
			}
		}
		if was != nil {
			u.live, u.transport = was.live, was.transport
		} else {
			u.live = newLive(u.id, c.Logger, t.clock)
			if old != nil {
				u.since.Store(int64(max(t.clock.now(), 1)))
			}
		}
		if was == nil || !sameTransport(&c, &old.config) {
			u.transport = newTransport(&c, u.live, u.url, e.serverName(), e.HTTP2)
		}
		t.upstreams = append(t.upstreams, u)
	}
	t.affinity = newAffinity(c, t.upstreams, before)
	return t, nil
}

// sameTransport reports whether a and b connect to upstreams in the same way.
func sameTransport(a, b *Config) bool {
	return a.DialTimeout == b.DialTimeout && a.ResponseHeaderTimeout == b.ResponseHeaderTimeout &&
		a.BodyIdleTimeout == b.BodyIdleTimeout && a.UpstreamTLS == b.UpstreamTLS
}

// expanded is an upstream of the configuration, or one address of it.
type expanded struct {
	Upstream
	id  string
	url *url.URL // as configured
	to  *url.URL // with the address
}

// serverName is what the certificate has to be for if that is not in the URL.
func (e expanded) serverName() string {
	if e.url == e.to {
		return ""
	}
	return e.url.Hostname()
}

// expand returns the upstreams of c, each address of one with Resolve by itself.
func (g *Gateway) expand(c Config) ([]expanded, error) {
	var all []expanded
	for _, u := range c.Upstreams {
		parsed, err := u.parse()
		if err != nil {
			return nil, err
		}
		id := u.id(parsed)
		if !u.Resolve {
			all = append(all, expanded{u, id, parsed, parsed})
			continue
		}
		for _, a := range g.resolved[parsed.Hostname()] {
			to := *parsed
			to.Host = netip.AddrPortFrom(a, portOf(parsed)).String()
			all = append(all, expanded{u, addressID(id, a), parsed, &to})
		}
	}
	return all, nil
}

// clientTLS returns the configuration for connecting to upstreams that show a certificate for name.
func clientTLS(c *tls.Config, name string) *tls.Config {
	c = c.Clone()
	if name != "" {
		if c == nil {
			c = &tls.Config{}
		}
		if c.ServerName == "" {
			c.ServerName = name
		}
	}
	return c
}

// Drain takes no new clients to an upstream. Those that belong to it by a cookie, session or route go there for as
// long as within, and then elsewhere; the last tenth of that, at most a second, is for the requests that it has then.
// What is not finished within the time is cut off, WebSockets and event streams included: the upstream is in
// maintenance then, and empty. Where clients do not belong to upstreams, it gets no more requests at once.
func (g *Gateway) Drain(id string, within time.Duration) error {
	if within < 0 {
		return fmt.Errorf("gateway: drain within %v: want 0 or more", within)
	}
	return g.change(id, func(u *upstream) {
		u.setMode(draining)
		u.logger.Info("upstream draining", "upstream", u.id, "within", within, "requests", u.active.Load())
		last := min(within/10, time.Second)
		u.mu.Lock()
		defer u.mu.Unlock()
		u.drainEnd = time.Now().Add(within)
		u.later(within-last, func() func() {
			u.mode.Store(int32(maintenance))
			u.later(last, func() func() {
				u.drained = nil
				conns, left := u.cutOff(), u.active.Load()
				return func() {
					closeAll(conns)
					u.logger.Info("upstream drained", "upstream", u.id, "requests_cut_off", left)
				}
			})
			return g.queue.kick
		})
	})
}

// Maintenance sends no more requests to an upstream; its clients go elsewhere. What it has to do it finishes.
func (g *Gateway) Maintenance(id string) error {
	return g.change(id, func(u *upstream) {
		u.setMode(maintenance)
		u.logger.Info("upstream in maintenance", "upstream", u.id, "requests", u.active.Load())
	})
}

// Ready ends a drain or maintenance, and an ejection or down time, too.
func (g *Gateway) Ready(id string) error {
	return g.change(id, func(u *upstream) {
		u.setMode(ready)
		u.back(anyReason...)
		u.logger.Info("upstream ready", "upstream", u.id)
	})
}

func (g *Gateway) change(id string, f func(u *upstream)) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	t := g.table.Load()
	i := slices.IndexFunc(t.upstreams, func(u *upstream) bool { return u.id == id })
	if i < 0 {
		var ids []string
		for _, u := range t.upstreams {
			ids = append(ids, u.id)
		}
		return fmt.Errorf("%w: %q (there are %s)", ErrNoUpstream, id, strings.Join(ids, ", "))
	}
	f(t.upstreams[i])
	g.queue.kick()
	return nil
}
