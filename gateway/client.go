package gateway

import (
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"

	"github.com/pires/go-proxyproto"

	"github.com/holdfast-sessions/holdfast/gateway/signed"
)

// validateClients checks what has to do with who a client is, and what upstreams are told of it.
func (c Config) validateClients(bad badFunc) {
	switch k := c.SignatureKey; {
	case len(k) == 0:
	case len(k) != signed.KeyBytes:
		bad("SignatureKey", "signature key of %d bytes: want %d random ones, the same for gateways and applications", len(k), signed.KeyBytes)
	case [signed.KeyBytes]byte(k) == [signed.KeyBytes]byte{}:
		bad("SignatureKey", "signature key is all zeros: want %d random bytes", signed.KeyBytes)
	}
	for i, p := range c.TrustedProxies {
		switch {
		case !p.IsValid():
			bad("TrustedProxies", "trusted proxy %d is not an address or a range of addresses", i+1)
		case p.Bits() == 0:
			bad("TrustedProxies", "trusted proxy %s is everybody: name the proxies, or anybody can choose the address that they seem to come from", p)
		}
	}
	if len(c.TrustedProxies) == 0 {
		if c.UseForwarded {
			bad("UseForwarded", "the header Forwarded is believed of trusted proxies only: name them")
		}
		if c.ProxyProtocol {
			bad("ProxyProtocol", "the PROXY protocol is spoken with trusted proxies only: name them")
		}
	}
}

// trustedAddr reports whether a is the address of a trusted proxy.
func (c *Config) trustedAddr(a netip.Addr) bool {
	return slices.ContainsFunc(c.TrustedProxies, func(p netip.Prefix) bool { return p.Contains(a) })
}

// trusted reports whether r came from a trusted proxy.
func (c *Config) trusted(r *http.Request) bool {
	return len(c.TrustedProxies) > 0 && c.trustedAddr(peerAddr(r))
}

// peerAddr returns the address at the other end of r's connection, as the PROXY protocol says if it is spoken. It is the
// zero Addr if there is none, as over a Unix socket.
func peerAddr(r *http.Request) netip.Addr {
	a, _ := netip.ParseAddrPort(r.RemoteAddr)
	return a.Addr().Unmap().WithZone("")
}

// clientAddr returns the address of the client of r, as far back as trusted proxies tell, or the zero Addr.
func clientAddr(r *http.Request) netip.Addr {
	if x, ok := r.Context().Value(exchangeKey{}).(*exchange); ok {
		return x.origin.client
	}
	return peerAddr(r)
}

// clientNetwork returns the address that stands for a client where clients are counted or told apart by it: of IPv6, the
// network of 64 bits, as all of it belongs to one of them, who changes the lower half at will.
func clientNetwork(a netip.Addr) netip.Addr {
	if a = a.Unmap(); a.Is6() {
		p, _ := a.Prefix(64)
		return p.Addr()
	}
	return a
}

// origin is where a request comes from.
type origin struct {
	client  netip.Addr
	trusted bool   // the peer, which may be the client itself
	chain   string // the client and the proxies after it, for X-Forwarded-For; "" if unknown
	proto   string // http or https, as the client spoke it
	host    string // that the client asked for
}

// originOf finds out where r comes from. What a client wrote itself is told from what trusted proxies added: the
// rightmost address that is not one of theirs is the client's.
func (c *Config) originOf(r *http.Request) origin {
	peer := peerAddr(r)
	o := origin{client: peer, proto: "http", host: r.Host}
	if r.TLS != nil {
		o.proto = "https"
	}
	if !peer.IsValid() {
		return o
	}
	o.chain = peer.String()
	if len(c.TrustedProxies) == 0 || !c.trustedAddr(peer) {
		return o
	}
	o.trusted = true
	if c.UseForwarded {
		c.forwarded(r.Header, &o)
		return o
	}
	lines := r.Header["X-Forwarded-For"]
walk:
	for i := len(lines) - 1; i >= 0; i-- {
		for rest, more := lines[i], true; more; {
			var entry string
			if comma := strings.LastIndexByte(rest, ','); comma >= 0 {
				rest, entry = rest[:comma], rest[comma+1:]
			} else {
				entry, more = rest, false
			}
			if !c.hop(&o, entry) {
				break walk
			}
		}
	}
	if v := r.Header["X-Forwarded-Proto"]; len(v) == 1 {
		o.setProto(v[0])
	}
	if v := r.Header["X-Forwarded-Host"]; len(v) == 1 {
		o.setHost(v[0])
	}
	return o
}

// hop takes the next address from the right of what proxies noted. It reports whether the one before that may be asked
// for, too, because this one is trusted.
func (c *Config) hop(o *origin, entry string) bool {
	a, ok := forwardedAddr(strings.TrimSpace(entry))
	if !ok {
		return false // garbage, or a proxy that hides its client: the last address that is known counts
	}
	o.client, o.chain = a, a.String()+", "+o.chain
	return c.trustedAddr(a)
}

