// Package learned is a bounded table of where sessions live, for clients that carry a session's ID and nothing else.
//
// It keeps no ID, only the first 16 bytes of its SHA-256. Entries that were asked for since they were put in are
// protected: a flood of IDs that are used once, as of clients that do not keep cookies at all, pushes out only its own
// kind (segmented LRU). Where an entry is kept depends on a seed made at random for each table, so nobody can choose IDs
// that crowd together.
package learned

import (
	"crypto/sha256"
	"hash/maphash"
	"sync"
	"time"
)

// BytesPerEntry bounds the memory of an entry, maps and their growth included (TestMemory).
const BytesPerEntry = 160

// shards are locked one by one.
const shards = 16

// Table maps IDs to homes. Its methods may be called concurrently.
type Table struct {
	seed  maphash.Seed
	start time.Time
	shard [shards]shard
}

// Stats counts since New, but for Entries, which is now.
type Stats struct {
	// Entries may count some that expired and were not in the way yet.
	Entries int
	// Hits and Misses are answers of Get.
	Hits, Misses uint64
	// Evictions are entries that had to make room, Expirations those that nobody asked for in the idle time.
	Evictions, Expirations uint64
}

type key [16]byte

// New returns a table of at most so many entries (rounded up to a multiple of 16), each dropped when nobody asked for
// it for the time idle.
func New(entries int, idle time.Duration) *Table {
	t := &Table{seed: maphash.MakeSeed(), start: time.Now()}
	for i := range t.shard {
		s := &t.shard[i]
		s.max, s.idle = max((entries+shards-1)/shards, 2), idle
		s.slots = make(map[key]int32)
		s.entries = make([]entry, 2) // the heads of the lists
		for list := range s.entries {
			s.entries[list].next, s.entries[list].prev = int32(list), int32(list)
		}
	}
	return t
}

func (t *Table) locate(id string) (*shard, key) {
	sum := sha256.Sum256([]byte(id))
	k := key(sum[:16])
	return &t.shard[maphash.Comparable(t.seed, k)%shards], k
}

// Get returns the home of an ID, or "" if the table does not know it.
func (t *Table) Get(id string) (home string) {
	s, k := t.locate(id)
	now := time.Since(t.start)
	s.mu.Lock()
	defer s.mu.Unlock()
	i, ok := s.slots[k]
	if ok && s.expired(i, now) {
		s.drop(i)
		s.expirations++
		ok = false
	}
	if !ok {
		s.misses++
		return ""
	}
	s.hits++
	s.protect(i, now)
	return s.entries[i].home
}

// Peek is Get without a trace.
func (t *Table) Peek(id string) (home string) {
	s, k := t.locate(id)
	s.mu.Lock()
	defer s.mu.Unlock()
	if i, ok := s.slots[k]; ok && !s.expired(i, time.Since(t.start)) {
		home = s.entries[i].home
	}
	return home
}

// Put says where an ID lives, whatever the table knew.
func (t *Table) Put(id, home string) {
	s, k := t.locate(id)
	now := time.Since(t.start)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.expire(now)
	if i, ok := s.slots[k]; ok {
		s.entries[i].home, s.entries[i].used = home, now
		s.unlink(i)
		s.link(s.entries[i].list, i)
		return
	}
	if len(s.slots) >= s.max {
		victim := s.entries[probation].prev
		if victim == probation {
			victim = s.entries[protected].prev
		}
		s.drop(victim)
		s.evictions++
	}
	i := s.free
	if i != 0 {
		s.free = s.entries[i].next
	} else {
		i = int32(len(s.entries))
		s.entries = append(s.entries, entry{})
	}
	s.entries[i] = entry{key: k, home: home, used: now}
	s.slots[k] = i
	s.link(probation, i)
}

// Delete forgets an ID.
func (t *Table) Delete(id string) {
	s, k := t.locate(id)
	s.mu.Lock()
	defer s.mu.Unlock()
	if i, ok := s.slots[k]; ok {
		s.drop(i)
	}
}

// Stats returns the counters.
func (t *Table) Stats() Stats {
	var all Stats
	now := time.Since(t.start)
	for i := range t.shard {
		s := &t.shard[i]
		s.mu.Lock()
		for s.expire(now) {
		}
		all.Entries += len(s.slots)
		all.Hits += s.hits
		all.Misses += s.misses
		all.Evictions += s.evictions
		all.Expirations += s.expirations
		s.mu.Unlock()
	}
	return all
}

// An entry is in one of two lists, the most recently used first.
const (
	probation = int32(0) // not asked for since it was put in
	protected = int32(1)
)

// shard is a part of a table. Its entries are in one slice, linked by index, the first two being the heads of the
// lists; those that are free are linked by next, and 0 ends their list.
type shard struct {
	max  int // entries
	idle time.Duration

	// mu guards the fields below.
	mu        sync.Mutex
	slots     map[key]int32
	entries   []entry
	free      int32
	protected int // how many there are in this list

	hits, misses, evictions, expirations uint64
}

type entry struct {
	home       string
	used       time.Duration
	key        key
	prev, next int32
	list       int32
}

func (s *shard) expired(i int32, now time.Duration) bool { return now-s.entries[i].used > s.idle }

// expire drops the last entry of each list if it is expired, and reports whether one was.
func (s *shard) expire(now time.Duration) (dropped bool) {
	for _, list := range []int32{probation, protected} {
		if i := s.entries[list].prev; i != list && s.expired(i, now) {
			s.drop(i)
			s.expirations++
			dropped = true
		}
	}
	return dropped
}

// protect moves entry i to the front of the protected, of which there are at most three in four: the least recently
// used of them goes back on probation.
func (s *shard) protect(i int32, now time.Duration) {
	s.entries[i].used = now
	s.unlink(i)
	s.link(protected, i)
	if s.protected > s.max*3/4 {
		last := s.entries[protected].prev
		s.unlink(last)
		s.link(probation, last)
	}
}

func (s *shard) link(list, i int32) {
	e, next := &s.entries[i], s.entries[list].next
	e.list, e.prev, e.next = list, list, next
	s.entries[list].next, s.entries[next].prev = i, i
	if list == protected {
		s.protected++
	}
}

func (s *shard) unlink(i int32) {
	e := &s.entries[i]
	s.entries[e.prev].next, s.entries[e.next].prev = e.next, e.prev
	if e.list == protected {
		s.protected--
	}
}

func (s *shard) drop(i int32) {
	s.unlink(i)
	delete(s.slots, s.entries[i].key)
	s.entries[i] = entry{next: s.free}
	s.free = i
}

// Idle returns the idle time that t was made with, Capacity how many entries it can have.
func (t *Table) Idle() time.Duration { return t.shard[0].idle }
func (t *Table) Capacity() int       { return shards * t.shard[0].max }
