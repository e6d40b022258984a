package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/holdfast-sessions/holdfast/gateway"
	"github.com/holdfast-sessions/holdfast/gateway/metrics"
)

// adminServer is what the admin address serves: the admin API, and what monitors ask for.
type adminServer struct {
	gateway *gateway.Gateway
	ending  context.Context // over when the gateway is to end
	api     atomic.Pointer[http.Handler]
	reloads *prometheus.CounterVec
	mux     http.ServeMux
}

func newAdminServer(ending context.Context, g *gateway.Gateway, m *metrics.Metrics, c gateway.AdminConfig) *adminServer {
	a := &adminServer{gateway: g, ending: ending, reloads: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "holdfast_gateway_config_reloads_total", Help: "How often the configuration was read again, by the result: ok, or refused (the running one stays).",
	}, []string{"result"})}
	for _, result := range []bool{true, false} {
		a.reloads.WithLabelValues(resultOf(result))
	}
	a.allow(c)
	registry := prometheus.NewRegistry()
	registry.MustRegister(m.Of(g), a.reloads, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	a.mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	a.mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, "ok") })
	a.mux.HandleFunc("GET /readyz", a.ready)
	a.mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { (*a.api.Load()).ServeHTTP(w, r) })
	return a
}

// allow says who may use the admin API from now on.
func (a *adminServer) allow(c gateway.AdminConfig) {
	h := a.gateway.AdminHandler(c)
	a.api.Store(&h)
}

// reloaded counts a reload.
func (a *adminServer) reloaded(ok bool) { a.reloads.WithLabelValues(resultOf(ok)).Inc() }

func resultOf(ok bool) string {
	if ok {
		return "ok"
	}
	return "refused"
}

func (a *adminServer) ready(w http.ResponseWriter, r *http.Request) {
	up := false
	for _, u := range a.gateway.Upstreams() {
		up = up || u.Up
	}
	switch {
	case a.ending.Err() != nil:
		http.Error(w, "ending", http.StatusServiceUnavailable)
	case !up:
		http.Error(w, "no upstream is up", http.StatusServiceUnavailable)
	default:
		fmt.Fprintln(w, "ready")
	}
}

// serve serves until ctx ends.
func (a *adminServer) serve(ctx context.Context, l net.Listener) error {
	s := &http.Server{Handler: &a.mux, ReadHeaderTimeout: 5 * time.Second, IdleTimeout: 2 * time.Minute, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0)}
	ended := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(ended)
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = s.Shutdown(end) // what it leaves, the end of the program closes
	})
	err := s.Serve(l)
	if !stop() {
		<-ended
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}
