// Package redisstore keeps sessions in Redis, 6.0 or newer: one server, a primary that Redis Sentinel looks after, or a
// Redis Cluster.
//
//	store, err := redisstore.Open(ctx, "redis://app:secret@localhost:6379/0?prefix=holdfast:")
//	store, err := redisstore.Open(ctx, "redis-sentinel://app:secret@s1,s2,s3/0?master=main&wait=1")
//	store, err := redisstore.Open(ctx, "redis-cluster://app:secret@n1,n2,n3?cache=64MB")
//
// A record is one string under prefix + 64 hexadecimal characters, in driver's encoding. A read is one GET and a
// write is one script: one round trip each. Writers of different fields never conflict, because the script lays
// the changes over whatever is stored.
//
// When another server takes over, calls return ErrUnavailable meanwhile and work again by themselves. Redis replicates
// after it has answered, so what a server acknowledged just before it died may be undone, a logout too, unless
// wait=N has replicas confirm it first. docs/stores/redis.md has the commands, the rights a user needs, what the
// store guarantees, and how it fails.
package redisstore

import (
	"context"
	_ "embed"
	"encoding/binary"
	"fmt"
	"sync"
	"time"

	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/redis/rueidis"
)

var (
	//go:embed prelude.lua
	preludeLua string
	//go:embed save.lua
	saveLua string
	//go:embed touch.lua
	touchLua string
	//go:embed merge.lua
	mergeLua string
	//go:embed delete.lua
	deleteLua string
	//go:embed probe.lua
	probeLua string
)

// What the scripts reply; prelude.lua has the same numbers.
const (
	replyDone = iota
	replyMissing
	replyConflict
	replyVersion
	replyCorrupt
)

// defaultMaxBytes is the longest string Redis takes unless its setting proto-max-bulk-len says otherwise.
const defaultMaxBytes = 512 << 20

// Store keeps records in Redis. It implements driver.Store, Merger, Toucher, Watcher, Lister, Stater and Describer.
type Store struct {
	client      rueidis.Client
	feedOption  rueidis.ClientOption // for connections that tell of changes: see Watch
	addr        string               // of the server, without a cluster
	user        string
	sentinels   *sentinels // nil without Sentinel
	cluster     *cluster   // nil without Cluster
	cache       *cache     // nil without
	prefix      string
	db          int
	wait        int // replicas that have to confirm a write; 0: none
	waitTimeout time.Duration
	description driver.Description

	save, touch, merge, remove script

	// slots has one element for every call that is under way, also one whose caller has gone. See do.
	slots    chan struct{}
	closing  chan struct{} // closed by Close
	close    sync.Once
	watchers sync.WaitGroup
	// ctx ends when Close gives up on calls that are under way.
	ctx    context.Context
	cancel context.CancelFunc
}

// Load returns the record, or ErrNotFound if it is absent, expired or ended. It is repeated once if the connection
// breaks. With a cache it may be what was stored up to cache_ttl ago, but never older than what this Store has
// written, or failed to.
func (s *Store) Load(ctx context.Context, id driver.ID) (driver.Record, error) {
	if s.cache == nil {
		return s.load(ctx, id)
	}
	if err := ctx.Err(); err != nil {
		return driver.Record{}, driver.Unavailable(err)
	}
	select {
	case <-s.closing:
		return driver.Record{}, driver.ErrClosed
	default:
	}
	rec, ok, mark := s.cache.get(id)
	if ok {
		return rec, nil
	}
	rec, err := s.load(ctx, id)
	if err == nil {
		s.cache.put(id, rec, mark)
	}
	return rec, err
}

// forget is for when a record was written, or may have been: what the cache has of it is not to be served any more.
func (s *Store) forget(id driver.ID) {
	if s.cache != nil {
		s.cache.forget(id)
	}
}

func (s *Store) load(ctx context.Context, id driver.ID) (driver.Record, error) {
	b, err := s.read(ctx, s.client, func(b rueidis.Builder) rueidis.Completed { return b.Get().Key(s.key(id)).Build() }).AsBytes()
	if err != nil {
		return driver.Record{}, s.mapError(err)
	}
	return s.decode(b)
}

