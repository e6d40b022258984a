package redisstore

import (
	"context"
	"crypto/sha1"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/redis/rueidis"
)

// script is a Lua script, which servers know by its hash once they have run it.
type script struct{ text, hash string }

func newScript(text string) script {
	sum := sha1.Sum([]byte(text)) // a name, not a protection
	return script{text, hex.EncodeToString(sum[:])}
}

// written is how a write was answered.
type written struct {
	reply  rueidis.RedisMessage
	copies int64 // replicas that have confirmed it, if it was asked for
	err    error
}

// exec runs one of the scripts and returns the record it replied with, if any. With confirm, replicas have to have
// what it wrote, if the URL says so.
func (s *Store) exec(ctx context.Context, sc script, confirm bool, id driver.ID, prev uint64, expires time.Time, args ...string) ([]byte, error) {
	now := time.Now().UnixMilli()
	// The life of the key is relative, so that a server whose clock is wrong does not end sessions early. A record
	// that has expired replaces the one before it for a millisecond. The bound keeps far-away dates from overflowing.
	life := min(max(expires.UnixMilli()-now, 1), 1<<52)
	args = append([]string{bytes8(prev), bytes8(uint64(now)), strconv.FormatInt(life, 10)}, args...)
	w := s.run(ctx, sc, confirm, id, args)
	if w.err != nil {
		return nil, s.mapError(w.err)
	}
	var blob []byte
	var err error
	if w.reply.IsString() {
		blob, err = w.reply.AsBytes()
	} else {
		err = scriptError(w.reply)
	}
	if err == nil && confirm {
		err = s.confirmed(w.copies)
	}
	if err != nil {
		return nil, err
	}
	return blob, nil
}

// scriptError returns what a script's reply means if it is no record.
func scriptError(reply rueidis.RedisMessage) error {
	code, err := reply.AsInt64()
	if err == nil {
		switch code {
		case replyDone:
			return nil
		case replyMissing:
			return driver.ErrNotFound
		case replyConflict:
			return driver.ErrConflict
		case replyVersion:
			return driver.ErrVersion
		case replyCorrupt:
			return driver.ErrCorrupt
		}
	}
	return driver.Unavailable(errors.New("redis: the script's reply is not one of its own (is this server Redis?)"))
}

func (s *Store) confirmed(copies int64) error {
	if copies >= int64(s.wait) {
		return nil
	}
	return driver.Unavailable(fmt.Errorf("redis: written, but not confirmed by %d replicas within %v (by %d)", s.wait, s.waitTimeout, copies))
}

// run sends a script by its hash, and again with its text if the server does not know it. Neither is sent a second
// time after its answer was lost: it may have been carried out.
func (s *Store) run(ctx context.Context, sc script, confirm bool, id driver.ID, args []string) written {
	key := s.key(id)
	w, err := do(ctx, s, func(ctx context.Context) written {
		// Also when the caller has gone: what the cache holds is from before this.
		defer s.forget(id)
		w := s.write(ctx, confirm, key, func(b rueidis.Builder) rueidis.Completed {
			return b.Evalsha().Sha1(sc.hash).Numkeys(1).Key(key).Arg(args...).Build()
		})
		if e, ok := rueidis.IsRedisErr(w.err); ok && e.IsNoScript() {
			w = s.write(ctx, confirm, key, func(b rueidis.Builder) rueidis.Completed {
				return b.Eval().Script(sc.text).Numkeys(1).Key(key).Arg(args...).Build()
			})
		}
		return w
	})
	if err != nil {
		return written{err: err}
	}
	return w
}

// write sends a command that writes, and, if confirm is set and the URL asks for copies, WAIT in the same round trip.
func (s *Store) write(ctx context.Context, confirm bool, key string, command func(rueidis.Builder) rueidis.Completed) written {
	switch {
	case s.wait == 0 || !confirm:
		reply, err := s.client.Do(ctx, command(s.client.B())).ToMessage()
		return written{reply: reply, err: err}
	case s.cluster != nil:
		return s.writeToNode(ctx, key, command)
	}
	ctx, cancel := context.WithTimeout(ctx, s.waitTimeout+replyTimeout)
	defer cancel()
	return s.writeAndWait(ctx, s.client, command)
}

// writeAndWait sends a write and WAIT to one server. WAIT counts the replicas that have all that its own connection
// wrote, and holds that connection up meanwhile. rueidis sends commands that come together on one connection, and
// those with one that blocks among them on a connection of a pool that nobody else uses then. It does not look after
// such a connection while it waits, so ctx has to end.
func (s *Store) writeAndWait(ctx context.Context, server rueidis.Client, command func(rueidis.Builder) rueidis.Completed,
	before ...rueidis.Completed,
) written {
	commands := append(before, command(server.B()),
		server.B().Wait().Numreplicas(int64(s.wait)).Timeout(s.waitTimeout.Milliseconds()).Build())
	replies := server.DoMulti(ctx, commands...)
	reply, err := replies[len(replies)-2].ToMessage()
	if err != nil {
		return written{err: err}
	}
	copies, err := replies[len(replies)-1].AsInt64()
	if err != nil {
		err = driver.Unavailable(fmt.Errorf("redis: written, but WAIT was not answered: %w", err))
	}
	return written{reply: reply, copies: copies, err: err}
}
