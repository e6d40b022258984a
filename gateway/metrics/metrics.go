// Package metrics shows a gateway to Prometheus.
//
//	m := metrics.New()
//	g, err := gateway.New(gateway.Config{OnRequest: m.OnRequest, ...})
//	...
//	registry.MustRegister(m.Of(g))
//
// Every name begins with holdfast_gateway_. Labels are bounded: IDs of the upstreams that are
// there, classes of status codes, states, reasons. An upstream that goes takes its series along.
package metrics

import (
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/holdfast-sessions/holdfast/gateway"
)

const namespace = "holdfast_gateway"

// Metrics counts requests. Its methods may be called concurrently.
type Metrics struct {
	requests *prometheus.CounterVec
	duration *prometheus.HistogramVec
}

// New returns Metrics that have counted nothing.
func New() *Metrics {
	return &Metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: namespace, Name: "requests_total",
			Help: "Requests that are over, by the upstream that answered (empty: none) and the class of the status.",
		}, []string{"upstream", "code"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Namespace: namespace, Name: "request_duration_seconds",
			Help:    "From a request's header until the last byte of its answer, by the upstream that answered.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60},
		}, []string{"upstream"}),
	}
}

// OnRequest counts a request. It is for gateway.Config.OnRequest.
func (m *Metrics) OnRequest(r gateway.Request) {
	m.requests.WithLabelValues(r.Upstream, class(r.Status)).Inc()
	m.duration.WithLabelValues(r.Upstream).Observe(r.Duration.Seconds())
}

var classes = [6]string{"0xx", "1xx", "2xx", "3xx", "4xx", "5xx"}

// class is 4xx for 404. An upstream may answer with any number of three digits.
func class(status int) string {
	if c := status / 100; c > 0 && c < len(classes) {
		return classes[c]
	}
	return "other"
}

// Of returns a collector of what was counted and of the state of g.
func (m *Metrics) Of(g *gateway.Gateway) prometheus.Collector {
	return &collector{Metrics: m, gateway: g, left: make(map[string]int)}
}

type collector struct {
	*Metrics
	gateway *gateway.Gateway

	// mu guards the fields below.
	mu   sync.Mutex
	left map[string]int // collections at which an upstream, if it has gone, is forgotten
}

// lateCollections is for how long a gone upstream's last requests are waited for, which bring its series back: 25 minutes
// of scrapes every 15 s.
const lateCollections = 100

// descs are of what is read from the gateway at each collection.
var descs []*prometheus.Desc

func desc(name, help string, labels ...string) *prometheus.Desc {
	d := prometheus.NewDesc(namespace+"_"+name, help, labels, nil)
	descs = append(descs, d)
	return d
}

var (
	failed      = desc("failed_total", "Requests that the gateway answered 502 or 504.")
	unavailable = desc("unavailable_total", "Requests that it answered 503 because no upstream could be reached or had room.")
	rejected    = desc("rejected_total", "Requests that it refused to pass on.")
	rejections  = desc("rejections_total", "Requests and connections that it refused, by the reason: framing, headers, body, slow, connections, client_connections.", "reason")
	connections = desc("connections", "Connections of clients.")
	waiting     = desc("waiting_requests", "Requests that wait for a place at any upstream.")
	logDropped  = desc("access_log_dropped_lines_total", "Lines of the access log that were dropped because nobody took them in time.")

	learned            = desc("learned_sessions", "Sessions of clients without cookies whose upstream is known (affinity session).")
	learnedCapacity    = desc("learned_capacity_sessions", "At most that many.")
	learnedLookups     = desc("learned_lookups_total", "Look-ups of sessions of clients without an affinity cookie, by the result: hit or miss.", "result")
	learnedEvictions   = desc("learned_evictions_total", "Sessions that had to make room for others.")
	learnedExpirations = desc("learned_expirations_total", "Sessions that nobody asked for in time.")

	up           = desc("upstream_up", "1 if requests go to the upstream, 0 if it is left out for now.", "upstream")
	state        = desc("upstream_state", "1 for the state that the upstream is in: up, down, ejected, draining or maintenance.", "upstream", "state")
	weight       = desc("upstream_weight", "Its share, beside those of the others.", "upstream")
	active       = desc("upstream_active_requests", "Requests that it has now.", "upstream")
	waitingAt    = desc("upstream_waiting_requests", "Requests that wait for a place at it.", "upstream")
	maxRequests  = desc("upstream_max_requests", "Requests that it gets at once; 0: any number.", "upstream")
	answers      = desc("upstream_answers_total", "Answers of an upstream.", "upstream")
	failures     = desc("upstream_failures_total", "Attempts at an upstream that brought no answer.", "upstream")
	repeats      = desc("upstream_repeats_total", "Those of them that were made again, there or elsewhere.", "upstream")
	ejections    = desc("upstream_ejections_total", "How often it was left out because it did not answer, or badly.", "upstream")
	checks       = desc("upstream_checks_total", "Its health checks.", "upstream")
	failedChecks = desc("upstream_failed_checks_total", "Those of them that failed.", "upstream")
)

