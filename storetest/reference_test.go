package storetest_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/holdfast-sessions/holdfast/driver"
)

// disk keeps records, as a server does, for any number of clients. It is the simplest store that has everything the
// contract knows, and it can have one bug, by name.
type disk struct {
	bug string

	mu      sync.Mutex // mu guards the fields below
	records map[driver.ID]driver.Record
	tag     uint64
	down    bool
	broken  bool
	unread  *driver.Record // of the bug "answers a cancelled call late"
	first   map[driver.ID]time.Time
	retired map[driver.ID]driver.Record
	kept    map[driver.ID][]driver.Change
	feeds   map[*feed]struct{}
}

// client is a store over a disk.
type client struct {
	*disk
	done   chan struct{} // closed by Close
	mu     sync.Mutex    // mu guards the fields below
	closed bool
	cache  map[driver.ID]driver.Record
	asked  int
}

const maxBytes = 1 << 20

func newDisk(bug string) *disk {
	return &disk{
		bug: bug, records: make(map[driver.ID]driver.Record), first: make(map[driver.ID]time.Time),
		retired: make(map[driver.ID]driver.Record), kept: make(map[driver.ID][]driver.Change),
		feeds: make(map[*feed]struct{}),
	}
}

func (d *disk) has(bug string) bool { return d.bug == bug }

func (d *disk) client() driver.Store {
	c := &client{disk: d, done: make(chan struct{}), cache: make(map[driver.ID]driver.Record)}
	if d.has("leaves a goroutine behind") {
		go time.Sleep(5 * time.Second)
	}
	return c
}

func (d *disk) outage() (end func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.down = true
	for f := range d.feeds {
		if !d.has("watches through an outage") {
			f.lost = true
			f.whole(false)
		}
		if d.has("ends a watch in an outage") {
			close(f.broken)
		}
	}
	return func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.down = d.has("stays down")
		for f := range d.feeds {
			if f.lost && !d.has("watches no more after an outage") {
				f.whole(true)
				f.lost = d.has("tells of nothing after an outage")
			}
		}
	}
}

func (d *disk) reopen(s driver.Store) driver.Store {
	_ = s.Close()
	d.mu.Lock()
	defer d.mu.Unlock()
	switch d.bug {
	case "forgets on reopening":
		clear(d.records)
	case "revives on reopening":
		for id, rec := range d.retired {
			if _, ok := d.records[id]; !ok {
				d.records[id] = rec
			}
		}
	}
	return d.client()
}

// do calls f under the disk's lock, or says why not.
func (c *client) do(ctx context.Context, f func() error) error {
	c.mu.Lock()
	closed := c.closed
	c.mu.Unlock()
	if closed && !c.has("works when closed") {
		switch c.bug {
		case "says not found when closed":
			return driver.ErrNotFound
		case "says another error when closed":
			return errors.New("use of closed connection")
		}
		return driver.ErrClosed
	}
	switch err := ctx.Err(); {
	case c.has("ignores the context"):
	case c.has("answers a cancelled call late"), c.has("writes half when cancelled"):
		time.Sleep(500 * time.Microsecond) // a network, on which calls are cancelled midway
	case err != nil && c.has("says not found when cancelled"):
		return driver.ErrNotFound
	case err != nil:
		return err
	}
	c.disk.mu.Lock()
	defer c.disk.mu.Unlock()
	if c.down {
		switch c.bug {
		case "says not found when unavailable":
			return driver.ErrNotFound
		case "says another error when unavailable":
			return errors.New("connection refused")
		}
		return driver.Unavailable(errors.New("connection refused"))
	}
	if c.broken {
		return driver.Unavailable(errors.New("left in the middle of a list"))
	}
	return f()
}

func (c *client) key(id driver.ID) driver.ID {
	if c.has("keys by the short ID") {
		clear(id[4:])
	}
	return id
}

