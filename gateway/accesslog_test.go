package gateway_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"regexp"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-sessions/holdfast/gateway"
)

// Attack 27, the access log: every request has its line once Run has ended, and none has a token, wherever it was.
func TestAccessLog(t *testing.T) {
	protocols(t, func(t *testing.T, proto string) {
		for _, format := range []gateway.AccessLogFormat{gateway.AccessLogJSON, gateway.AccessLogCombined} {
			app := mustApp(t, func(w http.ResponseWriter, r *http.Request) {
				_, _ = io.Copy(io.Discard, r.Body)
				fmt.Fprint(w, r.Header.Get("X-Request-Id"))
			})
			log := &lockedBuffer{}
			g := mustRun(t, proto, gateway.Config{
				Upstreams: upstreams(refusing(t), app), Affinity: gateway.AffinityCookie, AccessLog: log, AccessLogFormat: format,
				SessionParameter: "s", SessionHeader: "Session-Token", MaxBodyBytes: 100,
			})
			id := g.send("PUT", "/a/b;jsessionid="+tokenA+"?s="+tokenA, "hello", "Referer", "https://user:pass@shop.example/x;j="+tokenA+"?s="+tokenA+"#"+tokenA,
				"User-Agent", "test \"x\"", "Cookie", "__Host-Http-session="+tokenB+"; session="+tokenB, "Session-Token", tokenB, "Authorization", "Bearer "+tokenB).body
			g.send("POST", "/large", strings.Repeat("x", 200))
			if err := g.stop(); err != nil {
				t.Fatal(err)
			}
			lines := strings.Split(strings.TrimSuffix(log.String(), "\n"), "\n")
			if len(lines) != 2 {
				t.Fatalf("%d lines, want 2:\n%s", len(lines), log)
			}
			for _, secret := range []string{tokenA, tokenB, "pass"} {
				if strings.Contains(log.String(), secret) {
					t.Errorf("access log has a secret:\n%s", log)
				}
			}
			version := map[string]string{"h1": "1.1", "h2": "2.0"}[proto]
			if format == gateway.AccessLogCombined {
				want := regexp.MustCompile(`^127\.0\.0\.1 - - \[\d\d/\w{3}/\d{4}:\d\d:\d\d:\d\d [+-]\d{4}\] "PUT /a/b HTTP/` + version + `" 200 32 "https://shop\.example/x" "test \\x22x\\x22"$`)
				if !want.MatchString(lines[0]) {
					t.Errorf("line %s, want %s", lines[0], want)
				}
				continue
			}
			var got map[string]any
			if err := json.Unmarshal([]byte(lines[0]), &got); err != nil {
				t.Fatalf("line %s: %v", lines[0], err)
			}
			for _, name := range []string{"duration_ms", "upstream_ms"} {
				if ms, _ := got[name].(float64); ms <= 0 || ms > 60e3 {
					t.Errorf("%s is %v", name, got[name])
				}
				delete(got, name)
			}
			if at, err := time.Parse(time.RFC3339Nano, fmt.Sprint(got["time"])); err != nil || time.Since(at) > time.Minute {
				t.Errorf("time %v, %v", got["time"], err)
			}
			delete(got, "time")
			_, host, _ := strings.Cut(g.url, "://")
			want := map[string]any{
				"client": "127.0.0.1", "request_id": id, "method": "PUT", "host": host, "path": "/a/b", "proto": "HTTP/" + version, "tls": proto == "h2",
				"status": 200.0, "bytes_in": 5.0, "bytes_out": 32.0, "upstream": "b", "attempts": 2.0, "bound": true,
				"referrer": "https://shop.example/x", "user_agent": `test "x"`,
			}
			if d := cmp.Diff(want, got); d != "" {
				t.Errorf("line (-want +got):\n%s", d)
			}
			if !strings.Contains(lines[1], `"status":413`) || !strings.Contains(lines[1], `"client":"127.0.0.1"`) {
				t.Errorf("line of a refused request: %s", lines[1])
			}
		}
	})
}

// Whatever is in a request, a line is a line, and its JSON reads back.
func FuzzAccessLog(f *testing.F) {
	f.Add("/a", "x\"\\\x00\x7f\xff\u2028", "https://u:p@h/x?y")
	f.Add("/\n", "é", "//a@b")
	f.Fuzz(func(t *testing.T, path, agent, referrer string) {
		for _, format := range []gateway.AccessLogFormat{gateway.AccessLogJSON, gateway.AccessLogCombined} {
			line := gateway.AccessLogLine(format, path, agent, referrer)
			if n := strings.Count(line, "\n"); n != 1 || !strings.HasSuffix(line, "\n") {
				t.Errorf("%d lines: %q", n, line)
			}
			if format == gateway.AccessLogCombined {
				if strings.Count(line, `"`) != 6 || strings.Trim(line, "\n") != strings.Map(func(r rune) rune {
					if r < ' ' || r > '~' {
						return -1
					}
					return r
				}, line) {
					t.Errorf("line %q", line)
				}
				continue
			}
			var got struct {
				Path      string
				UserAgent string `json:"user_agent"`
			}
			if err := json.Unmarshal([]byte(line), &got); err != nil {
				t.Fatalf("line %q: %v", line, err)
			}
			if want := strings.ToValidUTF8(agent, "\ufffd"); strings.ReplaceAll(got.UserAgent, "\ufffd", "") != strings.ReplaceAll(want, "\ufffd", "") {
				t.Errorf("user agent %q, want %q", got.UserAgent, want)
			}
		}
	})
}

