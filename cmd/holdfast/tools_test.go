package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/internal/testserver"
	"github.com/holdfast-sessions/holdfast/store"
)

func mustUnmarshal(t *testing.T, s string, v any) {
	t.Helper()
	if err := json.Unmarshal([]byte(s), v); err != nil {
		t.Fatalf("%v:\n%s", err, s)
	}
}

// mustKeep stores a record of somebody else's, and returns what to call to see that it alone is left.
func mustKeep(t *testing.T, url string) (wantAlone func()) {
	t.Helper()
	s, err := store.Open(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	now := time.UnixMilli(time.Now().UnixMilli())
	rec := driver.Record{User: "ada", Created: now, Seen: now, Expires: now.Add(time.Hour), Revision: driver.NewRevision(0)}
	if err := s.Save(t.Context(), driver.ID{1}, rec, 0); err != nil {
		t.Fatal(err)
	}
	return func() {
		t.Helper()
		n := 0
		for item, err := range s.(driver.Lister).List(t.Context()) {
			if err != nil || item.ID != (driver.ID{1}) {
				t.Errorf("after the check the store lists %s, %v", item.ID, err)
			}
			n++
		}
		if n != 1 {
			t.Errorf("after the check the store lists %d records, want the one that was there", n)
		}
	}
}

// TestStoreCheck checks a server in use: nothing of it is touched.
func TestStoreCheck(t *testing.T) {
	t.Parallel()
	redis := testserver.Redis(t, testserver.RedisOptions{Password: "pass"})
	url := "redis://:pass@" + redis.Addr + "?prefix=shop:"
	wantAlone := mustKeep(t, url)
	status, out, errs := holdfast(t, nil, "store", "check", url, "-o", "json")
	if status != 0 || errs != "" {
		t.Errorf("exit status %d: %s", status, errs)
	}
	var report jsonReport
	mustUnmarshal(t, out, &report)
	if !report.Passed || report.Kind != "redis" || !report.Shared || len(report.Cases) < 50 || len(report.Latency) < 3 {
		t.Errorf("report: passed %v, kind %s, shared %v, %d cases, %d latencies", report.Passed, report.Kind, report.Shared, len(report.Cases), len(report.Latency))
	}
	for _, c := range report.Cases {
		if !c.Passed && c.Skipped == "" {
			t.Errorf("%s: %v", c.Name, c.Failures)
		}
	}
	if strings.Contains(out, ":pass@") {
		t.Error("the report shows the password")
	}
	wantAlone()
}

// TestStoreCheckInterrupted: after Ctrl-C nothing is left behind either.
func TestStoreCheckInterrupted(t *testing.T) {
	t.Parallel()
	t.Run("file", func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "sessions")
		mustMkdir(t, dir, 0o700)
		interruptCheck(t, "file:"+dir)
		if left, _ := filepath.Glob(filepath.Join(dir, "check-*")); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
	})
	t.Run("sqlite", func(t *testing.T) {
		url := "sqlite:" + filepath.Join(t.TempDir(), "sessions.db")
		interruptCheck(t, url)
		wantTables(t, url, 2)
	})
}

