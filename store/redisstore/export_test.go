package redisstore

import (
	"bufio"
	"strings"
)

// ParseURL returns why a URL is refused.
func ParseURL(raw string) error {
	_, err := parseURL(raw)
	return err
}

// ReadReply returns the words of a reply to HELLO.
func ReadReply(reply string) (words []string, err error) {
	err = readReply(bufio.NewReader(strings.NewReader(reply)), &words, 0)
	return words, err
}

// SlotOf is for tests that move slots.
var SlotOf = slotOf

// NamedPrimaries returns the primaries in a reply to CLUSTER NODES.
var NamedPrimaries = namedPrimaries

// CacheBytes returns how many bytes the cache counts, and how many records it has.
func (s *Store) CacheBytes() (bytes int64, records int) {
	s.cache.mu.Lock()
	defer s.cache.mu.Unlock()
	return s.cache.bytes, s.cache.recent.Len()
}
