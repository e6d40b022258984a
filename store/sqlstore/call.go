package sqlstore

import (
	"context"
	"database/sql"
	sqldriver "database/sql/driver"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/holdfast-sessions/holdfast/driver"
)

const (
	// closeGrace is how long Close waits for calls that are under way before it breaks them off.
	closeGrace = time.Second
	// A statement that the database undid is repeated after a pause between these, doubled each time.
	againMin = time.Millisecond
	againMax = 50 * time.Millisecond
)

// call runs f, a read, with a context that Close ends. It is run once more if the connection breaks, or at another host.
func (s *Store) call(ctx context.Context, f func(context.Context) error) error {
	return s.run(ctx, true, f)
}

// exec runs a write.
func (s *Store) exec(ctx context.Context, st *statement, a *args) (sql.Result, error) {
	var res sql.Result
	err := s.run(ctx, false, func(ctx context.Context) error {
		if s.write != nil {
			select {
			case s.write <- struct{}{}:
				defer func() { <-s.write }()
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		var err error
		if stmt, prepareErr := s.prepared(ctx, st); prepareErr != nil {
			return prepareErr
		} else if stmt != nil {
			res, err = stmt.ExecContext(ctx, st.values(a)...)
		} else {
			res, err = s.db.ExecContext(ctx, st.sql, st.values(a)...)
		}
		return err
	})
	if err != nil {
		return nil, err // f may still be about to set res
	}
	return res, nil
}

// queryRow runs a statement that returns at most one row. A []byte that it scans is the caller's.
func (s *Store) queryRow(ctx context.Context, st *statement, a *args, into ...any) error {
	stmt, err := s.prepared(ctx, st)
	if err != nil {
		return err
	}
	if stmt != nil {
		return stmt.QueryRowContext(ctx, st.values(a)...).Scan(into...)
	}
	return s.db.QueryRowContext(ctx, st.sql, st.values(a)...).Scan(into...)
}

// run calls f until it succeeds, or until its error is one that does not go away by repeating it.
func (s *Store) run(caller context.Context, read bool, f func(context.Context) error) error {
	ctx, end, err := s.begin(caller)
	if err != nil {
		return err
	}
	defer end()
	moved := false // a connection broke or a host was left
	dead := 0
	for pause := againMin; ; pause = min(2*pause, againMax) {
		err := s.attempt(ctx, f)
		if err == nil || errors.Is(err, sql.ErrNoRows) {
			return err
		}
		if ctx.Err() != nil {
			return s.ended(caller)
		}
		switch v := s.dialect.Classify(err); {
		case errors.Is(err, sqldriver.ErrBadConn) && dead <= s.config.MaxConns:
			// Nothing was sent. database/sql has tried two others, and all may be dead.
			dead++
			continue
		case v == Again:
			// Two that met once should not meet again.
			if !sleep(ctx, pause+rand.N(pause)) {
				return s.ended(caller)
			}
			continue
		case (v == ReadOnly || v == Elsewhere) && s.hosts != nil:
			if s.hosts.leave() && !moved {
				moved = true
				continue
			}
		case v == Broken && read && !moved:
			moved = true
			continue
		}
		return s.mapError(err)
	}
}

// attempt calls f, and does not wait for it when ctx ends if the database's calls may outlast theirs. What f returns,
// and what it leaves in its caller's variables, is not looked at then.
func (s *Store) attempt(ctx context.Context, f func(context.Context) error) error {
	if !s.dialect.Blocks {
		return f(ctx)
	}
	done := make(chan error, 1)
	s.calls.Go(func() { done <- f(ctx) }) // Close waits; its caller is counted already
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// begin counts a call, which Close waits for, and returns the context for it.
func (s *Store) begin(caller context.Context) (ctx context.Context, end func(), err error) {
	s.mu.Lock()
	closed := s.closed
	if !closed {
		s.calls.Add(1)
	}
	s.mu.Unlock()
	if closed {
		return nil, nil, driver.ErrClosed
	}
	if err := caller.Err(); err != nil {
		s.calls.Done()
		return nil, nil, driver.Unavailable(err)
	}
	ctx, cancel := context.WithCancel(caller)
	stop := context.AfterFunc(s.ctx, cancel)
	return ctx, func() {
		stop()
		cancel()
		s.calls.Done()
	}, nil
}

// ended returns the error of a call whose context has ended: the caller's, or the store's.
func (s *Store) ended(caller context.Context) error {
	if err := caller.Err(); err != nil {
		return driver.Unavailable(err)
	}
	return driver.ErrClosed
}

// mapError returns the driver's error for err.
func (s *Store) mapError(err error) error {
	if errors.As(err, new(refusal)) || errors.Is(err, driver.ErrUnavailable) {
		return err
	}
	kind := driver.ErrUnavailable
	switch s.dialect.Classify(err) {
	case ReadOnly:
		kind = driver.ErrReadOnly
	case TooLarge:
		kind = driver.ErrTooLarge
	}
	return fmt.Errorf("%w: %s: %s", kind, s.dialect.Name, s.explain(err))
}

// explain says what an error means, of each host if there are several.
func (s *Store) explain(err error) string {
	var none *noHostError
	if errors.As(err, &none) {
		message := "no host takes writes"
		for i, err := range none.errs {
			message += [2]string{": ", "; "}[min(i, 1)] + none.names[i] + ": " + s.explain(err)
		}
		return message
	}
	if s.dialect.Explain != nil {
		if e := s.dialect.Explain(err); e != "" {
			return e
		}
	}
	return err.Error()
}

// Close waits for calls that are under way, which it breaks off after a second, and for the clean-up, and closes the
// connections.
func (s *Store) Close() error {
	s.mu.Lock()
	first := !s.closed
	s.closed = true
	s.mu.Unlock()
	if !first {
		<-s.done
		return nil
	}
	defer close(s.done)
	defer s.cancel()
	s.stopSweeping()
	stop := time.AfterFunc(closeGrace, s.cancel)
	s.calls.Wait()
	stop.Stop()
	_ = s.db.Close() // of connections that are no longer needed
	if s.hosts != nil {
		s.hosts.close()
	}
	return nil
}

// sleep waits, and reports whether ctx is still alive.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
