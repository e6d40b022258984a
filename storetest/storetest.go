// Package storetest proves that a store keeps the contract of package driver: the six rules that hold for every
// store, and every sentence of the doc comments of driver.Store and of each optional interface the store has.
//
// In a test of a store:
//
//	func TestStore(t *testing.T) {
//		storetest.Run(t, func(t testing.TB) driver.Store {
//			s, err := mystore.Open(t.Context(), address)
//			if err != nil {
//				t.Fatal(err)
//			}
//			return s
//		})
//	}
//
// [Options] tell Run how to prove more: that records survive reopening, that two clients agree, that an outage is
// told apart from an absent record. [Check] runs the same cases without package testing against a live store and
// removes what it stored.
//
// The suite needs no clean store and minds records of others only where they would be listed as its own: its IDs
// are random.
package storetest

import (
	"context"
	"crypto/rand"
	"fmt"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-sessions/holdfast/driver"
)

const (
	caseTimeout = 2 * time.Minute // for a whole case; all but expiry cases on slow stores take a fraction of it
	maxFailures = 8               // of one case that are reported
)

// Case is one thing that the suite proves.
type Case struct {
	// Name is the kind of call and what is tried, such as "delete/wins-over-save".
	Name string
	// Proves says in a sentence what holds for a store that passes.
	Proves string

	// lacks says why the case does not apply, or "". It may be nil.
	lacks func(t *T) string
	run   func(ctx context.Context, t *T)
}

// Cases returns all cases in the order they run in.
func Cases() []Case {
	return slices.Concat(saveCases, identityCases, sizeCases, deleteCases, expiryCases, mergeCases, touchCases, watchCases,
		listCases, operateCases, cancelCases, lifecycleCases, managerCases)
}

// Result is how a case went.
type Result struct {
	Case Case
	// Failures say what the store did and what it should have done. Empty: passed, or skipped.
	Failures []string
	// Skipped says why the case did not apply to the store.
	Skipped string
	Took    time.Duration
}

// source is where a case gets its stores from. All but open may be nil.
type source struct {
	open     func(*T) driver.Store
	peer     func(*T, driver.Store) driver.Store
	reopen   func(*T, driver.Store) driver.Store
	outage   func(*T, driver.Store) (end func())
	maxBytes int
	tidy     bool // delete what the case stored
	live     bool // what a store says that it may not do is not its fault
}

// T is what a case reports to, and works on: one store, or two clients of one. Its methods may be called by any
// goroutine that the case waits for.
type T struct {
	source
	stores []driver.Store
	turn   atomic.Uint32
	about  driver.Description

	mu sync.Mutex

	// mu guards the fields below.
	failures []string
	dropped  int // failures beyond maxFailures
	skipped  string
	ids      []driver.ID
}

// stop is what Fatalf and skip panic with.
type stop struct{}

// runCase runs c against a store from src.
func runCase(ctx context.Context, c Case, src source) Result {
	start := time.Now()
	ctx, cancel := context.WithTimeout(ctx, caseTimeout)
	defer cancel()
	t := &T{source: src}
	t.protect(func() {
		t.stores = append(t.stores, src.open(t))
		if src.peer != nil {
			t.stores = append(t.stores, src.peer(t, t.stores[0]))
		}
		if d, ok := t.stores[0].(driver.Describer); ok {
			t.about = d.Describe()
		}
		if c.lacks != nil {
			t.skipped = c.lacks(t)
		}
		if t.skipped == "" {
			c.run(ctx, t)
		}
	})
	t.protect(func() { t.finish(context.WithoutCancel(ctx)) })
	if t.dropped > 0 {
		t.failures = append(t.failures, fmt.Sprintf("and %d more", t.dropped))
	}
	return Result{Case: c, Failures: t.failures, Skipped: t.skipped, Took: time.Since(start)}
}

// finish deletes what the case stored, if asked to, and closes the case's stores.
func (t *T) finish(ctx context.Context) {
	if t.tidy {
		ctx, cancel := context.WithTimeout(ctx, caseTimeout)
		defer cancel()
		s := t.open(t) // those of the case may be closed
		t.stores = append(t.stores, s)
		for _, id := range t.ids {
			if err := s.Delete(ctx, id); err != nil {
				t.Errorf("clean up: Delete = %v", err)
				break
			}
		}
	}
	for _, s := range t.stores {
		if err := s.Close(); err != nil {
			t.Errorf("Close = %v", err)
		}
	}
}

// protect calls f, and ends it at its first Fatalf.
func (t *T) protect(f func()) {
	defer func() {
		switch p := recover(); p.(type) {
		case nil, stop:
		default:
			t.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	f()
}

// Errorf reports a failure.
func (t *T) Errorf(format string, args ...any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.failures) == maxFailures {
		t.dropped++
		return
	}
	t.failures = append(t.failures, fmt.Sprintf(format, args...))
}

// Fatalf reports a failure and ends the function that was given to protect or parallel: the case, or one of its
// goroutines.
func (t *T) Fatalf(format string, args ...any) {
	t.Errorf(format, args...)
	panic(stop{})
}

// skip ends the case, as it does not apply.
func (t *T) skip(why string) {
	t.mu.Lock()
	t.skipped = why
	t.mu.Unlock()
	panic(stop{})
}

// parallel calls f(0) to f(n-1), each in a goroutine of its own, and waits for them.
func (t *T) parallel(n int, f func(i int)) {
	var wg sync.WaitGroup
	start := make(chan struct{})
	for i := range n {
		wg.Go(func() {
			<-start
			t.protect(func() { f(i) })
		})
	}
	close(start)
	wg.Wait()
}

// store returns the store, or the clients in turn.
func (t *T) store() driver.Store {
	return t.stores[int(t.turn.Add(1))%len(t.stores)]
}

// newID returns a random ID and notes it for the clean-up.
func (t *T) newID() driver.ID {
	var id driver.ID
	_, _ = rand.Read(id[:]) // never fails
	return t.use(id)
}

// use notes id for the clean-up.
func (t *T) use(id driver.ID) driver.ID {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ids = append(t.ids, id)
	return id
}

// each calls f for every name in turn, with a T that says the name in its failures.
func each[N any](t *T, names []N, describe func(N) string, f func(name N)) {
	for _, name := range names {
		before := len(t.failures)
		t.protect(func() { f(name) })
		t.mu.Lock()
		for i := before; i < len(t.failures); i++ {
			t.failures[i] = describe(name) + ": " + t.failures[i]
		}
		t.mu.Unlock()
	}
}