// slowWriter takes nothing until it is told to.
type slowWriter struct {
	release chan struct{}
	err     error

	mu    sync.Mutex
	lines int
}

func (w *slowWriter) Write(b []byte) (int, error) {
	<-w.release
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lines += strings.Count(string(b), "\n")
	return len(b), w.err
}

// A disk that hangs holds no request up; lines that find no place are counted, and said once it goes on.
func TestAccessLogFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, log := &slowWriter{release: make(chan struct{}), err: errors.New("disk full")}, &lockedBuffer{}
		piped(t, gateway.Config{AccessLog: w, Logger: textLogger(log)}, says("a"), func(t *testing.T, g *gateway.Gateway, dial func() net.Conn) {
			client := &http.Client{Transport: pipeTransport(dial)}
			defer client.CloseIdleConnections()
			const requests = 600
			for i := range requests {
				req, _ := http.NewRequest("GET", "http://x/", nil)
				req.Header.Set("User-Agent", strings.Repeat("x", 3000))
				res, err := client.Do(req)
				if err != nil {
					t.Fatal(err)
				}
				_, _ = io.Copy(io.Discard, res.Body)
				res.Body.Close()
				if i == 0 {
					time.Sleep(2 * time.Second) // the writer hangs with this line
				}
			}
			close(w.release)
			time.Sleep(2 * time.Second)
			w.mu.Lock()
			lines := w.lines
			w.mu.Unlock()
			dropped := int(g.Stats().AccessLogDropped)
			if lines+dropped != requests || dropped == 0 || lines < 300 {
				t.Errorf("%d lines written and %d dropped of %d", lines, dropped, requests)
			}
			if n := strings.Count(log.String(), "access log lines dropped"); n != 1 {
				t.Errorf("said %d times that lines were dropped, want once:\n%s", n, log)
			}
			if n := strings.Count(log.String(), "access log not written"); n != 1 {
				t.Errorf("said %d times that the log cannot be written, want once:\n%s", n, log)
			}
		})
	})
}

func TestRequestID(t *testing.T) {
	const trace = "0af7651916cd43dd8448eb211c80319c"
	var got []string
	app := mustApp(t, func(w http.ResponseWriter, r *http.Request) { got = r.Header["X-Request-Id"] })
	for _, c := range []struct {
		name, trusted string
		header        []string
		want          string // "": one of its own
	}{
		{"none", "127.0.0.1/32", nil, ""},
		{"of a trusted proxy", "127.0.0.1/32", []string{"X-Request-Id", "req-1"}, "req-1"},
		{"of a client", "10.0.0.0/8", []string{"X-Request-Id", "req-1", "X_Request_Id", "req-2", "Traceparent", "00-" + trace + "-b7ad6b7169203331-01"}, ""},
		{"two", "127.0.0.1/32", []string{"X-Request-Id", "req-1", "X-Request-Id", "req-2"}, ""},
		{"strange", "127.0.0.1/32", []string{"X-Request-Id", "a b"}, ""},
		{"long", "127.0.0.1/32", []string{"X-Request-Id", strings.Repeat("x", 129)}, ""},
		{"trace", "127.0.0.1/32", []string{"Traceparent", "00-" + trace + "-b7ad6b7169203331-01"}, trace},
		{"broken trace", "127.0.0.1/32", []string{"Traceparent", "00-" + strings.Repeat("0", 32) + "-b7ad6b7169203331-01"}, ""},
	} {
		g := mustRun(t, "h1", gateway.Config{Upstreams: upstreams(app), TrustedProxies: []netip.Prefix{netip.MustParsePrefix(c.trusted)}})
		wantStatus(t, g.send("GET", "/", "", c.header...), 200)
		if len(got) != 1 || c.want != "" && got[0] != c.want || c.want == "" && !regexp.MustCompile("^[0-9a-f]{32}$").MatchString(got[0]) || c.want == "" && got[0] == trace {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

// What a line costs a request.
func BenchmarkAccessLog(b *testing.B) {
	for _, format := range []gateway.AccessLogFormat{gateway.AccessLogJSON, gateway.AccessLogCombined} {
		b.Run(string(format), func(b *testing.B) {
			add := gateway.AccessLogAdder(format, io.Discard)
			b.ReportAllocs()
			for b.Loop() {
				add()
			}
		})
	}
}
