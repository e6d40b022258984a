package transfer

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"sync"
	"time"

	"github.com/holdfast-sessions/holdfast/driver"
)

// caller makes calls on stores, each with a deadline, and again when the store was unavailable, for as long as its
// patience lasts. A write that was tried again may meet itself: ErrConflict does not prove another writer.
type caller struct {
	patience time.Duration
}

func (c *caller) do(ctx context.Context, f func(context.Context) error) error {
	var since time.Time
	for pause := 50 * time.Millisecond; ; pause = min(2*pause, 2*time.Second) {
		bounded, cancel := context.WithTimeout(ctx, callTimeout)
		err := f(bounded)
		cancel()
		switch {
		case err == nil || ctx.Err() != nil:
			return err
		case errors.Is(err, driver.ErrClosed), !errors.Is(err, driver.ErrUnavailable) && !errors.Is(err, context.DeadlineExceeded):
			return err
		case since.IsZero():
			since = time.Now()
		case time.Since(since) > c.patience:
			return driver.Unavailable(err)
		}
		if err := wait(ctx, pause); err != nil {
			return err
		}
	}
}

func wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// reader is the calls that change nothing.
type reader struct {
	store driver.Store
	*caller
}

func (r reader) load(ctx context.Context, id driver.ID) (rec driver.Record, err error) {
	err = r.do(ctx, func(ctx context.Context) error {
		rec, err = r.store.Load(ctx, id)
		return err
	})
	if err == nil && rec.Expired(time.Now()) {
		err = driver.ErrNotFound
	}
	return rec, err
}

// writer is the calls that change TO.
type writer struct {
	reader
	pace  *pace
	wrote func()
}

// save is driver.Store.Save; the Tag is of another store and not passed on.
func (w writer) save(ctx context.Context, id driver.ID, rec driver.Record, prev uint64) error {
	rec.Tag = 0
	if err := w.pace.wait(ctx); err != nil {
		return err
	}
	err := w.do(ctx, func(ctx context.Context) error { return w.store.Save(ctx, id, rec, prev) })
	if err == nil {
		w.wrote()
	}
	return err
}

func (w writer) remove(ctx context.Context, id driver.ID) error {
	return w.do(ctx, func(ctx context.Context) error { return w.store.Delete(ctx, id) })
}

// list lists FROM. A store that yields nothing for longer than the patience, and is not being waited for, is
// unavailable.
func (r *run) list(ctx context.Context) iter.Seq2[driver.Item, error] {
	return func(yield func(driver.Item, error) bool) {
		ctx, cancel := context.WithCancelCause(ctx)
		defer cancel(nil)
		watch := time.AfterFunc(r.config.Patience, func() {
			cancel(driver.Unavailable(fmt.Errorf("FROM lists nothing for %v", r.config.Patience)))
		})
		defer watch.Stop()
		for item, err := range r.lister.List(ctx) {
			watch.Stop()
			if cause := context.Cause(ctx); err != nil && cause != nil {
				err = cause
			}
			if !yield(item, err) || err != nil {
				return
			}
			watch.Reset(r.config.Patience)
		}
	}
}

// pace lets a number of calls a second begin. A nil pace lets all of them.
type pace struct {
	every time.Duration

	mu   sync.Mutex // mu guards the field below
	next time.Time
}

func newPace(perSecond int) *pace {
	if perSecond <= 0 {
		return nil
	}
	return &pace{every: time.Second / time.Duration(perSecond)}
}

func (p *pace) wait(ctx context.Context) error {
	if p == nil {
		return nil
	}
	p.mu.Lock()
	now := time.Now()
	if p.next.Before(now) {
		p.next = now
	}
	d := p.next.Sub(now)
	p.next = p.next.Add(p.every)
	p.mu.Unlock()
	if d <= 0 {
		return nil
	}
	return wait(ctx, d)
}
