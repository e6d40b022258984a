package main

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-sessions/holdfast/internal/testserver"
)

// TestGatewayMonitors: /healthz, /readyz and /metrics; readyz says no when no upstream is up, and while the gateway ends.
func TestGatewayMonitors(t *testing.T) {
	t.Parallel()
	var asked atomic.Bool
	release := make(chan struct{})
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			asked.Store(true)
			<-release
		}
		_, _ = io.WriteString(w, "done")
	}))
	t.Cleanup(app.Close)
	let := sync.OnceFunc(func() { close(release) })
	t.Cleanup(let)
	g := mustGateway(t, nil, "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--upstream", "a="+app.URL)
	g.wantAdmin(t, "/healthz", 200, "ok")
	g.wantAdmin(t, "/readyz", 200, "ready")
	if r, err := fetch(http.DefaultClient, g.url+"/?token=s3cr3t"); err != nil || r.body != "done" {
		t.Fatalf("%+v %v", r, err)
	}
	g.wantAdmin(t, "/metrics", 200, `holdfast_gateway_requests_total{code="2xx",upstream="a"} 1`)
	g.wantAdmin(t, "/metrics", 200, `process_cpu_seconds_total`)
	if status, _, errs := holdfast(t, nil, "gateway", "maintenance", "a", "--admin", g.admin); status != 0 {
		t.Fatal(errs)
	}
	g.wantAdmin(t, "/readyz", 503, "no upstream is up")
	g.wantAdmin(t, "/healthz", 200, "ok")
	if status, _, errs := holdfast(t, nil, "gateway", "ready", "a", "--admin", g.admin); status != 0 {
		t.Fatal(errs)
	}
	g.wantAdmin(t, "/readyz", 200, "ready")

	slow := make(chan error, 1)
	go func() {
		r, err := fetch(http.DefaultClient, g.url+"/slow")
		if err == nil && r.body != "done" {
			err = fmt.Errorf("status %d: %s", r.status, r.body)
		}
		slow <- err
	}()
	eventually(t, 30*time.Second, func() error {
		if !asked.Load() {
			return errors.New("the application was not asked")
		}
		return nil
	})
	g.signal(t, syscall.SIGTERM)
	g.wantAdmin(t, "/readyz", 503, "ending")
	g.wantAdmin(t, "/metrics", 200, `holdfast_gateway_upstream_active_requests{upstream="a"} 1`)
	let()
	if err := <-slow; err != nil {
		t.Errorf("the request that was there at the end: %v", err)
	}
	g.end(t, nil)
	if err := refuses("http://" + g.admin); err != nil {
		t.Error(err)
	}
}

// TestGatewaySystemd: what a service of Type=notify-reload tells systemd.
func TestGatewaySystemd(t *testing.T) {
	t.Parallel()
	socket := filepath.Join(t.TempDir(), "notify")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	want := func(pattern string) {
		t.Helper()
		b := make([]byte, 4096)
		_ = l.SetReadDeadline(time.Now().Add(30 * time.Second))
		n, err := l.Read(b)
		if err != nil || !regexp.MustCompile(`^`+pattern+`$`).Match(b[:n]) {
			t.Fatalf("systemd was told %q (%v), want %s", b[:n], err, pattern)
		}
	}
	file := mustConfig(t, "gateway:\n  listen: 127.0.0.1:0\n  upstreams: [{url: '"+mustAnswerer(t, "a").URL+"'}]\nadmin: {listen: '127.0.0.1:0'}\n")
	g := mustGateway(t, []string{"NOTIFY_SOCKET=" + socket}, "--config", file)
	want("READY=1")
	g.signal(t, syscall.SIGHUP)
	want(`RELOADING=1\nMONOTONIC_USEC=[1-9]\d+`)
	want("READY=1")
	mustReplace(t, file, "not usable")
	want(`RELOADING=1\nMONOTONIC_USEC=[1-9]\d+`)
	want("READY=1") // with what it had
	g.signal(t, syscall.SIGTERM)
	want("STOPPING=1")
	g.end(t, nil)
}