func interruptCheck(t *testing.T, url string) {
	t.Helper()
	wantAlone := mustKeep(t, url)
	cmd := command(t, "store", "check", url)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var errs strings.Builder
	cmd.Stderr = &errs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Process.Kill()
	cases := 0
	for s := bufio.NewScanner(out); s.Scan(); {
		if strings.HasPrefix(s.Text(), "ok ") {
			if cases++; cases == 3 {
				if err := cmd.Process.Signal(os.Interrupt); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	_ = cmd.Wait() // the status says it
	if status := cmd.ProcessState.ExitCode(); status != 1 || errs.String() != "holdfast: interrupted\n" {
		t.Errorf("exit status %d: %s", status, errs.String())
	}
	wantAlone()
}

func TestStoreCheckText(t *testing.T) {
	t.Parallel()
	status, out, errs := holdfast(t, nil, "store", "check", "memory:")
	for _, want := range []string{`(?m)^store  memory:$`, `(?m)^ok     delete/`, `\d+ cases: \d+ passed, 0 failed`, `(?m)^kind +memory$`, `(?m)^load +p50 \S+ +p99 \S+ +\d+ calls$`} {
		if !regexp.MustCompile(want).MatchString(out) {
			t.Errorf("the report does not match %s", want)
		}
	}
	if status != 0 || errs != "" {
		t.Errorf("exit status %d: %s\n%s", status, errs, out)
	}
}

// gatewayProcess is a running holdfast gateway.
type gatewayProcess struct {
	url string
	log *strings.Builder // complete after end
	end func() (status int)
}

func mustGateway(t *testing.T, env []string, args ...string) gatewayProcess {
	t.Helper()
	cmd := command(t, append([]string{"gateway", "--listen", "127.0.0.1:0"}, args...)...)
	cmd.Env = append(cmd.Env, env...)
	errs, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	g := gatewayProcess{log: new(strings.Builder)}
	ended := false
	g.end = func() int {
		if !ended {
			ended = true
			_ = cmd.Process.Signal(syscall.SIGTERM) // fails if it has ended
			_, _ = io.Copy(g.log, errs)             // until it ends
			_ = cmd.Wait()                          // the status says it
		}
		return cmd.ProcessState.ExitCode()
	}
	t.Cleanup(func() { g.end() })
	address := regexp.MustCompile(`msg="gateway listening" address=(\S+)`)
	for r := bufio.NewReader(errs); g.url == ""; {
		line, err := r.ReadString('\n')
		g.log.WriteString(line)
		if m := address.FindStringSubmatch(line); m != nil {
			g.url = "http://" + m[1]
		}
		if err != nil {
			t.Fatalf("the gateway ended: %s", g.log)
		}
	}
	return g
}

// mustUpstreams starts servers that answer with their names.
func mustUpstreams(t *testing.T, names ...string) (args []string) {
	t.Helper()
	for _, name := range names {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprint(w, name)
		}))
		t.Cleanup(s.Close)
		args = append(args, "--upstream", name+"="+s.URL)
	}
	return args
}

// TestGateway: the key makes the same cookies after a restart, and a random one does not.
func TestGateway(t *testing.T) {
	hexKey := strings.Repeat("0123456789abcdef", 4)
	key := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(key, []byte(hexKey+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	args := append(mustUpstreams(t, "a", "b"), "--affinity", "cookie", "--allow-plain-localhost")
	cookie := func(env []string, more ...string) (value, log string) {
		t.Helper()
		g := mustGateway(t, env, append(more, args...)...)
		b := newBrowser(t, g.url)
		r, err := b.do(t.Context(), "GET", "/", nil, nil)
		if err != nil || r.status != http.StatusOK || r.body != "a" {
			t.Fatalf("GET /: %d %q %v", r.status, r.body, err)
		}
		for range 3 {
			if again, err := b.do(t.Context(), "GET", "/", nil, nil); err != nil || again.body != "a" {
				t.Errorf("GET / again: %q %v, want a", again.body, err)
			}
		}
		b.client.CloseIdleConnections()
		if status := g.end(); status != 0 {
			t.Errorf("exit status %d: %s", status, g.log)
		}
		c, err := http.ParseSetCookie(r.header.Get("Set-Cookie"))
		if err != nil {
			t.Fatal(err)
		}
		return c.Value, g.log.String()
	}
	first, log := cookie(nil, "--key-file", key)
	if strings.Contains(log, "WARN") {
		t.Errorf("a warning in spite of a key:\n%s", log)
	}
	if again, _ := cookie(nil, "--key-file", key); again != first {
		t.Error("another cookie after a restart with the same key")
	}
	if fromEnv, _ := cookie([]string{"HOLDFAST_KEY=" + hexKey}); fromEnv != first {
		t.Error("another cookie with the same key from the environment")
	}
	random, log := cookie(nil)
	if random == first || !strings.Contains(log, "level=WARN") || !strings.Contains(log, "--key-file") {
		t.Errorf("without a key there is no warning:\n%s", log)
	}
	if strings.Contains(log, first) {
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
	g := mustGateway(t, []string{"HOLDFAST_UPSTREAM=" + s.URL})
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
	ended := make(chan int, 1)
	go func() { ended <- g.end() }()
	eventually(t, 10*time.Second, func() error { return refuses(g.url) })
	close(finish)
	if r := <-answered; r.body != "done" {
		t.Errorf("the request that was under way: %d %q", r.status, r.body)
	}
	if status := <-ended; status != 0 {
		t.Errorf("exit status %d", status)
	}
}
