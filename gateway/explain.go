package gateway

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"
)

// steps says in words, one after the other, why a request goes where it goes. A nil *steps keeps nothing, as for all
// requests but those of Explain. It never gets a token, a cookie's value or a whole ID.
type steps struct{ lines []string }

// add appends a step. Its arguments may be allocated even if s is nil: where requests pass, ask s != nil first.
func (s *steps) add(format string, args ...any) {
	if s != nil {
		s.lines = append(s.lines, fmt.Sprintf(format, args...))
	}
}

// Query is a request for Explain.
type Query struct {
	// Cookie is the Cookie header.
	Cookie string
	// IP is the client's address. Default 127.0.0.1.
	IP string
	// Path may have parameters and a query. Default /.
	Path string
	// Host is what the client asks for. Default localhost.
	Host string
	// Header are other headers that decide.
	Header http.Header
	// TLS says that the client comes over TLS.
	TLS bool
}

// request makes the request of q.
func (q Query) request() (*http.Request, error) {
	ip, err := netip.ParseAddr(cmp.Or(q.IP, "127.0.0.1"))
	if err != nil {
		return nil, fmt.Errorf("gateway: explain: IP %q: want an address such as 192.0.2.1", q.IP)
	}
	path := cmp.Or(q.Path, "/")
	u, err := url.ParseRequestURI(path)
	if err != nil || !strings.HasPrefix(path, "/") {
		return nil, errors.New("gateway: explain: bad path: want one such as /cart?id=1")
	}
	r := &http.Request{
		Method: http.MethodGet, URL: u, RequestURI: path, Host: cmp.Or(q.Host, "localhost"), Header: q.Header.Clone(),
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Body: http.NoBody,
		RemoteAddr: netip.AddrPortFrom(ip, 1).String(),
	}
	if r.Header == nil {
		r.Header = make(http.Header)
	}
	if q.Cookie != "" {
		r.Header.Add("Cookie", q.Cookie)
	}
	if q.TLS {
		r.TLS = &tls.ConnectionState{}
	}
	return r, nil
}

// Explain says step by step where the request of q would go now, and why, by the code that decides it. It changes
// nothing, sends nothing and shows no cookie or token.
func (g *Gateway) Explain(q Query) ([]string, error) {
	r, err := q.request()
	if err != nil {
		return nil, err
	}
	t := g.table.Load()
	x := &exchange{gateway: g, table: t, origin: t.config.originOf(r)}
	r = r.WithContext(context.WithValue(context.Background(), exchangeKey{}, x))
	say := &steps{}
	now := t.clock.now()
	for _, u := range t.upstreams {
		say.add("upstream %s: %s", u.id, u.describe(now))
	}
	say.add("affinity %s", t.config.Affinity)
	u, wait := t.pick(r, nil, say)
	switch {
	case u == nil:
		say.add("the answer is 503")
		return say.lines, nil
	case wait == waitHome:
		say.add("the request goes to upstream %s when that has room; after %v it is answered 503", u.id, t.config.QueueTimeout)
		return say.lines, nil
	case wait == waitAny:
		say.add("the request goes to the first upstream that has room; after %v it is answered 503", t.config.QueueTimeout)
		return say.lines, nil
	}
	say.add("the request goes to upstream %s", u.id)
	if next, _ := t.pick(r, []*live{u.live}, &steps{}); next != nil {
		say.add("if that cannot be connected, it goes to upstream %s", next.id)
	} else {
		say.add("if that cannot be connected, there is no other: the answer is 503")
	}
	return say.lines, nil
}

// describe says how u is.
func (u *upstream) describe(now time.Duration) string {
	state, until := u.state()
	text := string(state)
	switch state {
	case StateDraining:
		text += fmt.Sprintf(" for another %v", time.Until(until).Round(time.Second))
	case StateDown, StateEjected:
		if out := time.Duration(u.out.Load()); out != 0 {
			text += fmt.Sprintf(", it %v, tried again in %v", reason(u.why.Load()), max(out-now, 0).Round(time.Millisecond))
		} else {
			text += ", it fails its health check"
		}
	}
	if u.zone != "" {
		text += ", zone " + u.zone
	}
	text += fmt.Sprintf(", weight %d, %d requests in flight", u.weight, u.active.Load())
	if u.maxRequests != 0 {
		text += fmt.Sprintf(" of %d", u.maxRequests)
	}
	return text
}
