package sqlstore

import (
	"context"
	"crypto/rand"
	"errors"
	mathrand "math/rand/v2"
	"time"

	"github.com/holdfast-sessions/holdfast/driver"
)

const (
	// sweepBatch is the most rows that one statement removes.
	sweepBatch = 1000
	// sweepMargin is how long ago a record must have expired before it is removed in the background: servers' clocks may
	// be ten minutes apart, and by none of them may it be removed early.
	sweepMargin = 15 * time.Minute
	// After a batch the sweeper rests at least sweepRest, and sweepShare times as long as the batch took. If the batch
	// was slowed down by others, it rests longer in the same proportion, up to sweepSlow times.
	sweepRest  = 5 * time.Millisecond
	sweepShare = 2
	sweepSlow  = 4
	// batchTimeout bounds one batch.
	batchTimeout = 30 * time.Second
)

// sweepUntilClosed removes expired rows every so often, if no other process has that task. The task is a row in
// the meta table, taken by one update that the database's own clock decides, and held a little longer than until the
// next round. Unlike a lock of a session it works through PgBouncer, on every node of a Galera cluster and on a file,
// and holds no connection.
func (s *Store) sweepUntilClosed() {
	owner := rand.Text()
	pace := &pace{}
	for {
		jitter := 0.9 + 0.2*mathrand.Float64()
		every := time.Duration(jitter * float64(s.config.SweepEvery))
		if !sleep(s.sweeping, every) {
			return
		}
		err := s.sweepRound(s.sweeping, owner, pace)
		if s.sweeping.Err() != nil {
			return
		}
		if err != nil && !errors.Is(err, driver.ErrReadOnly) {
			s.config.Logger.Warn("sql store: expired rows not removed", "store", s.dialect.Name, "table", s.config.Table, "error", err)
		}
	}
}

// sweepRound removes what expired a while ago, if owner gets or has the task.
func (s *Store) sweepRound(ctx context.Context, owner string, p *pace) error {
	life := 3 * s.config.SweepEvery
	held, until, err := s.takeLease(ctx, owner, life)
	if err != nil || !held {
		return err
	}
	now, err := s.cutoff(ctx)
	if err != nil {
		return err
	}
	now -= sweepMargin.Milliseconds()
	for {
		_, more, err := s.sweepOnce(ctx, sweepBefore(now), now, p)
		if err != nil || !more || ctx.Err() != nil {
			return err
		}
		if time.Until(until) < life/2 {
			if held, until, err = s.takeLease(ctx, owner, life); err != nil || !held {
				return err
			}
		}
	}
}

// takeLease takes or keeps the task of removing rows.
func (s *Store) takeLease(ctx context.Context, owner string, life time.Duration) (held bool, until time.Time, err error) {
	ctx, cancel := context.WithTimeout(ctx, batchTimeout)
	defer cancel()
	until = time.Now().Add(life)
	res, err := s.exec(ctx, s.lease, &args{argOwner: owner, argLife: life.Milliseconds()})
	if err != nil {
		return false, until, err
	}
	n, err := res.RowsAffected()
	return n > 0, until, driver.Unavailable(err)
}

// cutoff returns the time before which rows have expired: by this process's clock and by the database's.
func (s *Store) cutoff(ctx context.Context) (ms int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, batchTimeout)
	defer cancel()
	var theirs int64
	if err := s.call(ctx, func(ctx context.Context) error { return s.queryRow(ctx, s.clock, &args{}, &theirs) }); err != nil {
		return 0, err
	}
	return min(theirs, time.Now().UnixMilli()), nil
}

// sweepOnce removes a batch, and rests.
func (s *Store) sweepOnce(ctx context.Context, sweep, now int64, p *pace) (removed int, more bool, err error) {
	start := time.Now()
	call, cancel := context.WithTimeout(ctx, batchTimeout)
	defer cancel()
	if s.dialect.SweepBatch != nil {
		err = s.call(call, func(ctx context.Context) (err error) {
			removed, more, err = s.dialect.SweepBatch(ctx, s.db, s.config.Table, sweep, now, sweepBatch)
			return err
		})
	} else {
		res, execErr := s.exec(call, s.sweep, &args{argSweep: sweep, argNow: now, argLimit: int64(sweepBatch)})
		err = execErr
		if err == nil {
			n, countErr := res.RowsAffected()
			removed, more, err = int(n), n == sweepBatch, driver.Unavailable(countErr)
		}
	}
	if err == nil && more {
		sleep(ctx, p.rest(time.Since(start), removed))
	}
	return removed, more, err
}

// Sweep removes every record that has expired by the clocks of this process and of the database, whoever has the task
// otherwise.
func (s *Store) Sweep(ctx context.Context, progress func(removed int)) (removed int, err error) {
	now, err := s.cutoff(ctx)
	if err != nil {
		return 0, err
	}
	p := &pace{}
	for {
		n, more, err := s.sweepOnce(ctx, sweepBefore(now)+1, now, p)
		removed += n
		if progress != nil {
			progress(removed)
		}
		if err == nil && more && ctx.Err() != nil {
			err = driver.Unavailable(ctx.Err())
		}
		if err != nil || !more {
			return removed, err
		}
	}
}

// pace is how fast batches were.
type pace struct {
	best float64 // seconds a row, of late
}

// rest returns how long to rest after a batch.
func (p *pace) rest(took time.Duration, rows int) time.Duration {
	perRow := took.Seconds() / float64(max(rows, 1))
	slow := 1.0
	if p.best > 0 {
		slow = min(max(perRow/p.best, 1), sweepSlow)
	}
	// The best fades, so that a table that has grown is not taken for load for ever.
	if p.best == 0 || perRow < p.best {
		p.best = perRow
	} else {
		p.best *= 1.02
	}
	return max(sweepRest, time.Duration(sweepShare*slow*float64(took)))
}
