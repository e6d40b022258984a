package main

import (
	"cmp"
	"fmt"
	"io"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
)

// A comparison is one operation by all libraries that can do it.
type comparison struct {
	operation operation
	all       []*contender
	wire      map[string]wire // by library, over a server
}

func (c comparison) of(name string) *contender {
	i := slices.IndexFunc(c.all, func(c *contender) bool { return c.library.name == name })
	if i < 0 {
		return nil
	}
	return c.all[i]
}

// A table is all operations on sessions of one shape over one store.
type table struct {
	store string
	shape shape
	rows  []comparison
}

func measureMemory(sh shape, e effort) table {
	// One core, so that the garbage collector takes its time from the requests that make garbage.
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	t := table{"memory", sh, nil}
	for _, o := range operations {
		if !e.wants(o) || o == opMix { // which is nothing new, one request at a time
			continue
		}
		t.rows = append(t.rows, comparison{operation: o, all: compare(able("memory", o), load{operation: o, shape: sh}, e)})
	}
	return t
}

func measureServer(sh shape, at server, e effort) (table, error) {
	t := table{at.kind, sh, nil}
	for _, o := range operations {
		if !e.wants(o) || o == opNoCookie { // which has nothing to do with the store
			continue
		}
		if err := empty(at); err != nil {
			return t, err
		}
		c := comparison{operation: o, wire: make(map[string]wire)}
		for _, lib := range able(at.kind, o) {
			w, err := overTheWire(lib, o, sh, at)
			if err != nil {
				return t, fmt.Errorf("%s, %s: %w", lib.name, o, err)
			}
			c.wire[lib.name] = w
		}
		c.all = compare(able(at.kind, o), load{operation: o, shape: sh, server: at, sessions: 100, atATime: 16}, e)
		t.rows = append(t.rows, c)
	}
	return t, nil
}

// able returns the libraries that are compared over a store and know an operation.
func able(store string, o operation) []library {
	return slices.DeleteFunc(slices.Clone(libraries), func(l library) bool {
		return !slices.Contains(l.stores, store) || !l.can(o)
	})
}

// grid prints rows as a Markdown table with aligned columns.
type grid struct {
	w *tabwriter.Writer
}

func newGrid(out io.Writer, title string, columns ...string) grid {
	fmt.Fprintf(out, "\n### %s\n\n", title)
	g := grid{tabwriter.NewWriter(out, 0, 0, 1, ' ', 0)}
	g.row(columns...)
	rules := make([]string, len(columns))
	for i := range rules {
		rules[i] = "---"
	}
	g.row(rules...)
	return g
}

func (g grid) row(cells ...string) { fmt.Fprintf(g.w, "| %s\t|\n", strings.Join(cells, "\t| ")) }

func (g grid) flush() { _ = g.w.Flush() } // as fmt.Fprintf to the same writer

// number prints three digits, or all before the point.
func number(v float64) string {
	if v >= 100 {
		return fmt.Sprintf("%.0f", v)
	}
	return fmt.Sprintf("%.3g", v)
}

func microseconds(ns float64) string { return number(ns / 1000) }

// factor prints how many times more than Holdfast a library takes of f.
func factor(c, base *contender, f func(usage) float64) string {
	if c == base || base == nil || len(base.samples) == 0 {
		return "1"
	}
	return number(c.times(base, f))
}

func (t table) print(out io.Writer) {
	if t.store != "memory" {
		t.printServer(out)
		return
	}
	g := newGrid(out, fmt.Sprintf("Memory, %v, one request at a time on one core", t.shape),
		"request", "library", "CPU µs", "× holdfast", "wall µs", "B", "allocs", "× holdfast")
	for _, row := range t.rows {
		base := row.of(holdfastName)
		for i, c := range row.all {
			name := string(row.operation)
			if i > 0 {
				name = ""
			}
			if c.err != nil {
				g.row(name, c.library.name, shorten(c.err), "", "", "", "", "")
				continue
			}
			g.row(name, c.library.name, microseconds(c.median(cpuOf)), factor(c, base, cpuOf), microseconds(c.median(wallOf)),
				fmt.Sprintf("%.0f", c.median(bytesOf)), fmt.Sprintf("%.0f", c.median(allocsOf)), factor(c, base, allocsOf))
		}
	}
	g.flush()
}

func (t table) printServer(out io.Writer) {
	g := newGrid(out, fmt.Sprintf("%s on loopback, %v, 100 sessions, 16 requests at a time", titles[t.store], t.shape),
		"request", "library", "round trips", "statements", "wire B", "requests/s", "holdfast ×", "p50 µs", "p99 µs", "CPU µs", "allocs")
	for _, row := range t.rows {
		base := row.of(holdfastName)
		for i, c := range row.all {
			name := string(row.operation)
			if i > 0 {
				name = ""
			}
			if c.err != nil {
				g.row(name, c.library.name, shorten(c.err), "", "", "", "", "", "", "", "")
				continue
			}
			w := row.wire[c.library.name]
			statements := "-"
			if t.store != "redis" {
				statements = fmt.Sprintf("%.3g", w.statements)
			}
			g.row(name, c.library.name, fmt.Sprintf("%.3g", w.roundTrips), statements, fmt.Sprintf("%.0f", w.bytes),
				fmt.Sprintf("%.0f", c.median(usage.rate)), factor(c, base, wallOf),
				microseconds(c.median(percentile(0.5))), microseconds(c.median(percentile(0.99))),
				microseconds(c.median(cpuOf)), fmt.Sprintf("%.0f", c.median(allocsOf)))
		}
	}
	g.flush()
}

