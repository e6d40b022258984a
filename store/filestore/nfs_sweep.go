package filestore

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/holdfast-sessions/holdfast/driver"
)

// glanceTimeout is how long upkeep looks for a list that shows a token; requests look until their deadline.
const glanceTimeout = time.Second

// sweepName does for one name what Store.sweepName does.
func (n *nfs) sweepName(ctx context.Context, name string) (removed bool, err error) {
	id, suffix, ok := cutName(name)
	if !ok {
		return false, nil
	}
	path := n.s.inBucket(id) + name
	if suffix == "" {
		var did atomic.Bool // the caller may have left
		err = n.onlyOne(ctx, n.upkeep, id, func(ctx context.Context) error {
			removed, err := n.sweepRecord(ctx, id)
			did.Store(removed)
			return err
		})
		return did.Load(), err
	}
	err = n.upkeep.run(ctx, func(ctx context.Context) (err error) {
		switch {
		case strings.HasPrefix(suffix, trashInfix):
			err = n.s.dir.removeAll(path)
		case strings.HasPrefix(suffix, buildInfix):
			err = n.sweepBuild(id, path)
		}
		return err
	})
	if isStale(err) {
		err = nil // somebody else was faster
	}
	return false, err
}

// sweepRecord ends a record that has expired, which counts as removed, and removes one that ended long ago.
func (n *nfs) sweepRecord(ctx context.Context, id driver.ID) (removed bool, err error) {
	f, err := n.glance(ctx, id)
	switch {
	case errors.Is(err, driver.ErrNotFound):
		return false, nil
	case errors.Is(err, errTorn):
		return false, n.removeLeftover(ctx, id)
	case err != nil:
		return false, err
	}
	defer f.close()
	switch {
	case f.state == live && f.expired():
		err = n.end(ctx, id, f)
		removed = err == nil
	case f.state == ended && f.age() >= endedKept:
		next := f.token.end(n.lanes.next(), gone, fromMillis(f.expires))
		if err = n.move(ctx, id, f, next); err == nil {
			f.token = next
			err = n.finish(ctx, id, f)
		}
	case f.state == gone:
		err = n.finish(ctx, id, f)
	}
	if err == driver.ErrConflict || isStale(err) {
		err = nil // extended, or made anew, or somebody else was faster
	}
	return removed, err
}

// age is how long ago an ended record did.
func (t token) age() time.Duration { return time.Since(fromMillis(t.expires)) }

// glance is find for a shorter time.
func (n *nfs) glance(ctx context.Context, id driver.ID) (found, error) {
	short, cancel := context.WithTimeout(ctx, glanceTimeout)
	defer cancel()
	f, err := n.find(short, id)
	if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
		err = errTorn
	}
	return f, err
}

