package gateway

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"
)

// HealthCheck asks every upstream how it is, while Run runs. The zero value asks none: the requests find out.
//
// With or without it, Run tries an upstream that was left out: by the check if there is one, else by a connect, or by
// OPTIONS * (any answer will do) where connects succeed but requests got no answer.
type HealthCheck struct {
	// Path is what to GET, such as /healthz. The answer must come within Timeout, redirects are not followed.
	Path string
	// Status is the answer that is expected. 0: any from 200 to 299.
	Status int
	// Host is the Host header of the check. Empty: that of the upstream's URL.
	Host string
	// TCP connects, and asks nothing.
	TCP bool
	// Interval is between two checks of an upstream, from nine tenths to eleven tenths at random. Default 5 s.
	Interval time.Duration
	// Timeout is for a check. Default 2 s.
	Timeout time.Duration
	// Rise is how many good checks in a row bring an upstream back, Fall how many bad ones take it out. Default 2 and 3.
	Rise, Fall int
}

func (h HealthCheck) on() bool { return h.TCP || h.Path != "" }

func (h HealthCheck) withDefaults() HealthCheck {
	if h.Interval == 0 {
		h.Interval = 5 * time.Second
	}
	if h.Timeout == 0 {
		h.Timeout = 2 * time.Second
	}
	if h.Rise == 0 {
		h.Rise = 2
	}
	if h.Fall == 0 {
		h.Fall = 3
	}
	return h
}

func (h HealthCheck) validate(bad badFunc) {
	if h.TCP && h.Path != "" {
		bad("HealthCheck.TCP", "health check: both TCP and a path: choose one")
	}
	if h.Path != "" {
		if _, err := url.ParseRequestURI(h.Path); err != nil || !strings.HasPrefix(h.Path, "/") {
			bad("HealthCheck.Path", "health check: path %q: want one such as /healthz", h.Path)
		}
	}
	if h.Status != 0 && (h.Status < 200 || h.Status > 599) {
		bad("HealthCheck.Status", "health check: status %d: want 200 to 599", h.Status)
	}
	if h.Path == "" && (h.Status != 0 || h.Host != "") {
		bad("HealthCheck.Path", "health check: a status or host without a path: give the path to ask for, such as /healthz")
	}
	for _, d := range []struct {
		field, name string
		d           time.Duration
	}{{"Interval", "interval", h.Interval}, {"Timeout", "timeout", h.Timeout}} {
		if d.d < 0 {
			bad("HealthCheck."+d.field, "health check: %s %v is negative", d.name, d.d)
		}
	}
	if h.Rise < 0 || h.Fall < 0 {
		bad("HealthCheck.Rise", "health check: rise %d and fall %d: want numbers of checks", h.Rise, h.Fall)
	}
}

// probeKey marks the context of a check: its connection is not cut when its upstream is taken out.
type probeKey struct{}

// watchers look after the upstreams while Run runs, one goroutine for each. Gateway.mu guards the fields.
type watchers struct {
	runs   int // of Run
	ctx    context.Context
	cancel context.CancelFunc
	all    map[*live]context.CancelFunc
	done   *sync.WaitGroup
}

// begin is called at the beginning of a Run, end at its end.
func (g *Gateway) begin(ctx context.Context, l net.Listener) error {
	g.mu.Lock()
	if g.listening == nil {
		g.listening = make(map[net.Listener]bool)
	}
	g.listening[l] = true
	if err := g.own(g.table.Load()); err != nil {
		delete(g.listening, l)
		g.mu.Unlock()
		return err
	}
	w := &g.watchers
	w.runs++
	first := w.runs == 1
	if first {
		w.ctx, w.cancel = context.WithCancel(context.Background())
		w.all, w.done = make(map[*live]context.CancelFunc), new(sync.WaitGroup)
		g.syncWatch(g.table.Load())
	}
	watched, done := w.ctx, w.done
	g.mu.Unlock()
	if first {
		known := g.resolve(ctx)
		done.Go(func() { g.keepResolving(watched, known) })
	}
	return nil
}

func (g *Gateway) end(l net.Listener) {
	g.mu.Lock()
	delete(g.listening, l)
	w := &g.watchers
	w.runs--
	last, done := w.runs == 0, w.done
	if last {
		w.cancel()
		w.all = nil
	}
	g.mu.Unlock()
	if last {
		done.Wait()
	}
}

