package gateway_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"

	"github.com/pires/go-proxyproto"

	"github.com/holdfast-sessions/holdfast/gateway"
	"github.com/holdfast-sessions/holdfast/internal/testserver"
)

func prefixes(list ...string) (all []netip.Prefix) {
	for _, s := range list {
		all = append(all, netip.MustParsePrefix(s))
	}
	return all
}

// Attack 33: an address that a client claims is not its own.
func TestOrigin(t *testing.T) {
	const far, near, other = "203.0.113.7", "10.0.0.9", "192.0.2.1" // near is a trusted proxy
	h := func(pairs ...string) http.Header {
		h := http.Header{}
		for i := 0; i < len(pairs); i += 2 {
			h.Add(pairs[i], pairs[i+1])
		}
		return h
	}
	for _, c := range []struct {
		name      string
		peer      string
		header    http.Header
		forwarded bool // UseForwarded
		want      string
	}{
		{name: "client", peer: far, want: "203.0.113.7 [203.0.113.7] http shop"},
		{name: "client that claims", peer: far, header: h("X-Forwarded-For", other, "X-Forwarded-Proto", "https", "X-Forwarded-Host", "evil", "Forwarded", "for="+other), want: "203.0.113.7 [203.0.113.7] http shop"},
		{name: "proxy", peer: near, want: "10.0.0.9 [10.0.0.9] http shop"},
		{name: "behind a proxy", peer: near, header: h("X-Forwarded-For", far, "X-Forwarded-Proto", "HTTPS", "X-Forwarded-Host", "www.shop:8443"), want: "203.0.113.7 [203.0.113.7, 10.0.0.9] https www.shop:8443"},
		{name: "behind two", peer: near, header: h("X-Forwarded-For", far+", 10.0.0.8"), want: "203.0.113.7 [203.0.113.7, 10.0.0.8, 10.0.0.9] http shop"},
		{name: "two lines", peer: near, header: h("X-Forwarded-For", other+","+far, "X-Forwarded-For", "10.0.0.8"), want: "203.0.113.7 [203.0.113.7, 10.0.0.8, 10.0.0.9] http shop"},
		{name: "claims behind a proxy", peer: near, header: h("X-Forwarded-For", other+", 10.1.1.1,  "+far), want: "203.0.113.7 [203.0.113.7, 10.0.0.9] http shop"},
		{name: "all trusted", peer: near, header: h("X-Forwarded-For", "10.0.0.7, 10.0.0.8"), want: "10.0.0.7 [10.0.0.7, 10.0.0.8, 10.0.0.9] http shop"},
		{name: "garbage", peer: near, header: h("X-Forwarded-For", far+", nobody"), want: "10.0.0.9 [10.0.0.9] http shop"},
		{name: "empty entry", peer: near, header: h("X-Forwarded-For", far+", "), want: "10.0.0.9 [10.0.0.9] http shop"},
		{name: "with port", peer: near, header: h("X-Forwarded-For", far+":4711"), want: "203.0.113.7 [203.0.113.7, 10.0.0.9] http shop"},
		{name: "IPv6", peer: near, header: h("X-Forwarded-For", "[2001:db8::1]:4711, 2001:db8:a::2"), want: "2001:db8::1 [2001:db8::1, 2001:db8:a::2, 10.0.0.9] http shop"},
		{name: "IPv4 in IPv6", peer: "::ffff:10.0.0.9", header: h("X-Forwarded-For", "::ffff:203.0.113.7"), want: "203.0.113.7 [203.0.113.7, 10.0.0.9] http shop"},
		{name: "two protocols, two hosts", peer: near, header: h("X-Forwarded-For", far, "X-Forwarded-Proto", "https", "X-Forwarded-Proto", "http", "X-Forwarded-Host", "a, b"), want: "203.0.113.7 [203.0.113.7, 10.0.0.9] http shop"},
		{name: "bad protocol", peer: near, header: h("X-Forwarded-Proto", "gopher", "X-Forwarded-Host", "a/b"), want: "10.0.0.9 [10.0.0.9] http shop"},
		{name: "Forwarded, not in use", peer: near, header: h("Forwarded", "for="+other+";proto=https"), want: "10.0.0.9 [10.0.0.9] http shop"},
		{name: "Unix socket", peer: "", header: h("X-Forwarded-For", far), want: "invalid IP [] http shop"},

		{name: "Forwarded", forwarded: true, peer: near, header: h("Forwarded", `for=203.0.113.7;Proto=https;host="www.shop:8443";by=_x`), want: "203.0.113.7 [203.0.113.7, 10.0.0.9] https www.shop:8443"},
		{name: "Forwarded, X-Forwarded-For not in use", forwarded: true, peer: near, header: h("X-Forwarded-For", other, "X-Forwarded-Proto", "https"), want: "10.0.0.9 [10.0.0.9] http shop"},
		{name: "Forwarded over two", forwarded: true, peer: near, header: h("Forwarded", `For="[2001:db8::1]:80"; host=www.shop, for=2.2.2.2`, "Forwarded", `for="[2001:db8:a::2]";proto=https`), want: "2.2.2.2 [2.2.2.2, 2001:db8:a::2, 10.0.0.9] https shop"},
		{name: "Forwarded by two", forwarded: true, peer: near, header: h("Forwarded", `for="[2001:db8::1]:80";host=www.shop;proto=https,for="[2001:db8:a::2]";host=inner;proto=http`), want: "2001:db8::1 [2001:db8::1, 2001:db8:a::2, 10.0.0.9] https www.shop"},
		{name: "Forwarded, hidden", forwarded: true, peer: near, header: h("Forwarded", `for=1.1.1.1, for=_hidden;proto=https`), want: "10.0.0.9 [10.0.0.9] https shop"},
		{name: "Forwarded, an open quote", forwarded: true, peer: near, header: h("Forwarded", `for=1.1.1.1;x="`, "Forwarded", `for=203.0.113.7`), want: "10.0.0.9 [10.0.0.9] http shop"},
		{name: "Forwarded, an open quote before another", forwarded: true, peer: near, header: h("Forwarded", `for=1.1.1.1;x="`, "Forwarded", `for="[2001:db8::1]"`), want: "10.0.0.9 [10.0.0.9] http shop"},
		{name: "Forwarded, escaped", forwarded: true, peer: near, header: h("Forwarded", `for=1.1.1.1;x="\`, "Forwarded", `for="2.2.2.2";y="`), want: "10.0.0.9 [10.0.0.9] http shop"},
		{name: "Forwarded, garbage", forwarded: true, peer: near, header: h("Forwarded", `for 1.1.1.1`), want: "10.0.0.9 [10.0.0.9] http shop"},
	} {
		t.Run(c.name, func(t *testing.T) {
			config := gateway.Config{TrustedProxies: prefixes("10.0.0.0/8", "2001:db8:a::/64"), UseForwarded: c.forwarded}
			r := httptest.NewRequest("GET", "http://shop/", nil)
			if r.RemoteAddr = "@"; c.peer != "" {
				r.RemoteAddr = net.JoinHostPort(c.peer, "1234")
			}
			r.Header = c.header
			if got := gateway.Origin(config, r); got != c.want {
				t.Errorf("origin %s, want %s", got, c.want)
			}
		})
	}
}

// Whatever a client has a trusted proxy append to: the address that the proxy appended counts.
func FuzzForwarded(f *testing.F) {
	for _, seed := range []string{"1.2.3.4", `for=1.2.3.4;x="`, `for="\`, `"`, `for=1.1.1.1,`, "[::1]:80, 10.0.0.1"} {
		f.Add(seed, true)
		f.Add(seed, false)
	}
	f.Fuzz(func(t *testing.T, sent string, forwarded bool) {
		config := gateway.Config{TrustedProxies: prefixes("10.0.0.0/8"), UseForwarded: forwarded}
		r := httptest.NewRequest("GET", "http://shop/", nil)
		r.RemoteAddr = "10.0.0.9:1234"
		r.Header = http.Header{"X-Forwarded-For": {sent + ", 203.0.113.7"}}
		if forwarded {
			r.Header = http.Header{"Forwarded": {sent, `for="203.0.113.7:4711";proto=https`}}
		}
		client, _, _ := strings.Cut(gateway.Origin(config, r), " ")
		// Of a header that a client broke, nothing is believed.
		if client != "203.0.113.7" && !(forwarded && client == "10.0.0.9") {
			t.Errorf("%q: client %s", r.Header, client)
		}
	})
}

func TestTrustedProxy(t *testing.T) {
	protocols(t, func(t *testing.T, proto string) {
		app := mustApp(t, func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprint(w, r.Header["X-Forwarded-For"], r.Header["X-Forwarded-Proto"], r.Header["X-Forwarded-Host"], r.Header["Forwarded"])
		})
		for _, c := range []struct {
			trusted, want string
		}{
			{"127.0.0.0/8", "[203.0.113.7, 127.0.0.1] [https] [www.shop] []"},
			{"10.0.0.0/8", "[127.0.0.1] [SCHEME] [HOST] []"},
		} {
			g := mustRun(t, proto, gateway.Config{Upstreams: upstreams(app), TrustedProxies: prefixes(c.trusted)})
			scheme, host, _ := strings.Cut(g.url, "://")
			a := g.send("GET", "/", "", "X-Forwarded-For", "1.1.1.1, 203.0.113.7", "X-Forwarded-Proto", "https", "X-Forwarded-Host", "www.shop", "Forwarded", "for=2.2.2.2")
			if want := strings.NewReplacer("SCHEME", scheme, "HOST", host).Replace(c.want); a.body != want {
				t.Errorf("upstream saw %s, want %s", a.body, want)
			}
		}
	})
}

// Connections of trusted proxies, and only theirs, begin with a header of the PROXY protocol, also below TLS.
func TestProxyProtocol(t *testing.T) {
	app := mustApp(t, func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.Header["X-Forwarded-For"]) })
	const v1 = "PROXY TCP4 203.0.113.7 10.0.0.1 4711 80\r\n"
	v2, err := (&proxyproto.Header{
		Version: 2, Command: proxyproto.PROXY, TransportProtocol: proxyproto.TCPv6,
		SourceAddr: &net.TCPAddr{IP: net.ParseIP("2001:db8::1"), Port: 1}, DestinationAddr: &net.TCPAddr{IP: net.ParseIP("2001:db8::2"), Port: 2},
	}).Format()
	if err != nil {
		t.Fatal(err)
	}
	local, err := (&proxyproto.Header{Version: 2, Command: proxyproto.LOCAL}).Format()
	if err != nil {
		t.Fatal(err)
	}
	const get = "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-Forwarded-For: 6.6.6.6\r\n\r\n"
	for _, c := range []struct {
		name, trusted, sent, want string // want "": no answer, or none that is a page of the upstream
	}{
		{"version 1", "127.0.0.1/32", v1, "[203.0.113.7]"},
		{"version 2", "127.0.0.1/32", string(v2), "[2001:db8::1]"},
		{"behind another proxy", "0.0.0.0/1", "PROXY TCP4 10.0.0.9 10.0.0.1 4711 80\r\n", "[6.6.6.6, 10.0.0.9]"},
		{"the proxy's own", "127.0.0.1/32", string(local), "[6.6.6.6, 127.0.0.1]"},
		{"unknown", "127.0.0.1/32", "PROXY UNKNOWN\r\n", "[]"},
		{"missing", "127.0.0.1/32", "", ""},
		{"garbage", "127.0.0.1/32", "PROXY TCP4 203.0.113.7\r\n", ""},
		{"not trusted", "10.0.0.0/8", v1, ""},
		{"not trusted, none", "10.0.0.0/8", "", "[127.0.0.1]"},
	} {
		for _, proto := range []string{"h1", "h1s"} {
			t.Run(c.name+" "+proto, func(t *testing.T) {
				g := mustRun(t, proto, gateway.Config{Upstreams: upstreams(app), TrustedProxies: prefixes(c.trusted), ProxyProtocol: true})
				nc := g.mustDialAfter(c.sent)
				_, _ = io.WriteString(nc, get)
				res, err := http.ReadResponse(bufio.NewReader(nc), nil)
				got := ""
				if err == nil && res.StatusCode == 200 {
					b, _ := io.ReadAll(res.Body)
					got = string(b)
				}
				if got != c.want {
					t.Errorf("the upstream saw %q, want %q (%v)", got, c.want, err)
				}
			})
		}
	}
}

// The real HAProxy sends both versions.
func TestProxyProtocolHAProxy(t *testing.T) {
	for _, send := range []string{"send-proxy", "send-proxy-v2"} {
		t.Run(send, func(t *testing.T) {
			app := mustApp(t, func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.Header["X-Forwarded-For"]) })
			g := mustRun(t, "h1", gateway.Config{Upstreams: upstreams(app), TrustedProxies: prefixes("127.0.0.1/32"), ProxyProtocol: true})
			haproxy := testserver.HAProxy(t, testserver.HAProxyOptions{
				Frontend: []string{"mode tcp", "default_backend gateway"},
				Sections: []string{"backend gateway", "mode tcp", "server g " + strings.TrimPrefix(g.url, "http://") + " " + send},
			})
			// From another address of this machine than the proxy's own.
			d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 77)}}
			client := http.Client{Transport: &http.Transport{DialContext: d.DialContext, DisableKeepAlives: true}}
			res, err := client.Get("http://" + haproxy.Addr)
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			if b, _ := io.ReadAll(res.Body); string(b) != "[127.0.0.77]" {
				t.Errorf("the upstream saw %s, want [127.0.0.77]", b)
			}
		})
	}
}
