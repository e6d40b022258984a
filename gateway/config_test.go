package gateway_test

import (
	"crypto/tls"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-sessions/holdfast/gateway"
)

func TestConfigErrors(t *testing.T) {
	one := upstreams("http://127.0.0.1:1")
	for _, c := range []struct {
		name   string
		config gateway.Config
		want   []string // one for each line of the error
	}{
		{"zero", gateway.Config{}, []string{"no upstream"}},
		{"everything", gateway.Config{
			Upstreams: []gateway.Upstream{
				{URL: "http://a:1"}, {URL: "http://A:1/"}, {ID: "x", URL: "http://b"}, {ID: "x", URL: "http://c"}, {ID: "a/b", URL: "http://d"},
				{URL: "a:1"}, {URL: "127.0.0.1:80"}, {URL: ""}, {URL: "ftp://a"}, {URL: "http://"}, {URL: "http://:80"}, {URL: "http://a?x=y"}, {URL: "http://a#x"},
				{URL: "http://a:0"}, {URL: "http://a:65536"}, {URL: "http://user:secret@a"}, {URL: "http://a b:secret@x\x7f"},
			},
			Affinity: "sticky", Cookie: gateway.Cookie{Name: "a b"}, SessionCookies: []string{"ok", "not ok"}, SessionHeader: "X-Session-Token",
			TLS: &tls.Config{}, DialTimeout: -1, DrainTimeout: -time.Second, MaxHeaderBytes: -1,
		}, []string{
			"upstreams 1 and 2 have the same ID", "upstreams 3 and 4 have the same ID", `upstream 5: ID "a/b"`,
			"upstream 6", "upstream 7", "upstream 8", "upstream 9", "upstream 10: URL \"http://\" has no host", "upstream 11", "upstream 12", "upstream 13",
			"upstream 14", "upstream 15", "upstream 16: URL has a user name or password", "upstream 17",
			`affinity "sticky" unknown (want none, cookie, session, route, hash, ip, header)`, `cookie name "a b"`, `session cookie name "not ok"`, `session header "X-Session-Token"`,
			"TLS has no certificate", "dial timeout -1ns", "drain timeout -1s", "max header bytes -1",
		}},
		{"no key", gateway.Config{Upstreams: one, Affinity: gateway.AffinityCookie}, []string{"key of 0 bytes"}},
		{"short key", gateway.Config{Upstreams: one, Affinity: gateway.AffinityCookie, Key: []byte("short")}, []string{"key of 5 bytes"}},
		{"zero key", gateway.Config{Upstreams: one, Affinity: gateway.AffinityCookie, Key: make([]byte, 32)}, []string{"key is all zeros"}},
		{"short key that is not needed", gateway.Config{Upstreams: one, Affinity: gateway.AffinityHash, Hash: gateway.HashOf{Cookie: "c"}, Key: []byte("short")}, []string{"key of 5 bytes"}},
		{"session without a place", gateway.Config{Upstreams: one, Affinity: gateway.AffinitySession, Key: testKey, DisableSessionCookie: true}, []string{"say where the session ID is"}},
		{"route without a place", gateway.Config{Upstreams: one, Affinity: gateway.AffinityRoute}, []string{"SessionCookies JSESSIONID"}},
		{"routes", gateway.Config{
			Upstreams: []gateway.Upstream{{ID: "a", URL: "http://a"}, {ID: "b", URL: "http://b", Route: "a"}, {ID: "c", URL: "http://c", Route: "x y"}, {ID: "d", URL: "http://d", Route: "d"}},
			Affinity:  gateway.AffinityRoute, SessionPathParameter: "a b", RouteSeparator: "a", LearnedEntries: -1, LearnedIdle: -1,
		}, []string{`session path parameter "a b"`, `route separator "a"`, `upstreams 1 and 2 have the same route "a"`, `upstream 3: route "x y"`, "learned entries -1", "learned idle -1ns"}},
		{"a route for several", gateway.Config{Upstreams: []gateway.Upstream{{URL: "http://a", Route: "x", Resolve: true}}}, []string{"upstream 1: a route, but its name is resolved"}},
		{"nothing to hash", gateway.Config{Upstreams: one, Affinity: gateway.AffinityHash}, []string{"exactly one of"}},
		{"two things to hash", gateway.Config{Upstreams: one, Affinity: gateway.AffinityHash, Hash: gateway.HashOf{Cookie: "a", Parameter: "b"}}, []string{"exactly one of"}},
		{"a stripped header to hash", gateway.Config{Upstreams: one, Affinity: gateway.AffinityHash, Hash: gateway.HashOf{Header: "X-Forwarded-For"}}, []string{`header to hash "X-Forwarded-For"`}},
		{"no header", gateway.Config{Upstreams: one, Affinity: gateway.AffinityHeader}, []string{"give the header", "name the trusted proxies"}},
		{"max age", gateway.Config{Upstreams: one, Cookie: gateway.Cookie{MaxAge: 401 * 24 * time.Hour}}, []string{"cookie max age 9624h0m0s"}},
		{"proxies", gateway.Config{Upstreams: one, TrustedProxies: []netip.Prefix{{}, netip.MustParsePrefix("0.0.0.0/0")}},
			[]string{"trusted proxy 1 is not", "trusted proxy 0.0.0.0/0 is everybody"}},
		{"no proxies", gateway.Config{Upstreams: one, UseForwarded: true, ProxyProtocol: true}, []string{"Forwarded is believed of", "PROXY protocol is spoken with"}},
		{"signature key", gateway.Config{Upstreams: one, SignatureKey: []byte("short")}, []string{"signature key of 5 bytes"}},
		{"zero signature key", gateway.Config{Upstreams: one, SignatureKey: make([]byte, 32)}, []string{"signature key is all zeros"}},
		{"transports", gateway.Config{Upstreams: []gateway.Upstream{{URL: "http://a", HTTP2: true}, {URL: "unix:app.sock"}, {URL: "unix://host/app.sock"}, {URL: "unix:/a:b"}, {URL: "unix:/" + strings.Repeat("x", 107)}}},
			[]string{"upstream 1: HTTP/2 is for https", "upstream 2: URL \"unix:app.sock\": want unix:/path", "upstream 3: URL", "upstream 4: URL \"unix:/a:b\": a path with a colon", "upstream 5: path of the socket is longer"}},
		{"prefixed name", gateway.Config{Upstreams: one, Cookie: gateway.Cookie{Name: "__Host-x"}}, []string{"without a __ prefix"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := gateway.New(c.config)
			if err == nil {
				t.Fatal("no error")
			}
			lines := strings.Split(err.Error(), "\n")
			if len(lines) != len(c.want) {
				t.Fatalf("%d errors, want %d:\n%v", len(lines), len(c.want), err)
			}
			for i, line := range lines {
				if !strings.HasPrefix(line, "gateway: ") || !strings.Contains(line, c.want[i]) {
					t.Errorf("error %d: %q, want %q in it", i, line, c.want[i])
				}
			}
			if strings.Contains(err.Error(), "secret") {
				t.Errorf("error shows a password: %v", err)
			}
		})
	}
}

