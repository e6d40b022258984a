package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// startedGateway is a running holdfast gateway.
type startedGateway struct {
	cmd        *exec.Cmd
	url, admin string       // http://host:port and host:port
	out        bytes.Buffer // for when it has ended
	read       sync.WaitGroup
	ended      chan struct{} // closed when it has ended; err is how
	err        error
	told       bool // to end

	mu sync.Mutex
	// mu guards the fields below.
	log []string
}

var listening = regexp.MustCompile(`msg="(gateway|admin) listening" address=(\S+)`)

// mustGateway starts holdfast gateway, and ends it after the test. It waits for both of its addresses.
func mustGateway(t testing.TB, env []string, args ...string) *startedGateway {
	t.Helper()
	g := &startedGateway{cmd: command(t, append([]string{"gateway"}, args...)...), ended: make(chan struct{})}
	g.cmd.Env = append(g.cmd.Env, env...)
	g.cmd.Stdout = &g.out
	errs, err := g.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := g.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	up := make(chan struct{})
	g.read.Go(func() {
		for s := bufio.NewScanner(errs); s.Scan(); {
			g.mu.Lock()
			g.log = append(g.log, s.Text())
			g.mu.Unlock()
			if m := listening.FindStringSubmatch(s.Text()); m != nil && m[1] == "gateway" {
				g.url = "http://" + m[2]
			} else if m != nil {
				g.admin = m[2]
				close(up)
			}
		}
	})
	go func() { // which the clean-up waits for
		g.read.Wait()
		g.err = g.cmd.Wait()
		close(g.ended)
	}()
	t.Cleanup(func() {
		g.end(t, nil)
		if strings.Contains(g.logged(), "DATA RACE") {
			t.Error("data race")
		}
		if t.Failed() {
			t.Logf("holdfast gateway said:\n%s", g.logged())
		}
	})
	select {
	case <-up:
	case <-g.ended:
		t.Fatalf("holdfast gateway ended with %v:\n%s", g.err, g.logged())
	case <-time.After(30 * time.Second):
		t.Fatalf("holdfast gateway did not start:\n%s", g.logged())
	}
	return g
}

func (g *startedGateway) logged() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return strings.Join(g.log, "\n")
}

func (g *startedGateway) signal(t testing.TB, s os.Signal) {
	t.Helper()
	if err := g.cmd.Process.Signal(s); err != nil {
		t.Fatal(err)
	}
	g.told = g.told || s == syscall.SIGTERM
}

// end ends the gateway by SIGTERM, unless it has ended, and wants it to end with nil or an exit status.
func (g *startedGateway) end(t testing.TB, want error) {
	t.Helper()
	if !g.told { // a second one would end it at once
		g.told = true
		_ = g.cmd.Process.Signal(syscall.SIGTERM) // fails if it has ended
	}
	kill := time.AfterFunc(60*time.Second, func() { _ = g.cmd.Process.Kill() })
	defer kill.Stop()
	<-g.ended
	if (g.err == nil) != (want == nil) {
		t.Errorf("holdfast gateway ended with %v, want %v", g.err, want)
	}
}

// wantLog waits for a line of the log that matches.
func (g *startedGateway) wantLog(t testing.TB, pattern string) {
	t.Helper()
	want := regexp.MustCompile(pattern)
	eventually(t, 30*time.Second, func() error {
		if log := g.logged(); !want.MatchString(log) {
			return fmt.Errorf("the log has no %s:\n%s", pattern, log)
		}
		return nil
	})
}

// get asks the admin address.
func (g *startedGateway) get(path string) (reply, error) {
	return fetch(http.DefaultClient, "http://"+g.admin+path)
}

func fetch(c *http.Client, url string) (reply, error) {
	res, err := c.Get(url)
	if err != nil {
		return reply{}, err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	return reply{res.StatusCode, res.Header, string(b)}, err
}

// wantAdmin waits for a status and a text in the answer of the admin address.
func (g *startedGateway) wantAdmin(t testing.TB, path string, status int, text string) {
	t.Helper()
	eventually(t, 30*time.Second, func() error {
		r, err := g.get(path)
		if err == nil && (r.status != status || !strings.Contains(r.body, text)) {
			err = fmt.Errorf("%s: %d\n%s\nwant %d and %q", path, r.status, r.body, status, text)
		}
		return err
	})
}

// mustAnswerer starts an application server that answers with its name.
func mustAnswerer(t testing.TB, name string) *httptest.Server {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, name) }))
	t.Cleanup(s.Close)
	return s
}

