package redisstore

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"

	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/redis/rueidis"
)

const (
	// listPortion is how many keys the server looks at in one step, and about how many records are loaded together.
	listPortion = 200
	// maxPasses is how often a cluster is gone through while its slots move.
	maxPasses = 20
)

// List yields every record under the prefix, by SCAN and MGET, two round trips a portion. What is not a record of
// this release (corrupt, of an unknown version, a key somebody else made) is left out. It remembers the IDs it has
// yielded, about 50 bytes each, because SCAN may return a key twice.
//
// In a cluster it goes through one primary after the other. A slot that moves meanwhile may move from one that it has
// yet to see to one that it has seen; so when slots have moved, it goes through all again, for what it has not yielded.
func (s *Store) List(ctx context.Context) iter.Seq2[driver.Item, error] {
	return func(yield func(driver.Item, error) bool) {
		seen := make(map[driver.ID]struct{})
		if s.cluster == nil {
			if err := s.listServer(ctx, s.client, seen, yield); err != nil && !errors.Is(err, errStopped) {
				yield(driver.Item{}, err)
			}
			return
		}
		if err := s.listCluster(ctx, seen, yield); err != nil && !errors.Is(err, errStopped) {
			yield(driver.Item{}, err)
		}
	}
}

// errStopped says that whoever gets the records wants no more.
var errStopped = errors.New("stopped")

func (s *Store) listCluster(ctx context.Context, seen map[driver.ID]struct{}, yield func(driver.Item, error) bool) error {
	before, err := s.primaries(ctx)
	for range maxPasses {
		for _, p := range before {
			if err == nil {
				err = s.listServer(ctx, p.node, seen, yield)
			}
		}
		if err != nil {
			return err
		}
		var after []primary
		if after, err = s.primaries(ctx); err != nil {
			return err
		}
		same := slices.EqualFunc(before, after, func(a, b primary) bool { return a.addr == b.addr && a.state == b.state })
		if same && !slices.ContainsFunc(before, primary.moving) {
			return nil
		}
		before = after
	}
	return driver.Unavailable(fmt.Errorf("redis: slots of the cluster were on the move all along, in %d passes; list again when they are not", maxPasses))
}

// primaries is cluster.primaries, as a call.
func (s *Store) primaries(ctx context.Context) ([]primary, error) {
	type result struct {
		all []primary
		err error
	}
	r, err := do(ctx, s, func(ctx context.Context) result {
		all, err := s.cluster.primaries(ctx)
		return result{all, err}
	})
	if err == nil {
		err = r.err
	}
	return r.all, s.mapError(err)
}

// listServer yields the records that one server has and that are not in seen, and adds them to it.
func (s *Store) listServer(ctx context.Context, server rueidis.Client, seen map[driver.ID]struct{}, yield func(driver.Item, error) bool) error {
	for cursor := uint64(0); ; {
		ids, next, err := s.scan(ctx, server, cursor)
		if err != nil {
			return err
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
			return err
		}
		for _, item := range items {
			if !yield(item, nil) {
				return errStopped
			}
		}
		if cursor = next; cursor == 0 {
			return nil
		}
	}
}

// scan returns the IDs of the next keys and the cursor to go on with, 0 at the end.
func (s *Store) scan(ctx context.Context, server rueidis.Client, cursor uint64) ([]driver.ID, uint64, error) {
	entry, err := s.read(ctx, server, func(b rueidis.Builder) rueidis.Completed {
		// The prefix has no characters that are special in a pattern; see validPrefix.
		return b.Scan().Cursor(cursor).Match(s.prefix + "*").Count(listPortion).Build()
	}).AsScanEntry()
	if err != nil {
		return nil, 0, s.mapError(err)
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
	values, err := s.getAll(ctx, ids)
	if err != nil {
		return nil, err
	}
	items := make([]driver.Item, 0, len(ids))
	for i, b := range values {
		if b == nil {
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

// getAll returns what is stored, nil for what is gone or is not a string. The keys of a portion are in many slots of a
// cluster, so that MGET would not do there: it gets a GET each, all at once.
func (s *Store) getAll(ctx context.Context, ids []driver.ID) ([][]byte, error) {
	keys := make([]string, len(ids))
	for i, id := range ids {
		keys[i] = s.key(id)
	}
	values := make([][]byte, len(ids))
	if s.cluster == nil {
		got, err := s.read(ctx, s.client, func(b rueidis.Builder) rueidis.Completed { return b.Mget().Key(keys...).Build() }).ToArray()
		if err != nil {
			return nil, s.mapError(err)
		}
		if len(got) != len(ids) {
			return nil, driver.Unavailable(fmt.Errorf("redis: MGET of %d keys returned %d values", len(ids), len(got)))
		}
		for i := range got {
			values[i], _ = got[i].AsBytes() // nil: gone meanwhile, or not a string
		}
		return values, nil
	}
	got, err := do(ctx, s, func(ctx context.Context) []rueidis.RedisResult {
		commands := make(rueidis.Commands, len(keys))
		for i, key := range keys {
			commands[i] = s.client.B().Get().Key(key).Build().Pin() // see read
		}
		return s.client.DoMulti(ctx, commands...)
	})
	if err != nil {
		return nil, err
	}
	for i := range got {
		b, err := got[i].AsBytes()
		if err = s.mapError(err); err != nil && !errors.Is(err, driver.ErrNotFound) && !errors.Is(err, driver.ErrCorrupt) {
			return nil, err
		}
		values[i] = b
	}
	return values, nil
}
