// Package memory keeps records in this process's memory: for tests, for development, and for one server that may
// forget every session when it restarts. Other processes do not see them.
//
// It is exact (expiry to the nanosecond, merges and saves in one step) and never drops a record before it expires,
// so memory grows with the number of live sessions: about 230 bytes each beside their fields.
//
//	store := memory.New()
//	defer store.Close()
//	sessions, err := holdfast.New(store, holdfast.Config{})
package memory

import (
	"context"
	"fmt"
	"hash/maphash"
	"iter"
	"maps"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/holdfast-sessions/holdfast/driver"
)

const (
	shardCount = 256 // a power of two

	// A sweep visits sweepShards shards and at most sweepVisits records of each, under that shard's lock: 0.2 ms.
	// Up to a million records each one is looked at every 16 s. Beyond that a visit is a sample, as the iteration
	// of a map starts at a random place.
	sweepEvery  = time.Second
	sweepShards = 16
	sweepVisits = 4096
)

// Store is a sharded map of records. It implements driver.Store, driver.Merger, driver.Watcher, driver.Lister,
// driver.Sweeper, driver.Stater and driver.Describer. Create it with New.
type Store struct {
	seed   maphash.Seed // random, so that nobody can choose IDs that share a shard
	shards [shardCount]shard
	stop   func()
	closed chan struct{} // closed by stop
	swept  sync.WaitGroup

	watchers watchers
}

type shard struct {
	mu sync.RWMutex

	// mu guards the map; the records in it are immutable. It is nil once the store is closed.
	records map[driver.ID]*driver.Record
}

// New returns an empty store. Its one goroutine, which forgets expired records, runs until Close.
func New() *Store {
	s := &Store{seed: maphash.MakeSeed()}
	for i := range s.shards {
		s.shards[i].records = make(map[driver.ID]*driver.Record)
	}
	s.closed = make(chan struct{})
	s.stop = sync.OnceFunc(func() { close(s.closed) })
	s.swept.Go(s.sweep)
	return s
}

func (s *Store) index(id *driver.ID) uint64 { return maphash.Bytes(s.seed, id[:]) % shardCount }

func (s *Store) shard(id *driver.ID) *shard { return &s.shards[s.index(id)] }

// live returns the record if it has not ended, or ErrNotFound or ErrClosed. The caller holds sh.mu.
func (sh *shard) live(id *driver.ID) (*driver.Record, error) {
	rec, ok := sh.records[*id]
	switch {
	case ok && !rec.Expired(time.Now()):
		return rec, nil
	case sh.records == nil:
		return nil, driver.ErrClosed
	}
	return nil, driver.ErrNotFound
}

// Load implements driver.Store.
func (s *Store) Load(ctx context.Context, id driver.ID) (driver.Record, error) {
	if err := ctx.Err(); err != nil {
		return driver.Record{}, err
	}
	sh := s.shard(&id)
	sh.mu.RLock()
	rec, err := sh.live(&id)
	sh.mu.RUnlock()
	if err != nil {
		return driver.Record{}, err
	}
	return *rec, nil
}

// Save implements driver.Store.
func (s *Store) Save(ctx context.Context, id driver.ID, rec driver.Record, prev uint64) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if len(rec.User) > driver.MaxName {
		return fmt.Errorf("%w: user name of %d bytes, at most %d", driver.ErrTooLarge, len(rec.User), driver.MaxName)
	}
	rec.Tag = 0
	err := s.shard(&id).save(&id, &rec, prev)
	if err == nil {
		s.watchers.tell(id)
	}
	return err
}

func (sh *shard) save(id *driver.ID, rec *driver.Record, prev uint64) error {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	var stored uint64
	switch old, err := sh.live(id); err {
	case nil:
		stored = old.Revision
	case driver.ErrNotFound:
	default:
		return err
	}
	if stored != prev {
		return driver.ErrConflict
	}
	sh.records[*id] = rec
	return nil
}

// Merge implements driver.Merger.
func (s *Store) Merge(ctx context.Context, id driver.ID, base, next driver.Record, changes []driver.Change) (driver.Record, error) {
	if err := ctx.Err(); err != nil {
		return driver.Record{}, err
	}
	merged, err := s.shard(&id).merge(&id, base, next, changes)
	if err == nil {
		s.watchers.tell(id)
	}
	return merged, err
}

