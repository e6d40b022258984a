// Package metrics shows a gateway to Prometheus.
//
//	m := metrics.New()
//	g, err := gateway.New(gateway.Config{OnRequest: m.OnRequest, ...})
//	...
//	registry.MustRegister(m.Of(g))
//
// Every name begins with holdfast_gateway_. Labels are bounded: IDs of upstreams, classes of status codes, states.
package metrics

import (
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
	return &collector{Metrics: m, gateway: g}
}

type collector struct {
	*Metrics
	gateway *gateway.Gateway
}

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(namespace+"_"+name, help, labels, nil)
}

var (
	failed      = desc("failed_total", "Requests that the gateway answered 502 or 504.")
	unavailable = desc("unavailable_total", "Requests that it answered 503 because no upstream could be reached.")
	rejected    = desc("rejected_total", "Requests that it answered 4xx itself.")
	up          = desc("upstream_up", "1 if requests go to the upstream, 0 if it is left out for now.", "upstream")
	answers     = desc("upstream_answers_total", "Answers of an upstream.", "upstream")
	failures    = desc("upstream_failures_total", "Attempts at an upstream that brought no answer.", "upstream")
	repeats     = desc("upstream_repeats_total", "Those of them that were made again, there or elsewhere.", "upstream")
)

// Describe says nothing of the collector's own metrics, as upstreams come and go.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	c.requests.Describe(ch)
	c.duration.Describe(ch)
}

func (c *collector) Collect(ch chan<- prometheus.Metric) {
	c.requests.Collect(ch)
	c.duration.Collect(ch)
	counter := func(d *prometheus.Desc, n uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n), labels...)
	}
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	s := c.gateway.Stats()
	counter(failed, s.Failed)
	counter(unavailable, s.Unavailable)
	counter(rejected, s.Rejected)
	for _, u := range s.Upstreams {
		isUp := 0.0
		if u.Up {
			isUp = 1
		}
		gauge(up, isUp, u.ID)
		counter(answers, u.Requests, u.ID)
		counter(failures, u.Failures, u.ID)
		counter(repeats, u.Repeats, u.ID)
	}
}
