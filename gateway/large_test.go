package gateway_test

import (
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-sessions/holdfast/gateway"
	"github.com/holdfast-sessions/holdfast/internal/testserver"
)

// A large body goes through, up and down, of known length or in chunks, and the memory of gateway, application and client,
// which are one process here, does not grow with it. With HOLDFAST_SOAK it is 1 GiB each time.
func TestLargeBodyMemory(t *testing.T) {
	size := int64(testserver.Scale(48<<20, 1<<30))
	const allowed = 24 << 20 // buffers of a few connections, and what the collector has not got to yet
	app := mustApp(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/warm" {
			return
		}
		if r.Method == "GET" {
			if r.URL.Path == "/length" {
				w.Header().Set("Content-Length", fmt.Sprint(size))
			}
			_, _ = io.Copy(w, io.LimitReader(anything{}, size))
			return
		}
		n, err := io.Copy(io.Discard, r.Body)
		fmt.Fprint(w, n, " ", err)
	})
	protocols(t, func(t *testing.T, proto string) {
		g := mustRun(t, proto, gateway.Config{Upstreams: upstreams(app)})
		g.send("GET", "/warm", "")
		for _, path := range []string{"/length", "/chunks"} {
			grown := growth(func() {
				began := time.Now()
				res, err := g.http.Do(g.mustRequest("GET", path, ""))
				if err != nil {
					t.Fatal(err)
				}
				n, err := io.Copy(io.Discard, res.Body)
				res.Body.Close()
				if n != size || err != nil {
					t.Errorf("down, %s: %d bytes, %v", path, n, err)
				}
				t.Logf("down, %s: %d MiB in %v", path, size>>20, time.Since(began).Round(time.Millisecond))
			})
			t.Logf("memory grew by %d KiB", grown>>10)
			if grown > allowed {
				t.Errorf("down, %s: memory grew by %d MiB", path, grown>>20)
			}
			grown = growth(func() {
				began := time.Now()
				req := g.mustRequest("PUT", path, "")
				req.Body, req.ContentLength = io.NopCloser(io.LimitReader(anything{}, size)), size
				if path == "/chunks" {
					req.ContentLength = -1
				}
				if a := g.do(req); a.body != fmt.Sprint(size, " <nil>") {
					t.Errorf("up, %s: %d %s", path, a.StatusCode, a.body)
				}
				t.Logf("up, %s: %d MiB in %v", path, size>>20, time.Since(began).Round(time.Millisecond))
			})
			if grown > allowed {
				t.Errorf("up, %s: memory grew by %d MiB", path, grown>>20)
			}
		}
	})
}

// anything is a body whose content does not matter.
type anything struct{}

func (anything) Read(p []byte) (int, error) { return len(p), nil }

// growth returns by how much more memory is in use at some moment of f than before it, in bytes.
func growth(f func()) int64 {
	used := func() int64 {
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapInuse + m.StackInuse)
	}
	runtime.GC()
	before, most := used(), int64(0)
	done := make(chan struct{})
	var sampling sync.WaitGroup
	sampling.Go(func() {
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
				most = max(most, used()-before)
			}
		}
	})
	f()
	close(done)
	sampling.Wait()
	return most
}

// The real curl, up and down, over HTTP/1.1 and HTTP/2, with 100-continue.
func TestLargeBodyCurl(t *testing.T) {
	curl := testserver.Find(t, "curl", "curl")
	size := int64(testserver.Scale(32<<20, 1<<30))
	app := mustApp(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method == "GET" {
			w.Header().Set("Content-Length", fmt.Sprint(size))
			_, _ = io.Copy(w, io.LimitReader(anything{}, size))
			return
		}
		n, err := io.Copy(io.Discard, r.Body)
		fmt.Fprint(w, n, " ", err)
	})
	for _, proto := range []string{"h1", "h1s", "h2"} {
		t.Run(proto, func(t *testing.T) {
			g := mustRun(t, proto, gateway.Config{Upstreams: upstreams(app)})
			file := filepath.Join(t.TempDir(), "body")
			common := []string{"-sS", "-k", "--max-time", "120", map[bool]string{true: "--http2", false: "--http1.1"}[proto == "h2"]}
			out, err := exec.CommandContext(t.Context(), curl, append(common, "-o", file, "-w", "%{http_version} %{http_code} %{size_download}", g.url+"/")...).CombinedOutput()
			version := map[bool]string{true: "2", false: "1.1"}[proto == "h2"]
			if want := fmt.Sprintf("%s 200 %d", version, size); err != nil || string(out) != want {
				t.Fatalf("down: %s, %v, want %s", out, err, want)
			}
			for _, chunked := range []bool{false, true} {
				args := append(common, "-T", file, "-H", "Expect: 100-continue")
				if chunked {
					args = append(args, "-H", "Transfer-Encoding: chunked")
				}
				out, err = exec.CommandContext(t.Context(), curl, append(args, g.url+"/")...).CombinedOutput()
				if want := fmt.Sprint(size, " <nil>"); err != nil || !strings.Contains(string(out), want) {
					t.Errorf("up, chunked %v: %s, %v, want %s", chunked, out, err, want)
				}
			}
		})
	}
}
