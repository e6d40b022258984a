package redisstore

// SlotOf is for tests that move slots.
var SlotOf = slotOf

// CacheBytes returns how many bytes the cache counts, and how many records it has.
func (s *Store) CacheBytes() (bytes int64, records int) {
	s.cache.mu.Lock()
	defer s.cache.mu.Unlock()
	return s.cache.bytes, s.cache.recent.Len()
}
