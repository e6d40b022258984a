package memory

import "github.com/holdfast-sessions/holdfast/driver"

const ShardCount = shardCount

// Index returns the number of the shard that holds id.
func (s *Store) Index(id driver.ID) int { return int(s.index(&id)) }

// Kept counts the records in memory, expired or not.
func (s *Store) Kept() int {
	n := 0
	for i := range s.shards {
		sh := &s.shards[i]
		sh.mu.RLock()
		n += len(sh.records)
		sh.mu.RUnlock()
	}
	return n
}
