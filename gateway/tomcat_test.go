package gateway_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/holdfast-sessions/holdfast/gateway"
	"github.com/holdfast-sessions/holdfast/internal/testserver"
)

// countingPage counts the visits of a session, and says which Tomcat has it, and how the page is called without cookies.
const countingPage = `<%
Integer n = (Integer) session.getAttribute("visits");
session.setAttribute("visits", n = n == null ? 1 : n + 1);
out.print(n + " " + session.getId().replaceAll(".*[.]", "") + " " + response.encodeURL("/index.jsp") + " ");
%>`

// tomcatClient has a session at one of several Tomcats, which the route in its ID names.
type tomcatClient struct {
	path, cookie string // the session ID is in one of them
	node         string
	visits       int
}

// visit sends a request, and keeps the session ID of the answer.
func (c *tomcatClient) visit(ctx context.Context, g *running, cookies bool) error {
	r, err := http.NewRequestWithContext(ctx, "GET", g.url+c.path, nil)
	if err != nil {
		return err
	}
	if c.cookie != "" {
		r.Header.Set("Cookie", c.cookie)
	}
	res, err := g.http.Do(r)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		return err
	}
	var path string
	if _, err := fmt.Sscan(string(b), &c.visits, &c.node, &path); err != nil || res.StatusCode != 200 {
		return fmt.Errorf("status %d: %.80q, %w", res.StatusCode, b, err)
	}
	if !cookies {
		c.path = path
		return nil
	}
	for _, k := range res.Cookies() {
		if k.Name == "JSESSIONID" {
			c.cookie = k.Name + "=" + k.Value
		}
	}
	return nil
}

// Three Tomcats with a jvmRoute each: 1,000 sessions, every other one of a client without cookies, stay where they are; when
// one is stopped, its clients go on elsewhere with new sessions, and nobody else notices.
func TestRouteOfTomcat(t *testing.T) {
	tomcats := make(map[string]*testserver.Server)
	var all []gateway.Upstream
	for i, id := range []string{"a", "b", "c"} {
		node := fmt.Sprint("node", i+1)
		tomcats[node] = testserver.Tomcat(t, testserver.TomcatOptions{Route: node, Pages: map[string]string{"index.jsp": countingPage}})
		all = append(all, gateway.Upstream{ID: id, URL: "http://" + tomcats[node].Addr, Route: node})
	}
	g := mustRun(t, "h1", gateway.Config{
		Upstreams: all, Affinity: gateway.AffinityRoute, SessionCookies: []string{"JSESSIONID"}, SessionPathParameter: "jsessionid",
	})
	clients := make([]tomcatClient, testserver.Scale(1000, 10_000))
	// visit sends a request for each client, and returns how many then have their sessions at which node.
	visit := func(check func(n int, before, after tomcatClient) bool) map[string]int {
		t.Helper()
		each(len(clients), 16, func(n int) {
			c := &clients[n]
			before := *c
			if err := c.visit(t.Context(), g, n%2 == 0); err != nil {
				t.Errorf("client %d: %v", n, err)
			} else if !check(n, before, *c) {
				t.Errorf("client %d: visit %d at %s, then visit %d at %s", n, before.visits, before.node, c.visits, c.node)
			}
		})
		at := make(map[string]int)
		for _, c := range clients {
			at[c.node]++
		}
		return at
	}
	for i := range clients {
		clients[i].path = "/index.jsp"
	}
	stays := func(_ int, before, after tomcatClient) bool {
		return after.visits == before.visits+1 && (before.node == "" || after.node == before.node)
	}
	var at map[string]int
	for range 4 {
		at = visit(stays)
	}
	for node := range tomcats {
		if n := at[node]; n < len(clients)/4 || n > len(clients)/2 {
			t.Errorf("sessions by node: %v", at)
		}
	}
	for n, c := range clients {
		if id := c.cookie + c.path; strings.Count(id, "."+c.node) != 1 || (n%2 == 0) != (c.cookie != "") {
			t.Fatalf("client %d has cookie or path %q, want one with a session at %s", n, id, c.node)
		}
	}

	tomcats["node2"].Stop()
	after := visit(func(n int, before, after tomcatClient) bool {
		if before.node != "node2" {
			return stays(n, before, after)
		}
		return after.visits == 1 && after.node != "node2"
	})
	if after["node2"] != 0 || after["node1"] <= at["node1"] || after["node3"] <= at["node3"] {
		t.Errorf("sessions by node: %v, then without node2: %v, want its clients at both others", at, after)
	}
	visit(stays)
}
