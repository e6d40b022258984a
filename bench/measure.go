package main

import (
	"errors"
	"fmt"
	"math"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// usage is what a number of requests took.
type usage struct {
	requests      int
	wall, cpu     time.Duration // cpu is of the whole process, garbage collection included
	bytes, allocs uint64
	latencies     []time.Duration // sorted; only of requests in parallel
}

// meter measures what happens between start and stop.
type meter struct {
	memory runtime.MemStats
	cpu    time.Duration
	began  time.Time
}

func start() (m meter) {
	runtime.ReadMemStats(&m.memory)
	m.cpu = processCPU()
	m.began = time.Now()
	return m
}

func (m *meter) stop(requests int) usage {
	u := usage{requests: requests, wall: time.Since(m.began), cpu: processCPU() - m.cpu}
	var after runtime.MemStats
	runtime.ReadMemStats(&after)
	u.bytes = after.TotalAlloc - m.memory.TotalAlloc
	u.allocs = after.Mallocs - m.memory.Mallocs
	return u
}

func processCPU() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err) // only for wrong arguments
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// repeat has h answer n requests, one after the other.
func repeat(h http.Handler, requests []*http.Request, n int) (usage, error) {
	var r http.Request
	w := newResponse()
	m := start()
	for i := range n {
		// Every request is new to the library: some leave their sessions in the one they got.
		r = *requests[i%len(requests)]
		w.reset()
		h.ServeHTTP(w, &r)
		if w.status >= 400 {
			return usage{}, w.err()
		}
	}
	return m.stop(n), nil
}

// parallel has h answer n requests, some at a time. Request i is requests[i % len(requests)].
func parallel(h http.Handler, requests []*http.Request, n, atATime int) (usage, error) {
	latencies := make([]time.Duration, n)
	failures := make([]error, atATime)
	var workers sync.WaitGroup
	m := start()
	for worker := range atATime {
		workers.Go(func() {
			var r http.Request
			w := newResponse()
			for i := worker; i < n; i += atATime {
				r = *requests[i%len(requests)]
				w.reset()
				began := time.Now()
				h.ServeHTTP(w, &r)
				latencies[i] = time.Since(began)
				if w.status >= 400 {
					failures[worker] = w.err()
					return
				}
			}
		})
	}
	workers.Wait()
	u := m.stop(n)
	slices.Sort(latencies)
	u.latencies = latencies
	return u, errors.Join(failures...)
}

func (u usage) percentile(p float64) time.Duration {
	return u.latencies[min(len(u.latencies)-1, int(p*float64(len(u.latencies))))]
}

func (u usage) rate() float64 { return float64(u.requests) / u.wall.Seconds() }

// A contender is a library in one comparison.
type contender struct {
	library library
	samples []usage
	err     error // why there are none
}

// median returns the median over the samples of what f takes from them.
func (c *contender) median(f func(usage) float64) float64 {
	values := make([]float64, len(c.samples))
	for i, u := range c.samples {
		values[i] = f(u)
	}
	return median(values)
}

func median(values []float64) float64 {
	slices.Sort(values)
	return values[len(values)/2]
}

// times returns how many times more than base c takes of f: the median over the rounds, so that what disturbs one
// round, of both, does not count.
func (c *contender) times(base *contender, f func(usage) float64) float64 {
	ratios := make([]float64, min(len(c.samples), len(base.samples)))
	for i := range ratios {
		ratios[i] = f(c.samples[i]) / f(base.samples[i])
	}
	return median(ratios)
}

func cpuOf(u usage) float64   { return float64(u.cpu) / float64(u.requests) }
func wallOf(u usage) float64  { return float64(u.wall) / float64(u.requests) }
func bytesOf(u usage) float64 { return float64(u.bytes) / float64(u.requests) }

// allocsOf is whole: now and then another goroutine allocates too.
func allocsOf(u usage) float64 { return float64(u.allocs / uint64(u.requests)) }

// effort says what to measure, and for how long.
type effort struct {
	rounds   int
	sample   time.Duration
	requests []operation // empty: all
}

// choose sets e.requests from a list separated by commas.
func (e *effort) choose(list string) error {
	for name := range strings.SplitSeq(list, ",") {
		o := operation(name)
		if !slices.Contains(operations, o) {
			return fmt.Errorf("no such kind of request (want some of %q)", operations)
		}
		e.requests = append(e.requests, o)
	}
	return nil
}

func (e *effort) wants(o operation) bool {
	return len(e.requests) == 0 || slices.Contains(e.requests, o)
}

// A probe takes samples of one library.
type probe struct {
	sample func() (usage, error)
	close  func()
}

// compare takes samples of the libraries in turn, round by round, so that all of them meet the same disturbances.
func compare(libraries []library, l load, e effort) []*contender {
	all := make([]*contender, len(libraries))
	probes := make([]probe, len(libraries))
	for i, lib := range libraries {
		c := &contender{library: lib}
		all[i] = c
		if probes[i], c.err = l.probe(lib, e); c.err != nil {
			continue
		}
		defer probes[i].close()
		_, c.err = probes[i].sample() // warms up
	}
	for range e.rounds {
		for i, c := range all {
			if c.err != nil {
				continue
			}
			u, err := probes[i].sample()
			if c.err = err; err == nil {
				c.samples = append(c.samples, u)
			}
		}
	}
	return all
}

// A load is the requests of a comparison.
type load struct {
	operation operation
	shape     shape
	server    server // that keeps the sessions
	sessions  int    // how many different ones the requests have; 0: one
	atATime   int    // how many requests run at a time; 0: one after the other
}

// probe sets a library up for l and finds out how many requests fill a sample.
func (l load) probe(lib library, e effort) (probe, error) {
	a, err := lib.open(l.operation.setup(l.server))
	if err != nil {
		return probe{}, err
	}
	p, err := l.probeApp(a, e)
	if err != nil {
		a.close()
	}
	return p, err
}

func (l load) probeApp(a *app, e effort) (probe, error) {
	h := a.handler(l.operation, l.shape)
	requests, err := a.requests(l.operation, l.shape, max(1, l.sessions))
	if err != nil {
		return probe{}, err
	}
	n, most := 16, 1<<20
	if l.operation.consumes() || l.operation == opCreate { // every request leaves a session behind
		most = max(16, min(2000, 4<<20/l.shape.bytes))
	}
	sample := func() (usage, error) {
		if l.operation.consumes() {
			var err error
			if requests, err = a.requests(l.operation, l.shape, n); err != nil {
				return usage{}, err
			}
		}
		runtime.GC()
		if l.atATime > 0 {
			return parallel(h, requests, n, l.atATime)
		}
		return repeat(h, requests, n)
	}
	for n < most {
		// The quickest of three: the first may have connected, any may have waited for a core.
		quickest := time.Duration(math.MaxInt64)
		for range 3 {
			u, err := sample()
			if err != nil {
				return probe{}, err
			}
			quickest = min(quickest, u.wall)
		}
		if quickest >= e.sample*3/4 {
			break
		}
		n = min(most, n*int(max(2, min(20, e.sample/max(quickest, time.Microsecond)))))
	}
	return probe{sample, a.close}, nil
}
