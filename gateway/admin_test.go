package gateway_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-sessions/holdfast/gateway"
)

// adminRequest is a request of a client on the same host; header is name, value, name, value.
func adminRequest(method, path, body string, header ...string) *http.Request {
	r := httptest.NewRequest(method, "http://localhost:9000"+path, strings.NewReader(body))
	r.RemoteAddr = "127.0.0.1:5000"
	r.Header.Set("Content-Type", "application/json")
	for i := 0; i < len(header); i += 2 {
		switch {
		case header[i] == "Host":
			r.Host = header[i+1]
		case header[i+1] == "":
			r.Header.Del(header[i])
		default:
			r.Header.Set(header[i], header[i+1])
		}
	}
	return r
}

func serve(h http.Handler, r *http.Request) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

func TestAdmin(t *testing.T) {
	inBubble(t, 3, gateway.Config{Upstreams: weighted(1, 1), Affinity: gateway.AffinityCookie}, true, func(t *testing.T, b *bubble) {
		h := b.AdminHandler(gateway.AdminConfig{})
		call := func(method, path, body string, status int) string {
			t.Helper()
			w := serve(h, adminRequest(method, path, body))
			if w.Code != status {
				t.Fatalf("%s %s: status %d, want %d: %s", method, path, w.Code, status, w.Body)
			}
			if w.Header().Get("Content-Type") != "application/json" || w.Header().Get("Cache-Control") != "no-store" {
				t.Errorf("%s %s: header %v", method, path, w.Header())
			}
			if !json.Valid(w.Body.Bytes()) || strings.Contains(w.Body.String(), string(testKey)) {
				t.Errorf("%s %s: %s", method, path, w.Body)
			}
			return strings.TrimSpace(w.Body.String())
		}
		b.want(2, "ab")
		const a = `{"id":"a","url":"http://a:1","state":"up","weight":1,"active":0,"waiting":0,"requests":1,"failures":0,"repeats":0,"ejections":0,"checks":0,"failed_checks":0}`
		if d := cmp.Diff(`{"upstreams":[`+a+`,`+strings.ReplaceAll(strings.ReplaceAll(a, `"a"`, `"b"`), "//a", "//b")+`]}`, call("GET", "/v1/upstreams", "", 200)); d != "" {
			t.Errorf("(-want +got):\n%s", d)
		}
		if d := cmp.Diff(a, call("GET", "/v1/upstreams/a", "", 200)); d != "" {
			t.Errorf("(-want +got):\n%s", d)
		}
		call("PUT", "/v1/upstreams/c", `{"url":"http://c:1","weight":2,"max_requests":5,"zone":"east"}`, 200)
		b.want(8, "abc")
		if u := b.upstream("c"); u.Weight != 2 || u.MaxRequests != 5 || u.Zone != "east" {
			t.Errorf("%+v", u)
		}
		call("POST", "/v1/upstreams/c/weight", `{"weight":7}`, 200)
		if b.upstream("c").Weight != 7 {
			t.Error("weight not set")
		}
		if got := call("POST", "/v1/upstreams/a/drain", `{"within":"30s"}`, 200); !strings.Contains(got, `"state":"draining","drain_until":"2000-01-01T00:00:30Z"`) {
			t.Errorf("drain: %s", got)
		}
		b.want(8, "bc")
		time.Sleep(30*time.Second + 1)
		synctest.Wait()
		b.wantState("a", gateway.StateMaintenance)
		call("POST", "/v1/upstreams/a/ready", "", 200)
		b.want(20, "abc")
		call("POST", "/v1/upstreams/b/maintenance", "{}", 200)
		b.want(20, "ac")
		call("DELETE", "/v1/upstreams/c", "", 200)
		b.want(4, "a")
		if got := call("POST", "/v1/explain", `{"ip":"192.0.2.1","path":"/x","host":"shop.example","header":{"user":"ada"},"cookie":"a=b"}`, 200); !strings.Contains(got, `"the request goes to upstream a"`) {
			t.Errorf("explain: %s", got)
		}
		if got := call("GET", "/v1/config", "", 200); !strings.Contains(got, `"affinity":"cookie","balance":"round-robin"`) {
			t.Errorf("config: %s", got)
		}

		for _, c := range []struct {
			method, path, body string
			status             int
			want               string
		}{
			{"GET", "/v1/upstreams/nobody", "", 404, "no such upstream"},
			{"POST", "/v1/upstreams/nobody/ready", "", 404, "there are a, b"},
			{"DELETE", "/v1/upstreams/nobody", "", 404, "no such upstream"},
			{"POST", "/v1/upstreams/a/drain", "", 400, "want a time such as"},
			{"POST", "/v1/upstreams/a/drain", `{"within":"-1s"}`, 400, "want 0 or more"},
			{"POST", "/v1/upstreams/a/weight", `{"weight":0}`, 400, "want 1 to 1000"},
			{"POST", "/v1/upstreams/a/weight", `{"weihgt":1}`, 400, "unknown field"},
			{"POST", "/v1/upstreams/a/weight", `{"weight":1}{"weight":2}`, 400, "more than one JSON value"},
			{"POST", "/v1/upstreams/a/weight", `{"weight":1`, 400, "unexpected EOF"},
			{"POST", "/v1/upstreams/a/ready", `{"x":1}`, 400, "unknown field"},
			{"PUT", "/v1/upstreams/d", `{"url":"ftp://x"}`, 400, "want http://host:port"},
			{"PUT", "/v1/upstreams/d", `{"url":"http://x","weight":1001}`, 400, "want 1 to 1000"},
			{"PUT", "/v1/upstreams/d", `{"zone":"` + strings.Repeat("x", 70_000) + `"}`, 413, "more than 65536 bytes"},
			{"POST", "/v1/explain", `{"ip":"x"}`, 400, "want an address"},
		} {
			if got := call(c.method, c.path, c.body, c.status); !strings.Contains(got, c.want) {
				t.Errorf("%s %s %.40s: %s, want %q in it", c.method, c.path, c.body, got, c.want)
			}
		}
		call("DELETE", "/v1/upstreams/b", "", 200)
		if got := call("DELETE", "/v1/upstreams/a", "", 400); !strings.Contains(got, "the last one") {
			t.Errorf("last upstream: %s", got)
		}
		b.want(2, "a")
	})
}

