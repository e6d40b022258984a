package redisstore

import (
	"container/list"
	"strings"
	"sync"
	"time"

	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/redis/rueidis"
)

// cache keeps records that were read lately. The server tells when one of them changes (CLIENT TRACKING), which is
// usually within a round trip, but nothing rests on that: a record is served for ttl after the server was asked for it,
// and not after. So what it serves was true at most ttl ago, also when the connection is cut or the server frozen
// and nothing is told. What is absent or has expired is never served from it.
type cache struct {
	ttl      time.Duration
	maxBytes int64

	// mu guards the fields below
	mu      sync.Mutex
	entries map[driver.ID]*list.Element // of *cached
	recent  list.List                   // least recently used last
	bytes   int64
	// changes counts, by the last byte of the ID, what was reported or written. A record that was asked for before a
	// change and arrives after it is not kept: it may be from before.
	changes [256]uint64
}

type cached struct {
	id    driver.ID
	rec   driver.Record
	until time.Time
	bytes int64
}

// perRecord is about what a record takes in memory beside its bytes: the map's share, the list's element, and this.
const perRecord = 400

func newCache(maxBytes int64, ttl time.Duration) *cache {
	return &cache{ttl: ttl, maxBytes: maxBytes, entries: make(map[driver.ID]*list.Element)}
}

// mark says when a record was asked for.
type mark struct {
	changes uint64
	at      time.Time
}

// get returns a record, or a mark to give to put when the server has answered.
func (c *cache) get(id driver.ID) (driver.Record, bool, mark) {
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.entries[id]; e != nil {
		if have := e.Value.(*cached); now.Before(have.until) && !have.rec.Expired(now) {
			c.recent.MoveToFront(e)
			return have.rec, true, mark{}
		}
		c.drop(e)
	}
	return driver.Record{}, false, mark{c.changes[id[len(id)-1]], now}
}

func (c *cache) put(id driver.ID, rec driver.Record, m mark) {
	size := int64(rec.EncodedLen() + perRecord)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.changes[id[len(id)-1]] != m.changes || size > c.maxBytes/8 {
		return
	}
	if e := c.entries[id]; e != nil {
		c.drop(e)
	}
	c.entries[id] = c.recent.PushFront(&cached{id, rec, m.at.Add(c.ttl), size})
	c.bytes += size
	for c.bytes > c.maxBytes {
		c.drop(c.recent.Back())
	}
}

// forget drops a record, and keeps out what is on its way.
func (c *cache) forget(id driver.ID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.changes[id[len(id)-1]]++
	if e := c.entries[id]; e != nil {
		c.drop(e)
	}
}

// forgetAll is for when a connection ends: what would have been told on it is not known.
func (c *cache) forgetAll() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range c.changes {
		c.changes[i]++
	}
	clear(c.entries)
	c.recent.Init()
	c.bytes = 0
}

func (c *cache) drop(e *list.Element) {
	have := c.recent.Remove(e).(*cached)
	delete(c.entries, have.id)
	c.bytes -= have.bytes
}

// track makes connections tell what changes of what was read on them.
func (s *Store) track(o *rueidis.ClientOption) {
	o.DisableCache = false
	o.ClientTrackingOptions = []string{} // not OPTIN: each GET is tracked, and is still one command
	o.NewCacheStoreFn = func(rueidis.CacheStoreOption) rueidis.CacheStore { return noStore{} }
	o.OnInvalidations = func(keys []rueidis.RedisMessage) {
		if keys == nil { // the database was emptied, or the connection ended
			s.cache.forgetAll()
			return
		}
		for i := range keys {
			if id, ok := s.parseKey(keys[i]); ok {
				s.cache.forget(id)
			}
		}
	}
}

// parseKey returns the ID of a key, if it is one of the store's.
func (s *Store) parseKey(m rueidis.RedisMessage) (driver.ID, bool) {
	key, err := m.ToString()
	if err != nil || !strings.HasPrefix(key, s.prefix) {
		return driver.ID{}, false
	}
	id, err := driver.ParseID(key[len(s.prefix):])
	return id, err == nil
}

// noStore takes the place of rueidis' own cache, which would not do: it may serve what was there before a write of
// ours for a moment after it. It is never asked for anything.
type noStore struct{}

func (noStore) Flight(string, string, time.Duration, time.Time) (rueidis.RedisMessage, rueidis.CacheEntry) {
	return rueidis.RedisMessage{}, nil
}
func (noStore) Update(string, string, rueidis.RedisMessage) int64 { return 0 }
func (noStore) Cancel(string, string, error)                      {}
func (noStore) Delete([]rueidis.RedisMessage)                     {}
func (noStore) Close(error)                                       {}
