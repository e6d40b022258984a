package filestore

import (
	"context"
	"errors"
	"io/fs"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/holdfast-sessions/holdfast/driver"
)

const (
	sweepPortion = 64 // names
	sweepShare   = 10 // a sweep works one of so many microseconds: at most 10 % of a core
	buildAge     = 15 * time.Minute
)

func (s *Store) sweepUntil(ctx context.Context) {
	for {
		jitter := 0.9 + 0.2*rand.Float64()
		if !pause(ctx, time.Duration(jitter*float64(s.config.SweepEvery))) {
			return
		}
		did, err := s.sweep(ctx, func(worked time.Duration, _ swept) { pause(ctx, (sweepShare-1)*worked) })
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			s.config.Logger.Warn("file store: sweep incomplete", "error", err)
		}
		s.warnUnreadable(did)
	}
}

// upkeep calls f, with Network: NFS by way of the gate for what goes through all records.
func (s *Store) upkeep(ctx context.Context, f func() error) error {
	if s.nfs == nil {
		return f()
	}
	return s.nfs.upkeep.run(ctx, func(context.Context) error { return f() })
}

func (s *Store) warnUnreadable(did swept) {
	if did.unreadable > 0 {
		s.config.Logger.Warn("file store: records that cannot be read", "count", did.unreadable)
	}
}

// Sweep implements driver.Sweeper. It goes through the directory once, at full speed, in portions of 64 names; it takes
// no lock, so that no other call waits for it. Any number of processes may sweep at once; a record counts for the one
// that ended it. It leaves what cannot be read, with a warning to Config.Logger, and what a call that may be under
// way still needs: a record begun less than 15 minutes ago.
func (s *Store) Sweep(ctx context.Context, progress func(removed int)) (removed int, err error) {
	if err := s.ready(ctx); err != nil {
		return 0, err
	}
	did, err := s.sweep(ctx, func(_ time.Duration, did swept) {
		if progress != nil {
			progress(did.removed)
		}
	})
	s.warnUnreadable(did)
	return did.removed, err
}

// pause waits, and reports whether ctx is still alive.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// swept is what a sweep has done so far.
type swept struct {
	removed    int // records
	unreadable int // records left where they are
}

// sweep goes through the directory once and removes what has expired or was left behind. It calls rest after each
// portion with the time that it took. An error with one name does not keep it from the others; it returns the first.
func (s *Store) sweep(ctx context.Context, rest func(worked time.Duration, did swept)) (did swept, err error) {
	if err := s.upkeep(ctx, s.present); err != nil {
		return did, err
	}
	var first error
	err = s.walk(ctx, sweepPortion, func(names []string) error {
		start := time.Now()
		for _, name := range names {
			if err := s.ready(ctx); err != nil {
				return err
			}
			removed, err := s.sweepName(ctx, name)
			if removed {
				did.removed++
			}
			switch {
			case err == nil:
			case s.nfs != nil && errors.Is(err, context.DeadlineExceeded):
				return err // the next one would wait as long
			case errors.Is(err, driver.ErrCorrupt) || errors.Is(err, driver.ErrVersion) || errors.Is(err, errTorn):
				did.unreadable++
			case first == nil:
				first = err
			}
		}
		rest(time.Since(start), did)
		return ctx.Err()
	})
	if err == nil {
		err = first
	}
	return did, storeError("sweep", err)
}

// cutName returns the ID and the suffix of a name in the directory. ok is false for those that are none of ours.
func cutName(name string) (id driver.ID, suffix string, ok bool) {
	hex := name
	if i := strings.IndexByte(name, '.'); i >= 0 {
		hex, suffix = name[:i], name[i:]
	}
	id, err := driver.ParseID(hex)
	return id, suffix, err == nil
}

// isLeftover reports whether a suffix is that of a directory that is no record.
func isLeftover(suffix string) bool {
	return strings.HasPrefix(suffix, buildInfix) || strings.HasPrefix(suffix, trashInfix)
}

func (s *Store) sweepName(ctx context.Context, name string) (removed bool, err error) {
	if s.nfs != nil {
		return s.nfs.sweepName(ctx, name)
	}
	id, suffix, ok := cutName(name)
	switch {
	case !ok:
	case suffix == "":
		removed, err = s.sweepRecord(ctx, id)
	case strings.HasPrefix(suffix, trashInfix):
		err = s.discard(s.inBucket(id) + name)
	case strings.HasPrefix(suffix, buildInfix):
		err = s.sweepBuild(id, s.inBucket(id)+name)
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = nil // somebody else was faster
	}
	return removed, err
}

func (s *Store) sweepRecord(ctx context.Context, id driver.ID) (removed bool, err error) {
	r, err := s.record(id)
	if err != nil {
		return false, err
	}
	defer r.close()
	names, err := r.names()
	if err != nil {
		return false, err
	}
	h, err := r.head()
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	if err == nil && !h.expired() {
		if names.ended { // Delete was killed on a full disk
			return false, r.clear()
		}
		return false, r.tidy(names)
	}
	removed, err = s.endExpired(ctx, id)
	if err == driver.ErrConflict {
		err = nil // extended, or made anew
	}
	return removed, err
}

// sweepBuild removes what is left of a record that was never published. The name goes first: if its maker is only
// asleep, it finds nothing to publish.
func (s *Store) sweepBuild(id driver.ID, name string) error {
	info, err := s.dir.lstat(name)
	if err != nil || time.Since(info.ModTime()) < buildAge {
		return err
	}
	trash := s.at(id) + trashInfix + newGeneration().String()
	if err := s.dir.rename(name, trash); err != nil {
		return err
	}
	return s.discard(trash)
}