// get returns the record that is stored and lives.
func (c *client) get(id driver.ID) (driver.Record, error) {
	id = c.key(id)
	rec, ok := c.records[id]
	if ok && c.has("forgets at the first end") && !time.Now().Before(c.first[id]) {
		ok = false
	}
	at := time.Now()
	switch c.bug {
	case "serves what expired":
		at = time.Time{}
	case "serves for 5 ms too long":
		at = at.Add(-5 * time.Millisecond)
	case "forgets 5 ms early":
		at = at.Add(5 * time.Millisecond)
	case "never expires what had expired already":
		if rec.Fields.Len() > 0 && rec.Expires.Before(rec.Created) {
			at = time.Time{}
		}
	}
	if !ok || rec.Expired(at) {
		return driver.Record{}, driver.ErrNotFound
	}
	rec.Fields = rec.Fields.With(c.kept[id]...)
	return rec, nil
}

func (c *client) put(ctx context.Context, id driver.ID, rec driver.Record) {
	id = c.key(id)
	old, was := c.records[id]
	if !was || c.first[id].Before(time.Now()) {
		c.first[id] = rec.Expires
	}
	if c.has("cleans up by ID alone") {
		time.AfterFunc(time.Until(rec.Expires)+20*time.Millisecond, func() {
			c.disk.mu.Lock()
			defer c.disk.mu.Unlock()
			if now := c.records[id]; now.Expires.After(rec.Expires) && now.Created.After(rec.Created) {
				delete(c.records, id)
			}
		})
	}
	if c.has("writes half when cancelled") && ctx.Err() != nil {
		rec.Fields = firstFields(rec.Fields, 2)
	}
	c.tag++
	rec.Tag = c.tag
	if c.has("tells before it stores") {
		c.tell(id)
		c.disk.mu.Unlock()
		time.Sleep(time.Millisecond)
		c.disk.mu.Lock()
	}
	c.records[id] = mangle(c.bug, old, rec)
	c.retired[id] = rec
	delete(c.kept, id)
	if !c.has("tells before it stores") {
		c.tell(id)
	}
}

// mangle is what bugs do to a record on its way into the store.
func mangle(bug string, old, rec driver.Record) driver.Record {
	switch bug {
	case "keeps times to the second":
		rec.Created, rec.Seen, rec.Expires = rec.Created.Truncate(time.Second), rec.Seen.Truncate(time.Second), rec.Expires.Truncate(time.Second)
	case "keeps no zero Created":
		if rec.Created.IsZero() {
			rec.Created = time.UnixMilli(0)
		}
	case "rounds revisions to floats":
		rec.Revision = uint64(float64(rec.Revision))
	case "keeps 63 bits of a revision":
		rec.Revision &= math.MaxInt64
	case "cuts user names after 255 bytes":
		rec.User = rec.User[:min(len(rec.User), 255)]
	case "trims user names":
		rec.User = strings.TrimSpace(rec.User)
	case "cuts values after 65,535 bytes":
		for name, v := range rec.Fields.All() {
			if len(v) > math.MaxUint16 {
				rec.Fields = rec.Fields.With(driver.Change{Name: name, Value: v[:math.MaxUint16]})
			}
		}
	case "cuts field names at a NUL":
		for name, v := range rec.Fields.All() {
			if head, _, ok := strings.Cut(name, "\x00"); ok {
				rec.Fields = rec.Fields.With(driver.Change{Name: name, Delete: true}, driver.Change{Name: head, Value: v})
			}
		}
	case "drops empty values":
		for name, v := range rec.Fields.All() {
			if len(v) == 0 {
				rec.Fields = rec.Fields.With(driver.Change{Name: name, Delete: true})
			}
		}
	case "keeps 1,000 fields":
		if rec.Fields.Len() > 1000 {
			rec.Fields = firstFields(rec.Fields, 1000)
		}
	case "keeps old fields":
		var changes []driver.Change
		for name, v := range rec.Fields.All() {
			changes = append(changes, driver.Change{Name: name, Value: v})
		}
		rec.Fields = old.Fields.With(changes...)
	case "splices in place":
		if n := len(rec.Fields.Bytes()); n > 0 && n == len(old.Fields.Bytes()) {
			copy(old.Fields.Bytes(), rec.Fields.Bytes())
		}
	}
	return rec
}

