package memcached

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"iter"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/bradfitz/gomemcache/memcache"

	"github.com/holdfast-sessions/holdfast/driver"
)

const (
	// listPortion is how many records are loaded together.
	listPortion = 100
	// crawlerPause is how long to wait for another's crawl to end, or for the hash table to have grown.
	crawlerPause = 50 * time.Millisecond
)

var (
	errBusy    = errors.New("the server is busy with another list of its keys, or its hash table is growing")
	errNoCrawl = errors.New("the server does not list its keys; it needs memcached 1.4.31 or newer, without -o no_lru_crawler")
)

// List yields every record under the prefix, server by server: lru_crawler metadump for the keys, and a get for each
// hundred of them. It remembers the IDs of a server, with copies=2 those of all, 32 bytes each. What is not a record of
// this release, and what is not on a server where its key belongs, is left out. A server that cannot be asked is an error.
func (s *Store) List(ctx context.Context) iter.Seq2[driver.Item, error] {
	return func(yield func(driver.Item, error) bool) {
		yielded := make(map[driver.ID]struct{}) // used with copies=2 only: two servers list each key
		for i := range s.servers {
			ids, err := s.ids(ctx, i)
			if err != nil {
				yield(driver.Item{}, err)
				return
			}
			for portion := range slices.Chunk(ids, listPortion) {
				items, err := s.loadAll(ctx, i, portion)
				if err != nil {
					yield(driver.Item{}, err)
					return
				}
				for _, item := range items {
					if s.copies {
						if _, dup := yielded[item.ID]; dup {
							continue
						}
						yielded[item.ID] = struct{}{}
					}
					if !yield(item, nil) {
						return
					}
				}
			}
		}
	}
}

// ids returns the IDs that belong on server number i, as it lists them.
func (s *Store) ids(ctx context.Context, i int) ([]driver.ID, error) {
	for {
		// By hash, the list holds each key that is there all the time. By LRU, which older servers offer alone, one that is
		// written meanwhile may be left out.
		ids, err := s.dump(ctx, i, "hash")
		if errors.Is(err, errNoCrawl) {
			ids, err = s.dump(ctx, i, "all")
		}
		if !errors.Is(err, errBusy) {
			return ids, err
		}
		select {
		case <-ctx.Done():
			return nil, driver.Unavailable(ctx.Err())
		case <-s.closing:
			return nil, driver.ErrClosed
		case <-time.After(crawlerPause):
		}
	}
}

// dump reads a server's list of keys, to its end even if the caller gives up: before 1.6.26 memcached may crash when a
// client goes away in the middle of one (says its release notes).
func (s *Store) dump(ctx context.Context, i int, how string) ([]driver.ID, error) {
	return ask(ctx, s.servers[i], func(l *lane) (ids []driver.ID, err error) {
		// While the hash table grows, memcached before 1.6.28 answers only when it has grown, which may be later than the
		// timeout.
		info, err := l.stats("")
		if err != nil {
			return nil, err
		}
		if number(info, "hash_is_expanding") != 0 {
			return nil, driver.Unavailable(errBusy)
		}
		r, err := l.send("lru_crawler metadump " + how)
		if err != nil {
			return nil, err
		}
		seen := make(map[driver.ID]struct{})
		for n := 0; ; n++ {
			if n%1000 == 0 {
				l.extend() // a long list is given time as long as it comes
			}
			key, end, err := nextKey(r)
			switch {
			case errors.Is(err, errBusy), errors.Is(err, errNoCrawl):
				return nil, driver.Unavailable(err)
			case err != nil:
				return nil, err
			case end:
				return ids, nil
			}
			id, ok := s.parseKey(key)
			if _, dup := seen[id]; ok && !dup && s.belongs(key, i) {
				seen[id] = struct{}{}
				ids = append(ids, id)
			}
		}
	})
}

func (s *Store) belongs(key string, i int) bool {
	return s.ring.pick(key) == i || s.copies && s.ring.second(key) == i
}

// nextKey reads a line of a metadump: "key=... exp=... la=... cas=... fetch=... cls=... size=...", with the key as in a
// URL, or END.
func nextKey(r *bufio.Reader) (key string, end bool, err error) {
	line, err := readLine(r)
	if err != nil {
		return "", false, err
	}
	switch {
	case line == "END", strings.HasPrefix(line, "NOTSTARTED"): // the latter by LRU, of a server that has no keys
		return "", true, nil
	case strings.HasPrefix(line, "BUSY"), strings.HasPrefix(line, "ERROR locked"):
		// The latter is said since 1.6.28 while the hash table grows. It must not count as errNoCrawl: a list by LRU may
		// leave out what is written meanwhile.
		return "", false, errBusy
	case strings.HasPrefix(line, "ERROR"), strings.HasPrefix(line, "CLIENT_ERROR"):
		return "", false, errNoCrawl
	}
	word, _, _ := strings.Cut(line, " ")
	escaped, ok := strings.CutPrefix(word, "key=")
	if key, err = url.PathUnescape(escaped); !ok || err != nil {
		return "", false, fmt.Errorf("memcache: unexpected line in list of keys: %q", line)
	}
	return key, false, nil
}

// parseKey is the inverse of key.
func (s *Store) parseKey(key string) (driver.ID, bool) {
	hex, ok := strings.CutPrefix(key, s.prefix)
	if !ok {
		return driver.ID{}, false
	}
	id, err := driver.ParseID(hex)
	return id, err == nil && s.key(id) == key
}

// loadAll returns those of the records that are there, which server number i has listed. Of two copies the first counts.
func (s *Store) loadAll(ctx context.Context, i int, ids []driver.ID) ([]driver.Item, error) {
	byServer := make(map[int][]driver.ID)
	for _, id := range ids {
		first := s.ring.pick(s.key(id))
		byServer[first] = append(byServer[first], id)
	}
	var items []driver.Item
	for first, ids := range byServer {
		found, missing, err := s.loadFrom(ctx, s.servers[first], ids)
		if err != nil {
			return nil, err
		}
		items = append(items, found...)
		if first != i && len(missing) > 0 {
			found, _, err := s.loadFrom(ctx, s.servers[i], missing)
			if err != nil {
				return nil, err
			}
			for _, item := range found {
				item.Record.Tag = 0 // see loadEither
				items = append(items, item)
			}
		}
	}
	return items, nil
}

// loadFrom returns the records that a server has, and the IDs of which it has nothing.
func (s *Store) loadFrom(ctx context.Context, srv *server, ids []driver.ID) (items []driver.Item, missing []driver.ID, err error) {
	keys := make([]string, len(ids))
	for i, id := range ids {
		keys[i] = s.key(id)
	}
	type answer struct {
		values map[string]*memcache.Item
		life   uint64
	}
	a, err := ask(ctx, srv, func(l *lane) (answer, error) {
		values, err := l.client.GetMulti(keys)
		return answer{values, l.life}, err
	})
	if err != nil {
		return nil, nil, err
	}
	for i, id := range ids {
		it := a.values[keys[i]]
		if it == nil {
			missing = append(missing, id)
			continue
		}
		st, err := decode(it.Value)
		if err != nil {
			continue
		}
		if rec, err := (found{state: st, cas: it.CasID, life: a.life}).live(); err == nil {
			items = append(items, driver.Item{ID: id, Record: rec})
		}
	}
	return items, missing, nil
}