// finish removes a directory that has a token of state gone. f may be out of date, but the directory that it has open
// will never have another token.
func (n *nfs) finish(ctx context.Context, id driver.ID, f found) error {
	f.empty()
	now, err := n.find(ctx, id)
	if errors.Is(err, driver.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	defer now.close()
	if now.state != gone {
		return nil // made anew
	}
	if len(now.data)+len(now.other) > 0 { // new, or what a machine has open: the next sweep removes it
		now.empty()
		return errTorn
	}
	if err := now.remove(now.name()); err != nil && !isStale(err) {
		return err
	}
	for range 3 { // a writer that has yet to notice that it lost may put its data file there
		err = n.s.dir.remove(n.s.at(id))
		if !errors.Is(err, fs.ErrExist) {
			break
		}
		late, e := list(ctx, now.dir)
		if e != errTorn {
			return nil // another directory stands there
		}
		late.empty()
	}
	if isStale(err) || errors.Is(err, fs.ErrExist) {
		err = nil // somebody else was faster; or removeLeftover does it
	}
	return err
}

// empty removes all but the token.
func (f found) empty() {
	for _, name := range slices.Concat(f.data, f.other) {
		_ = f.removeAll(name) // else the next sweep does it
	}
}

// removeLeftover removes a directory without a token, if nothing has happened in it for so long that the list is sure
// to be complete.
func (n *nfs) removeLeftover(ctx context.Context, id driver.ID) error {
	d, err := n.s.dir.sub(n.s.at(id))
	if err != nil {
		return err
	}
	defer d.close()
	before, err := d.lstat(".")
	if err != nil {
		return err
	}
	f, err := list(ctx, d)
	if err != errTorn {
		return err
	}
	again, err := n.s.dir.lstat(n.s.at(id))
	if err != nil {
		return err
	}
	now, err := n.serverTime()
	if err != nil {
		return err
	}
	if !os.SameFile(before, again) || !before.ModTime().Equal(again.ModTime()) || now.Sub(again.ModTime()) < leftoverAge || f.generation != 0 {
		return errTorn
	}
	f.empty()
	return n.s.dir.remove(n.s.at(id))
}

// sweepBuild removes what is left of a record that was never published.
func (n *nfs) sweepBuild(id driver.ID, name string) error {
	info, err := n.s.dir.lstat(name)
	if err != nil {
		return err
	}
	now, err := n.serverTime()
	if err != nil || now.Sub(info.ModTime()) < leftoverAge {
		return err
	}
	n.discard(id, name)
	return nil
}

// serverTime returns the time by the clock that stamps the files, which is not this machine's.
func (n *nfs) serverTime() (time.Time, error) {
	name := n.s.at(driver.ID{}) + buildInfix + n.lanes.next().String()
	if err := n.makeDir(driver.ID{}, name); err != nil {
		return time.Time{}, err
	}
	info, err := n.s.dir.lstat(name)
	_ = n.s.dir.remove(name) // else the sweeper does it
	if err != nil {
		return time.Time{}, err
	}
	return info.ModTime(), nil
}

// list is dir.list for a subdirectory of records, whose names it reads before it calls portion. One that is missing is
// empty.
func (n *nfs) list(ctx context.Context, name string, portion int, f func(names []string) error) error {
	all, err := within(ctx, n.upkeep, func(ctx context.Context) (all []string, err error) {
		read := func() error {
			all = nil
			return n.s.dir.list(ctx, name, 1024, func(names []string) error {
				all = append(all, names...)
				return nil
			})
		}
		if err = read(); errors.Is(err, fs.ErrNotExist) {
			if err = n.reopened(); err == nil {
				err = read()
			}
			if errors.Is(err, fs.ErrNotExist) {
				err = nil
			}
		}
		return all, err
	})
	if err != nil {
		return err
	}
	for names := range slices.Chunk(all, portion) {
		if err := f(names); err != nil {
			return err
		}
	}
	return nil
}

// head tells what Stat counts. fs.ErrNotExist says that there is no live record; there, that something is left of one.
func (n *nfs) head(ctx context.Context, id driver.ID) (h head, there bool, err error) {
	type result struct {
		head  head
		there bool
	}
	r, err := within(ctx, n.upkeep, func(ctx context.Context) (r result, err error) {
		r.head, r.there, err = n.headInside(ctx, id)
		return r, err
	})
	return r.head, r.there, err
}

func (n *nfs) headInside(ctx context.Context, id driver.ID) (h head, there bool, err error) {
	f, err := n.glance(ctx, id)
	if errors.Is(err, driver.ErrNotFound) {
		return head{}, false, fs.ErrNotExist
	}
	if err != nil {
		return head{}, false, err
	}
	defer f.close()
	if f.state != live {
		return head{}, true, fs.ErrNotExist
	}
	h = head{generation: f.generation, revision: f.revision, expires: int64(f.expires)}
	if info, err := f.lstat(f.dataName()); err == nil { // else it has been replaced meanwhile
		h.size = info.Size()
	}
	return h, true, nil
}