// mustReplace puts a file in the place of another, as editors and deployment tools do.
func mustReplace(t testing.TB, path, content string) {
	t.Helper()
	next := path + ".next"
	if err := os.WriteFile(next, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(next, path); err != nil {
		t.Fatal(err)
	}
}

// hammer sends requests from 8 clients until stop is called, which returns how many were answered, by the answer, and fails the test
// if one was not answered with 200.
func hammer(t testing.TB, url string) (stop func() map[string]int) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 8}}
	var running sync.WaitGroup
	var mu sync.Mutex
	answers := make(map[string]int)
	for range 8 {
		running.Go(func() {
			for ctx.Err() == nil {
				r, err := fetch(client, url)
				mu.Lock()
				switch {
				case err != nil:
					answers[err.Error()]++
				case r.status != http.StatusOK:
					answers[fmt.Sprintf("status %d: %s", r.status, r.body)]++
				default:
					answers[r.body]++
				}
				mu.Unlock()
			}
		})
	}
	end := sync.OnceFunc(func() {
		cancel()
		running.Wait()
		client.CloseIdleConnections()
	})
	t.Cleanup(end)
	return func() map[string]int {
		end()
		return answers
	}
}

// TestGatewayReload: the file is read again when it changes and on SIGHUP, without one failed request. What is not usable, or needs
// a restart, is said with its line, and changes nothing.
func TestGatewayReload(t *testing.T) {
	t.Parallel()
	a, b := mustAnswerer(t, "a"), mustAnswerer(t, "b")
	good := func(upstreams ...string) string {
		return "gateway:\n  listen: 127.0.0.1:0\n  upstreams: [" + strings.Join(upstreams, ", ") + "]\nadmin: {listen: '127.0.0.1:0'}\n"
	}
	onlyA, both := good("{id: a, url: '"+a.URL+"'}"), good("{id: a, url: '"+a.URL+"'}", "{id: b, url: '"+b.URL+"'}")
	file := mustConfig(t, onlyA)
	g := mustGateway(t, nil, "--config", file)
	stop := hammer(t, g.url)

	mustReplace(t, file, both)
	g.wantAdmin(t, "/v1/upstreams", 200, `"id":"b"`)
	g.wantAdmin(t, "/metrics", 200, `holdfast_gateway_config_reloads_total{result="ok"} 1`)

	refused := 0
	for _, bad := range []struct{ content, want string }{
		{both + "gatewy: {}\n", `:5:1: unknown key \\"gatewy\\", did you mean \\"gateway\\"`},
		{good("{id: a, url: '" + a.URL + "'}, {id: a, url: '" + b.URL + "'}"), `:3:\d+: gateway.upstreams\[1\].id: upstreams 1 and 2 have the same ID`},
		{good("{id: a, url: '" + g.url + "'}"), `:3:\d+: gateway.upstreams\[0\].url: upstream a, .* is an address of this gateway itself`},
		{strings.Replace(onlyA, "127.0.0.1:0", "127.0.0.1:8080", 1), `:2:3: gateway.listen: changed: restart the gateway for that`},
		{strings.Replace(onlyA, "'127.0.0.1:0'", "'127.0.0.1:9'", 1), `:4:9: admin.listen: changed: restart the gateway for that`},
		{onlyA + "log: {format: json}\n", `:5:7: log.format: changed: restart the gateway for that`},
		{strings.Replace(onlyA, "gateway:\n", "gateway:\n  timeouts: {idle: 7s}\n", 1), `:2:14: gateway.timeouts.idle: idle timeout changes from 2m0s to 7s: restart the gateway for that`},
		{strings.Replace(onlyA, "gateway:\n", "gateway:\n  access_log: {path: x}\n", 1), `:2:16: gateway.access_log.path: changed: restart`},
		{"", `gateway.upstreams: no upstream`},
	} {
		mustReplace(t, file, bad.content)
		g.wantLog(t, `level=ERROR msg="configuration not usable, the running one stays" err=.*`+bad.want)
		refused++
		g.wantAdmin(t, "/metrics", 200, fmt.Sprintf(`holdfast_gateway_config_reloads_total{result="refused"} %d`, refused))
		g.wantAdmin(t, "/v1/upstreams", 200, `"id":"b"`)
	}

	// SIGHUP asks for what is there, at once, though it is the same.
	g.signal(t, syscall.SIGHUP)
	g.wantAdmin(t, "/metrics", 200, fmt.Sprintf(`holdfast_gateway_config_reloads_total{result="refused"} %d`, refused+1))
	mustReplace(t, file, onlyA)
	g.signal(t, syscall.SIGHUP)
	eventually(t, 30*time.Second, func() error {
		r, err := g.get("/v1/upstreams")
		if err == nil && strings.Contains(r.body, `"id":"b"`) {
			err = errors.New("b is still there")
		}
		return err
	})
	if answers := stop(); len(answers) != 2 || answers["a"] == 0 || answers["b"] == 0 {
		t.Errorf("answers during reloads: %v, want a and b", answers)
	} else {
		t.Logf("answers during reloads: %v", answers)
	}
}