func percentile(p float64) func(usage) float64 {
	return func(u usage) float64 { return float64(u.percentile(p)) }
}

func shorten(err error) string {
	s := err.Error()
	if strings.Contains(s, "securecookie: the value is too long") {
		return "too large"
	}
	return strings.ReplaceAll(s[:min(len(s), 60)], "\n", " ")
}

func printParallel(out io.Writer, title string, all []*contender) {
	g := newGrid(out, title, "library", "requests/s", "p50 µs", "p99 µs", "p99.9 µs", "CPU µs")
	for _, c := range all {
		if c.err != nil {
			g.row(c.library.name, shorten(c.err), "", "", "", "")
			continue
		}
		g.row(c.library.name, fmt.Sprintf("%.0f", c.median(usage.rate)), microseconds(c.median(percentile(0.5))),
			microseconds(c.median(percentile(0.99))), microseconds(c.median(percentile(0.999))), microseconds(c.median(cpuOf)))
	}
	g.flush()
}

func printHarm(out io.Writer, places []server) error {
	g := newGrid(out, "What overlapping requests do", "library", "store", "lost writes of different fields",
		"lost increments", "logouts undone", "cookie works after logout")
	for _, at := range places {
		store := cmp.Or(at.kind, "memory")
		for _, lib := range able(store, opRead) {
			kept := store
			if lib.name == gorillaName {
				kept = "cookie"
			}
			d, err := harm(lib, at)
			if err != nil {
				return fmt.Errorf("%s over %s: %w", lib.name, store, err)
			}
			g.row(lib.name, kept, of(d.lostFields, d.writers), of(d.lostCounts, d.writers), of(d.undone, d.logouts), of(d.stolenAlive, d.logouts))
		}
	}
	g.flush()
	return nil
}

func of(n, total int) string { return fmt.Sprintf("%d of %d", n, total) }

// A bar is what Holdfast has to reach.
type bar struct {
	what      string
	got, want float64
	atMost    bool
	// exact bars do not depend on the machine: allocations and round trips.
	exact bool
}

// met reports whether the bar is met, within a margin for what others do on the machine: 0.3 is 30 %.
func (b bar) met(margin float64) bool {
	if b.exact {
		margin = 0
	}
	if b.atMost {
		return b.got <= b.want*(1+margin)
	}
	return b.got >= b.want/(1+margin)
}

func (b bar) String() string {
	bound, verdict := "at least", "met"
	if b.atMost {
		bound = "at most"
	}
	if !b.met(0) {
		verdict = "MISSED"
	}
	return fmt.Sprintf("%s: %.3g, want %s %.3g: %s", b.what, b.got, bound, b.want, verdict)
}

// contender returns the sample of a library in the row of an operation, nil if there is none.
func (t table) contender(o operation, library string) *contender {
	for _, row := range t.rows {
		if row.operation != o {
			continue
		}
		if c := row.of(library); c != nil && c.err == nil {
			return c
		}
	}
	return nil
}

// bars returns how t compares with what Holdfast has to reach.
func (t table) bars() (bars []bar) {
	if t.store != "memory" {
		return t.serverBars()
	}
	noCookie, ours, wrapped := t.contender(opNoCookie, holdfastName), t.contender(opUntouched, holdfastName), t.contender(opUntouched, contextName)
	if noCookie != nil && ours != nil {
		bars = append(bars, bar{"untouched: allocations more than without a cookie", ours.median(allocsOf) - noCookie.median(allocsOf), 0, true, true})
	}
	if ours != nil && wrapped != nil {
		bars = append(bars,
			bar{"untouched: allocations", ours.median(allocsOf), 2, true, true},
			bar{"untouched: times the CPU of " + contextName, ours.times(wrapped, cpuOf), 1.3, true, false})
	}
	for _, want := range []struct {
		operation operation
		times     float64
	}{{opRead, 12}, {opWrite, 8}} {
		ours, theirs := t.contender(want.operation, holdfastName), t.contender(want.operation, scsName)
		if ours != nil && theirs != nil {
			bars = append(bars,
				bar{fmt.Sprintf("%s: scs takes times the CPU", want.operation), theirs.times(ours, cpuOf), want.times, false, false},
				bar{fmt.Sprintf("%s: scs allocates times as often", want.operation), theirs.times(ours, allocsOf), want.times, false, true})
		}
	}
	return bars
}

func (t table) serverBars() (bars []bar) {
	on := titles[t.store]
	for _, row := range t.rows {
		ours, theirs := row.wire[holdfastName], row.wire[scsName]
		if row.operation != opMix {
			// The client asks now and then whether the server is alive.
			bars = append(bars, bar{fmt.Sprintf("%s over %s: round trips more than scs", row.operation, on), ours.roundTrips - theirs.roundTrips, 0.04, true, true})
			if t.store != "redis" {
				bars = append(bars, bar{fmt.Sprintf("%s over %s: statements more than scs", row.operation, on), ours.statements - theirs.statements, 0.04, true, true})
			}
			continue
		}
		what := "idle timeout on, every tenth request writes, over " + on
		bars = append(bars, bar{what + ": round trips fewer than scs", theirs.roundTrips - ours.roundTrips, 0.5, false, true})
		for _, name := range []string{scsName, scsJSONName} {
			if ours, theirs := row.of(holdfastName), row.of(name); ours.err == nil && theirs != nil && theirs.err == nil {
				bars = append(bars, bar{what + ": times the rate of " + name, theirs.times(ours, wallOf), 1.3, false, false})
			}
		}
	}
	return bars
}