func firstFields(f driver.Fields, n int) driver.Fields {
	var changes []driver.Change
	for name, v := range f.All() {
		if n--; n >= 0 {
			changes = append(changes, driver.Change{Name: name, Value: v})
		}
	}
	return driver.Fields{}.With(changes...)
}

func (c *client) Load(ctx context.Context, id driver.ID) (rec driver.Record, err error) {
	if c.has("caches what it loaded") {
		if cached, ok := c.cached(id); ok {
			return cached, nil
		}
	}
	err = c.do(ctx, func() (err error) {
		if rec, err = c.get(id); err != nil && c.has("loads a zero record for none") {
			err = nil
		}
		if c.has("answers a cancelled call late") {
			late := c.unread
			c.unread = nil
			if ctx.Err() != nil {
				if err == nil {
					c.unread = &rec
				}
				return ctx.Err()
			}
			if late != nil {
				rec, err = *late, nil
			}
		}
		return err
	})
	if err == nil && c.has("caches what it loaded") {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.cache[id] = rec
	}
	return rec, err
}

func (c *client) cached(id driver.ID) (driver.Record, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	rec, ok := c.cache[id]
	return rec, ok && !rec.Expired(time.Now())
}

// wrote makes the client forget what it cached of a record.
func (c *client) wrote(id driver.ID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.cache, id)
}

func (c *client) Save(ctx context.Context, id driver.ID, rec driver.Record, prev uint64) error {
	defer c.wrote(id)
	if c.has("reads and writes in two steps") {
		stored, err := c.Load(ctx, id)
		if err != nil && !errors.Is(err, driver.ErrNotFound) {
			return err
		}
		if stored.Revision != prev {
			return driver.ErrConflict
		}
		time.Sleep(time.Millisecond) // for others to come between, under the clock of a bubble
		return c.do(ctx, func() error { c.put(ctx, id, rec); return nil })
	}
	return c.do(ctx, func() error {
		if (len(rec.User) > driver.MaxName || rec.EncodedLen() > maxBytes) && !c.has("has no limit") {
			return driver.ErrTooLarge
		}
		stored, err := c.get(id)
		exists := err == nil
		switch {
		case stored.Revision == prev && c.has("needs the Tag") && exists && rec.Tag != stored.Tag:
		case stored.Revision == prev, c.has("ignores prev"), prev == 0 && c.has("overwrites with prev 0"), prev != 0 && !exists && c.has("saves what was deleted"):
			c.put(ctx, id, rec)
			return c.late(ctx)
		}
		return driver.ErrConflict
	})
}

// late is what a call returns that did not look at its context before.
func (c *client) late(ctx context.Context) error {
	if c.has("ignores the context") {
		return nil
	}
	return ctx.Err()
}

func (c *client) Merge(ctx context.Context, id driver.ID, base, next driver.Record, changes []driver.Change) (merged driver.Record, err error) {
	defer c.wrote(id)
	if c.has("merges in two steps") {
		stored, err := c.Load(ctx, id)
		if err != nil {
			return stored, err
		}
		time.Sleep(time.Millisecond)
		stored.Fields, stored.Revision = stored.Fields.With(changes...), max(next.Revision, stored.Revision+1)
		return stored, c.do(ctx, func() error { c.put(ctx, id, stored); return nil })
	}
	err = c.do(ctx, func() error {
		stored, err := c.get(id)
		if err != nil {
			if !c.has("merges what is absent") {
				return err
			}
			stored = base
		}
		if !c.sameLife(stored, base) {
			return driver.ErrConflict
		}
		same := stored.Revision == base.Revision
		if c.has("compares revisions as floats in Merge") {
			same = float64(stored.Revision) == float64(base.Revision)
		}
		merged = next
		merged.User, merged.Created = stored.User, stored.Created
		if !same && !c.has("loses merges") {
			merged = c.lay(stored, next, changes)
		} else if c.has("does not extend from the base") {
			merged.Seen, merged.Expires = stored.Seen, stored.Expires
		}
		if merged.EncodedLen() > maxBytes && !c.has("has no limit") {
			return driver.ErrTooLarge
		}
		feeds := c.feeds
		if c.has("tells of no Merge") {
			c.feeds = nil
		}
		c.put(ctx, id, merged)
		c.feeds = feeds
		if c.has("keeps the caller's slice") {
			c.kept[id] = changes
		}
		merged.Tag = c.records[c.key(id)].Tag
		return c.late(ctx)
	})
	if c.has("sorts the caller's changes") {
		slices.SortFunc(changes, func(a, b driver.Change) int { return strings.Compare(a.Name, b.Name) })
	}
	return merged, err
}

