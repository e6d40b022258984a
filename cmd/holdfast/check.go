package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"maps"
	"net/url"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/store"
	"github.com/holdfast-sessions/holdfast/storetest"
)

type checkCmd struct {
	URL string `arg:"" name:"url" help:"The store: ${stores}."`
	output
}

func (checkCmd) Help() string {
	return `Runs the conformance suite against the store, one client and then two, and measures it: half a minute or so. It keeps to
records of its own, under a key prefix, or in a directory or table of its own, and removes them. Exits with 1 if a case fails.

Examples:

  holdfast store check redis://localhost:6379
  holdfast store check 'redis://app:secret@db1:6379/2?prefix=shop:' -o json
  holdfast store check file:/var/lib/shop/sessions
  holdfast store check 'mysql://app:secret@db1,db2/shop?table=shop_sessions'`
}

func (c checkCmd) Run(ctx context.Context) error {
	s, err := openExisting(ctx, "check", c.URL)
	if err != nil {
		return err
	}
	_, drops := s.(dropper)
	if err := s.Close(); err != nil {
		return err
	}
	scratch, remove, err := scratch(ctx, c.URL, drops)
	if err != nil {
		return err
	}
	defer remove()
	text := &textReport{w: os.Stdout}
	progress := text.result
	if c.json() {
		progress = nil
	} else {
		text.start(c.URL)
	}
	report, err := storetest.Check(ctx, func(ctx context.Context) (driver.Store, error) { return store.Open(ctx, scratch) }, progress)
	if err != nil {
		return err
	}
	if c.json() {
		err = printJSON(os.Stdout, newJSONReport(c.URL, report))
	} else {
		err = text.end(report)
	}
	if failed := len(report.Failed()); failed > 0 {
		return fmt.Errorf("store check: %d of %d cases failed: sessions are not safe in this store", failed, len(report.Results))
	}
	return err
}

// dropper is a store that can remove its tables.
type dropper interface {
	Drop(context.Context) error
}

// scratch returns the URL of a place of its own in the store, and what removes it when it is empty of records. A store in
// a database gets a table of its own, if the user may make one, and is otherwise checked in its own table, among the
// records that are there.
func scratch(ctx context.Context, rawURL string, drops bool) (scratchURL string, remove func(), err error) {
	name := "check-" + strings.ToLower(rand.Text()[:8])
	remove = func() {}
	base, query, _ := strings.Cut(rawURL, "?")
	switch scheme := schemeOf(rawURL); {
	case scheme == "file":
		scratchURL = strings.TrimRight(base, "/") + "/" + name
		if path := pathOf(scratchURL); path != "" {
			remove = func() { _ = os.RemoveAll(path) } // what is left is empty, or the report says so
		}
		if query != "" {
			scratchURL += "?" + query
		}
		return scratchURL, remove, nil
	case strings.Contains(scheme, "redis"), strings.Contains(scheme, "memcached"):
		return withOption(rawURL, "prefix", "holdfast:", name+":"), remove, nil
	case drops:
		scratchURL = withOption(rawURL, "table", "holdfast_sessions", "_"+strings.ReplaceAll(name, "-", "_"))
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		s, err := store.Open(ctx, scratchURL)
		if err != nil {
			fmt.Fprintf(os.Stderr, "store check: no table of its own can be made, so it works in the store's (%v)\n", err)
			return rawURL, remove, nil
		}
		return scratchURL, func() { dropScratch(scratchURL) }, s.Close()
	}
	return rawURL, remove, nil
}

// withOption returns the URL with an option that has a suffix after its value, or after what is meant without it. The
// rest of it is left as it is: package url reads no URL with several hosts.
func withOption(rawURL, name, otherwise, suffix string) string {
	base, query, _ := strings.Cut(rawURL, "?")
	q, err := url.ParseQuery(query)
	if err != nil { // store.Open refused it
		return rawURL
	}
	value := q.Get(name)
	if value == "" {
		value = otherwise
	}
	q.Set(name, value+suffix)
	return base + "?" + q.Encode()
}

// dropScratch drops the tables of a check, also when that was interrupted.
func dropScratch(scratchURL string) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	s, err := store.Open(ctx, scratchURL)
	if err == nil {
		err = s.(dropper).Drop(ctx)
		_ = s.Close() // nothing is left in it
	}
	if err != nil {
		complain(fmt.Errorf("store check: its table is left behind: %w", err))
	}
}

// textReport prints a report while it is being made.
type textReport struct {
	w   io.Writer
	two bool  // the cases with two clients have begun
	err error // of the first write that failed
}

func (t *textReport) printf(format string, args ...any) {
	if _, err := fmt.Fprintf(t.w, format, args...); err != nil && t.err == nil {
		t.err = err
	}
}

func (t *textReport) start(rawURL string) { t.printf("store  %s\n\n", store.Name(rawURL)) }

