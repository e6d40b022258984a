package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-sessions/holdfast/internal/testserver"
)

// running is a running holdfast demo.
type running struct {
	url  string
	tmp  string // its TMPDIR
	cmd  *exec.Cmd
	read sync.WaitGroup

	mu sync.Mutex

	// mu guards the fields below.
	lines []string
	pids  map[string]int    // of the gateway and the apps, the latest
	urls  map[string]string // of the apps
}

var pidLine = regexp.MustCompile(`^(\S+) +pid (\d+)  (http://\S+)?(affinity|up again)?`)

// mustDemo starts holdfast demo on a free port, and stops it after the test.
func mustDemo(t testing.TB, args ...string) *running {
	t.Helper()
	d := &running{tmp: t.TempDir(), pids: make(map[string]int), urls: make(map[string]string)}
	d.cmd = command(t, append([]string{"demo", "--listen", "127.0.0.1:0"}, args...)...)
	d.cmd.Env = append(d.cmd.Env, "TMPDIR="+d.tmp)
	var errs bytes.Buffer
	d.cmd.Stderr = &errs
	out, err := d.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ready := make(chan struct{})
	d.read.Go(func() { d.follow(out, ready) })
	t.Cleanup(func() {
		d.end(t, syscall.SIGTERM)
		if strings.Contains(errs.String(), "DATA RACE") {
			t.Error("data race")
		}
		if t.Failed() {
			t.Logf("holdfast demo printed:\n%s\n%s", strings.Join(d.lines, "\n"), errs.String())
		}
	})
	select {
	case <-ready:
	case <-time.After(30 * time.Second):
	}
	if d.url == "" {
		t.Fatal("holdfast demo did not start")
	}
	return d
}

// follow reads what the demo prints. It closes ready when the demo is up, or has ended.
func (d *running) follow(out io.Reader, ready chan struct{}) {
	up := sync.OnceFunc(func() { close(ready) })
	defer up()
	for s := bufio.NewScanner(out); s.Scan(); {
		line := s.Text()
		d.mu.Lock()
		d.lines = append(d.lines, line)
		if m := pidLine.FindStringSubmatch(line); m != nil && (m[3] != "" || m[4] != "") {
			d.pids[m[1]], _ = strconv.Atoi(m[2])
			if m[3] != "" {
				d.urls[m[1]] = m[3]
			}
		}
		if u, ok := strings.CutPrefix(line, "demo "); ok {
			d.url = strings.TrimSpace(u)
		}
		d.mu.Unlock()
		if strings.HasPrefix(line, "Ctrl-C") {
			up()
		}
	}
}

func (d *running) pid(name string) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.pids[name]
}

// end ends the demo by a signal, if it runs, and waits for it. By SIGTERM it must end well.
func (d *running) end(t testing.TB, sig syscall.Signal) {
	t.Helper()
	if d.cmd.ProcessState != nil {
		return
	}
	_ = d.cmd.Process.Signal(sig) // fails if it has ended
	kill := time.AfterFunc(30*time.Second, func() { _ = d.cmd.Process.Kill() })
	defer kill.Stop()
	d.read.Wait()
	err := d.cmd.Wait()
	if sig == syscall.SIGTERM && err != nil {
		t.Errorf("holdfast demo ended with %v", err)
	}
}

// kill kills a process of the demo by its ID, and waits until it is dead: on a busy machine that takes a while, in which
// it looks as if it had been started again.
func (d *running) kill(t testing.TB, name string) {
	t.Helper()
	pid := d.pid(name)
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Errorf("kill %s: %v", name, err)
	}
	eventually(t, 30*time.Second, func() error {
		if alive(pid) {
			return fmt.Errorf("%s was killed and is alive", name)
		}
		return nil
	})
}

// alive reports whether a process exists that is more than a zombie.
func alive(pid int) bool {
	if syscall.Kill(pid, 0) != nil {
		return false
	}
	stat, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return !errors.Is(err, os.ErrNotExist)
	}
	_, state, _ := bytes.Cut(stat, []byte(") "))
	return !bytes.HasPrefix(state, []byte("Z"))
}

// refuses returns nil if nobody listens at a URL.
func refuses(address string) error {
	u, err := url.Parse(address)
	if err != nil {
		return err
	}
	c, err := net.DialTimeout("tcp", u.Host, time.Second)
	if err != nil {
		return nil
	}
	_ = c.Close() // it should not have been made
	return fmt.Errorf("%s still listens", u.Host)
}

// browser is a client with a cookie jar.
type browser struct {
	base   string
	client *http.Client
}

