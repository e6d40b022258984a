package gateway_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/holdfast-sessions/holdfast/gateway"
)

// appAddress makes the test binary an application server on that address.
const appAddress = "GATEWAY_TEST_APP"

func TestMain(m *testing.M) {
	if addr := os.Getenv(appAddress); addr != "" {
		serveApp(addr)
		return
	}
	goleak.VerifyTestMain(m)
}

func serveApp(addr string) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(l.Addr())
	go func() { // end with the test
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	_ = http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %s %s", l.Addr(), r.Method, body)
	}))
}

// process is an application server as a process of its own, which can be killed.
type process struct {
	addr string
	cmd  *exec.Cmd
}

func mustProcess(t testing.TB, addr string) *process {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), appAddress+"="+addr)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := &process{cmd: cmd}
	t.Cleanup(func() { in.Close(); p.kill() })
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("application did not start: %v", err)
	}
	p.addr = strings.TrimSpace(line)
	return p
}

func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait()
}

// mustFreeze stops the process, and returns when all of its threads have stopped: the signal is not that fast.
func (p *process) mustFreeze(t testing.TB) {
	t.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	running := func() bool {
		stats, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", p.cmd.Process.Pid))
		return err != nil || slices.ContainsFunc(stats, func(stat string) bool {
			b, err := os.ReadFile(stat)
			return err == nil && !bytes.Contains(b, []byte(") T "))
		})
	}
	for until := time.Now().Add(10 * time.Second); running(); time.Sleep(time.Millisecond) {
		if time.Now().After(until) {
			t.Fatal("the process does not stop")
		}
	}
}

var testKey = []byte("0123456789abcdef0123456789abcdef")

var testCert = sync.OnceValues(func() (tls.Certificate, *x509.CertPool) {
	s := httptest.NewTLSServer(nil)
	defer s.Close()
	roots := x509.NewCertPool()
	roots.AddCert(s.Certificate())
	return s.TLS.Certificates[0], roots
})

// protocols runs f over HTTP/1.1 and HTTP/2.
func protocols(t *testing.T, f func(t *testing.T, proto string)) {
	for _, proto := range []string{"h1", "h2"} {
		t.Run(proto, func(t *testing.T) { f(t, proto) })
	}
}

// running is a gateway that serves, and a client of it.
type running struct {
	*gateway.Gateway
	t    testing.TB
	url  string
	log  *lockedBuffer
	http *http.Client
	stop func() error // ends Run and returns what it returned

	mayFail bool // Run, at the end of the test
}

// mustRun serves c: as HTTP/1.1 without TLS (h1) or with it (h1s), or as HTTP/2 (h2).
func mustRun(t testing.TB, proto string, c gateway.Config) *running {
	t.Helper()
	log := &lockedBuffer{}
	c.Logger = slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	c.Cookie.AllowPlainLocalhost = true
	if c.Affinity == gateway.AffinityCookie && c.Key == nil {
		c.Key = testKey
	}
	cert, roots := testCert()
	r := &running{t: t, log: log}
	transport := &http.Transport{Protocols: new(http.Protocols), TLSClientConfig: &tls.Config{RootCAs: roots}, DisableCompression: true}
	scheme := "http"
	if proto != "h1" {
		c.TLS = &tls.Config{Certificates: []tls.Certificate{cert}}
		scheme = "https"
	}
	transport.Protocols.SetHTTP2(proto == "h2")
	transport.Protocols.SetHTTP1(proto != "h2")
	g, err := gateway.New(c)
	if err != nil {
		t.Fatal(err)
	}
	r.Gateway = g
	l := mustListen(t)
	r.url = scheme + "://" + l.Addr().String()
	r.http = &http.Client{
		Transport:     transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- g.Run(ctx, l) }()
	r.stop = sync.OnceValue(func() error {
		cancel()
		return <-done
	})
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		if err := r.stop(); err != nil && !r.mayFail {
			t.Errorf("Run: %v", err)
		}
		if t.Failed() {
			t.Logf("log of the gateway:\n%s", log)
		}
	})
	return r
}

// mustDial returns a connection to the gateway for HTTP/1.1, over TLS if it speaks that.
func (r *running) mustDial() net.Conn {
	r.t.Helper()
	return r.mustDialAfter("")
}

