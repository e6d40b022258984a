package gateway

import (
	"net/http"
	"strings"

	"github.com/holdfast-sessions/holdfast/gateway/internal/iphash"
	"github.com/holdfast-sessions/holdfast/gateway/internal/rendezvous"
)

// hashAffinity spreads values over the upstreams. It knows no clients, so it is for sessions that all upstreams share.
type hashAffinity struct {
	of        HashOf
	upstreams []*upstream
	nodes     *rendezvous.Nodes
}

func newHashAffinity(c Config, upstreams []*upstream) *hashAffinity {
	return &hashAffinity{c.Hash, upstreams, newNodes(c.Key, upstreams)}
}

// value returns what r is assigned by: the first cookie, header or parameter of the name, or "".
func (a *hashAffinity) value(r *http.Request) (v string) {
	switch {
	case a.of.Cookie != "":
		for v := range cookies(r.Header, a.of.Cookie) {
			return v
		}
	case strings.EqualFold(a.of.Header, "Host"):
		return strings.ToLower(r.Host)
	case a.of.Header != "":
		return r.Header.Get(a.of.Header)
	}
	eachParameter(r.URL.RawQuery, a.of.Parameter, func(found string) bool { v = found; return false })
	return v
}

func (a *hashAffinity) prefer(r *http.Request, ok func(*upstream) bool, say *steps) *upstream {
	v := a.value(r)
	if v == "" {
		if say != nil {
			say.add("nothing to hash: the request has no such cookie, header or parameter")
		}
		return nil
	}
	i := a.nodes.Pick(v, func(i int) bool { return ok(a.upstreams[i]) })
	if i < 0 {
		if say != nil {
			say.add("by hash, but no upstream takes the request now")
		}
		return nil
	}
	if say != nil {
		say.add("by hash: upstream %s", a.upstreams[i].id)
	}
	return a.upstreams[i]
}

func (*hashAffinity) binds() bool                                       { return false }
func (*hashAffinity) answered(*http.Request, *upstream, *http.Response) {}
func (*hashAffinity) strip(http.Header)                                 {}

// ipAffinity is nginx's ip_hash.
type ipAffinity struct {
	upstreams []*upstream
	servers   iphash.Servers
}

func newIPAffinity(upstreams []*upstream) *ipAffinity {
	weights := make([]int, len(upstreams))
	for i, u := range upstreams {
		weights[i] = u.weight
	}
	return &ipAffinity{upstreams, iphash.New(weights)}
}

func (a *ipAffinity) prefer(r *http.Request, ok func(*upstream) bool, say *steps) *upstream {
	i := a.servers.Pick(clientAddr(r), func(i int) bool { return ok(a.upstreams[i]) })
	if i < 0 {
		if say != nil {
			say.add("ip_hash chooses none: there is only one upstream, or 20 further hashes found none that takes the request; nginx would take turns, too")
		}
		return nil
	}
	if say != nil {
		say.add("by ip_hash of the client's address: upstream %s", a.upstreams[i].id)
	}
	return a.upstreams[i]
}

func (*ipAffinity) binds() bool                                       { return false }
func (*ipAffinity) answered(*http.Request, *upstream, *http.Response) {}
func (*ipAffinity) strip(http.Header)                                 {}

// headerAffinity does what a trusted proxy in front says.
type headerAffinity struct {
	config      *Config
	ids, routes map[string]*upstream
}

func newHeaderAffinity(c Config, upstreams []*upstream) *headerAffinity {
	return &headerAffinity{&c, byID(upstreams), byRoute(upstreams)}
}

func (a *headerAffinity) prefer(r *http.Request, ok func(*upstream) bool, say *steps) *upstream {
	v := r.Header.Get(a.config.UpstreamHeader)
	u := a.ids[v]
	if u == nil {
		u = a.routes[v]
	}
	why := ""
	switch {
	case v == "":
		why = "the request has no header %s"
	case !a.config.trusted(r):
		why = "header %s is ignored: it does not come from a trusted proxy"
	case u == nil:
		why = "header %s names no upstream"
	case !ok(u):
		why = "header %s names upstream " + u.id + ", which takes no more requests now"
	default:
		if say != nil {
			say.add("header %s names upstream %s", a.config.UpstreamHeader, u.id)
		}
		return u
	}
	if say != nil {
		say.add(why, a.config.UpstreamHeader)
	}
	return nil
}

func (*headerAffinity) binds() bool                                       { return false }
func (*headerAffinity) answered(*http.Request, *upstream, *http.Response) {}

// strip removes the header: to an upstream it says nothing.
func (a *headerAffinity) strip(h http.Header) { h.Del(a.config.UpstreamHeader) }