// TestGatewayAccessLog: a line about each request, in a file that may be renamed.
func TestGatewayAccessLog(t *testing.T) {
	t.Parallel()
	app := mustAnswerer(t, "a")
	const token = "s3cr3t-0123456789"
	file := filepath.Join(t.TempDir(), "access.log")
	g := mustGateway(t, nil, "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--upstream", "a="+app.URL, "--access-log", file)
	lines := func(name string, n int) []string {
		t.Helper()
		var all []string
		eventually(t, 30*time.Second, func() error {
			b, err := os.ReadFile(name)
			if all = strings.Split(strings.TrimSpace(string(b)), "\n"); err == nil && (len(all) != n || all[0] == "") {
				err = fmt.Errorf("%s has %d lines, want %d:\n%s", name, len(all), n, b)
			}
			return err
		})
		return all
	}
	for range 3 {
		if _, err := fetch(http.DefaultClient, g.url+"/cart?token="+token); err != nil {
			t.Fatal(err)
		}
	}
	for _, line := range lines(file, 3) {
		var e struct {
			Path, Upstream string
			Status         int
		}
		if err := json.Unmarshal([]byte(line), &e); err != nil || e.Path != "/cart" || e.Upstream != "a" || e.Status != 200 || strings.Contains(line, token) {
			t.Errorf("line %s (%v)", line, err)
		}
	}
	if err := os.Rename(file, file+".1"); err != nil {
		t.Fatal(err)
	}
	if _, err := fetch(http.DefaultClient, g.url+"/after"); err != nil {
		t.Fatal(err)
	}
	if all := lines(file, 1); !strings.Contains(all[0], `"/after"`) {
		t.Errorf("after it was renamed: %q", all)
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm()&0o007 != 0 {
		t.Errorf("the access log is for everybody to read: %v %v", info.Mode(), err)
	}
	lines(file+".1", 3)

	out := mustGateway(t, nil, "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--upstream", "a="+app.URL, "--access-log=-", "--access-log-format", "combined")
	if _, err := fetch(http.DefaultClient, out.url+"/cart?token="+token); err != nil {
		t.Fatal(err)
	}
	out.end(t, nil) // which writes what is left
	if !regexp.MustCompile(`^127\.0\.0\.1 - - \[.*\] "GET /cart HTTP/1\.1" 200 1 "-" "Go-http-client/1\.1"\n$`).MatchString(out.out.String()) {
		t.Errorf("standard output: %q", out.out.String())
	}
	if strings.Contains(g.logged()+out.logged(), token) {
		t.Error("the log shows a token")
	}
}

// TestGatewayTLS: certificates of clients' side, replaced while it runs, and upstreams by https, with a private authority and HTTP/2.
func TestGatewayTLS(t *testing.T) {
	t.Parallel()
	app := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, r.Proto) }))
	app.EnableHTTP2 = true
	app.Config.ErrorLog = log.New(io.Discard, "", 0) // it says that it is not believed
	app.StartTLS()
	t.Cleanup(app.Close)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	mustReplace(t, ca, pemOf(app.Certificate().Raw))
	first, second := testserver.NewCertificates(t), testserver.NewCertificates(t)
	cert, key := filepath.Join(t.TempDir(), "cert.pem"), filepath.Join(t.TempDir(), "key.pem")
	use := func(c *testserver.Certificates) {
		t.Helper()
		for from, to := range map[string]string{c.CertFile: cert, c.KeyFile: key} {
			b, err := os.ReadFile(from)
			if err != nil {
				t.Fatal(err)
			}
			mustReplace(t, to, string(b))
		}
	}
	use(first)
	content := "gateway:\n  listen: 127.0.0.1:0\n  upstreams: [{id: a, url: '" + app.URL + "', http2: true}]\n  upstream_tls: {ca_file: " + ca + "}\nadmin: {listen: '127.0.0.1:0'}\n"
	file := mustConfig(t, content)
	g := mustGateway(t, nil, "--config", file, "--tls-cert", cert, "--tls-key", key)
	url := strings.Replace(g.url, "http:", "https:", 1)
	asked := func(c *testserver.Certificates) error {
		client := mustTrust(t, c)
		defer client.CloseIdleConnections()
		r, err := fetch(client, url)
		if err == nil && (r.status != 200 || r.body != "HTTP/2.0") {
			err = fmt.Errorf("status %d: %s, want HTTP/2.0", r.status, r.body)
		}
		return err
	}
	if err := asked(first); err != nil {
		t.Fatal(err)
	}
	if err := asked(second); err == nil {
		t.Fatal("a client that trusts another authority was served")
	}
	use(second)
	g.signal(t, syscall.SIGHUP)
	eventually(t, 30*time.Second, func() error { return asked(second) })

	// Without the authority, the application server is not believed.
	mustReplace(t, file, strings.Replace(content, "  upstream_tls: {ca_file: "+ca+"}\n", "", 1))
	eventually(t, 30*time.Second, func() error {
		if err := asked(second); err == nil || !strings.Contains(err.Error(), "status 50") {
			return fmt.Errorf("still believed: %v", err)
		}
		return nil
	})
	if strings.Contains(g.logged(), "PRIVATE") {
		t.Error("a key was printed")
	}
}

func pemOf(der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

// mustTrust returns a client that trusts the authority of c.
func mustTrust(t testing.TB, c *testserver.Certificates) *http.Client {
	t.Helper()
	b, err := os.ReadFile(c.CAFile)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(b)
	return &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, ForceAttemptHTTP2: true}}
}
