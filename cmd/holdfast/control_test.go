package main

import (
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-sessions/holdfast/internal/testserver"
)

// state is an upstream as the commands print it with -o json.
type state struct {
	ID     string
	State  string
	Weight int
}

// TestGatewayCommands: the commands that talk to a running gateway.
func TestGatewayCommands(t *testing.T) {
	t.Parallel()
	a, b := mustAnswerer(t, "a"), mustAnswerer(t, "b")
	const token = "0123456789abcdef0123456789abcdef"
	tokenFile := mustConfig(t, token+"\n")
	config := mustConfig(t, "gateway:\n  listen: 127.0.0.1:0\n  upstreams: [{id: a, url: '"+a.URL+"'}, {id: b, url: '"+b.URL+"'}]\n  affinity: {kind: cookie}\n"+
		"admin: {listen: '127.0.0.1:0', token_file: "+tokenFile+"}\n")
	g := mustGateway(t, nil, "--config", config)
	do := func(args ...string) string {
		t.Helper()
		status, out, errs := holdfast(t, nil, append(append([]string{"gateway"}, args...), "--admin", g.admin, "--token-file", tokenFile)...)
		if status != 0 || errs != "" {
			t.Fatalf("holdfast gateway %s: %d %s", strings.Join(args, " "), status, errs)
		}
		return out
	}
	states := func(out string) (all []state) {
		t.Helper()
		var v struct{ Upstreams []state }
		mustUnmarshal(t, out, &v)
		return v.Upstreams
	}
	want := func(out string, all ...state) {
		t.Helper()
		if got := states(out); fmt.Sprint(got) != fmt.Sprint(all) {
			t.Errorf("upstreams %v, want %v", got, all)
		}
	}
	want(do("upstreams", "-o", "json"), state{"a", "up", 1}, state{"b", "up", 1})
	if out := do("upstreams"); !regexp.MustCompile(`(?m)^ID +STATE +WEIGHT .*\na +up +1 .* ` + regexp.QuoteMeta(a.URL) + `$`).MatchString(out) {
		t.Errorf("upstreams:\n%s", out)
	}
	want(do("weight", "b", "--weight", "5", "-o", "json"), state{"b", "up", 5})
	want(do("maintenance", "b", "-o", "json"), state{"b", "maintenance", 5})
	for range 4 {
		if r, err := fetch(http.DefaultClient, g.url); err != nil || r.body != "a" {
			t.Errorf("b in maintenance: %q %v", r.body, err)
		}
	}
	want(do("ready", "b", "-o", "json"), state{"b", "up", 5})
	want(do("drain", "a", "--within", "1h", "-o", "json"), state{"a", "draining", 1})
	if out := do("drain", "a", "--within", "1h"); !regexp.MustCompile(`a +draining until \d\d:\d\d:\d\d `).MatchString(out) {
		t.Errorf("drain:\n%s", out)
	}
	if r, err := fetch(http.DefaultClient, g.url); err != nil || r.body != "b" {
		t.Errorf("a new client while a drains: %q %v", r.body, err)
	}
	do("ready", "a")
	do("maintenance", "b")
	r, err := fetch(http.DefaultClient, g.url)
	if err != nil {
		t.Fatal(err)
	}
	cookie, _, _ := strings.Cut(r.header.Get("Set-Cookie"), ";")
	_, value, _ := strings.Cut(cookie, "=")
	do("ready", "b")
	if value == "" {
		t.Fatalf("no affinity cookie: %v", r.header)
	}
	for _, arg := range []string{cookie, "@" + mustConfig(t, cookie+"\n")} {
		out := do("explain", "--cookie", arg, "--ip", "192.0.2.7", "--path", "/cart?x=y", "--host", "shop.example", "--header", "X-A: b")
		if !strings.HasPrefix(out, "1. ") || !strings.Contains(out, "a") || strings.Contains(out, value) {
			t.Errorf("explain --cookie %s:\n%s", arg, out)
		}
	}
	var steps struct{ Steps []string }
	if mustUnmarshal(t, do("explain", "-o", "json", "--plain"), &steps); len(steps.Steps) == 0 {
		t.Error("explain -o json has no steps")
	}

	here := []string{"--admin", g.admin}
	wantRefusal(t, append([]string{"gateway", "drain", "c", "--token-file", tokenFile}, here...), nil, 1, `no such upstream: "c" \(there are a, b\)`, token)
	wantRefusal(t, append([]string{"gateway", "weight", "a", "--weight", "1001", "--token-file", tokenFile}, here...), nil, 1, `weight 1001: want 1 to 1000`, token)
	wantRefusal(t, append([]string{"gateway", "upstreams"}, here...), nil, 1, `token is missing or wrong`, token)
	wantRefusal(t, append([]string{"gateway", "upstreams"}, here...), []string{"HOLDFAST_ADMIN_TOKEN=another-" + token}, 1, `token is missing or wrong`, token)
	wantRefusal(t, append([]string{"gateway", "upstreams", "--token-file", "/none"}, here...), nil, 1, `token file /none: no such file`, token)
	wantRefusal(t, append([]string{"gateway", "explain", "--header", "x"}, here...), nil, 2, `--header "x": want NAME:VALUE`, token)
	wantRefusal(t, append([]string{"gateway", "weight", "a"}, here...), nil, 2, `missing flags: --weight`, token)
	if status, out, _ := holdfast(t, []string{"HOLDFAST_ADMIN_TOKEN=" + token}, append([]string{"gateway", "upstreams"}, here...)...); status != 0 || !strings.Contains(out, a.URL) {
		t.Errorf("with the token in the environment: %d %s", status, out)
	}
	nobody := testserver.FreeAddr(t)
	wantRefusal(t, []string{"gateway", "upstreams", "--admin", nobody}, nil, 1, `no gateway at `+nobody+`: start it with --admin `+nobody, token)
	wantRefusal(t, []string{"gateway", "upstreams", "--admin", strings.TrimPrefix(a.URL, "http://")}, nil, 1, `is that the admin address of a gateway\?`, token)
	wantRefusal(t, []string{"gateway", "upstreams", "--admin", "no where"}, nil, 2, `--admin "no where": want host:port`, token)

	// Another token counts from the next reload on.
	mustReplace(t, tokenFile, strings.Repeat("x1", 20))
	g.signal(t, syscall.SIGHUP)
	g.wantLog(t, `msg="configuration loaded"`)
	eventually(t, 30*time.Second, func() error {
		if status, _, errs := holdfast(t, nil, "gateway", "upstreams", "--admin", g.admin, "--token-file", tokenFile); status != 0 {
			return errors.New(errs)
		}
		return nil
	})
	if log := g.logged(); strings.Contains(log, token) || strings.Contains(log, value) {
		t.Error("the log shows a token or a cookie")
	}
}
