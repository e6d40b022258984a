package memcached

import (
	"context"
	"errors"
	"time"

	"github.com/bradfitz/gomemcache/memcache"

	"github.com/holdfast-sessions/holdfast/driver"
)

// A second copy (copies=2) of each record is on the next other server of the ring. It is there for reads: when the
// first server is down, or has lost the record. Two servers cannot outvote each other, so nothing is ever decided by one
// of them alone:
//
//   - The first server decides every write, by compare-and-swap. A write needs both: it has happened when the second has
//     it too. While one of the two is down, sessions are read, and neither written nor ended.
//   - A save looks at the second copy before it asks the first, and replaces afterwards what it saw and nothing newer: a
//     save that is late there gives way to what came after it, and always to the end of the session.
//   - Delete ends the second copy first. From then on nothing makes a first copy out of the second, and a call that did
//     so just before takes it back.
//
// So the second copy has every write that was reported done, and what has been ended stays so when either server loses its
// memory, whenever it does (TestExploreCopies). One thing does not hold then: if the first server loses its memory after it
// accepted a save and before the second has it, another save over the same revision may be accepted too.

// second returns the server of the second copy.
func (s *Store) second(key string) *server { return s.servers[s.ring.second(key)] }

// loadEither returns the first copy, or the second if the first server is down or has lost the record.
func (s *Store) loadEither(ctx context.Context, key string) (driver.Record, error) {
	first, second := s.first(key), s.second(key)
	f, err := s.loadFirst(ctx, first, key)
	switch {
	case err == nil && !f.missing:
		first.count(f)
		return f.live()
	case err != nil && (!errors.Is(err, driver.ErrUnavailable) || errors.Is(err, driver.ErrClosed) || ctx.Err() != nil):
		return driver.Record{}, err
	}
	g, secondErr := second.load(ctx, key)
	switch {
	case err != nil && (secondErr != nil || g.missing):
		return driver.Record{}, err // the first server may have it
	case secondErr != nil:
		return driver.Record{}, secondErr // the second may
	}
	rec, liveErr := g.live()
	if liveErr == nil {
		first.seen.second.Add(1)
		if err == nil {
			liveErr = s.restore(ctx, rec, key, first, second)
		}
	} else {
		first.count(g)
	}
	rec.Tag = 0 // it is the first server's CAS ID that counts
	return rec, liveErr
}

// loadFirst asks the first server. One that hangs is left half of the time, so that there is some to ask the other.
func (s *Store) loadFirst(ctx context.Context, first *server, key string) (found, error) {
	if at, ok := ctx.Deadline(); ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Until(at)/2)
		defer cancel()
	}
	return first.load(ctx, key)
}

// restore makes a first copy of the second. That it does not succeed matters to nobody now; that the session ended
// meanwhile does.
func (s *Store) restore(ctx context.Context, rec driver.Record, key string, first, second *server) error {
	value, err := encode(rec)
	if err != nil {
		return err
	}
	item := &memcache.Item{Key: key, Value: value, Expiration: expiration(rec.Expires, time.Now(), s.grace)}
	if first.do(ctx, func(l *lane) error { return l.client.Add(item) }) != nil {
		return nil
	}
	g, err := second.load(ctx, key)
	if err != nil {
		return err
	}
	if g.ended {
		return s.takeBack(ctx, first, key, rec.Revision, driver.ErrGone)
	}
	return nil
}

// takeBack ends the first copy if it is still of this revision, and returns because, or why it could not.
func (s *Store) takeBack(ctx context.Context, first *server, key string, revision uint64, because error) error {
	// The caller's context may end at any moment; this must not.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), first.timeout)
	defer cancel()
	err := first.do(ctx, func(l *lane) error {
		f, err := l.look(key)
		if err != nil || f.missing || f.revision(time.Now()) != revision {
			return err
		}
		if err := l.swap(endItem(key), f); !isMoved(err) {
			return err
		}
		return nil
	})
	if err != nil {
		return err
	}
	return because
}

// saveBoth saves on the first server, which decides, and then on the second. Three round trips.
func (s *Store) saveBoth(ctx context.Context, item *memcache.Item, rec driver.Record, prev uint64) error {
	first, second := s.first(item.Key), s.second(item.Key)
	before, err := second.load(ctx, item.Key)
	if err != nil {
		return err
	}
	absent := uint64(0) // the revision of a record that the first server has lost
	if !before.missing {
		absent = before.revision(time.Now())
	}
	if err := first.do(ctx, func(l *lane) error { return l.save(item, rec.Tag, prev, absent) }); err != nil {
		return err
	}
	if before.ended && prev != 0 {
		return nil // it is being ended, or a Save with prev 0 has met a Delete: the end stays
	}
	err = second.do(ctx, func(l *lane) error { return l.follow(item, rec.Revision, before) })
	if errors.Is(err, errEnded) {
		if prev == 0 {
			return nil
		}
		return s.takeBack(ctx, first, item.Key, rec.Revision, driver.ErrConflict)
	}
	return err
}

var errEnded = errors.New("the session was ended meanwhile")

// follow stores on the second server what the first has accepted, over what was there before that, or over anything
// older.
func (l *lane) follow(item *memcache.Item, revision uint64, f found) error {
	for fresh := f.life != 0 && f.life == l.life; ; fresh = true {
		if fresh {
			if err := l.swap(item, f); !isMoved(err) {
				return err
			}
		}
		var err error
		if f, err = l.look(item.Key); err != nil {
			return err
		}
		switch {
		case f.missing:
			// The server lost what was here, perhaps the end of the session.
			return driver.Unavailable(errors.New("the server lost its memory during the call"))
		case f.ended:
			return errEnded
		case f.rec.Revision >= revision:
			return nil // a later save was faster
		}
	}
}

// deleteBoth ends the session on the second server, on the first, and on the second again, where a save may have followed
// the first meanwhile if that server lost its memory. It succeeds if all do.
func (s *Store) deleteBoth(ctx context.Context, item *memcache.Item) error {
	first, second := s.first(item.Key), s.second(item.Key)
	for _, srv := range []*server{second, first, second} {
		if err := srv.end(ctx, item); err != nil {
			return err
		}
	}
	return nil
}