var states = []gateway.State{gateway.StateUp, gateway.StateDown, gateway.StateEjected, gateway.StateDraining, gateway.StateMaintenance}

func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	c.requests.Describe(ch)
	c.duration.Describe(ch)
	for _, d := range descs {
		ch <- d
	}
}

func (c *collector) Collect(ch chan<- prometheus.Metric) {
	s := c.gateway.Stats()
	c.forget(s.Upstreams)
	c.requests.Collect(ch)
	c.duration.Collect(ch)
	counter := func(d *prometheus.Desc, n uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n), labels...)
	}
	gauge := func(d *prometheus.Desc, n int, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(n), labels...)
	}
	counter(failed, s.Failed)
	counter(unavailable, s.Unavailable)
	counter(rejected, s.Rejected)
	r := s.Rejections
	counter(rejections, r.Framing, "framing")
	counter(rejections, r.Headers, "headers")
	counter(rejections, r.Body, "body")
	counter(rejections, r.Slow, "slow")
	counter(rejections, r.Connections, "connections")
	counter(rejections, r.PerClient, "client_connections")
	gauge(connections, s.Connections)
	gauge(waiting, s.Waiting)
	counter(logDropped, s.AccessLogDropped)

	gauge(learned, s.Learned.Entries)
	gauge(learnedCapacity, s.Learned.Capacity)
	counter(learnedLookups, s.Learned.Hits, "hit")
	counter(learnedLookups, s.Learned.Misses, "miss")
	counter(learnedEvictions, s.Learned.Evictions)
	counter(learnedExpirations, s.Learned.Expirations)

	for _, u := range s.Upstreams {
		gauge(up, one(u.Up), u.ID)
		for _, is := range states {
			gauge(state, one(u.State == is), u.ID, string(is))
		}
		gauge(weight, u.Weight, u.ID)
		gauge(active, u.Active, u.ID)
		gauge(waitingAt, u.Waiting, u.ID)
		gauge(maxRequests, u.MaxRequests, u.ID)
		counter(answers, u.Requests, u.ID)
		counter(failures, u.Failures, u.ID)
		counter(repeats, u.Repeats, u.ID)
		counter(ejections, u.Ejections, u.ID)
		counter(checks, u.Checks, u.ID)
		counter(failedChecks, u.FailedChecks, u.ID)
	}
}

func one(yes bool) int {
	if yes {
		return 1
	}
	return 0
}

// forget drops the series of upstreams that have gone: addresses of a name come and go for ever.
func (c *collector) forget(there []gateway.UpstreamStats) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for id := range c.left {
		c.left[id]--
	}
	for _, u := range there {
		c.left[u.ID] = lateCollections
	}
	for id, left := range c.left {
		if left == lateCollections {
			continue
		}
		label := prometheus.Labels{"upstream": id}
		c.requests.DeletePartialMatch(label)
		c.duration.DeletePartialMatch(label)
		if left == 0 {
			delete(c.left, id)
		}
	}
}