// Attacks 30, 31 and 32: pages from elsewhere, names that were made to point here, and who has no token get nothing,
// and change nothing.
func TestAdminRefuses(t *testing.T) {
	g := mustNew(t, gateway.Config{Upstreams: weighted(1, 1)})
	open := g.AdminHandler(gateway.AdminConfig{Hosts: []string{"Ops.example"}})
	locked := g.AdminHandler(gateway.AdminConfig{Token: "correct horse"})
	const path = "/v1/upstreams/a/maintenance"
	for _, c := range []struct {
		name    string
		handler http.Handler
		request *http.Request
		status  int
	}{
		{"30: form of another site", open, adminRequest("POST", path, "", "Origin", "http://evil.example"), 403},
		{"30: fetch of another site", open, adminRequest("POST", path, "", "Sec-Fetch-Site", "cross-site"), 403},
		{"30: another port of this host", open, adminRequest("POST", path, "", "Sec-Fetch-Site", "same-site"), 403},
		{"30: sandboxed frame", open, adminRequest("POST", path, "", "Origin", "null"), 403},
		{"30: old browser, form", open, adminRequest("POST", path, "{}", "Content-Type", "text/plain"), 415},
		{"30: old browser, no body", open, adminRequest("POST", path, "", "Content-Type", ""), 415},
		{"30: DELETE", open, adminRequest("DELETE", "/v1/upstreams/a", "", "Sec-Fetch-Site", "cross-site"), 403},
		{"30: PUT", open, adminRequest("PUT", "/v1/upstreams/a", `{"url":"http://evil:1"}`, "Origin", "https://evil.example"), 403},
		{"30: GET changes nothing", open, adminRequest("GET", path, ""), 404},
		{"31: rebound name", open, adminRequest("GET", "/v1/upstreams", "", "Host", "evil.example:9000"), 421},
		{"31: name with ours in it", open, adminRequest("GET", "/v1/upstreams", "", "Host", "localhost.evil.example"), 421},
		{"31: no name", open, adminRequest("GET", "/v1/upstreams", "", "Host", ""), 421},
		{"32: from another host", open, func() *http.Request {
			r := adminRequest("GET", "/v1/upstreams", "")
			r.RemoteAddr = "192.0.2.1:1"
			return r
		}(), 404},
		{"32: no token", locked, adminRequest("GET", "/v1/upstreams", ""), 404},
		{"32: wrong token", locked, adminRequest("GET", "/v1/upstreams", "", "Authorization", "Bearer correct hors"), 404},
		{"32: token in another form", locked, adminRequest("GET", "/v1/upstreams", "", "Authorization", "Basic correct horse"), 404},
		{"32: an upstream that is there", locked, adminRequest("GET", "/v1/upstreams/a", ""), 404},
		{"32: one that is not", locked, adminRequest("GET", "/v1/upstreams/nobody", ""), 404},
		{"32: no such path", locked, adminRequest("GET", "/", ""), 404},
		{"32: no such path with token", locked, adminRequest("GET", "/nothing", "", "Authorization", "Bearer correct horse"), 404},
	} {
		w := serve(c.handler, c.request)
		if w.Code != c.status {
			t.Errorf("%s: status %d, want %d: %s", c.name, w.Code, c.status, w.Body)
		}
		if w.Code == 404 && !strings.HasPrefix(w.Body.String(), `{"error":"there is nothing here, or the token is missing or wrong`) {
			t.Errorf("%s: a 404 of its own: %s", c.name, w.Body)
		}
		for _, name := range []string{"Access-Control-Allow-Origin", "Set-Cookie"} {
			if w.Header().Get(name) != "" {
				t.Errorf("%s: %s", c.name, name)
			}
		}
	}
	for _, u := range g.Upstreams() {
		if u.State != gateway.StateUp || len(g.Upstreams()) != 2 || u.URL != "http://"+u.ID+":1" {
			t.Errorf("something was changed: %+v", u)
		}
	}
	for _, c := range []struct {
		name    string
		handler http.Handler
		request *http.Request
	}{
		{"same origin", open, adminRequest("POST", path, "", "Sec-Fetch-Site", "same-origin")},
		{"allowed name", open, adminRequest("GET", "/v1/upstreams", "", "Host", "ops.example")},
		{"IPv6", open, adminRequest("GET", "/v1/upstreams", "", "Host", "[::1]:9000")},
		{"token", locked, func() *http.Request {
			r := adminRequest("GET", "/v1/upstreams", "", "Authorization", "Bearer correct horse")
			r.RemoteAddr = "192.0.2.1:1"
			return r
		}()},
		{"Unix socket", open, func() *http.Request { r := adminRequest("GET", "/v1/config", ""); r.RemoteAddr = "@"; return r }()},
	} {
		if w := serve(c.handler, c.request); w.Code != 200 {
			t.Errorf("%s: status %d: %s", c.name, w.Code, w.Body)
		}
	}
}

