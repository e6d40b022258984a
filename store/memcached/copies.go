package memcached

import (
	"context"

	"github.com/bradfitz/gomemcache/memcache"

	"github.com/holdfast-sessions/holdfast/driver"
)

func (s *Store) loadEither(ctx context.Context, key string) (driver.Record, error) {
	panic("TODO")
}
func (s *Store) saveBoth(ctx context.Context, item *memcache.Item, rec driver.Record, prev uint64) error {
	panic("TODO")
}
func (s *Store) deleteBoth(ctx context.Context, item *memcache.Item) error { panic("TODO") }