func TestParseUpstream(t *testing.T) {
	for in, want := range map[string]gateway.Upstream{
		"http://a:1":           {URL: "http://a:1"},
		"app1=http://a:1":      {ID: "app1", URL: "http://a:1"},
		"http://a:1/x?y=z":     {URL: "http://a:1/x?y=z"},
		"app.1-b_2=https://a/": {ID: "app.1-b_2", URL: "https://a/"},
		"=http://a":            {URL: "http://a"},
		"":                     {},
	} {
		if d := cmp.Diff(want, gateway.ParseUpstream(in)); d != "" {
			t.Errorf("ParseUpstream(%q) (-want +got):\n%s", in, d)
		}
	}
}

// The ID of an upstream without one must never change: affinity cookies depend on it.
func TestDerivedID(t *testing.T) {
	for url, want := range map[string]string{
		"http://127.0.0.1:3000": "2ce1e6cf", "http://127.0.0.1:3000/": "2ce1e6cf", "HTTP://127.0.0.1:3000": "2ce1e6cf",
		"https://127.0.0.1:3000": "", "http://127.0.0.1:3000/app": "", "http://127.0.0.1:3001": "",
	} {
		g, err := gateway.New(gateway.Config{Upstreams: []gateway.Upstream{{URL: url}}})
		if err != nil {
			t.Fatal(err)
		}
		if id := g.Upstreams()[0].ID; want != "" && id != want || want == "" && id == "2ce1e6cf" || len(id) != 8 {
			t.Errorf("ID of %s: %s, want %s", url, id, want)
		}
	}
}

func TestConfigErrorsOfBalance(t *testing.T) {
	_, err := gateway.New(gateway.Config{
		Upstreams: []gateway.Upstream{{URL: "http://a", Weight: -1}, {URL: "http://b", Weight: 1001, MaxRequests: -1}},
		Balance:   "random", Zone: "x", ZoneMinimum: 2, LoadFactor: 0.5, SlowStart: -1,
	})
	wantFaults(t, err, `balance "random" unknown (want round-robin, least-requests, two-choices)`, "upstream 1: weight -1", "upstream 2: weight 1001",
		"upstream 2: max requests -1", `zone "x": no upstream is in it`, "zone minimum 2", "load factor 0.5", "slow start -1ns")
}

// wantFaults wants one line of err for each text.
func wantFaults(t *testing.T, err error, want ...string) {
	t.Helper()
	if err == nil {
		t.Fatal("no error")
	}
	lines := strings.Split(err.Error(), "\n")
	for i, w := range want {
		if i >= len(lines) || !strings.Contains(lines[i], w) {
			t.Errorf("fault %d of:\n%v\nwant %q in it", i+1, err, w)
		}
	}
	if len(lines) != len(want) {
		t.Errorf("%d faults, want %d:\n%v", len(lines), len(want), err)
	}
}
