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
		unreadable, err := s.sweep(ctx)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			s.config.Logger.Warn("file store: sweep incomplete", "error", err)
		}
		if unreadable > 0 {
			s.config.Logger.Warn("file store: records that cannot be read", "count", unreadable)
		}
	}
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

// sweep goes through the directory once, slowly, and removes what has expired or was left behind. It counts the
// records that it cannot read and leaves them.
func (s *Store) sweep(ctx context.Context) (unreadable int, err error) {
	if err := s.present(); err != nil {
		return 0, err
	}
	var first error
	err = s.dir.list(ctx, sweepPortion, func(names []string) error {
		start := time.Now()
		for _, name := range names {
			err := storeError("sweep", s.sweepName(ctx, name))
			switch {
			case err == nil:
			case errors.Is(err, driver.ErrCorrupt) || errors.Is(err, driver.ErrVersion):
				unreadable++
			case first == nil:
				first = err
			}
		}
		pause(ctx, (sweepShare-1)*time.Since(start))
		return ctx.Err()
	})
	if err == nil {
		err = first
	}
	return unreadable, storeError("sweep", err)
}

func (s *Store) sweepName(ctx context.Context, name string) error {
	hex, suffix := name, ""
	if i := strings.IndexByte(name, '.'); i >= 0 {
		hex, suffix = name[:i], name[i:]
	}
	id, err := driver.ParseID(hex)
	if err != nil {
		return nil // none of ours
	}
	switch {
	case suffix == "":
		err = s.sweepRecord(ctx, id)
	case strings.HasPrefix(suffix, trashInfix):
		err = s.discard(name)
	case strings.HasPrefix(suffix, buildInfix):
		err = s.sweepBuild(id, name)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil // somebody else was faster
	}
	return err
}

func (s *Store) sweepRecord(ctx context.Context, id driver.ID) error {
	r, err := s.record(id)
	if err != nil {
		return err
	}
	defer r.close()
	names, err := r.names()
	if err != nil {
		return err
	}
	h, err := r.head()
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err == nil && !h.expired() {
		if names.ended { // Delete was killed on a full disk
			return r.clear()
		}
		return r.tidy(names)
	}
	if err := s.vacate(ctx, id); err != driver.ErrConflict {
		return err
	}
	return nil
}

// sweepBuild removes what is left of a record that was never published. The name goes first: if its maker is only
// asleep, it finds nothing to publish.
func (s *Store) sweepBuild(id driver.ID, name string) error {
	info, err := s.dir.lstat(name)
	if err != nil || time.Since(info.ModTime()) < buildAge {
		return err
	}
	trash := id.Hex() + trashInfix + newGeneration().String()
	if err := s.dir.rename(name, trash); err != nil {
		return err
	}
	return s.discard(trash)
}
