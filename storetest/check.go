package storetest

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/holdfast-sessions/holdfast/driver"
)

const openTimeout = 30 * time.Second

// Report is what Check found.
type Report struct {
	Description driver.Description
	// Capabilities are the optional interfaces that the store has, as verbs: "merge", "touch", "watch", "list",
	// "sweep", "stat".
	Capabilities []string
	Results      []Result
	Latency      []Latency
}

// Failed returns the results of the cases that failed.
func (r Report) Failed() []Result {
	return slices.DeleteFunc(slices.Clone(r.Results), func(r Result) bool { return len(r.Failures) == 0 })
}

// Latency is how long calls took, one after the other, on a record of 1 KB.
type Latency struct {
	Call        string
	Calls       int
	Median, P99 time.Duration
}

// Check proves a live store, case by case, and calls progress, which may be nil, after each. Where the store says
// that it is shared, each case runs a second time with two clients, named "two-clients/...".
//
// Check deletes every record it stored, also after a failure and when ctx ends. Its error says that the store could
// not be opened, or that ctx ended before the last case; what a store does wrong is in the Report.
func Check(ctx context.Context, open func(context.Context) (driver.Store, error), progress func(Result)) (Report, error) {
	s, err := open(ctx)
	if err != nil {
		return Report{}, err
	}
	var r Report
	if d, ok := s.(driver.Describer); ok {
		r.Description = d.Describe()
	}
	r.Capabilities = capabilities(s)
	if err := s.Close(); err != nil {
		return r, fmt.Errorf("close the store: %w", err)
	}

	src := source{tidy: true, live: true, open: func(t *T) driver.Store {
		// The clean-up needs a store even when ctx has ended.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), openTimeout)
		defer cancel()
		s, err := open(ctx)
		if err != nil {
			t.Fatalf("open the store: %v", err)
		}
		return s
	}}
	cases := Cases()
	one := len(cases)
	if r.Description.Shared {
		src.reopen = func(t *T, s driver.Store) driver.Store {
			if err := s.Close(); err != nil {
				t.Errorf("Close = %v", err)
			}
			return src.open(t)
		}
		for _, c := range Cases() {
			c.Name = "two-clients/" + c.Name
			cases = append(cases, c)
		}
	}
	for i, c := range cases {
		if i == one {
			src.peer = func(t *T, _ driver.Store) driver.Store { return src.open(t) }
		}
		if err := ctx.Err(); err != nil {
			return r, err
		}
		result := runCase(ctx, c, src)
		if err := ctx.Err(); err != nil {
			return r, err // the case failed of that
		}
		r.Results = append(r.Results, result)
		if progress != nil {
			progress(result)
		}
	}
	src.peer = nil
	timing := runCase(ctx, Case{Name: "latency", run: func(ctx context.Context, t *T) { r.Latency = t.latency(ctx) }}, src)
	if len(timing.Failures) > 0 {
		r.Results = append(r.Results, timing)
	}
	return r, ctx.Err()
}

func capabilities(s driver.Store) []string {
	var c []string
	if _, ok := s.(driver.Merger); ok {
		c = append(c, "merge")
	}
	if _, ok := s.(driver.Toucher); ok {
		c = append(c, "touch")
	}
	if _, ok := s.(driver.Watcher); ok {
		c = append(c, "watch")
	}
	if _, ok := s.(driver.Lister); ok {
		c = append(c, "list")
	}
	if _, ok := s.(driver.Sweeper); ok {
		c = append(c, "sweep")
	}
	if _, ok := s.(driver.Stater); ok {
		c = append(c, "stat")
	}
	return c
}

// latency measures calls for about a second and at most 1,000 calls of each kind.
func (t *T) latency(ctx context.Context) []Latency {
	id := t.newID()
	rec := sized(1024)
	t.save(ctx, id, rec, 0)
	measureAfter := func(before func(), name string, call func()) Latency {
		var took []time.Duration
		for start := time.Now(); len(took) < 1000 && time.Since(start) < time.Second; {
			before()
			begun := time.Now()
			call()
			took = append(took, time.Since(begun))
		}
		slices.Sort(took)
		return Latency{Call: name, Calls: len(took), Median: took[len(took)/2], P99: took[len(took)*99/100]}
	}
	measure := func(name string, call func()) Latency { return measureAfter(func() {}, name, call) }
	load := measure("load", func() { rec = t.load(ctx, id) })
	save := measure("save", func() {
		next := after(rec)
		t.save(ctx, id, next, rec.Revision)
		rec = next
	})
	all := []Latency{load, save}
	if noMerger(t) == "" {
		changes := sets("a", "1")
		all = append(all, measure("merge", func() {
			merged, err := t.merge(ctx, id, rec, after(rec, changes...), changes)
			if err != nil {
				t.Fatalf("Merge = %v", err)
			}
			rec = merged
		}))
	}
	t.delete(ctx, id)
	remove := measureAfter(func() { t.save(ctx, id, after(rec), 0) }, "delete", func() { t.delete(ctx, id) })
	return append(all, remove)
}