// mustDialAfter sends text on the connection first, below TLS.
func (r *running) mustDialAfter(text string) net.Conn {
	r.t.Helper()
	scheme, addr, _ := strings.Cut(r.url, "://")
	c, err := net.Dial("tcp", addr)
	if err != nil {
		r.t.Fatal(err)
	}
	_, _ = io.WriteString(c, text)
	if scheme == "https" {
		_, roots := testCert()
		c = tls.Client(c, &tls.Config{RootCAs: roots, ServerName: "example.com"})
	}
	r.t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	return c
}

func mustListen(t testing.TB) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// mustApp starts an application server in this process and returns its URL.
func mustApp(t testing.TB, h http.HandlerFunc) string {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s.URL
}

// says is an application that answers every request with its name.
func says(name string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		fmt.Fprint(w, name)
	}
}

func upstreams(urls ...string) []gateway.Upstream {
	var all []gateway.Upstream
	for i, u := range urls {
		all = append(all, gateway.Upstream{ID: string(rune('a' + i)), URL: u})
	}
	return all
}

// refusing returns the URL of a port at which nobody listens.
func refusing(t testing.TB) string {
	t.Helper()
	l := mustListen(t)
	defer l.Close()
	return "http://" + l.Addr().String()
}

func (r *running) mustRequest(method, path, body string, header ...string) *http.Request {
	r.t.Helper()
	req, err := http.NewRequestWithContext(r.t.Context(), method, r.url+path, strings.NewReader(body))
	if err != nil {
		r.t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Add(header[i], header[i+1])
	}
	return req
}

// answer is a response read to its end.
type answer struct {
	*http.Response
	body string
}

func (r *running) do(req *http.Request) answer {
	r.t.Helper()
	res, err := r.http.Do(req)
	if err != nil {
		r.t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	return answer{res, string(b)}
}

// send makes a request; header is name, value, name, value.
func (r *running) send(method, path, body string, header ...string) answer {
	r.t.Helper()
	return r.do(r.mustRequest(method, path, body, header...))
}

func wantStatus(t testing.TB, a answer, status int) {
	t.Helper()
	if a.StatusCode != status {
		t.Fatalf("status %d, want %d: %s", a.StatusCode, status, a.body)
	}
}

// affinityCookie returns the affinity cookie that an answer sets, as a Cookie header, or "".
func affinityCookie(a answer) string {
	for _, c := range a.Cookies() {
		if strings.HasSuffix(c.Name, "holdfast-upstream") {
			return c.Name + "=" + c.Value
		}
	}
	return ""
}

// breaking is an application that reads the header of each request, counts it, and resets the connection, after
// having sent reply.
type breaking struct {
	url string

	// mu guards the fields below.
	mu       sync.Mutex
	arrivals int
}

func mustBreaking(t testing.TB, reply string) *breaking {
	t.Helper()
	l := mustListen(t)
	b := &breaking{url: "http://" + l.Addr().String()}
	var conns sync.WaitGroup
	conns.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			conns.Go(func() {
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(10 * time.Second))
				if _, err := http.ReadRequest(bufio.NewReader(c)); err != nil {
					return
				}
				b.mu.Lock()
				b.arrivals++
				b.mu.Unlock()
				_, _ = io.WriteString(c, reply)
				if reply == "" {
					_ = c.(*net.TCPConn).SetLinger(0) // reset
				}
			})
		}
	})
	t.Cleanup(func() { l.Close(); conns.Wait() })
	return b
}

func (b *breaking) wantArrivals(t testing.TB, n int) {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.arrivals != n {
		t.Errorf("%d requests arrived at the upstream that breaks, want %d", b.arrivals, n)
	}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// upstream returns the state of an upstream.
func (r *running) upstream(id string) gateway.UpstreamStats {
	r.t.Helper()
	for _, u := range r.Upstreams() {
		if u.ID == id {
			return u
		}
	}
	r.t.Fatalf("no upstream %q", id)
	return gateway.UpstreamStats{}
}

func textLogger(w io.Writer) *slog.Logger {
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: slog.LevelDebug}))
}
