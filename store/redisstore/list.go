package redisstore

import (
	"context"
	"fmt"
	"iter"
	"strings"

	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/redis/rueidis"
)

// listPortion is how many keys the server looks at in one step, and about how many records are loaded together.
const listPortion = 200

// List yields every record under the prefix, by SCAN and MGET, two round trips a portion. What is not a record of
// this release (corrupt, of an unknown version, a key somebody else made) is left out. It remembers the IDs it has
// yielded, about 50 bytes each, because SCAN may return a key twice.
func (s *Store) List(ctx context.Context) iter.Seq2[driver.Item, error] {
	return func(yield func(driver.Item, error) bool) {
		seen := make(map[driver.ID]struct{})
		for cursor := uint64(0); ; {
			ids, next, err := s.scan(ctx, cursor)
			if err != nil {
				yield(driver.Item{}, err)
				return
			}
			fresh := ids[:0]
			for _, id := range ids {
				if _, dup := seen[id]; !dup {
					seen[id] = struct{}{}
					fresh = append(fresh, id)
				}
			}
			items, err := s.loadAll(ctx, fresh)
			if err != nil {
				yield(driver.Item{}, err)
				return
			}
			for _, item := range items {
				if !yield(item, nil) {
					return
				}
			}
			if cursor = next; cursor == 0 {
				return
			}
		}
	}
}

// scan returns the IDs of the next keys and the cursor to go on with, 0 at the end.
func (s *Store) scan(ctx context.Context, cursor uint64) ([]driver.ID, uint64, error) {
	entry, err := s.do(ctx, func(ctx context.Context) rueidis.RedisResult {
		// The prefix has no characters that are special in a pattern; see parsePrefix.
		return s.client.Do(ctx, s.client.B().Scan().Cursor(cursor).Match(s.prefix+"*").Count(listPortion).Build())
	}).AsScanEntry()
	if err != nil {
		return nil, 0, mapError(err)
	}
	ids := make([]driver.ID, 0, len(entry.Elements))
	for _, key := range entry.Elements {
		id, err := driver.ParseID(strings.TrimPrefix(key, s.prefix))
		if err == nil && s.key(id) == key {
			ids = append(ids, id)
		}
	}
	return ids, entry.Cursor, nil
}

// loadAll returns those of the records that are there.
func (s *Store) loadAll(ctx context.Context, ids []driver.ID) ([]driver.Item, error) {
	if len(ids) == 0 {
		return nil, nil
	}
	values, err := s.do(ctx, func(ctx context.Context) rueidis.RedisResult {
		keys := make([]string, len(ids))
		for i, id := range ids {
			keys[i] = s.key(id)
		}
		return s.client.Do(ctx, s.client.B().Mget().Key(keys...).Build())
	}).ToArray()
	if err != nil {
		return nil, mapError(err)
	}
	if len(values) != len(ids) {
		return nil, driver.Unavailable(fmt.Errorf("redis: MGET of %d keys returned %d values", len(ids), len(values)))
	}
	items := make([]driver.Item, 0, len(ids))
	for i := range values {
		b, err := values[i].AsBytes()
		if err != nil { // nil: gone meanwhile, or not a string
			continue
		}
		r, err := s.decode(b)
		if err != nil { // expired, corrupt, or of an unknown version
			continue
		}
		items = append(items, driver.Item{ID: ids[i], Record: r})
	}
	return items, nil
}