// Whatever comes, the answer is JSON and no fault of the server, and the gateway keeps an upstream that it can use.
func FuzzAdmin(f *testing.F) {
	for _, seed := range [][2]string{
		{"/v1/explain", `{"cookie":"a=b","ip":"::1","path":"/","header":{"a":"b"}}`},
		{"/v1/upstreams/a/weight", `{"weight":3}`}, {"/v1/upstreams/a/drain", `{"within":"1h"}`}, {"/v1/upstreams/b", `{"url":"http://b:1","weight":2}`},
		{"/v1/upstreams/%2e%2e", `[]`}, {"/v1/upstreams/a/ready", `{}`},
	} {
		f.Add(seed[0], seed[1])
	}
	f.Fuzz(func(t *testing.T, path, body string) {
		if !strings.HasPrefix(path, "/") || strings.Contains(body, "resolve") {
			return // no look-ups
		}
		g := mustNew(t, gateway.Config{Upstreams: weighted(1)})
		h := g.AdminHandler(gateway.AdminConfig{})
		for _, method := range []string{"POST", "PUT", "DELETE"} {
			r := adminRequest(method, "/", body)
			r.URL.Path = path
			w := serve(h, r)
			if w.Code >= 500 || w.Code == 200 && !json.Valid(w.Body.Bytes()) {
				t.Errorf("%s %q %q: %d %s", method, path, body, w.Code, w.Body)
			}
		}
		if len(g.Upstreams()) == 0 || g.Upstreams()[0].Weight < 1 {
			t.Errorf("upstreams %+v", g.Upstreams())
		}
		for _, u := range g.Upstreams() {
			_ = g.Maintenance(u.ID) // stops timers
		}
	})
}
