package filestore

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/holdfast-sessions/holdfast/driver"
)

// A call on a mount whose server is away hangs for ever, and nobody can interrupt it. So with Network: NFS the callers of
// the store wait outside, and leave at their deadline; a goroutine that hangs takes a place until the server is back.
const (
	// callTimeout is the deadline of calls whose context has none.
	callTimeout = 30 * time.Second
	// closeTimeout is how long Close waits for calls that hang.
	closeTimeout = 5 * time.Second
)

// gate bounds how many goroutines may hang in the file system.
type gate struct {
	places chan struct{} // holds one value for each goroutine inside
	closed chan struct{}
	once   sync.Once
}

func newGate(places int) *gate {
	return &gate{places: make(chan struct{}, places), closed: make(chan struct{})}
}

// withTimeout gives ctx a deadline if it has none.
func withTimeout(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, callTimeout)
}

// within calls f in a goroutine, and returns what it returns, or an error that matches that of ctx once that has ended.
// f looks at its context between two calls of the file system. The goroutine holds its place in the gate until f
// returns, and close waits for it.
func within[T any](ctx context.Context, g *gate, f func(ctx context.Context) (T, error)) (T, error) {
	ctx, cancel := withTimeout(ctx)
	defer cancel()
	if err := g.enter(ctx); err != nil {
		var none T
		return none, err
	}
	return inside(ctx, g, f)
}

// enter takes a place, which inside gives back.
func (g *gate) enter(ctx context.Context) error {
	select {
	case g.places <- struct{}{}:
		return nil
	case <-g.closed:
		return driver.ErrClosed
	case <-ctx.Done():
		return fmt.Errorf("%w: %d calls wait for the file server: %w", driver.ErrUnavailable, cap(g.places), ctx.Err())
	}
}

func inside[T any](ctx context.Context, g *gate, f func(ctx context.Context) (T, error)) (T, error) {
	type result struct {
		value T
		err   error
	}
	done := make(chan result, 1) // the caller may have left
	go func() {
		value, err := f(ctx)
		<-g.places
		done <- result{value, err}
	}()
	select {
	case r := <-done:
		return r.value, r.err
	case <-ctx.Done():
		var none T
		return none, fmt.Errorf("%w: the file server has not answered yet: %w", driver.ErrUnavailable, ctx.Err())
	}
}

// run is within for what returns an error only.
func (g *gate) run(ctx context.Context, f func(ctx context.Context) error) error {
	_, err := within(ctx, g, func(ctx context.Context) (struct{}, error) { return struct{}{}, f(ctx) })
	return err
}

// close lets nobody in any more, and waits until nobody is inside, but not longer than closeTimeout.
func (g *gate) close() {
	g.once.Do(func() {
		close(g.closed)
		patience := time.NewTimer(closeTimeout)
		defer patience.Stop()
		for range cap(g.places) {
			select {
			case g.places <- struct{}{}:
			case <-patience.C:
				return
			}
		}
	})
}

// openWithin is open, which with Network: NFS returns by the deadline of ctx, also if the file server does not answer.
func openWithin(ctx context.Context, path string, c Config) (*Store, error) {
	if c.Network != NFS {
		return open(ctx, path, c, nil)
	}
	ctx, cancel := withTimeout(ctx)
	defer cancel()
	type result struct {
		s   *Store
		err error
	}
	done := make(chan result)
	go func() {
		s, err := open(ctx, path, c, nil)
		select {
		case done <- result{s, err}:
		case <-ctx.Done(): // the caller has left
			if err == nil {
				_ = s.Close() // nobody has used it
			}
		}
	}()
	select {
	case r := <-done:
		return r.s, r.err
	case <-ctx.Done():
		return nil, fmt.Errorf("%s: %w: the file server does not answer; is it up, and the mount? %w", path, driver.ErrUnavailable, ctx.Err())
	}
}

// locks are one lock for each ID that somebody uses.
type locks struct {
	mu sync.Mutex

	// mu guards the field below.
	used map[driver.ID]*idLock
}

type idLock struct {
	users int           // who have it or wait for it; guarded by locks.mu
	held  chan struct{} // holds one value while somebody has the lock
}

// lock waits for the lock of id until ctx ends.
func (l *locks) lock(ctx context.Context, id driver.ID) (unlock func(), err error) {
	l.mu.Lock()
	if l.used == nil {
		l.used = make(map[driver.ID]*idLock)
	}
	own := l.used[id]
	if own == nil {
		own = &idLock{held: make(chan struct{}, 1)}
		l.used[id] = own
	}
	own.users++
	l.mu.Unlock()
	leave := func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if own.users--; own.users == 0 {
			delete(l.used, id)
		}
	}
	select {
	case own.held <- struct{}{}:
		return func() { <-own.held; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, fmt.Errorf("%w: another call on the record waits for the file server: %w", driver.ErrUnavailable, ctx.Err())
	}
}