func newBrowser(t testing.TB, base string) *browser {
	t.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{MaxIdleConnsPerHost: 64}
	t.Cleanup(transport.CloseIdleConnections)
	return &browser{base: base, client: &http.Client{
		Jar: jar, Transport: transport, Timeout: 30 * time.Second,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// who is what GET /whoami answers.
type who struct {
	App     string
	PID     int
	Visits  int
	User    string
	Session string
}

// reply is an answer, read to its end.
type reply struct {
	status int
	header http.Header
	body   string
}

func (r reply) who() (w who, err error) {
	if r.status != http.StatusOK {
		return w, fmt.Errorf("status %d: %s", r.status, strings.TrimSpace(r.body))
	}
	return w, json.Unmarshal([]byte(r.body), &w)
}

// do sends a request; form and header may be nil.
func (b *browser) do(ctx context.Context, method, path string, form url.Values, header http.Header) (reply, error) {
	var body io.Reader
	if form != nil {
		body = strings.NewReader(form.Encode())
	}
	req, err := http.NewRequestWithContext(ctx, method, b.base+path, body)
	if err != nil {
		return reply{}, err
	}
	if form != nil {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	for name, values := range header {
		req.Header[name] = values
	}
	req.Host = header.Get("Host")
	res, err := b.client.Do(req)
	if err != nil {
		return reply{}, err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	return reply{res.StatusCode, res.Header, string(text)}, err
}

// ask sends a request and returns who answered, for whom.
func (b *browser) ask(ctx context.Context, method, path string, form url.Values) (who, error) {
	r, err := b.do(ctx, method, path, form, nil)
	if err != nil {
		return who{}, err
	}
	return r.who()
}

// must is ask for what cannot fail.
func (b *browser) must(t testing.TB, method, path string, form url.Values) who {
	t.Helper()
	w, err := b.ask(t.Context(), method, path, form)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	return w
}

func (b *browser) mustLogin(t testing.TB, user string) who {
	t.Helper()
	w := b.must(t, "POST", "/login", url.Values{"user": {user}})
	if w.User != user || w.Session == "" {
		t.Fatalf("login as %s: %+v", user, w)
	}
	return w
}

// sharedStores are the stores that several servers can share: on a real server, which open starts, one or more ways to
// keep sessions in it.
var sharedStores = []struct {
	name    string
	full    bool                            // tried with full counts in every run; the others in make soak
	open    func(t *testing.T) (url string) // "": the demo's own, files in a temporary directory
	options []string
}{
	{"file", true, func(*testing.T) string { return "" }, nil},
	{"file-nfs", false, func(t *testing.T) string { return "file:" + filepath.Join(t.TempDir(), "sessions") }, []string{"?network=nfs"}},
	{"redis", true, func(t *testing.T) string { return "redis://" + testserver.Redis(t).Addr }, nil},
	{"mariadb", false, func(t *testing.T) string { return database("mysql", testserver.MariaDB(t)) }, []string{"", "?engine=memory&table=heap"}},
	{"postgres", false, func(t *testing.T) string { return database("postgres", testserver.Postgres(t)) }, []string{"", "?unlogged=true&table=unlogged"}},
	{"memcached", false, func(t *testing.T) string { return "memcached://" + testserver.Memcached(t).Addr }, nil},
	{"sqlite", false, func(t *testing.T) string { return "sqlite:" + filepath.Join(t.TempDir(), "sessions.db") }, nil},
}

func database(scheme string, s *testserver.Server) string {
	return scheme + "://" + testserver.DatabaseUser + ":" + testserver.DatabasePassword + "@" + s.Addr + "/" + testserver.Database
}

// breadth is over how much of sharedStores a test runs when it is not make soak, which does all.
type breadth int

const (
	fullStores breadth = iota // only those with full counts
	oneWay                    // each store in one way
	allOfThem                 // each store in all ways
)

// eachStore runs a test over every store that servers can share.
func eachStore(t *testing.T, b breadth, f func(t *testing.T, storeArgs []string, full bool)) {
	if testserver.Scale(0, 1) == 1 {
		b = allOfThem
	}
	for _, s := range sharedStores {
		if b == fullStores && !s.full {
			continue
		}
		t.Run(s.name, func(t *testing.T) {
			t.Parallel() // each has servers of its own
			full := s.full || testserver.Scale(0, 1) == 1
			url := s.open(t)
			if url == "" {
				f(t, nil, full)
				return
			}
			if len(s.options) == 0 {
				f(t, []string{"--store", url}, full)
			}
			for i, o := range s.options {
				if i > 0 && b != allOfThem {
					break
				}
				t.Run(strings.Trim("with "+o, " ?"), func(t *testing.T) { f(t, []string{"--store", url + o}, full) })
			}
		})
	}
}
