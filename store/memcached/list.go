package memcached

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"iter"
	"net/url"
	"strings"
	"time"

	"github.com/bradfitz/gomemcache/memcache"

	"github.com/holdfast-sessions/holdfast/driver"
)

const (
	// listPortion is how many records are loaded together.
	listPortion = 100
	// crawlerPause is how long to wait for another's crawl to end.
	crawlerPause = 50 * time.Millisecond
)

var (
	errBusy    = errors.New("the server is busy with another list of its keys")
	errNoCrawl = errors.New("the server does not list its keys; it needs memcached 1.4.31 or newer, without -o no_lru_crawler")
)

// List yields every record under the prefix, server by server: lru_crawler metadump for the keys, and a get for each
// hundred of them. It keeps the IDs of one server in memory, 32 bytes each. What is not a record of this release, and what
// is not on the server where its key belongs, is left out. A server that cannot be asked is an error.
func (s *Store) List(ctx context.Context) iter.Seq2[driver.Item, error] {
	return func(yield func(driver.Item, error) bool) {
		for i, srv := range s.servers {
			ids, err := s.ids(ctx, i)
			if err != nil {
				yield(driver.Item{}, err)
				return
			}
			for len(ids) > 0 {
				n := min(len(ids), listPortion)
				items, err := s.loadAll(ctx, srv, ids[:n])
				if err != nil {
					yield(driver.Item{}, err)
					return
				}
				for _, item := range items {
					if !yield(item, nil) {
						return
					}
				}
				ids = ids[n:]
			}
		}
	}
}

// ids returns the IDs whose first server is number i, as it lists them.
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

func (s *Store) dump(ctx context.Context, i int, how string) ([]driver.ID, error) {
	srv := s.servers[i]
	var ids []driver.ID
	seen := make(map[driver.ID]struct{})
	err := srv.do(ctx, func(l *lane) error {
		r, err := l.ask("lru_crawler metadump " + how)
		if err != nil {
			return err
		}
		for n := 0; ; n++ {
			if n%1000 == 0 {
				_ = l.Conn.SetDeadline(srv.deadline(ctx)) // a long list is given time as long as it comes
			}
			key, end, err := nextKey(r)
			switch {
			case errors.Is(err, errBusy), errors.Is(err, errNoCrawl):
				return driver.Unavailable(err)
			case err != nil || end:
				return err
			}
			id, ok := s.parseKey(key)
			if _, dup := seen[id]; ok && !dup && s.ring.pick(key) == i {
				seen[id] = struct{}{}
				ids = append(ids, id)
			}
		}
	})
	return ids, err
}

// nextKey reads a line of a metadump: "key=... exp=... la=... cas=... fetch=... cls=... size=...", with the key as in a
// URL, or END.
func nextKey(r *bufio.Reader) (key string, end bool, err error) {
	line, err := readLine(r)
	if err != nil {
		return "", false, err
	}
	switch {
	case line == "END":
		return "", true, nil
	case strings.HasPrefix(line, "BUSY"):
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

// loadAll returns those of the records that are there.
func (s *Store) loadAll(ctx context.Context, srv *server, ids []driver.ID) ([]driver.Item, error) {
	keys := make([]string, len(ids))
	for i, id := range ids {
		keys[i] = s.key(id)
	}
	var items []driver.Item
	err := srv.do(ctx, func(l *lane) error {
		values, err := l.client.GetMulti(keys)
		if err != nil {
			return err
		}
		items = s.records(ids, values, l.life)
		return nil
	})
	return items, err
}

func (s *Store) records(ids []driver.ID, values map[string]*memcache.Item, life uint64) []driver.Item {
	now := time.Now()
	items := make([]driver.Item, 0, len(ids))
	for _, id := range ids {
		it := values[s.key(id)]
		if it == nil {
			continue
		}
		st, err := decode(it.Value)
		if err != nil || st.revision(now) == 0 {
			continue
		}
		st.rec.Tag = makeTag(it.CasID, st.rec.Revision, life, st.rec.Expires, now)
		items = append(items, driver.Item{ID: id, Record: st.rec})
	}
	return items
}
