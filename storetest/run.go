package storetest

import (
	"testing"
	"testing/synctest"

	"github.com/holdfast-sessions/holdfast/driver"
)

// Options tell Run what else it can prove.
type Options struct {
	// Reopen closes s and opens what it kept, as a restart of the application does. Without it, nothing is proved of
	// what survives.
	Reopen func(t testing.TB, s driver.Store) driver.Store
	// Peer opens another client of what s keeps, as another server of the application has. With it, every case runs
	// a second time with its calls going to the two in turn.
	Peer func(t testing.TB, s driver.Store) driver.Store
	// Outage makes what is behind s unreachable or silent until end is called.
	Outage func(t testing.TB, s driver.Store) (end func())
	// MaxBytes is the size of the largest record to try. 0: 1 MiB.
	MaxBytes int
	// Synctest runs each case in a bubble of testing/synctest, where waiting takes no time and what expires does so
	// to the millisecond. It suits stores that do no I/O.
	Synctest bool
}

// Run proves the store that open returns, one subtest a case. It calls open for each case, with that subtest, and
// closes the store after it. Servers are better started before Run: a goroutine that open starts and that outlives
// the store's Close is reported as the store's.
func Run(t *testing.T, open func(t testing.TB) driver.Store, options ...Options) {
	var o Options
	if len(options) > 0 {
		o = options[0]
	}
	runAll(t, open, o, false)
	if o.Peer != nil {
		t.Run("two-clients", func(t *testing.T) { runAll(t, open, o, true) })
	}
}

func runAll(t *testing.T, open func(t testing.TB) driver.Store, o Options, peers bool) {
	for _, c := range Cases() {
		t.Run(c.Name, func(t *testing.T) {
			var r Result
			if o.Synctest {
				synctest.Test(t, func(t *testing.T) { r = runOne(t, c, o.source(t, open, peers)) })
			} else {
				r = runOne(t, c, o.source(t, open, peers))
			}
			if r.Skipped != "" && !t.Failed() {
				t.Logf("does not apply: %s", r.Skipped)
			}
		})
	}
}

func runOne(t *testing.T, c Case, src source) Result {
	r := runCase(t.Context(), c, src)
	for _, f := range r.Failures {
		t.Error(f)
	}
	if len(r.Failures) > 0 {
		t.Logf("a store that passes: %s", c.Proves)
	}
	return r
}

// source binds the functions of the test's author to the subtest.
func (o Options) source(t *testing.T, open func(testing.TB) driver.Store, peers bool) source {
	src := source{
		open:     func(*T) driver.Store { return open(t) },
		maxBytes: o.MaxBytes,
	}
	if o.Reopen != nil {
		src.reopen = func(_ *T, s driver.Store) driver.Store { return o.Reopen(t, s) }
	}
	if o.Outage != nil {
		src.outage = func(_ *T, s driver.Store) func() { return o.Outage(t, s) }
	}
	if peers {
		src.peer = func(_ *T, s driver.Store) driver.Store { return o.Peer(t, s) }
	}
	return src
}