// decode parses a stored record. The client's clock decides whether it has expired.
func (s *Store) decode(b []byte) (driver.Record, error) {
	r, err := driver.Decode(b)
	if err != nil {
		return driver.Record{}, err
	}
	if r.Expired(time.Now()) {
		return driver.Record{}, driver.ErrNotFound
	}
	return r, nil
}

// Save writes rec if the stored revision is prev (0: absent or expired), or returns ErrConflict. It is never sent twice.
// A caller that repeats one whose answer was lost gets ErrConflict if the first was carried out: that the stored revision
// is rec's does not prove that rec is what is stored, because writers that start from one record within a
// millisecond may choose the same revision (see driver.NewRevision).
func (s *Store) Save(ctx context.Context, id driver.ID, rec driver.Record, prev uint64) error {
	blob, err := s.encode(rec)
	if err != nil {
		return err
	}
	_, err = s.exec(ctx, s.save, true, id, prev, rec.Expires, rueidis.BinaryString(blob))
	return err
}

// Merge stores next, or lays changes over what is stored, as driver.Merger says. The changed values are taken from
// next, which has them.
func (s *Store) Merge(ctx context.Context, id driver.ID, base, next driver.Record, changes []driver.Change) (driver.Record, error) {
	blob, err := s.encode(next)
	if err != nil {
		return driver.Record{}, err
	}
	args := make([]string, 1, 1+len(changes))
	args[0] = rueidis.BinaryString(blob)
	for _, c := range changes {
		args = append(args, c.Name)
	}
	merged, err := s.exec(ctx, s.merge, true, id, base.Revision, next.Expires, args...)
	switch {
	case err != nil:
		return driver.Record{}, err
	case merged == nil:
		return next, nil
	}
	return driver.Decode(merged)
}

// Touch gives the stored record next's Seen, Expires and Revision if its revision is prev. It sends no fields. It does not
// wait for replicas: one that is lost shortens a session by as much as it would have extended it, no more.
func (s *Store) Touch(ctx context.Context, id driver.ID, next driver.Record, prev uint64) error {
	next.User, next.Fields = "", driver.Fields{}
	blob, err := s.encode(next)
	if err != nil {
		return err
	}
	_, err = s.exec(ctx, s.touch, false, id, prev, next.Expires, rueidis.BinaryString(blob[1:33]))
	return err
}

// Delete ends the session. Ending an absent one is not an error. No script creates a record from a revision other
// than 0, so nothing that is still under way brings it back.
func (s *Store) Delete(ctx context.Context, id driver.ID) error {
	if s.wait > 0 {
		w := s.run(ctx, s.remove, true, id, nil)
		if w.err != nil {
			return s.mapError(w.err)
		}
		return s.confirmed(w.copies)
	}
	r, err := do(ctx, s, func(ctx context.Context) rueidis.RedisResult {
		defer s.forget(id)
		return s.client.Do(ctx, s.client.B().Del().Key(s.key(id)).Build())
	})
	if err != nil {
		return err
	}
	return s.mapError(r.Error())
}

// Describe says what the server said of itself when the store was opened.
func (s *Store) Describe() driver.Description { return s.description }

// Close closes the connections and waits for calls that are under way, which end within a few seconds.
func (s *Store) Close() error {
	s.close.Do(func() {
		close(s.closing)
		// It answers what it can within a second per connection; some of what it waits for does not end by itself.
		giveUp := time.AfterFunc(time.Second, s.cancel)
		s.client.Close()
		giveUp.Stop()
		s.cancel()
		for range cap(s.slots) {
			s.slots <- struct{}{}
		}
		s.client.Close() // also a connection that was being made meanwhile
		s.watchers.Wait()
		if s.sentinels != nil {
			s.sentinels.close()
		}
	})
	return nil
}

func (s *Store) key(id driver.ID) string { return s.prefix + id.Hex() }

// encode refuses what is too large here, because Redis answers it by closing the connection.
func (s *Store) encode(r driver.Record) ([]byte, error) {
	if n, limit := r.EncodedLen(), s.description.MaxBytes; n > limit {
		return nil, fmt.Errorf("%w: %d bytes, the server takes %d (its setting proto-max-bulk-len)", driver.ErrTooLarge, n, limit)
	}
	return driver.Encode(r)
}

// bytes8 returns n as driver's encoding and the scripts have it.
func bytes8(n uint64) string { return string(binary.BigEndian.AppendUint64(nil, n)) }
