// Package memcached keeps sessions in memcached servers, 1.4.31 or newer.
//
//	store, err := memcached.Open(ctx, "memcached://cache1,cache2:11212,cache3?prefix=holdfast:")
//
// A record is one value under prefix + 64 hexadecimal characters, on the server that libmemcached's ketama picks for
// the key. A read is one round trip, and so is a write that follows it: a compare-and-swap. Writers of different fields
// meet conflicts, and the Manager lays their changes over each other.
//
// memcached forgets: a server that restarts is empty, and one whose memory is full drops what was not used for longest.
// The users concerned are logged out. The store never takes a server that does not answer for one that has
// forgotten, never moves keys to another server by itself (a server that came back would bring old states back), tells
// what it can of its losses apart from logouts (see Losses), and can keep a second copy of each record (copies=2).
// docs/stores/memcached.md has the commands, the guarantees, and when not to use it.
package memcached

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/bradfitz/gomemcache/memcache"

	"github.com/holdfast-sessions/holdfast/driver"
)

// Store keeps records in memcached servers. It implements driver.Store, Lister, Stater and Describer. It has no Touch:
// memcached's does not look at what it extends, and so a touch is a save.
type Store struct {
	servers     []*server
	ring        *ring
	prefix      string
	grace       time.Duration // how long the server keeps a record after it expired
	copies      bool          // each record is on a second server too
	description driver.Description

	closing chan struct{} // closed by Close
	close   sync.Once
}

// Load returns the record, or ErrNotFound if it is absent, expired or ended: ErrGone as long as the server remembers that
// it expired or was ended. It is repeated once if the connection breaks.
func (s *Store) Load(ctx context.Context, id driver.ID) (driver.Record, error) {
	key := s.key(id)
	if s.copies {
		return s.loadEither(ctx, key)
	}
	first := s.first(key)
	f, err := first.load(ctx, key)
	if err != nil {
		return driver.Record{}, err
	}
	first.count(f)
	return f.live()
}

// Save writes rec if the stored revision is prev (0: absent or expired), or returns ErrConflict. It is never sent twice:
// if its answer is lost, the caller gets ErrUnavailable and it may have been carried out.
func (s *Store) Save(ctx context.Context, id driver.ID, rec driver.Record, prev uint64) error {
	item, err := s.item(id, rec)
	if err != nil {
		return err
	}
	if s.copies {
		return s.saveBoth(ctx, item, rec, prev)
	}
	return s.first(item.Key).do(ctx, func(l *lane) error { return l.save(item, rec.Tag, prev, 0) })
}

// Delete ends the session: what was stored is replaced by a note that it ended, which has a CAS ID of its own, so no
// save that is still under way succeeds. Ending an absent session is not an error.
func (s *Store) Delete(ctx context.Context, id driver.ID) error {
	item := endItem(s.key(id))
	if s.copies {
		return s.deleteBoth(ctx, item)
	}
	return s.first(item.Key).end(ctx, item)
}

// Describe says what the servers said of themselves when the store was opened.
func (s *Store) Describe() driver.Description { return s.description }

// Close closes the connections. Calls that are under way have a second to end.
func (s *Store) Close() error {
	s.close.Do(func() {
		close(s.closing)
		var wg sync.WaitGroup
		for _, srv := range s.servers {
			wg.Go(srv.stop)
		}
		wg.Wait()
	})
	return nil
}

func (s *Store) key(id driver.ID) string { return s.prefix + id.Hex() }

func (s *Store) first(key string) *server { return s.servers[s.ring.pick(key)] }

// item returns what to send for rec.
func (s *Store) item(id driver.ID, rec driver.Record) (*memcache.Item, error) {
	if n, limit := rec.EncodedLen(), s.description.MaxBytes; n > limit {
		return nil, fmt.Errorf("%w: %d bytes, the store takes %d (memcached's setting -I, or the URL's option max_bytes)", driver.ErrTooLarge, n, limit)
	}
	value, err := encode(rec)
	if err != nil {
		return nil, err
	}
	return &memcache.Item{Key: s.key(id), Value: value, Expiration: expiration(rec.Expires, time.Now(), s.grace)}, nil
}

