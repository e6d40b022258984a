package sealtest

import (
	"fmt"
	"runtime/debug"
	"sync"
	"testing"
	"testing/synctest"
)

// Cases returns the names of all cases, that of Timing included.
func Cases() (names []string) {
	for _, c := range append(cases, timing) {
		names = append(names, c.name)
	}
	return names
}

var timing = testCase{"timing", Timing, false}

// RunCase runs one case and returns what it found.
func RunCase(t *testing.T, name string, n New) (failures []string) {
	t.Helper()
	for _, c := range append(cases, timing) {
		if c.name != name {
			continue
		}
		r := &recorder{TB: t}
		if c.bubble {
			synctest.Test(t, func(t *testing.T) { r.protect(func() { c.run(r, n) }) })
		} else {
			r.protect(func() { c.run(r, n) })
		}
		return r.failures
	}
	t.Fatalf("no case %q", name)
	return nil
}

// recorder is a testing.TB that keeps failures for itself.
type recorder struct {
	testing.TB

	mu       sync.Mutex // mu guards the fields below
	failures []string
}

type stop struct{}

func (r *recorder) protect(f func()) {
	defer func() {
		switch p := recover(); p.(type) {
		case nil, stop:
		default:
			r.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	f()
}

func (r *recorder) Errorf(format string, a ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.failures) < 10 {
		r.failures = append(r.failures, fmt.Sprintf(format, a...))
	}
}

func (r *recorder) Error(a ...any)                 { r.Errorf("%s", fmt.Sprint(a...)) }
func (r *recorder) Fail()                          { r.Errorf("failed") }
func (r *recorder) Fatalf(format string, a ...any) { r.Errorf(format, a...); panic(stop{}) }
func (r *recorder) Fatal(a ...any)                 { r.Error(a...); panic(stop{}) }
func (r *recorder) FailNow()                       { panic(stop{}) }
func (r *recorder) Logf(string, ...any)            {}
func (r *recorder) Log(...any)                     {}
func (r *recorder) Failed() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.failures) > 0
}