// syncWatch makes the watchers those of the upstreams of t. g.mu is held.
func (g *Gateway) syncWatch(t *table) {
	w := &g.watchers
	if w.runs == 0 {
		return
	}
	for l, cancel := range w.all {
		if t.find(l) == nil {
			cancel()
			delete(w.all, l)
		}
	}
	for _, u := range t.upstreams {
		if w.all[u.live] != nil {
			u.poke() // the check may be another
			continue
		}
		ctx, cancel := context.WithCancel(w.ctx)
		w.all[u.live] = cancel
		l := u.live
		w.done.Go(func() { g.watch(ctx, l) })
	}
}

// watch checks an upstream, and tries it when it is out.
func (g *Gateway) watch(ctx context.Context, l *live) {
	l.probed.Store(true)
	defer l.probed.Store(false)
	var next time.Duration // check
	good, bad := 0, 0
	timer := time.NewTimer(0)
	defer timer.Stop()
	for ctx.Err() == nil {
		t := g.table.Load()
		u := t.find(l)
		if u == nil {
			return
		}
		check := t.config.HealthCheck
		now, at := t.clock.now(), time.Duration(-1)
		if check.on() {
			at = next
		} else if l.sick.Swap(false) {
			good, bad = 0, 0
			g.queue.kick()
		}
		out := time.Duration(l.out.Load())
		if out != 0 && !l.unprobeable() && (at < 0 || out < at) {
			at = out
		}
		if at < 0 || at > now {
			if at > now {
				timer.Reset(at - now)
			} else {
				timer.Stop()
			}
			select {
			case <-ctx.Done():
			case <-l.wake:
			case <-timer.C:
			}
			continue
		}
		probing, due := out != 0 && out <= now, check.on() && next <= now
		err := g.probe(ctx, u, check, probing)
		if ctx.Err() != nil {
			return
		}
		if probing {
			if err == nil {
				if l.back(anyReason...) {
					g.queue.kick()
				}
			} else {
				l.mu.Lock()
				if l.out.Load() == int64(out) {
					l.again(t.clock.now(), t.config.Ejection)
				}
				l.mu.Unlock()
			}
		}
		if !due {
			continue
		}
		next = t.clock.now() + check.Interval*9/10 + rand.N(check.Interval/5+1)
		l.checks.Add(1)
		if err == nil {
			good, bad = good+1, 0
		} else {
			good, bad = 0, bad+1
			l.failedChecks.Add(1)
		}
		switch {
		case bad >= check.Fall && l.sick.CompareAndSwap(false, true):
			l.logger.Warn("upstream fails its health check", "upstream", l.name, "checks", bad, "err", err)
			g.queue.kick()
		case good >= check.Rise && l.sick.Load():
			l.since.Store(int64(t.clock.now()))
			l.sick.Store(false)
			l.logger.Info("upstream passes its health check", "upstream", l.name)
			g.queue.kick()
		}
	}
}

// probe asks an upstream how it is by the health check or, if out, whether what it was left out for is over.
func (g *Gateway) probe(ctx context.Context, u *upstream, check HealthCheck, out bool) error {
	ctx, cancel := context.WithTimeout(context.WithValue(ctx, probeKey{}, true), check.Timeout)
	defer cancel()
	switch {
	case check.Path != "":
		return ask(ctx, u, http.MethodGet, check.Path, check.Host, check.expects)
	case !out || reason(u.why.Load()) == refused:
		nc, err := u.transport.DialContext(ctx, "tcp", addressOf(u.url))
		if err == nil {
			_ = nc.Close()
		}
		return err
	default:
		return ask(ctx, u, http.MethodOptions, "*", "", func(int) error { return nil })
	}
}

func (h HealthCheck) expects(status int) error {
	if status == h.Status || h.Status == 0 && status >= 200 && status <= 299 {
		return nil
	}
	return fmt.Errorf("answered %d", status)
}

// ask sends one request on a connection of its own, and reads at most 64 KiB of the answer.
func ask(ctx context.Context, u *upstream, method, target, host string, expects func(status int) error) error {
	to := &url.URL{Scheme: u.url.Scheme, Host: u.url.Host, Path: "*"}
	if target != "*" {
		parsed, err := url.ParseRequestURI(target)
		if err != nil {
			return err
		}
		to.Path, to.RawPath, to.RawQuery = parsed.Path, parsed.RawPath, parsed.RawQuery
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://check/", nil)
	if err != nil {
		return err
	}
	req.URL, req.Host, req.Close = to, cmp.Or(host, u.host), true
	req.Header.Set("User-Agent", "holdfast-health-check")
	res, err := u.transport.RoundTrip(req)
	if err != nil {
		var timeout net.Error
		if errors.As(err, &timeout) && timeout.Timeout() {
			err = errors.New("no answer in time")
		}
		return err
	}
	defer res.Body.Close()
	if err := expects(res.StatusCode); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, io.LimitReader(res.Body, 64<<10))
	return err
}
