package gateway

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"sync"
	"time"
)

// Resolver looks up the addresses of upstreams with Upstream.Resolve. A *net.Resolver is one.
type Resolver interface {
	LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error)
}

// A look-up that fails keeps the last answer. As long as there was none it is repeated every second.
const (
	resolveTimeout = 5 * time.Second
	resolveRetry   = time.Second
)

func (c Config) validateResolve(bad badFunc) {
	for i, u := range c.Upstreams {
		if !u.Resolve {
			continue
		}
		p, err := u.parse()
		if err != nil {
			continue // which was said
		}
		if _, err := netip.ParseAddr(p.Hostname()); err == nil {
			bad(upstreamField(i, "Resolve"), "upstream %d: resolve: %s is an address, not a name", i+1, p.Hostname())
		}
		if len(u.ID) > 55 {
			bad(upstreamField(i, "ID"), "upstream %d: ID %q: want at most 55 characters with resolve, which adds 9", i+1, u.ID)
		}
	}
	if c.ResolveEvery < 0 {
		bad("ResolveEvery", "resolve every %v is negative", c.ResolveEvery)
	}
}

// addressID returns the ID of one address of an upstream: that of the upstream, and 8 characters of a hash of the
// address. It must never change: affinity cookies depend on it.
func addressID(id string, a netip.Addr) string {
	sum := sha256.Sum256([]byte("holdfast address v1\x00" + a.String()))
	return id + "-" + hex.EncodeToString(sum[:4])
}

func portOf(u *url.URL) uint16 {
	switch port := u.Port(); {
	case port != "":
		n, _ := strconv.ParseUint(port, 10, 16) // parse has checked it
		return uint16(n)
	case u.Scheme == "https":
		return 443
	}
	return 80
}

// names returns the names of c that are to be looked up, each once.
func (c *Config) names() []string {
	var all []string
	for _, u := range c.Upstreams {
		if p, err := u.parse(); err == nil && u.Resolve && !slices.Contains(all, p.Hostname()) {
			all = append(all, p.Hostname())
		}
	}
	return all
}

// lookUp returns the addresses of name, in order, and never none.
func lookUp(ctx context.Context, r Resolver, name string) ([]netip.Addr, error) {
	ctx, cancel := context.WithTimeout(ctx, resolveTimeout)
	defer cancel()
	all, err := r.LookupNetIP(ctx, "ip", name)
	if err != nil {
		return nil, fmt.Errorf("look up %s: %w", name, err)
	}
	for i, a := range all {
		all[i] = a.Unmap()
	}
	slices.SortFunc(all, netip.Addr.Compare)
	all = slices.Compact(all)
	if len(all) == 0 {
		return nil, fmt.Errorf("look up %s: no address", name)
	}
	return all, nil
}

// resolveNew looks up the names of c that are not known, so that what c makes of the gateway can work.
func (g *Gateway) resolveNew(c Config) error {
	var errs []error
	for _, name := range c.names() {
		g.mu.Lock()
		known := g.resolved[name] != nil
		g.mu.Unlock()
		if known {
			continue
		}
		all, err := lookUp(context.Background(), c.withDefaults().Resolver, name)
		if err != nil {
			errs = append(errs, fmt.Errorf("gateway: %w", err))
			continue
		}
		g.mu.Lock()
		g.setResolved(name, all)
		g.mu.Unlock()
	}
	return errors.Join(errs...)
}

// setResolved reports whether all is a change. g.mu is held.
func (g *Gateway) setResolved(name string, all []netip.Addr) bool {
	if slices.Equal(g.resolved[name], all) {
		return false
	}
	if g.resolved == nil {
		g.resolved = make(map[string][]netip.Addr)
	}
	g.resolved[name] = all
	return true
}

// resolve looks up every name, and makes a new table if anything has changed. It reports whether all names are known.
func (g *Gateway) resolve(ctx context.Context) bool {
	c := g.settings()
	names := c.names()
	type answer struct {
		all []netip.Addr
		err error
	}
	answers := make([]answer, len(names))
	var lookUps sync.WaitGroup
	for i, name := range names {
		lookUps.Go(func() { answers[i].all, answers[i].err = lookUp(ctx, c.Resolver, name) })
	}
	lookUps.Wait()
	if ctx.Err() != nil {
		return false
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	known, changed := true, false
	for i, name := range names {
		a := answers[i]
		if a.err != nil {
			had := len(g.resolved[name])
			known = known && had > 0
			if !g.unresolved[name] {
				c.Logger.Warn("name of upstreams not resolved, keeping the last answer", "name", name, "addresses", had, "err", a.err)
			}
		} else if g.setResolved(name, a.all) {
			changed = true
			c.Logger.Info("addresses of upstreams", "name", name, "addresses", len(a.all))
		}
		if g.unresolved == nil {
			g.unresolved = make(map[string]bool)
		}
		g.unresolved[name] = a.err != nil
	}
	if changed {
		if err := g.install(g.table.Load().config); err != nil {
			c.Logger.Error("addresses of upstreams not taken over", "err", err)
		}
	}
	return known
}

// keepResolving looks up the names again and again until ctx ends. known says whether all have been found.
func (g *Gateway) keepResolving(ctx context.Context, known bool) {
	for {
		every := g.table.Load().config.ResolveEvery
		wait := every*9/10 + rand.N(every/5+1)
		if !known {
			wait = min(wait, resolveRetry)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		known = g.resolve(ctx)
	}
}
