package gateway

import (
	"net/http"
	"slices"
)

// Pick returns the ID of the upstream that r would be sent to now, after the tried ones, or "".
func (g *Gateway) Pick(r *http.Request, tried ...string) string {
	t := g.table.Load()
	var all []*live
	for _, u := range t.upstreams {
		if slices.Contains(tried, u.id) {
			all = append(all, u.live)
		}
	}
	if u, wait := t.pick(r, all, nil); u != nil && wait == waitNot {
		return u.id
	}
	return ""
}

// SetActive makes an upstream one that has n requests.
func (g *Gateway) SetActive(id string, n int) { g.live(id).active.Store(int64(n)) }

func (g *Gateway) live(id string) *live {
	for _, u := range g.table.Load().upstreams {
		if u.id == id {
			return u.live
		}
	}
	return nil
}

// Down makes an upstream one that cannot be connected, Back one that answered again.
func (g *Gateway) Down(id string) {
	for _, u := range g.table.Load().upstreams {
		if u.id == id {
			u.leave(u.clock.now(), refused, g.config.Ejection, http.ErrServerClosed)
			g.queue.kick()
		}
	}
}

func (g *Gateway) Back(id string) { g.live(id).back(anyReason...) }
