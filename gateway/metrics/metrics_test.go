package metrics_test

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"github.com/holdfast-sessions/holdfast/gateway"
	"github.com/holdfast-sessions/holdfast/gateway/metrics"
)

// shown is a gateway with its metrics.
type shown struct {
	*gateway.Gateway
	config  gateway.Config
	scraper http.Handler
}

func mustShow(t *testing.T, c gateway.Config) *shown {
	t.Helper()
	m := metrics.New()
	c.OnRequest = m.OnRequest
	g, err := gateway.New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.Close() })
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(m.Of(g))
	return &shown{g, c, promhttp.HandlerFor(registry, promhttp.HandlerOpts{ErrorHandling: promhttp.HTTPErrorOnError})}
}

// scrape returns the lines that a scrape shows.
func (s *shown) scrape(t *testing.T) []string {
	t.Helper()
	w := httptest.NewRecorder()
	s.scraper.ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	if w.Code != http.StatusOK {
		t.Fatalf("scrape: %d %s", w.Code, w.Body)
	}
	return strings.Split(w.Body.String(), "\n")
}

func mustApp(t *testing.T, h http.HandlerFunc) gateway.Upstream {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return gateway.Upstream{URL: s.URL}
}

func (s *shown) get(target, cookie string) {
	r := httptest.NewRequest("GET", target, nil)
	if cookie != "" {
		r.Header.Set("Cookie", cookie)
	}
	s.ServeHTTP(httptest.NewRecorder(), r)
}

// Requests, refusals and states are in the metrics, which are named as Prometheus wants it; no token and no ID of a session is.
func TestMetrics(t *testing.T) {
	const token = "s3cr3tTokenOfAClient0123456789abcdefghijklmnop"
	a := mustApp(t, func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/missing") {
			http.NotFound(w, r)
			return
		}
		http.SetCookie(w, &http.Cookie{Name: "sid", Value: token})
		_, _ = io.WriteString(w, "a")
	})
	a.ID, a.MaxRequests = "a", 7
	g := mustShow(t, gateway.Config{
		Upstreams: []gateway.Upstream{a, {ID: "gone", URL: "http://127.0.0.1:1", Weight: 3}},
		Affinity:  gateway.AffinitySession, Key: bytes.Repeat([]byte{1, 2}, 16), SessionCookies: []string{"sid"}, SessionParameter: "token",
	})
	if err := g.Maintenance("gone"); err != nil {
		t.Fatal(err)
	}
	g.get("/", "sid="+token)
	g.get("/missing/"+token, "")
	g.get("/?token="+token, "")
	g.get("/", strings.Repeat("x=y; ", 1500))
	r := httptest.NewRequest("CONNECT", "/", nil)
	g.ServeHTTP(httptest.NewRecorder(), r)

	lines := g.scrape(t)
	for _, want := range []string{
		`holdfast_gateway_requests_total{code="2xx",upstream="a"} 2`,
		`holdfast_gateway_requests_total{code="4xx",upstream="a"} 1`,
		`holdfast_gateway_requests_total{code="4xx",upstream=""} 1`,
		`holdfast_gateway_request_duration_seconds_count{upstream="a"} 3`,
		`holdfast_gateway_rejected_total 2`,
		`holdfast_gateway_rejections_total{reason="headers"} 1`,
		`holdfast_gateway_rejections_total{reason="framing"} 0`,
		`holdfast_gateway_upstream_up{upstream="a"} 1`,
		`holdfast_gateway_upstream_up{upstream="gone"} 0`,
		`holdfast_gateway_upstream_state{state="maintenance",upstream="gone"} 1`,
		`holdfast_gateway_upstream_state{state="up",upstream="gone"} 0`,
		`holdfast_gateway_upstream_weight{upstream="gone"} 3`,
		`holdfast_gateway_upstream_max_requests{upstream="a"} 7`,
		`holdfast_gateway_upstream_answers_total{upstream="a"} 3`,
		`holdfast_gateway_upstream_active_requests{upstream="a"} 0`,
		`holdfast_gateway_learned_capacity_sessions 100000`,
		`holdfast_gateway_connections 0`,
	} {
		if !slices.Contains(lines, want) {
			t.Errorf("no line %s", want)
		}
	}
	all := strings.Join(lines, "\n")
	if strings.Contains(all, token[:8]) || strings.Contains(all, "missing") {
		t.Error("the metrics show a token or a path")
	}
	problems, err := promlint.New(strings.NewReader(all)).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
	if t.Failed() {
		t.Log(all)
	}
}

// An upstream that has gone takes its series along, those of its last requests as well.
func TestForgets(t *testing.T) {
	a, b := mustApp(t, func(http.ResponseWriter, *http.Request) {}), mustApp(t, func(http.ResponseWriter, *http.Request) {})
	a.ID, b.ID = "a", "b"
	g := mustShow(t, gateway.Config{Upstreams: []gateway.Upstream{a, b}})
	of := func(id string) (lines []string) {
		for _, line := range g.scrape(t) {
			if strings.Contains(line, `upstream="`+id+`"`) {
				lines = append(lines, line)
			}
		}
		return lines
	}
	for range 4 {
		g.get("/", "")
	}
	if len(of("a")) == 0 || len(of("b")) == 0 {
		t.Fatal("no series of a or b")
	}
	if err := g.RemoveUpstream("b"); err != nil {
		t.Fatal(err)
	}
	if lines := of("b"); len(lines) > 0 {
		t.Errorf("still there after b was removed: %q", lines)
	}
	g.config.OnRequest(gateway.Request{Upstream: "b", Status: 200}) // which ends late
	if lines := of("b"); len(lines) > 0 {
		t.Errorf("a late request brought back: %q", lines)
	}
	if len(of("a")) == 0 {
		t.Error("a is forgotten")
	}
}

// Every counter of the gateway is shown: who adds one to Stats adds a metric here and there.
func TestComplete(t *testing.T) {
	want := map[reflect.Type][]string{
		reflect.TypeFor[gateway.Stats](): {"Requests", // as requests_total
			"Unavailable", "Failed", "Rejected", "Rejections", "Connections", "AccessLogDropped", "Waiting", "Upstreams", "Learned"},
		reflect.TypeFor[gateway.Rejections]():   {"Framing", "Headers", "Body", "Slow", "Connections", "PerClient"},
		reflect.TypeFor[gateway.LearnedStats](): {"Entries", "Capacity", "Hits", "Misses", "Evictions", "Expirations"},
		reflect.TypeFor[gateway.UpstreamStats](): {"ID", "URL", // is configuration
			"Up", "State", "DrainUntil", // is in State
			"Weight", "Zone", // is configuration
			"Active", "MaxRequests", "Waiting", "Requests", "Failures", "Repeats", "Ejections", "Checks", "FailedChecks"},
	}
	for typ, shown := range want {
		var has []string
		for i := range typ.NumField() {
			has = append(has, typ.Field(i).Name)
		}
		if d := cmp.Diff(shown, has); d != "" {
			t.Errorf("fields of %v that the metrics know, and that there are (-known +there):\n%s", typ, d)
		}
	}
}
