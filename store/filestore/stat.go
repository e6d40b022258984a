package filestore

import (
	"context"
	"errors"
	"io/fs"
	"strconv"
	"syscall"

	"github.com/holdfast-sessions/holdfast/driver"
)

// Stat implements driver.Stater. It goes through the directory and reads the start of each record, not the rest. What
// comes and goes meanwhile may be counted or not.
func (s *Store) Stat(ctx context.Context) (driver.Stat, error) {
	st, err := s.stat(ctx)
	if err != nil {
		return driver.Stat{Records: -1, Expired: -1, Bytes: -1}, storeError("load", err)
	}
	return st, nil
}

func (s *Store) stat(ctx context.Context) (st driver.Stat, err error) {
	if err := s.ready(ctx); err != nil {
		return st, err
	}
	if err := s.upkeep(ctx, s.present); err != nil {
		return st, err
	}
	leftovers, unreadable := 0, 0
	err = s.walk(ctx, sweepPortion, func(names []string) error {
		for _, name := range names {
			if err := s.ready(ctx); err != nil {
				return err
			}
			id, suffix, ok := cutName(name)
			if !ok {
				continue
			}
			if suffix != "" {
				if isLeftover(suffix) {
					leftovers++
				}
				continue
			}
			h, there, err := s.head(ctx, id)
			switch {
			case errors.Is(err, fs.ErrNotExist):
				if there { // a directory without data
					leftovers++
				}
				continue
			case isFailure(err) || errors.Is(err, context.DeadlineExceeded):
				return err
			case err != nil:
				unreadable++
				continue
			case h.expired():
				st.Expired++
			default:
				st.Records++
			}
			st.Bytes += h.size
		}
		return nil
	})
	st.Facts = []driver.Fact{
		{Name: "directory", Value: s.path},
		{Name: "layout", Value: string(s.layout)},
		{Name: "bytes are", Value: "the sizes of the records' files; on the disk each takes more"},
		{Name: "records that cannot be read", Value: strconv.Itoa(unreadable)},
		{Name: "being made or removed, or left over", Value: strconv.Itoa(leftovers)},
	}
	return st, err
}

// head reads the start of a record, and reports whether it has a directory.
func (s *Store) head(ctx context.Context, id driver.ID) (h head, there bool, err error) {
	if s.nfs != nil {
		return s.nfs.head(ctx, id)
	}
	r, err := s.record(id)
	if err != nil {
		return head{}, false, err
	}
	defer r.close()
	h, err = r.head()
	return h, true, err
}

// isFailure tells an error of the system from that of a record that holds something else than it should.
func isFailure(err error) bool {
	if errors.Is(err, fs.ErrClosed) {
		return true
	}
	errno, ok := errors.AsType[syscall.Errno](err)
	return ok && errno != syscall.ELOOP && errno != syscall.ENOTDIR
}
