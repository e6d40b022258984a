package gateway

import (
	"net/http"
	"strings"

	"github.com/holdfast-sessions/holdfast/gateway/internal/rendezvous"
)

// routeAffinity follows the route that an application puts into its session IDs.
type routeAffinity struct {
	places    places
	separator byte
	routes    map[string]*upstream
	upstreams []*upstream
	nodes     *rendezvous.Nodes
}

func newRouteAffinity(c Config, upstreams []*upstream) *routeAffinity {
	return &routeAffinity{
		places: placesOf(c), separator: c.RouteSeparator[0], routes: byRoute(upstreams), upstreams: upstreams, nodes: newNodes(c.Key, upstreams),
	}
}

// A route is at most this long, so only the end of an ID is searched.
const maxRoute = 64

// find gives f the upstreams that an ID names, in the order in which they are to be tried, until it returns false:
// ID.ROUTE (Tomcat, Jetty; the route may have dots), ID!PRIMARY!SECONDARY and ID:ROUTE:ROUTE (WebLogic, WebSphere), and
// at last ROUTE~ID (cookies that a balancer prefixed).
func (a *routeAffinity) find(id string, f func(*upstream) bool) {
	from := max(len(id)-maxRoute-1, 0)
	for i := from; i < len(id); i++ {
		if id[i] != a.separator {
			continue
		}
		rest := id[i+1:]
		if u := a.routes[rest]; u != nil && !f(u) {
			return
		}
		if end := strings.IndexByte(rest, a.separator); end >= 0 {
			if u := a.routes[rest[:end]]; u != nil && !f(u) {
				return
			}
		}
	}
	if end := strings.IndexByte(id[:min(len(id), maxRoute+1)], a.separator); end >= 0 {
		if u := a.routes[id[:end]]; u != nil {
			f(u)
		}
	}
}

func (a *routeAffinity) prefer(r *http.Request, ok func(*upstream) bool, say *steps) *upstream {
	var room [maxIDs]string
	ids := a.places.ids(r, room[:0])
	var found *upstream
	routed := "" // an ID with a route
	for _, id := range ids {
		a.find(id, func(u *upstream) bool {
			if routed == "" {
				routed = id
			}
			if ok(u) {
				found = u
				return false
			}
			if say != nil {
				say.add("the session ID's route is of upstream %s, which takes no requests of this client now", u.id)
			}
			return true
		})
		if found != nil {
			if say != nil {
				say.add("the session ID's route is of upstream %s", found.id)
			}
			return found
		}
	}
	if routed == "" {
		if say != nil && len(ids) > 0 {
			say.add("the session ID has no route of an upstream")
		} else if say != nil {
			say.add("no session ID: the client belongs to no upstream yet")
		}
		return nil
	}
	// Until the application gives it another route, all go to one, and on every gateway to the same.
	i := a.nodes.Pick("session "+routed, func(i int) bool { return ok(a.upstreams[i]) && a.upstreams[i].takesNew() })
	if i < 0 {
		return nil
	}
	if say != nil {
		say.add("by a hash of the session ID instead: upstream %s", a.upstreams[i].id)
	}
	return a.upstreams[i]
}

func (*routeAffinity) binds() bool                                       { return true }
func (*routeAffinity) answered(*http.Request, *upstream, *http.Response) {}
func (*routeAffinity) strip(http.Header)                                 {}
