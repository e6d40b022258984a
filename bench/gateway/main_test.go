// Package gateway compares the gateway with nginx, HAProxy, Caddy and the bare reverse proxy of the standard library, in
// one run: the CPU that a request costs (TestCost), and what a client sees when its server is killed or frozen
// (TestFailures).
//
//	go test -v -run TestCost ./gateway -count 1 -sample 2s -rounds 5
//	go test -v -run TestFailures ./gateway -count 1
//
// Figures are printed and not asserted: only ratios mean anything, and not on every machine. What is asserted is that all of
// them answer, and that the gateway does what it promises.
package gateway

import (
	"flag"
	"fmt"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-sessions/holdfast/internal/testserver"
)

var (
	sample = flag.Duration("sample", 200*time.Millisecond, "how long one sample of TestCost takes")
	rounds = flag.Int("rounds", 1, "how many samples of each row")
)

// asRole makes this program an application server or the bare proxy.
const asRole = "BENCH_GATEWAY_ROLE"

func TestMain(m *testing.M) {
	switch os.Getenv(asRole) {
	case "app":
		runApp(os.Args[1], os.Args[2])
	case "bare":
		runBare(os.Args[1], os.Args[2:])
	default:
		status := m.Run()
		_ = os.RemoveAll(built.dir) // in the temporary directory
		os.Exit(status)
	}
}

// runApp answers /N with N bytes, and other paths with its name.
func runApp(addr, name string) {
	page := make([]byte, 1<<20)
	for i := range page {
		page[i] = 'x'
	}
	_ = http.ListenAndServe(addr, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if n, err := strconv.Atoi(r.URL.Path[1:]); err == nil && n <= len(page) {
			w.Header().Set("Content-Length", strconv.Itoa(n))
			w.Header().Set("Content-Type", "application/octet-stream")
			_, _ = w.Write(page[:n]) // the client may have gone
			return
		}
		fmt.Fprint(w, name)
	}))
}

// runBare is a tuned httputil.ReverseProxy that takes the upstreams in turn, and nothing else.
func runBare(addr string, upstreams []string) {
	targets := make([]*url.URL, len(upstreams))
	for i, u := range upstreams {
		targets[i] = &url.URL{Scheme: "http", Host: u}
	}
	next := 0
	var mu sync.Mutex // mu guards next
	_ = http.ListenAndServe(addr, &httputil.ReverseProxy{
		Rewrite: func(p *httputil.ProxyRequest) {
			mu.Lock()
			next = (next + 1) % len(targets)
			u := targets[next]
			mu.Unlock()
			p.SetURL(u)
			p.SetXForwarded()
		},
		Transport:  &http.Transport{MaxIdleConnsPerHost: 256, DisableCompression: true},
		BufferPool: &buffers{},
	})
}

type buffers struct{ pool sync.Pool }

func (b *buffers) Get() []byte {
	if p, ok := b.pool.Get().(*[32 << 10]byte); ok {
		return p[:]
	}
	return make([]byte, 32<<10)
}

func (b *buffers) Put(p []byte) { b.pool.Put((*[32 << 10]byte)(p)) }

// mustApp starts an application server as a process of its own.
func mustApp(t testing.TB, name string) *testserver.Server {
	t.Helper()
	return testserver.Program(t, testserver.ProgramOptions{
		Path: mustSelf(t), Env: []string{asRole + "=app"},
		Args: func(addr, _ string) []string { return []string{addr, name} },
	})
}

func mustSelf(t testing.TB) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return self
}

// built is the command, once mustBuild was called.
var built struct {
	once sync.Once
	dir  string
	err  error
}

func mustBuild(t testing.TB) (path string) {
	t.Helper()
	b := &built
	b.once.Do(func() {
		if b.dir, b.err = os.MkdirTemp("", "bench-gateway-"); b.err != nil {
			return
		}
		cmd := exec.Command("go", "build", "-o", b.dir, "./cmd/holdfast")
		cmd.Dir = "../.."
		if out, err := cmd.CombinedOutput(); err != nil {
			b.err = fmt.Errorf("go build: %w\n%s", err, out)
		}
	})
	if b.err != nil {
		t.Fatal(b.err)
	}
	return filepath.Join(b.dir, "holdfast")
}

// A proxy is one of those that are compared.
type proxy struct {
	name string
	// start runs it in front of applications, with sticky sessions by a cookie of its own where sticky is set and it can,
	// and with limits of 1 s to connect and of 2 s for an answer to begin. One core is all that it uses.
	start func(t testing.TB, apps []*testserver.Server, sticky bool) *testserver.Server
}

var proxies = []proxy{
	{"bare ReverseProxy", startBare},
	{"holdfast", startHoldfast},
	{"nginx", startNginx},
	{"HAProxy", startHAProxy},
	{"Caddy", startCaddy},
}

