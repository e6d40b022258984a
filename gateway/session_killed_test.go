package gateway_test

import (
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/holdfast-sessions/holdfast/gateway"
)

// The upstream that has a session dies: in the same request its client goes on elsewhere, where it gets a new session; the
// cookie is rewritten once, and the client stays when the old upstream returns.
func TestSessionUpstreamKilled(t *testing.T) {
	protocols(t, func(t *testing.T, proto string) {
		servers := map[string]*httptest.Server{}
		var urls []string
		start := func(addr string) *httptest.Server {
			a := &memoryApp{sessions: make(map[string]*memorySession)}
			l, err := net.Listen("tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			s := httptest.NewUnstartedServer(a)
			s.Listener.Close()
			s.Listener = l
			s.Start()
			t.Cleanup(s.Close)
			return s
		}
		for _, id := range []string{"a", "b", "c"} {
			servers[id] = start("127.0.0.1:0")
			urls = append(urls, servers[id].URL)
		}
		g := mustRun(t, proto, gateway.Config{
			Upstreams: upstreams(urls...), Affinity: gateway.AffinitySession, Key: testKey, SessionCookies: []string{"JSESSIONID"},
		})
		jar, changes := map[string]string{}, 0
		send := func(method string) (a answer) {
			var cookies []string
			for name, v := range jar {
				cookies = append(cookies, name+"="+v)
			}
			a = g.send(method, "/", "", "Cookie", strings.Join(cookies, "; "))
			for _, c := range a.Cookies() {
				jar[c.Name] = c.Value
				if strings.HasSuffix(c.Name, "holdfast-upstream") {
					changes++
				}
			}
			wantStatus(t, a, http.StatusOK)
			return a
		}
		home := func() string {
			r := httptest.NewRequest("GET", "http://example.com/", nil)
			for name, v := range jar {
				if strings.HasSuffix(name, "holdfast-upstream") {
					r.Header.Set("Cookie", secureName+"="+v)
				}
			}
			return g.Home(r)
		}

		send("GET")
		first := home()
		if first == "" || changes != 1 {
			t.Fatalf("home %q after %d cookies", first, changes)
		}
		addr := servers[first].Listener.Addr().String()
		servers[first].CloseClientConnections()
		servers[first].Close()
		for range 15 {
			send("GET")
		}
		for range 4 {
			send("POST")
		}
		second := home()
		if second == first || second == "" || changes != 2 {
			t.Errorf("home %q, then %q, by %d cookies, want another, by 2", first, second, changes)
		}
		if a := send("GET"); !strings.Contains(a.body, "visits=20 ") {
			t.Errorf("the new session has %.20s, want 20 visits", a.body)
		}

		servers[first] = start(addr)
		for g.upstream(first).Requests < 2 { // until it is used again, by others
			g.send("GET", "/", "")
		}
		if a := send("GET"); home() != second || changes != 2 || !strings.Contains(a.body, "visits=21 ") {
			t.Errorf("after the old upstream returned: home %q, %d cookies, %.20s, want %q, 2, 21 visits", home(), changes, a.body, second)
		}
	})
}
