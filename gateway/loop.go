package gateway

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
)

// hopHeader tells a gateway that a request has been here before. Each gateway adds a value of its own, random at each
// start, so that gateways may stand one behind another. It is not Via, for which some servers turn compression off.
const hopHeader = "Holdfast-Hop"

// maxHops bounds what of hopHeader is passed on.
const maxHops = 1 << 10

// beenHere reports whether r has passed this gateway before, or so many that it goes in a circle.
func (g *Gateway) beenHere(r *http.Request) bool {
	n := 0
	for _, v := range r.Header[hopHeader] {
		if n += len(v); n > maxHops || strings.Contains(v, g.hop[0]) {
			return true
		}
	}
	return false
}

// markHop marks a request that goes to an upstream.
func (g *Gateway) markHop(h http.Header) {
	if before := h[hopHeader]; before != nil {
		h[hopHeader] = append(slices.Clip(before), g.hop[0])
		return
	}
	h[hopHeader] = g.hop
}

// looped reports whether an upstream's answer is this gateway's own that it has seen the request before. Another
// gateway's it passes on: that one may be in front.
func (g *Gateway) looped(res *http.Response) bool {
	mark, ok := res.Header[hopHeader]
	if !ok {
		return false
	}
	own := slices.Contains(mark, g.hop[0])
	if own || res.StatusCode != http.StatusLoopDetected {
		delete(res.Header, hopHeader)
	}
	return own && res.StatusCode == http.StatusLoopDetected
}

// own reports an upstream of t that is an address on which this gateway listens. g.mu is held.
func (g *Gateway) own(t *table) error {
	for _, u := range t.upstreams {
		for l := range g.listening {
			if names(u.url, l.Addr()) {
				i := slices.IndexFunc(t.config.Upstreams, func(of Upstream) bool { return of.is(u.id) }) // -1: an address of one
				return &ConfigError{upstreamField(max(i, 0), "URL"), fmt.Errorf("upstream %s, %s, is an address of this gateway itself: give that of the application server", u.id, u.url)}
			}
		}
	}
	return nil
}

// names reports whether u is where somebody listens. It knows addresses and localhost, and looks nothing up.
func names(u *url.URL, listening net.Addr) bool {
	at, ok := listening.(*net.TCPAddr)
	if !ok || int(portOf(u)) != at.Port {
		return false
	}
	host := u.Hostname()
	if strings.EqualFold(host, "localhost") {
		host = "127.0.0.1"
	}
	to, err := netip.ParseAddr(host)
	if err != nil {
		return false
	}
	to = to.Unmap()
	l, _ := netip.AddrFromSlice(at.IP)
	l = l.Unmap()
	if l.IsValid() && !l.IsUnspecified() {
		return to == l || to.IsUnspecified() && l.IsLoopback()
	}
	if to.IsLoopback() || to.IsUnspecified() {
		return true
	}
	local, _ := net.InterfaceAddrs() // none: then it is found when a request comes back
	return slices.ContainsFunc(local, func(a net.Addr) bool {
		p, err := netip.ParsePrefix(a.String())
		return err == nil && p.Addr().Unmap() == to
	})
}