func startBare(t testing.TB, apps []*testserver.Server, _ bool) *testserver.Server {
	return testserver.Program(t, testserver.ProgramOptions{
		Path: mustSelf(t), Env: []string{asRole + "=bare", "GOMAXPROCS=1"},
		Args: func(addr, _ string) []string {
			args := []string{addr}
			for _, a := range apps {
				args = append(args, a.Addr)
			}
			return args
		},
	})
}

func startHoldfast(t testing.TB, apps []*testserver.Server, sticky bool) *testserver.Server {
	return testserver.Program(t, testserver.ProgramOptions{
		Path: mustBuild(t), Env: []string{"GOMAXPROCS=1"},
		Args: func(addr, dir string) []string {
			args := []string{"gateway", "--listen", addr, "--allow-plain-localhost", "--dial-timeout", "1s", "--response-timeout", "2s",
				"--access-log", filepath.Join(dir, "access.log")} // metrics are always on
			if sticky {
				args = append(args, "--affinity", "cookie")
			}
			for i, a := range apps {
				args = append(args, "--upstream", fmt.Sprintf("s%d=http://%s", i, a.Addr))
			}
			return args
		},
	})
}

// startNginx has what the free nginx offers for sticky sessions: a hash, here of a cookie that it sets itself.
func startNginx(t testing.TB, apps []*testserver.Server, sticky bool) *testserver.Server {
	o := testserver.NginxOptions{
		Main: []string{"worker_processes 1;"},
		Server: []string{"location / {", "proxy_pass http://app;", "proxy_http_version 1.1;", `proxy_set_header Connection "";`,
			"proxy_connect_timeout 1s;", "proxy_read_timeout 2s;", "keepalive_requests 1000000;"},
	}
	app := []string{"upstream app {"}
	if sticky {
		app = append(app, "hash $sticky consistent;")
		o.HTTP = []string{"map $cookie_sticky $sticky { default $cookie_sticky; '' $request_id; }"}
		o.Server = append(o.Server, `add_header Set-Cookie "sticky=$sticky; Path=/" always;`)
	}
	for _, a := range apps {
		app = append(app, "server "+a.Addr+";")
	}
	o.HTTP = append(o.HTTP, app...)
	o.HTTP = append(o.HTTP, "keepalive 64;", "keepalive_requests 1000000;", "}", "access_log access.log;")
	o.Server = append(o.Server, "}", "access_log access.log;")
	return testserver.Nginx(t, o)
}

func startHAProxy(t testing.TB, apps []*testserver.Server, sticky bool) *testserver.Server {
	return haproxy(t, apps, sticky, "option redispatch")
}

// haproxy runs HAProxy with further lines of its backend.
func haproxy(t testing.TB, apps []*testserver.Server, sticky bool, more ...string) *testserver.Server {
	o := testserver.HAProxyOptions{
		Global:   []string{"nbthread 1"},
		Defaults: []string{"timeout connect 1s", "timeout server 2s", "option http-keep-alive", "http-reuse always"},
		Frontend: []string{"default_backend app"},
		Sections: append([]string{"backend app", "balance roundrobin"}, more...),
	}
	if sticky {
		o.Sections = append(o.Sections, "cookie sticky insert indirect nocache")
	}
	for i, a := range apps {
		o.Sections = append(o.Sections, fmt.Sprintf("server s%d %s cookie s%d", i, a.Addr, i))
	}
	return testserver.HAProxy(t, o)
}

func startCaddy(t testing.TB, apps []*testserver.Server, sticky bool) *testserver.Server {
	return caddy(t, apps, sticky)
}

// caddy runs Caddy with further lines of reverse_proxy.
func caddy(t testing.TB, apps []*testserver.Server, sticky bool, more ...string) *testserver.Server {
	policy := "round_robin"
	if sticky {
		policy = "cookie sticky secret"
	}
	return testserver.Program(t, testserver.ProgramOptions{
		Path: "caddy", Debian: "caddy", Env: []string{"GOMAXPROCS=1"},
		Args: func(addr, dir string) []string {
			_, port, _ := net.SplitHostPort(addr)
			to := ""
			for _, a := range apps {
				to += " " + a.Addr
			}
			conf := "{\nadmin off\nauto_https off\nstorage file_system " + dir + "\n}\nhttp://:" + port + " {\nbind 127.0.0.1\nlog {\noutput file " + dir + "/access.log\n}\n" +
				"reverse_proxy" + to + " {\nlb_policy " + policy + "\n" + strings.Join(more, "\n") + "\ntransport http {\ndial_timeout 1s\nresponse_header_timeout 2s\nkeepalive_idle_conns_per_host 256\ncompression off\n}\n}\n}\n"
			file := filepath.Join(dir, "Caddyfile")
			if err := os.WriteFile(file, []byte(conf), 0o600); err != nil {
				t.Fatal(err)
			}
			return []string{"run", "--config", file, "--adapter", "caddyfile"}
		},
	})
}
