package gateway

import (
	"net/http"

	"github.com/holdfast-sessions/holdfast/gateway/internal/learned"
	"github.com/holdfast-sessions/holdfast/gateway/internal/rendezvous"
)

// sessionAffinity binds a client to the upstream that set the application's session cookie. For clients without
// cookies, a table learns from the requests and the headers of the answers which upstream has which session.
type sessionAffinity struct {
	*cookieAffinity
	places    places
	upstreams []*upstream
	ids       map[string]*upstream
	nodes     *rendezvous.Nodes
	byAddress bool

	learned *learned.Table // nil if session IDs are in cookies only
	entries int            // that it was made for
}

func newSessionAffinity(c Config, upstreams []*upstream, old *sessionAffinity) *sessionAffinity {
	a := &sessionAffinity{
		cookieAffinity: newCookieAffinity(c.Cookie, c.Key, upstreams),
		places:         placesOf(c), upstreams: upstreams, ids: byID(upstreams), nodes: newNodes(c.Key, upstreams),
		byAddress: c.SessionByAddress, entries: c.LearnedEntries,
	}
	switch {
	case !a.places.beyondCookies():
	case old != nil && old.learned != nil && old.entries == a.entries && old.learned.Idle() == c.LearnedIdle:
		a.learned = old.learned
	default:
		a.learned = learned.New(c.LearnedEntries, c.LearnedIdle)
	}
	return a
}

func (a *sessionAffinity) prefer(r *http.Request, ok func(*upstream) bool, say *steps) *upstream {
	bound := a.home(r).to
	if bound != nil {
		if ok(bound) {
			if say != nil {
				say.add("the affinity cookie names upstream %s", bound.id)
			}
			return bound
		}
		if say != nil {
			say.add("the affinity cookie names upstream %s, which takes no requests of this client now", bound.id)
		}
	} else if say != nil {
		say.add("no affinity cookie of this gateway's key")
	}
	var room [maxIDs]string
	ids := a.places.ids(r, room[:0])
	if a.learned != nil {
		u := a.lookUp(ids, "of this request", ok, say)
		if u == nil {
			// The ID may be a new one that only the page told, or in the body of a form.
			var room [maxIDs]string
			u = a.lookUp(a.places.inReferer(r, room[:0]), "of the page that this request comes from", ok, say)
		}
		if u != nil {
			return u
		}
	}
	return a.unknown(r, ids, ok, say)
}

// lookUp returns the upstream that was learned to have a session, if ok accepts it.
func (a *sessionAffinity) lookUp(ids []string, where string, ok func(*upstream) bool, say *steps) *upstream {
	get := a.learned.Get
	if say != nil {
		get = a.learned.Peek
	}
	for _, id := range ids {
		u := a.ids[get(id)]
		if u != nil && ok(u) {
			if say != nil {
				say.add("upstream %s was learned to have the session %s", u.id, where)
			}
			return u
		}
		if u != nil && say != nil {
			say.add("upstream %s was learned to have the session %s, but takes no requests of this client now", u.id, where)
		}
	}
	return nil
}

// unknown returns where a client goes whose upstream is not known, or cannot be had: always to the same one, and on
// every gateway with the key.
func (a *sessionAffinity) unknown(r *http.Request, ids []string, ok func(*upstream) bool, say *steps) *upstream {
	var what, value string
	switch addr := clientAddr(r); {
	case a.byAddress && addr.IsValid():
		what, value = "the client's address", "address "+clientNetwork(addr).String()
	case len(ids) > 0:
		what, value = "the session ID", "session "+ids[0]
	default:
		if say != nil {
			say.add("no session ID: the client belongs to no upstream yet")
		}
		return nil
	}
	atHome := a.byAddress && len(ids) > 0 // it has a session, so it was there before
	i := a.nodes.Pick(value, func(i int) bool { return ok(a.upstreams[i]) && (atHome || a.upstreams[i].takesNew()) })
	if i < 0 {
		return nil
	}
	if say != nil {
		say.add("by a hash of %s: upstream %s", what, a.upstreams[i].id)
	}
	return a.upstreams[i]
}

func (a *sessionAffinity) answered(r *http.Request, u *upstream, res *http.Response) {
	bound := a.home(r)
	c := a.places.change(r, res.Header)
	switch {
	case c.set:
		// Where the application's cookie outlives the browser, so must ours, as long as that; and where its cookie goes to
		// pages that another site embeds, so must ours.
		if c.like.lifetime > 0 || a.changes(bound, u) {
			a.bind(r, u, res.Header, c.like)
		}
	case c.ended:
		if name, _ := a.name(r); has(r.Header, name) {
			a.unbind(r, res.Header, c.like)
		}
	case bound.to == nil && res.StatusCode != http.StatusNotModified && a.places.inCookie(r) != "":
		// A session from before the gateway, or whose upstream is not there any more.
		a.bind(r, u, res.Header, like{})
	}
	if a.learned != nil && bound.to == nil { // a client that keeps our cookie keeps the others
		a.learn(r, u, res, c)
	}
}

func (a *sessionAffinity) learn(r *http.Request, u *upstream, res *http.Response, c change) {
	var room [maxIDs]string
	for _, id := range a.places.ids(r, room[:0]) {
		if c.ended {
			a.learned.Delete(id)
		} else if a.ids[a.learned.Peek(id)] == nil {
			a.learned.Put(id, u.id)
		}
	}
	if c.set {
		a.learned.Put(c.id, u.id)
	}
	a.places.announced(res.Header, func(id string) { a.learned.Put(id, u.id) })
}

// has reports whether there is a cookie of this name.
func has(h http.Header, name string) bool {
	for range cookies(h, name) {
		return true
	}
	return false
}

func newNodes(key []byte, upstreams []*upstream) *rendezvous.Nodes {
	ids, weights := make([]string, len(upstreams)), make([]int, len(upstreams))
	for i, u := range upstreams {
		ids[i], weights[i] = u.id, u.weight
	}
	return rendezvous.New(key, ids, weights)
}

// LearnedStats is the table of sessions of clients without cookies (AffinitySession).
type LearnedStats struct {
	// Entries are in it now, of at most Capacity.
	Entries, Capacity int
	// Hits and Misses count look-ups of session IDs by clients that have no affinity cookie.
	Hits, Misses uint64
	// Evictions count sessions that had to make room for others, Expirations those that nobody asked for in
	// Config.LearnedIdle.
	Evictions, Expirations uint64
}

// learnedStats returns what a has learned.
func learnedStats(a affinity) LearnedStats {
	s, ok := a.(*sessionAffinity)
	if !ok || s.learned == nil {
		return LearnedStats{}
	}
	st := s.learned.Stats()
	return LearnedStats{
		Entries: st.Entries, Capacity: s.learned.Capacity(), Hits: st.Hits, Misses: st.Misses, Evictions: st.Evictions, Expirations: st.Expirations,
	}
}
