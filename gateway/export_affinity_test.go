package gateway

import (
	"context"
	"net/http"
	"slices"
	"time"
)

// Home returns the ID of the upstream that r's affinity cookie names.
func (g *Gateway) Home(r *http.Request) string {
	if u := g.cookies().home(r).to; u != nil {
		return u.id
	}
	return ""
}

// StripCookies removes the affinity cookies.
func (g *Gateway) StripCookies(h http.Header) { g.table.Load().affinity.strip(h) }

// AffinityValue returns the value of the affinity cookie that binds to an upstream from a moment on.
func (g *Gateway) AffinityValue(id string, at time.Time) string {
	return g.cookies().value(byID(g.table.Load().upstreams)[id], at)
}

// UndatedValue is AffinityValue in version 1.
func (g *Gateway) UndatedValue(id string) string {
	v := g.cookies().names[byID(g.table.Load().upstreams)[id]].undated
	return strictBase64.EncodeToString(v[:])
}

func (g *Gateway) cookies() *cookieAffinity {
	a := g.table.Load().affinity
	if s, ok := a.(*sessionAffinity); ok {
		return s.cookieAffinity
	}
	return a.(*cookieAffinity)
}

// Prefer returns the upstream that the affinity wants for r, or "", and why; without are those that take no requests.
func (g *Gateway) Prefer(r *http.Request, without ...string) (id string, why []string) {
	var say steps
	t := g.table.Load()
	a, c := t.affinity, t.choose(nil, &say)
	ok := func(u *upstream) bool { return !slices.Contains(without, u.id) && c.preferable(u) }
	u := a.prefer(r, ok, &say)
	if again := a.prefer(r, ok, nil); again != u {
		return "explained as another", say.lines
	}
	if u != nil {
		id = u.id
	}
	return id, say.lines
}

// Answered tells the affinity of an answer of an upstream.
func (g *Gateway) Answered(r *http.Request, id string, res *http.Response) {
	t := g.table.Load()
	t.affinity.answered(r, byID(t.upstreams)[id], res)
}

// SetDraining makes an upstream one that drains, or not.
func (g *Gateway) SetDraining(id string, drain bool) {
	m := ready
	if drain {
		m = draining
	}
	byID(g.table.Load().upstreams)[id].setMode(m)
}

// Rebuild makes the affinity anew, over other upstreams, as a reload does.
func (g *Gateway) Rebuild(c Config) error {
	if err := c.Validate(); err != nil {
		return err
	}
	t, err := g.build(c.withDefaults(), g.table.Load())
	if err != nil {
		return err
	}
	g.table.Store(t)
	return nil
}

// Preferring returns what the affinity does for each request like r, answered by the upstream that it wants or else the
// first.
func (g *Gateway) Preferring(r *http.Request) func() {
	t := g.table.Load()
	res := &http.Response{StatusCode: http.StatusOK, Header: http.Header{}}
	ok := func(*upstream) bool { return true }
	x := &exchange{gateway: g, origin: g.config.originOf(r)}
	r = r.WithContext(context.WithValue(r.Context(), exchangeKey{}, x))
	return func() {
		x.known = known{}
		u := t.affinity.prefer(r, ok, nil)
		if u == nil {
			u = t.upstreams[0]
		}
		clear(res.Header)
		t.affinity.answered(r, u, res)
	}
}