// TestGatewayHangup: without a file, SIGHUP ends the gateway, as a closed terminal does, and it says why.
func TestGatewayHangup(t *testing.T) {
	t.Parallel()
	g := mustGateway(t, nil, "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--upstream", mustAnswerer(t, "a").URL)
	g.signal(t, syscall.SIGHUP)
	<-g.ended
	if g.err == nil || !strings.Contains(g.logged(), "terminal closed (SIGHUP)") {
		t.Errorf("ended with %v:\n%s", g.err, g.logged())
	}
	g.err = nil
}

// mustUpstreams starts servers that answer with their names.
func mustUpstreams(t *testing.T, names ...string) (args []string) {
	t.Helper()
	for _, name := range names {
		args = append(args, "--upstream", name+"="+mustAnswerer(t, name).URL)
	}
	return args
}

// TestGateway: a gateway with the same key knows a client after a restart, and one with a random key does not.
func TestGateway(t *testing.T) {
	hexKey := strings.Repeat("0123456789abcdef", 4)
	key := mustConfig(t, hexKey+"\n")
	args := append(mustUpstreams(t, "a", "b"), "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--affinity", "cookie", "--allow-plain-localhost")
	// ask sends a request with a cookie to a new gateway, and returns the cookie that is set, and the log.
	ask := func(cookie string, env []string, more ...string) (set, log string) {
		t.Helper()
		g := mustGateway(t, env, append(more, args...)...)
		r, err := newBrowser(t, g.url).do(t.Context(), "GET", "/", nil, http.Header{"Cookie": {cookie}})
		if err != nil || r.status != http.StatusOK || r.body != "a" {
			t.Fatalf("GET /: %d %q %v", r.status, r.body, err)
		}
		g.end(t, nil)
		set, _, _ = strings.Cut(r.header.Get("Set-Cookie"), ";")
		return set, g.logged()
	}
	first, log := ask("", nil, "--key-file", key)
	if first == "" || strings.Contains(log, "WARN") {
		t.Errorf("cookie %q; a warning in spite of a key:\n%s", first, log)
	}
	if again, _ := ask(first, nil, "--key-file", key); again != "" {
		t.Error("the client is not known after a restart with the same key")
	}
	if again, _ := ask(first, []string{"HOLDFAST_KEY=" + hexKey}); again != "" {
		t.Error("the client is not known with the same key from the environment")
	}
	random, log := ask(first, nil)
	if random == "" || !strings.Contains(log, "level=WARN") || !strings.Contains(log, "--key-file") {
		t.Errorf("without a key there is no warning, or the cookie %q:\n%s", random, log)
	}
	if _, value, _ := strings.Cut(first, "="); strings.Contains(log, value) {
		t.Error("the log shows a cookie")
	}
}

// TestGatewayDrains: a request that is under way finishes after SIGTERM.
func TestGatewayDrains(t *testing.T) {
	arrived, finish := make(chan struct{}), make(chan struct{})
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		close(arrived)
		<-finish
		fmt.Fprint(w, "done")
	}))
	defer s.Close()
	g := mustGateway(t, []string{"HOLDFAST_UPSTREAM=" + s.URL}, "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0")
	b := newBrowser(t, g.url)
	answered := make(chan reply, 1)
	go func() {
		r, err := b.do(t.Context(), "GET", "/", nil, nil)
		if err != nil {
			t.Error(err)
		}
		answered <- r
	}()
	<-arrived
	g.signal(t, syscall.SIGTERM)
	eventually(t, 10*time.Second, func() error { return refuses(g.url) })
	close(finish)
	if r := <-answered; r.body != "done" {
		t.Errorf("the request that was under way: %d %q", r.status, r.body)
	}
	g.end(t, nil)
}