// forwardedAddr reads an address as proxies write it: with or without port, IPv6 with or without brackets.
func forwardedAddr(s string) (netip.Addr, bool) {
	a, err := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(s, "["), "]"))
	if err != nil {
		ap, err := netip.ParseAddrPort(s)
		if err != nil {
			return netip.Addr{}, false
		}
		a = ap.Addr()
	}
	return a.Unmap().WithZone(""), true
}

func (o *origin) setProto(v string) {
	switch {
	case strings.EqualFold(v, "https"):
		o.proto = "https"
	case strings.EqualFold(v, "http"):
		o.proto = "http"
	}
}

func (o *origin) setHost(v string) {
	if v != "" && len(v) <= 255+len(":65535") && strings.Trim(v, hostChars) == "" {
		o.host = v
	}
}

const hostChars = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_:[]"

// forwarded is originOf for the header of RFC 7239. It is believed only if all of it is well formed: a quote that a client
// left open would hide what a proxy appended.
func (c *Config) forwarded(h http.Header, o *origin) {
	elements, ok := splitQuoted(strings.Join(h["Forwarded"], ","), ',')
	if !ok {
		return
	}
	hops := make([]struct{ node, proto, host string }, len(elements))
	for i, e := range elements {
		pairs, _ := splitQuoted(e, ';')
		for _, pair := range pairs {
			k, v, ok := strings.Cut(strings.TrimSpace(pair), "=")
			if v, ok = forwardedValue(v, ok); !ok || !fieldName.MatchString(k) {
				return
			}
			switch strings.ToLower(k) {
			case "for":
				hops[i].node = v
			case "proto":
				hops[i].proto = v
			case "host":
				hops[i].host = v
			}
		}
	}
	for _, hop := range slices.Backward(hops) {
		further := c.hop(o, hop.node)
		// What the client asked for, the proxy says that it asked. Those after that one may say nothing.
		o.setProto(hop.proto)
		o.setHost(hop.host)
		if !further {
			return
		}
	}
}

// splitQuoted splits at sep outside of double quotes. ok is false if quotes are left open.
func splitQuoted(s string, sep byte) (parts []string, ok bool) {
	quoted, from := false, 0
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '\\' && quoted:
			i++
		case s[i] == '"':
			quoted = !quoted
		case s[i] == sep && !quoted:
			parts = append(parts, s[from:i])
			from = i + 1
		}
	}
	return append(parts, s[from:]), !quoted
}

// forwardedValue returns a value without its quotes, or not ok if it is neither quoted nor free of quotes.
func forwardedValue(v string, ok bool) (string, bool) {
	if !strings.HasPrefix(v, `"`) {
		return v, ok && !strings.Contains(v, `"`)
	}
	if len(v) < 2 || v[len(v)-1] != '"' {
		return "", false
	}
	v = v[1 : len(v)-1]
	// No address, name or scheme has these, however escaped.
	return v, ok && !strings.ContainsAny(v, `"\`)
}

// forwardHeaders tells an upstream where x comes from and what it is called. ReverseProxy has removed what was there.
func (x *exchange) forwardHeaders(h http.Header) {
	v := &x.forwarded
	v[0], v[1], v[2], v[3] = x.origin.host, x.origin.proto, x.id, x.origin.chain
	h["X-Forwarded-Host"] = v[0:1:1]
	h["X-Forwarded-Proto"] = v[1:2:2]
	h["X-Request-Id"] = v[2:3:3]
	if x.origin.chain != "" {
		h["X-Forwarded-For"] = v[3:4:4]
	}
}

// unknownAddr is the address of a client of which a proxy says nothing. It is nobody's, so nobody trusts it.
type unknownAddr struct{}

func (unknownAddr) Network() string { return "unknown" }
func (unknownAddr) String() string  { return "unknown" }

// readProxyHeader reads the header of the PROXY protocol from a trusted proxy's connection, which must begin with one:
// the protocol forbids to guess, since a client could then write one. It returns where the connection comes from.
func (g *Gateway) readProxyHeader(c net.Conn) (net.Conn, net.Addr, error) {
	pc := proxyproto.NewConn(c, proxyproto.WithPolicy(proxyproto.REQUIRE), proxyproto.SetReadHeaderTimeout(g.config.ReadHeaderTimeout))
	if _, err := pc.Read(nil); err != nil {
		return nil, nil, err
	}
	if h := pc.ProxyHeader(); h.Version == 1 && h.TransportProtocol == proxyproto.UNSPEC {
		// PROXY UNKNOWN, which may stand for any client; go-proxyproto says LOCAL, which is the proxy's own.
		return pc, unknownAddr{}, nil
	}
	return pc, pc.RemoteAddr(), nil
}