func (c *client) sameLife(stored, base driver.Record) bool {
	switch c.bug {
	case "merges over another life":
		return true
	case "compares user names as text":
		return strings.EqualFold(strings.TrimRight(stored.User, " "), strings.TrimRight(base.User, " ")) && stored.Created.Equal(base.Created)
	}
	return stored.SameLife(base)
}

// lay is what Merge stores over a later state.
func (c *client) lay(stored, next driver.Record, changes []driver.Change) driver.Record {
	if c.has("lets the first change count") {
		changes = slices.Clone(changes)
		slices.Reverse(changes)
	}
	if c.has("does not remove in Merge") {
		changes = slices.DeleteFunc(slices.Clone(changes), func(c driver.Change) bool { return c.Delete })
	}
	merged := stored
	merged.Fields = stored.Fields.With(changes...)
	merged.Revision = max(next.Revision, stored.Revision+1)
	switch {
	case c.has("keeps the revision in Merge"):
		merged.Revision = max(next.Revision, stored.Revision)
	case c.has("adds to revisions in 32 bits"):
		merged.Revision = max(next.Revision, stored.Revision&^math.MaxUint32|uint64(uint32(stored.Revision)+1))
	}
	if next.Seen.After(stored.Seen) || c.has("lowers Seen in Merge") {
		merged.Seen = next.Seen
	}
	if next.Expires.After(stored.Expires) || c.has("lowers Expires in Merge") {
		merged.Expires = next.Expires
	}
	if c.has("does not extend in Merge") {
		merged.Seen, merged.Expires = stored.Seen, stored.Expires
	}
	return merged
}

func (c *client) Touch(ctx context.Context, id driver.ID, next driver.Record, prev uint64) error {
	defer c.wrote(id)
	return c.do(ctx, func() error {
		stored, err := c.get(id)
		switch {
		case err != nil && c.has("touches what is absent"):
			stored = next
		case err != nil:
			return err
		case stored.Revision != prev && c.has("touches any revision"):
			stored.Fields = next.Fields
		case stored.Revision != prev:
			return driver.ErrConflict
		}
		if !c.has("never raises Seen in Touch") {
			stored.Seen = next.Seen
		}
		stored.Expires, stored.Revision = next.Expires, next.Revision
		if c.has("drops fields in Touch") {
			stored.Fields = driver.Fields{}
		}
		c.put(ctx, id, stored)
		return c.late(ctx)
	})
}

func (c *client) Delete(ctx context.Context, id driver.ID) error {
	defer c.wrote(id)
	return c.do(ctx, func() error {
		if _, err := c.get(id); err != nil && c.has("refuses to delete twice") {
			return err
		}
		if !c.has("does not delete") {
			delete(c.records, c.key(id))
		}
		if !c.has("tells of no Delete") {
			c.tell(id)
		}
		return c.late(ctx)
	})
}