func (sh *shard) merge(id *driver.ID, base, next driver.Record, changes []driver.Change) (driver.Record, error) {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	old, err := sh.live(id)
	switch {
	case err != nil:
		return driver.Record{}, err
	case !old.SameLife(base):
		return driver.Record{}, driver.ErrConflict
	case old.Revision != base.Revision:
		next.Fields = old.Fields.With(changes...)
		next.Revision = max(next.Revision, old.Revision+1)
		if next.Seen.Before(old.Seen) {
			next.Seen = old.Seen
		}
		if next.Expires.Before(old.Expires) {
			next.Expires = old.Expires
		}
	}
	next.User, next.Created, next.Tag = old.User, old.Created, 0
	sh.records[*id] = &next
	return next, nil
}

// Delete implements driver.Store.
func (s *Store) Delete(ctx context.Context, id driver.ID) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if !s.shard(&id).remove(&id) {
		return driver.ErrClosed
	}
	s.watchers.tell(id)
	return nil
}

// remove forgets a record. It reports false if the store is closed.
func (sh *shard) remove(id *driver.ID) (open bool) {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	delete(sh.records, *id)
	return sh.records != nil
}

// List implements driver.Lister. It holds no lock while it yields, and copies one shard's references at a time.
func (s *Store) List(ctx context.Context) iter.Seq2[driver.Item, error] {
	return func(yield func(driver.Item, error) bool) {
		for i := range s.shards {
			sh := &s.shards[i]
			sh.mu.RLock()
			closed := sh.records == nil
			ids := slices.Collect(maps.Keys(sh.records))
			sh.mu.RUnlock()
			if closed {
				yield(driver.Item{}, driver.ErrClosed)
				return
			}
			for _, id := range ids {
				rec, err := s.Load(ctx, id)
				if err == driver.ErrNotFound {
					continue
				}
				if !yield(driver.Item{ID: id, Record: rec}, err) || err != nil {
					return
				}
			}
		}
		if err := ctx.Err(); err != nil {
			yield(driver.Item{}, err)
		}
	}
}

// Sweep implements driver.Sweeper. A portion is one shard, whose lock it holds for 50 ns a record.
func (s *Store) Sweep(ctx context.Context, progress func(removed int)) (removed int, err error) {
	for i := range s.shards {
		if err := ctx.Err(); err != nil {
			return removed, err
		}
		n, open := s.shards[i].sweep(time.Now(), math.MaxInt)
		if !open {
			return removed, driver.ErrClosed
		}
		if removed += n; progress != nil {
			progress(removed)
		}
	}
	return removed, nil
}

// Stat implements driver.Stater. Its bytes are those of the records' encodings, without what the map takes for each.
func (s *Store) Stat(ctx context.Context) (driver.Stat, error) {
	var st driver.Stat
	now := time.Now()
	for i := range s.shards {
		if err := ctx.Err(); err != nil {
			return driver.Stat{}, err
		}
		if !s.shards[i].count(now, &st) {
			return driver.Stat{}, driver.ErrClosed
		}
	}
	return st, nil
}

// Describe implements driver.Describer.
func (s *Store) Describe() driver.Description {
	return driver.Description{Name: "memory", Durable: "nothing: the records are gone when the process ends", Immediate: true}
}

// Close forgets every record and waits for the store's goroutine.
func (s *Store) Close() error {
	s.stop()
	s.swept.Wait()
	for i := range s.shards {
		sh := &s.shards[i]
		sh.mu.Lock()
		sh.records = nil
		sh.mu.Unlock()
	}
	return nil
}

// sweep forgets expired records until the store is closed. Load does not depend on it.
func (s *Store) sweep() {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for i := 0; ; {
		select {
		case <-s.closed:
			return
		case <-tick.C:
		}
		for range sweepShards {
			s.shards[i%shardCount].sweep(time.Now(), sweepVisits)
			i++
		}
	}
}

// sweep forgets what has expired among at most visits records. It reports false if the store is closed.
func (sh *shard) sweep(now time.Time, visits int) (removed int, open bool) {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	for id, rec := range sh.records {
		if rec.Expired(now) {
			delete(sh.records, id)
			removed++
		}
		if visits--; visits == 0 {
			break
		}
	}
	return removed, sh.records != nil
}

// count adds what the shard keeps to st. It reports false if the store is closed.
func (sh *shard) count(now time.Time, st *driver.Stat) (open bool) {
	sh.mu.RLock()
	defer sh.mu.RUnlock()
	for _, rec := range sh.records {
		if rec.Expired(now) {
			st.Expired++
		} else {
			st.Records++
		}
		st.Bytes += int64(rec.EncodedLen())
	}
	return sh.records != nil
}
