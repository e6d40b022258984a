// Package redisstore keeps sessions in one Redis server, 6.0 or newer.
//
//	store, err := redisstore.Open(ctx, "redis://app:secret@localhost:6379/0?prefix=holdfast:")
//
// A record is one string under prefix + 64 hexadecimal characters, in driver's encoding. A read is one GET and a
// write is one script: one round trip each. Writers of different fields never conflict, because the script lays
// the changes over whatever is stored; docs/stores/redis.md has the commands, the rights a user needs, what
// the store guarantees, and how it fails.
package redisstore

import (
	"context"
	_ "embed"
	"encoding/binary"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/redis/rueidis"
)

var (
	//go:embed prelude.lua
	preludeLua string
	//go:embed save.lua
	saveLua string
	//go:embed touch.lua
	touchLua string
	//go:embed merge.lua
	mergeLua string
	//go:embed probe.lua
	probeLua string
)

// What the scripts reply; prelude.lua has the same numbers.
const (
	replyDone = iota
	replyMissing
	replyConflict
	replyVersion
	replyCorrupt
)

// defaultMaxBytes is the longest string Redis takes unless its setting proto-max-bulk-len says otherwise.
const defaultMaxBytes = 512 << 20

// Store keeps records in a Redis server. It implements driver.Store, Merger, Toucher, Lister and Describer.
type Store struct {
	client      rueidis.Client
	prefix      string
	description driver.Description

	save, touch, merge *rueidis.Lua

	// slots has one element for every call that is under way, also one whose caller has gone. See do.
	slots   chan struct{}
	closing chan struct{} // closed by Close
	close   sync.Once
	// ctx ends when Close gives up on calls that are under way.
	ctx    context.Context
	cancel context.CancelFunc
}

// Load returns the record, or ErrNotFound if it is absent, expired or ended. It is repeated once if the connection
// breaks.
func (s *Store) Load(ctx context.Context, id driver.ID) (driver.Record, error) {
	b, err := s.do(ctx, func(ctx context.Context) rueidis.RedisResult {
		return s.client.Do(ctx, s.client.B().Get().Key(s.key(id)).Build())
	}).AsBytes()
	if err != nil {
		return driver.Record{}, mapError(err)
	}
	return s.decode(b)
}

// decode parses a stored record. The client's clock decides whether it has expired.
func (s *Store) decode(b []byte) (driver.Record, error) {
	r, err := driver.Decode(b)
	if err != nil {
		return driver.Record{}, err
	}
	if r.Expired(time.Now()) {
		return driver.Record{}, driver.ErrNotFound
	}
	return r, nil
}

// Save writes rec if the stored revision is prev (0: absent or expired), or returns ErrConflict. It is never sent twice.
// A caller that repeats one whose answer was lost gets ErrConflict if the first was carried out: that the stored revision
// is rec's does not prove that rec is what is stored, because writers that start from one record within a
// millisecond may choose the same revision (see driver.NewRevision).
func (s *Store) Save(ctx context.Context, id driver.ID, rec driver.Record, prev uint64) error {
	blob, err := s.encode(rec)
	if err != nil {
		return err
	}
	_, err = s.exec(ctx, s.save, id, prev, rec.Expires, rueidis.BinaryString(blob))
	return err
}

// Merge stores next, or lays changes over what is stored, as driver.Merger says. The changed values are taken from
// next, which has them.
func (s *Store) Merge(ctx context.Context, id driver.ID, base, next driver.Record, changes []driver.Change) (driver.Record, error) {
	blob, err := s.encode(next)
	if err != nil {
		return driver.Record{}, err
	}
	args := make([]string, 1, 1+len(changes))
	args[0] = rueidis.BinaryString(blob)
	for _, c := range changes {
		args = append(args, c.Name)
	}
	merged, err := s.exec(ctx, s.merge, id, base.Revision, next.Expires, args...)
	switch {
	case err != nil:
		return driver.Record{}, err
	case merged == nil:
		return next, nil
	}
	return driver.Decode(merged)
}

// Touch gives the stored record next's Seen, Expires and Revision if its revision is prev. It sends no fields.
func (s *Store) Touch(ctx context.Context, id driver.ID, next driver.Record, prev uint64) error {
	next.User, next.Fields = "", driver.Fields{}
	blob, err := s.encode(next)
	if err != nil {
		return err
	}
	_, err = s.exec(ctx, s.touch, id, prev, next.Expires, rueidis.BinaryString(blob[1:33]))
	return err
}

// Delete ends the session. Ending an absent one is not an error. No script creates a record from a revision other
// than 0, so nothing that is still under way brings it back.
func (s *Store) Delete(ctx context.Context, id driver.ID) error {
	return mapError(s.do(ctx, func(ctx context.Context) rueidis.RedisResult {
		return s.client.Do(ctx, s.client.B().Del().Key(s.key(id)).Build())
	}).Error())
}

// Describe says what the server said of itself when the store was opened.
func (s *Store) Describe() driver.Description { return s.description }

// Close closes the connections and waits for calls that are under way, which end within a few seconds.
func (s *Store) Close() error {
	s.close.Do(func() {
		close(s.closing)
		s.client.Close() // answers what it can within a second per connection
		s.cancel()
		for range cap(s.slots) {
			s.slots <- struct{}{}
		}
		s.client.Close() // also a connection that was being made meanwhile
	})
	return nil
}

// exec runs one of the scripts and returns the record it replied with, if any.
func (s *Store) exec(ctx context.Context, script *rueidis.Lua, id driver.ID, prev uint64, expires time.Time, args ...string) ([]byte, error) {
	now := time.Now().UnixMilli()
	// The life of the key is relative, so that a server whose clock is wrong does not end sessions early. A record
	// that has expired replaces the one before it for a millisecond. The bound keeps far-away dates from overflowing.
	life := min(max(expires.UnixMilli()-now, 1), 1<<52)
	args = append([]string{bytes8(prev), bytes8(uint64(now)), strconv.FormatInt(life, 10)}, args...)
	reply, err := s.do(ctx, func(ctx context.Context) rueidis.RedisResult {
		return script.Exec(ctx, s.client, []string{s.key(id)}, args)
	}).ToMessage()
	if err != nil {
		return nil, mapError(err)
	}
	if reply.IsString() {
		return reply.AsBytes()
	}
	code, err := reply.AsInt64()
	switch {
	case err == nil && code == replyDone:
		return nil, nil
	case err == nil && code == replyMissing:
		return nil, driver.ErrNotFound
	case err == nil && code == replyConflict:
		return nil, driver.ErrConflict
	case err == nil && code == replyVersion:
		return nil, driver.ErrVersion
	case err == nil && code == replyCorrupt:
		return nil, driver.ErrCorrupt
	}
	return nil, driver.Unavailable(fmt.Errorf("redis: the script's reply is not one of its own (is this server Redis?)"))
}

func (s *Store) key(id driver.ID) string { return s.prefix + id.Hex() }

// encode refuses what is too large here, because Redis answers it by closing the connection.
func (s *Store) encode(r driver.Record) ([]byte, error) {
	if n, limit := r.EncodedLen(), s.description.MaxBytes; n > limit {
		return nil, fmt.Errorf("%w: %d bytes, the server takes %d (its setting proto-max-bulk-len)", driver.ErrTooLarge, n, limit)
	}
	return driver.Encode(r)
}

// bytes8 returns n as driver's encoding and the scripts have it.
func bytes8(n uint64) string { return string(binary.BigEndian.AppendUint64(nil, n)) }
