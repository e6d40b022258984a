package gateway

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/cookiejar"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/holdfast-sessions/holdfast/internal/testserver"
)

// deadline is how long each proxy lets a server be silent.
const deadline = 2 * time.Second

// sticky are the proxies of TestFailures: as they are with the sticky sessions of their manuals, and with what they have
// against failures switched on. None checks the health of servers.
var sticky = []proxy{
	{"holdfast", startHoldfast},
	{"nginx", startNginx},
	{"HAProxy", startHAProxy},
	{"HAProxy, redispatch 1, retry-on", func(t testing.TB, apps []*testserver.Server, sticky bool) *testserver.Server {
		return haproxy(t, apps, sticky, "option redispatch 1", "retry-on conn-failure empty-response response-timeout")
	}},
	{"Caddy", startCaddy},
	{"Caddy, lb_try, fail_duration", func(t testing.TB, apps []*testserver.Server, sticky bool) *testserver.Server {
		return caddy(t, apps, sticky, "lb_try_duration 5s", "lb_try_interval 50ms", "fail_duration 10s")
	}},
}

// TestFailures prints what a client sees when its server is killed, and returns, and when its server is frozen.
func TestFailures(t *testing.T) {
	proxies := sticky
	if testing.Short() {
		proxies = proxies[:2] // the others stall
	}
	rows := make([]string, len(proxies))
	t.Run("proxies", func(t *testing.T) { // returns when all of them are done
		for i, p := range proxies {
			t.Run(p.name, func(t *testing.T) {
				t.Parallel()
				k, f := kill(t, p), freeze(t, p)
				rows[i] = fmt.Sprintf("%s\t%d of 15\t%d of 4\t%s\t%s\t%d\t%s\t%s\t%d\t%s\t%d of 4\n", p.name, k.gets, k.posts,
					ms(k.first), ms(k.slowest), k.cookies, k.returned, ms(f.first), f.status, ms(f.slowest), f.ok)
				if p.name != "holdfast" {
					return
				}
				if k.gets != 15 || k.posts != 4 || k.cookies != 1 || k.returned != "stays" {
					t.Errorf("its server was killed: %+v, want 15 GETs, 4 POSTs, 1 cookie, stays", k)
				}
				// Less than two deadlines: it waited for one server only, on a machine however busy.
				if f.status != http.StatusOK || f.ok != 4 || f.first >= 2*deadline || f.slowest >= deadline {
					t.Errorf("its server is frozen: %+v, want 200 after %v, and then at once", f, deadline)
				}
			})
		}
	})
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "killed:\tGETs\tPOSTs\tfirst\tslowest\tcookies\tafter its return\tfrozen: first\tstatus\tslowest after\tanswered")
	for _, row := range rows {
		fmt.Fprint(w, row)
	}
	_ = w.Flush() // to a Builder
	t.Log("\n" + b.String())
}

func ms(d time.Duration) string {
	return strconv.FormatFloat(float64(d.Microseconds())/1000, 'f', 1, 64) + " ms"
}

// killed is what a client saw.
type killed struct {
	gets, posts    int // that were answered by another server
	first, slowest time.Duration
	cookies        int    // that changed
	returned       string // where it went when its server was back
}