// endItem returns what to send to end a session.
func endItem(key string) *memcache.Item {
	return &memcache.Item{Key: key, Value: ended(), Expiration: int32(endedLife / time.Second)}
}

// found is what a load found.
type found struct {
	state
	missing bool
	cas     uint64
	life    uint64 // of the server that has it
}

// live returns the record, or ErrNotFound, or ErrGone if it expired or was ended.
func (f found) live() (driver.Record, error) {
	now := time.Now()
	switch {
	case f.missing:
		return driver.Record{}, driver.ErrNotFound
	case f.revision(now) == 0:
		return driver.Record{}, driver.ErrGone
	}
	r := f.rec
	r.Tag = makeTag(f.cas, r.Revision, f.life, r.Expires, now)
	return r, nil
}

// load returns what the server has under a key.
func (s *server) load(ctx context.Context, key string) (found, error) {
	look := func(l *lane) (found, error) { return l.look(key) }
	f, err := ask(ctx, s, look)
	if errors.Is(err, errBroken) {
		f, err = ask(ctx, s, look)
	}
	return f, err
}

// count counts what a load found.
func (s *server) count(f found) {
	switch {
	case f.missing:
		s.seen.missing.Add(1)
	case f.ended:
		s.seen.ended.Add(1)
	case f.rec.Expired(time.Now()):
		s.seen.expired.Add(1)
	}
}

// look returns what is stored under a key.
func (l *lane) look(key string) (found, error) {
	it, err := l.get(key)
	switch {
	case isMiss(err):
		return found{missing: true, life: l.life}, nil
	case err != nil:
		return found{}, err
	}
	st, err := decode(it.Value)
	return found{state: st, cas: it.CasID, life: l.life}, err
}

// save stores item if the stored revision is prev, that of a missing key being absent. It takes one round trip if prev
// is 0 and nothing is stored, or if the Tag is that of the stored record; otherwise it has to look first. All of that
// happens on one connection: a server that restarted meanwhile would count its CAS IDs anew.
func (l *lane) save(item *memcache.Item, tag, prev, absent uint64) error {
	if prev == 0 && absent == 0 {
		if err := l.client.Add(item); !isNotStored(err) {
			return err
		}
	} else if cas, ok := openTag(tag, prev, l.life, l.srv.seen.highest.Load(), time.Now()); ok && prev != 0 {
		item.CasID = cas
		if err := l.client.CompareAndSwap(item); !isExists(err) && !isMiss(err) {
			return err
		}
	}
	for {
		f, err := l.look(item.Key)
		if err != nil {
			return err
		}
		stored := absent
		if !f.missing {
			stored = f.revision(time.Now())
		}
		if stored != prev {
			if f.missing && absent == 0 {
				l.srv.seen.vanished.Add(1)
			}
			return driver.ErrConflict
		}
		if err := l.swap(item, f); !isMoved(err) {
			return err
		}
	}
}

// swap stores item in place of what was found on this connection. isMoved of its error says that something else is
// stored by now.
func (l *lane) swap(item *memcache.Item, f found) error {
	if f.missing {
		return l.client.Add(item)
	}
	item.CasID = f.cas
	return l.client.CompareAndSwap(item)
}

// end stores the note that a session ended. A server that has no memory for it is told to forget the session instead,
// which ends it as well.
func (s *server) end(ctx context.Context, item *memcache.Item) error {
	err := s.do(ctx, func(l *lane) error { return l.client.Set(item) })
	if !errors.Is(err, errNoMemory) {
		return err
	}
	return s.do(ctx, func(l *lane) error {
		if err := l.client.Delete(item.Key); !isMiss(err) {
			return err
		}
		return nil
	})
}