func (c *client) List(ctx context.Context) iter.Seq2[driver.Item, error] {
	return func(yield func(driver.Item, error) bool) {
		var items []driver.Item
		err := c.do(ctx, func() error {
			for id, stored := range c.records {
				rec, err := c.get(id)
				switch {
				case err == nil:
					items = append(items, driver.Item{ID: id, Record: rec})
				case c.has("lists what expired"):
					items = append(items, driver.Item{ID: id, Record: stored})
				}
			}
			return nil
		})
		if err != nil {
			yield(driver.Item{}, err)
			if c.has("lists on after an error") {
				yield(driver.Item{}, err)
			}
			return
		}
		slices.SortFunc(items, func(a, b driver.Item) int { return bytes.Compare(a.ID[:], b.ID[:]) })
		switch {
		case c.has("drops one of a list") && len(items) > 0:
			items = items[1:]
		case c.has("repeats one of a list") && len(items) > 0:
			items = append(items, items[0])
		case c.has("lists half records"):
			for i := range items {
				items[i].Record.Fields = driver.Fields{}
			}
		}
		for _, item := range items {
			if c.has("lists what has moved again") {
				// As a cursor does that walks by revision: what is saved meanwhile comes once more.
				if rec, err := c.Load(ctx, item.ID); err == nil && rec.Revision != item.Record.Revision && !yield(driver.Item{ID: item.ID, Record: rec}, nil) {
					return
				}
			}
			if err := c.late(ctx); err != nil {
				yield(driver.Item{}, err)
				return
			}
			if !yield(item, nil) {
				c.disk.mu.Lock()
				c.broken = c.has("breaks when a list is left")
				c.disk.mu.Unlock()
				return
			}
		}
	}
}

// sweepPortion is how many records Sweep removes under one lock.
const sweepPortion = 10

func (c *client) Sweep(ctx context.Context, progress func(removed int)) (removed int, err error) {
	var found []driver.ID
	err = c.do(ctx, func() error {
		for id, rec := range c.records {
			if expired := rec.Expired(time.Now()); expired != c.has("sweeps what lives") {
				found = append(found, id)
			}
		}
		return nil
	})
	if err != nil && !c.has("sweeps on when cancelled") || c.has("sweeps nothing") {
		return 0, err
	}
	for portion := range slices.Chunk(found, sweepPortion) {
		time.Sleep(time.Millisecond) // others come between
		if err := c.late(ctx); err != nil && !c.has("sweeps on when cancelled") {
			return removed, err
		}
		c.disk.mu.Lock()
		for _, id := range portion {
			if c.records[id].Expired(time.Now()) || c.has("sweeps what lives") || c.has("sweeps by ID alone") {
				delete(c.records, id)
				removed++
			}
		}
		c.disk.mu.Unlock()
		switch {
		case progress == nil || c.has("counts no portion"):
		case c.has("counts downwards"):
			progress(len(found) - removed)
		default:
			progress(removed)
		}
	}
	return removed, nil
}

func (c *client) Stat(ctx context.Context) (st driver.Stat, err error) {
	err = c.do(ctx, func() error {
		for _, rec := range c.records {
			if rec.Expired(time.Now()) && !c.has("counts what expired as living") {
				st.Expired++
			} else {
				st.Records++
			}
			st.Bytes += int64(rec.EncodedLen())
		}
		st.Facts = []driver.Fact{{Name: "stored ever", Value: fmt.Sprint(len(c.retired))}}
		switch c.bug {
		case "counts what it ever stored":
			st.Records = int64(len(c.retired))
		case "counts nothing":
			st = driver.Stat{}
		case "has a fact without a name":
			st.Facts[0].Name = ""
		}
		return nil
	})
	return st, err
}

func (c *client) Describe() driver.Description {
	d := driver.Description{Name: "reference", Shared: true, MaxBytes: maxBytes}
	if c.has("describes itself in two ways") {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.asked++
		d.Durable = fmt.Sprint(c.asked)
	}
	return d
}

func (c *client) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed && c.has("refuses to close twice") {
		return driver.ErrClosed
	}
	if !c.closed {
		close(c.done)
	}
	c.closed = true
	return nil
}
