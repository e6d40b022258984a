package main

import (
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"
)

// lineEvery is how often progress is told where there is no terminal: in the logs of jobs that take long.
const lineEvery = 10 * time.Second

// progress shows how far long work has come, on standard error: as a bar on a terminal, otherwise, or with NO_COLOR or
// TERM=dumb, as a line now and then.
type progress struct {
	what string

	mu sync.Mutex

	// mu guards the fields below.
	bar  *progressbar.ProgressBar // nil: lines
	next time.Time                // of the next line
}

func newProgress(what string) *progress {
	p := &progress{what: what, next: time.Now().Add(lineEvery)}
	if term.IsTerminal(int(os.Stderr.Fd())) && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb" {
		p.bar = progressbar.NewOptions64(-1,
			progressbar.OptionSetWriter(os.Stderr), progressbar.OptionSetDescription(what), progressbar.OptionShowCount(),
			progressbar.OptionShowIts(), progressbar.OptionSetPredictTime(true), progressbar.OptionSetWidth(24),
			progressbar.OptionThrottle(100*time.Millisecond), progressbar.OptionClearOnFinish(), progressbar.OptionEnableColorCodes(false),
		)
	}
	return p
}

// set shows that n of total have been done; total is negative if nobody knows.
func (p *progress) set(n, total int64, note string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if total >= 0 && total < n {
		total = -1 // more came meanwhile
	}
	if p.bar != nil {
		what := p.what
		if note != "" {
			what += " (" + note + ")"
		}
		p.bar.Describe(what)
		if p.bar.GetMax64() != total {
			p.bar.ChangeMax64(total)
		}
		_ = p.bar.Set64(n) // on standard error
		return
	}
	if now := time.Now(); now.After(p.next) {
		p.next = now.Add(lineEvery)
		line := fmt.Sprintf("%s: %d", p.what, n)
		if total >= 0 {
			line += fmt.Sprintf(" of %d", total)
		}
		if note != "" {
			line += ", " + note
		}
		fmt.Fprintln(os.Stderr, line)
	}
}

// show is set for work whose name changes.
func (p *progress) show(what string, n, total int64, note string) {
	p.mu.Lock()
	p.what = what
	p.mu.Unlock()
	p.set(n, total, note)
}

// end removes the bar.
func (p *progress) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.bar != nil {
		_ = p.bar.Clear() // on standard error
		p.bar = nil
		p.next = time.Now().Add(lineEvery)
	}
}
