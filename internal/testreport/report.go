package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
)

// event is a line of go test -json; see go doc test2json and go help buildjson.
type event struct {
	Action      string
	Package     string
	ImportPath  string // instead of Package, in the output of a build
	Test        string
	Elapsed     float64
	Output      string
	FailedBuild string // the ImportPath of the build that made the package fail
}

// report collects the events of several runs of go test.
type report struct {
	passed, failed, skipped int

	out     io.Writer
	started time.Time
	skips   []string            // what was not run, and why
	pkgs    map[string]*running // packages that have begun
	builds  map[string]string   // output by ImportPath
}

// running is a package whose tests run.
type running struct {
	lines  []line
	ended  map[string]string // test to "pass", "fail" or "skip"
	failed int
}

// line is one line of output, of a test or of the package.
type line struct{ test, text string }

func newReport(out io.Writer) *report {
	return &report{out: out, started: time.Now(), pkgs: make(map[string]*running), builds: make(map[string]string)}
}

// read reads the output of go test -json to its end.
func (r *report) read(in io.Reader) {
	lines := bufio.NewReader(in)
	for {
		text, err := lines.ReadBytes('\n')
		var e event
		if json.Unmarshal(text, &e) == nil {
			r.add(e)
		} else {
			_, _ = r.out.Write(text) // what the go command says beside the events
		}
		if err != nil {
			break
		}
	}
	for path := range r.pkgs {
		r.end(event{Action: "fail", Package: path})
	}
}

func (r *report) add(e event) {
	if strings.HasPrefix(e.Action, "build-") {
		r.builds[e.ImportPath] += e.Output
		return
	}
	p := r.pkgs[e.Package]
	if p == nil {
		p = &running{ended: make(map[string]string)}
		r.pkgs[e.Package] = p
	}
	switch {
	case e.Action == "output":
		p.lines = append(p.lines, line{e.Test, e.Output})
	case e.Action != "pass" && e.Action != "fail" && e.Action != "skip":
		// start, run, pause, cont, bench, attr, artifacts
	case e.Test == "":
		r.end(e)
	default:
		p.ended[e.Test] = e.Action
		switch e.Action {
		case "pass":
			r.passed++
		case "fail":
			p.failed++
			r.failed++
		case "skip":
			r.notRun(e.Package+" "+e.Test, p.reason(e.Test))
		}
	}
}

// end prints the result of the package that e ends.
func (r *report) end(e event) {
	p := r.pkgs[e.Package]
	delete(r.pkgs, e.Package)
	switch e.Action {
	case "skip":
		return // it has no tests
	case "pass":
		fmt.Fprintf(r.out, "ok    %s %.1fs\n", e.Package, e.Elapsed)
		return
	}
	if p.failed == 0 {
		r.failed++ // the package itself: it does not build, panics, leaks, or runs out of time
	}
	fmt.Fprintf(r.out, "FAIL  %s %.1fs\n%s", e.Package, e.Elapsed, r.builds[e.FailedBuild])
	for _, l := range p.lines {
		if ended := p.ended[l.test]; ended != "pass" && ended != "skip" && !noise(l.text) {
			fmt.Fprint(r.out, "      ", l.text)
		}
	}
}

// noise reports whether a line of go test -v says nothing about a failure.
func noise(text string) bool {
	return strings.HasPrefix(text, "=== ") || text == "PASS\n" || text == "FAIL\n"
}

// reason returns what the test said when it skipped itself.
func (p *running) reason(test string) string {
	var said []string
	for _, l := range p.lines {
		text := strings.TrimSpace(l.text)
		if l.test != test || noise(l.text) || strings.HasPrefix(text, "--- SKIP") {
			continue
		}
		// The testing package puts "file_test.go:12: " before it.
		if place, rest, ok := strings.Cut(text, ": "); ok && strings.Contains(place, ".go:") {
			text = rest
		}
		said = append(said, strings.TrimPrefix(text, "NOT RUN: "))
	}
	return strings.Join(said, " ")
}

// notRun records what was not run.
func (r *report) notRun(what, why string) {
	r.skipped++
	r.skips = append(r.skips, fmt.Sprintf("NOT RUN: %s: %s", what, why))
}

// fail records a failure that no event tells of.
func (r *report) fail(what, why string) {
	r.failed++
	fmt.Fprintf(r.out, "FAIL  %s\n%s\n", what, strings.TrimRight(why, "\n"))
}

// finish prints what was not run and the totals, and reports whether tests ran and none failed; with CI=true, also
// whether all were run.
func (r *report) finish() bool {
	if len(r.skips) > 0 {
		fmt.Fprintf(r.out, "\n%s\n", strings.Join(r.skips, "\n"))
	}
	fmt.Fprintf(r.out, "\nin %s\n%d passed, %d failed, %d skipped\n",
		time.Since(r.started).Round(time.Second), r.passed, r.failed, r.skipped)
	return r.failed == 0 && r.passed > 0 && (r.skipped == 0 || os.Getenv("CI") != "true")
}