// kill ends the server of a client with SIGKILL, and lets the client send 15 GETs and 4 POSTs, a POST first.
func kill(t *testing.T, p proxy) killed {
	apps, s := fleet(t, p)
	c := mustClient(t, s)
	home := apps[c.mustStick()]
	home.Stop()
	var k killed
	before := c.cookies
	for i := range 19 {
		method := "GET"
		if i%5 == 0 {
			method = "POST"
		}
		status, _, took := c.send(method)
		k.slowest = max(k.slowest, took)
		if i == 0 {
			k.first = took
		}
		switch {
		case status != http.StatusOK:
		case method == "GET":
			k.gets++
		default:
			k.posts++
		}
	}
	k.cookies = c.cookies - before
	_, next, _ := c.send("GET")

	home.Restart()
	name := strconv.Itoa(slices.Index(apps, home))
	for until := time.Now().Add(30 * time.Second); ; { // until others are sent there again
		if _, at, _ := mustClient(t, s).send("GET"); at == name {
			break
		}
		if time.Now().After(until) {
			t.Errorf("the server that was killed returned, and gets no request")
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	k.returned = "stays"
	for range 5 {
		status, at, _ := c.send("GET")
		switch {
		case status != http.StatusOK:
			k.returned = fmt.Sprint("status ", status)
		case at == name && next != name:
			k.returned = "goes back"
		case at != next:
			k.returned = "wanders"
		}
	}
	return k
}

// frozen is what a client saw.
type frozen struct {
	first   time.Duration
	status  int
	slowest time.Duration // of those after the first
	ok      int           // of four that followed, every other one a POST
}

// freeze stops the server of a client with SIGSTOP: connections are accepted, by the kernel, and nothing answers.
func freeze(t *testing.T, p proxy) frozen {
	apps, s := fleet(t, p)
	c := mustClient(t, s)
	home := apps[c.mustStick()]
	home.Freeze()
	wantStopped(t, home.PID())
	var f frozen
	f.status, _, f.first = c.send("GET")
	for i := range 4 {
		status, _, took := c.send([]string{"POST", "GET"}[i%2])
		f.slowest = max(f.slowest, took)
		if status == http.StatusOK {
			f.ok++
		}
	}
	return f
}

// fleet starts three applications and a proxy in front.
func fleet(t *testing.T, p proxy) ([]*testserver.Server, *testserver.Server) {
	t.Helper()
	var apps []*testserver.Server
	for i := range 3 {
		apps = append(apps, mustApp(t, strconv.Itoa(i)))
	}
	return apps, p.start(t, apps, true)
}

// client is a browser: it keeps cookies.
type client struct {
	t       testing.TB
	http    *http.Client
	url     string
	values  map[string]string // of the cookies that it was given
	cookies int               // how often one of them changed
}

func mustClient(t testing.TB, s *testserver.Server) *client {
	t.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	c := &client{t: t, url: "http://" + s.Addr + "/", values: make(map[string]string),
		http: &http.Client{Jar: jar, Transport: &http.Transport{}, Timeout: 30 * time.Second}}
	t.Cleanup(c.http.CloseIdleConnections)
	return c
}

// send returns the status of the answer, 0 if there was none, and its body, which is the name of the server if all is well.
func (c *client) send(method string) (status int, body string, took time.Duration) {
	c.t.Helper()
	r, err := http.NewRequestWithContext(context.Background(), method, c.url, strings.NewReader(map[string]string{"POST": "amount=1"}[method]))
	if err != nil {
		c.t.Fatal(err)
	}
	begin := time.Now()
	res, err := c.http.Do(r)
	if err != nil {
		return 0, "", time.Since(begin)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	took = time.Since(begin)
	for _, k := range res.Cookies() {
		if c.values[k.Name] != k.Value {
			c.values[k.Name] = k.Value
			c.cookies++
		}
	}
	if err != nil {
		return 0, "", took
	}
	return res.StatusCode, string(b), took
}

// mustStick returns the server that the client stays on.
func (c *client) mustStick() int {
	c.t.Helper()
	_, home, _ := c.send("GET")
	for range 5 {
		if _, at, _ := c.send("GET"); at != home {
			c.t.Fatalf("server %q, then %q: the client does not stay", home, at)
		}
	}
	i, err := strconv.Atoi(home)
	if err != nil {
		c.t.Fatalf("answer %q", home)
	}
	return i
}

// wantStopped returns when all threads of a process have stopped: the signal is not that fast.
func wantStopped(t testing.TB, pid int) {
	t.Helper()
	running := func() bool {
		stats, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
		return err != nil || len(stats) == 0 || slices.ContainsFunc(stats, func(stat string) bool {
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