// result prints a case. What holds with two clients, too, is told by the numbers at the end.
func (t *textReport) result(r storetest.Result) {
	two := strings.HasPrefix(r.Case.Name, "two-clients/")
	if two && !t.two {
		t.two = true
		t.printf("\nonce more, with two clients\n")
	}
	switch {
	case len(r.Failures) > 0:
		t.printf("FAIL   %-26s  %s\n", r.Case.Name, r.Case.Proves)
		for _, f := range r.Failures {
			t.printf("       %s\n", strings.ReplaceAll(f, "\n", "\n       "))
		}
	case r.Skipped == "" && !two:
		t.printf("ok     %-26s  %s\n", r.Case.Name, r.Case.Proves)
	}
}

func (t *textReport) end(r storetest.Report) error {
	failed, skipped := len(r.Failed()), 0
	why := make(map[string]int)
	for _, result := range r.Results {
		if result.Skipped != "" {
			skipped++
			why[result.Skipped]++
		}
	}
	t.printf("\n%d cases: %d passed, %d failed, %d do not apply\n", len(r.Results), len(r.Results)-failed-skipped, failed, skipped)
	for _, reason := range slices.Sorted(maps.Keys(why)) {
		t.printf("  %3d because %s\n", why[reason], reason)
	}
	t.printf("\n")

	w := tabwriter.NewWriter(t.w, 0, 0, 2, ' ', 0)
	row := func(name string, value any) { fmt.Fprintf(w, "%s\t%v\n", name, value) }
	d := r.Description
	row("kind", d.Name)
	row("shared by processes", yes(d.Shared))
	row("durable", d.Durable)
	for _, c := range []struct{ verb, does string }{
		{"merge", "merges by itself"}, {"touch", "extends by itself"}, {"watch", "tells of changes"},
		{"list", "lists all records"}, {"sweep", "cleans up when told"},
		{"stat", "counts by itself"},
	} {
		row(c.does, yes(slices.Contains(r.Capabilities, c.verb)))
	}
	row("may drop records early", yes(d.Evicts))
	row("serves expired records for", d.ExpiryPrecision)
	if d.MaxBytes > 0 {
		row("largest record", fmt.Sprintf("%d bytes", d.MaxBytes))
	} else {
		row("largest record", "no limit of its own")
	}
	fmt.Fprintln(w)
	for _, l := range r.Latency {
		row(l.Call, fmt.Sprintf("p50 %v\tp99 %v\t%d calls", rounded(l.Median), rounded(l.P99), l.Calls))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	return t.err
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// rounded keeps three digits, or all below a microsecond.
func rounded(d time.Duration) time.Duration {
	unit := time.Nanosecond
	for d/unit >= 1000 {
		unit *= 10
	}
	return d.Round(unit)
}

// jsonReport is what -o json prints.
type jsonReport struct {
	Store        string        `json:"store"`
	Passed       bool          `json:"passed"`
	Kind         string        `json:"kind"`
	Shared       bool          `json:"shared"`
	Durable      string        `json:"durable"`
	Evicts       bool          `json:"evicts"`
	MaxBytes     int           `json:"max_bytes,omitempty"`
	Capabilities []string      `json:"capabilities"`
	Cases        []jsonCase    `json:"cases"`
	Latency      []jsonLatency `json:"latency"`
}

type jsonCase struct {
	Name     string   `json:"name"`
	Proves   string   `json:"proves"`
	Passed   bool     `json:"passed"` // false also where skipped
	Skipped  string   `json:"skipped,omitempty"`
	Failures []string `json:"failures,omitempty"`
	TookMS   float64  `json:"took_ms"`
}

type jsonLatency struct {
	Call  string  `json:"call"`
	Calls int     `json:"calls"`
	P50MS float64 `json:"p50_ms"`
	P99MS float64 `json:"p99_ms"`
}

func newJSONReport(rawURL string, r storetest.Report) jsonReport {
	d := r.Description
	j := jsonReport{
		Store: store.Name(rawURL), Passed: len(r.Failed()) == 0, Kind: d.Name, Shared: d.Shared, Durable: d.Durable,
		Evicts: d.Evicts, MaxBytes: d.MaxBytes, Capabilities: r.Capabilities,
	}
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	for _, result := range r.Results {
		j.Cases = append(j.Cases, jsonCase{
			Name: result.Case.Name, Proves: result.Case.Proves, Skipped: result.Skipped, Failures: result.Failures,
			Passed: len(result.Failures) == 0 && result.Skipped == "", TookMS: ms(result.Took),
		})
	}
	for _, l := range r.Latency {
		j.Latency = append(j.Latency, jsonLatency{Call: l.Call, Calls: l.Calls, P50MS: ms(l.Median), P99MS: ms(l.P99)})
	}
	return j
}
