package redisstore

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/redis/rueidis"
)

const (
	// ringScale is the power of two of how many commands wait for their replies on one connection.
	ringScale = 10
	// maxCalls bounds the calls that are under way, each with a goroutine, also those whose callers have gone. It is
	// how many fit on a connection; rueidis makes the next one wait, whatever its deadline. Further callers wait
	// in do, where a deadline is heeded.
	maxCalls = 1 << ringScale
)

// do runs f, which sends commands, and returns its result, or an error when ctx ends first. f runs on in that
// case, until the server answers or the connection is given up: nothing can be taken back from a pipeline. It gets
// the store's context, because rueidis does not heed a caller's while it waits for a connection to be made.
func do[T any](ctx context.Context, s *Store, f func(context.Context) T) (T, error) {
	var none T
	select {
	case <-s.closing:
		return none, driver.ErrClosed
	default:
	}
	if err := ctx.Err(); err != nil {
		return none, driver.Unavailable(err)
	}
	select {
	case s.slots <- struct{}{}:
	case <-ctx.Done():
		return none, driver.Unavailable(ctx.Err())
	case <-s.closing:
		return none, driver.ErrClosed
	}
	done := make(chan T, 1)
	go func() { // Close waits for it by taking all slots
		done <- f(s.ctx)
		<-s.slots
	}()
	select {
	case r := <-done:
		return r, nil
	case <-ctx.Done():
		return none, driver.Unavailable(ctx.Err())
	}
}

// read sends one command that changes nothing to a server, or to whichever of s.client is in charge of its key.
//
// rueidis sends such a command once more when the connection breaks, and uses its memory for another command as soon as
// that is answered, while the broken connection's writer may still be reading it: a data race, which Pin prevents
// (rueidis 1.0.79). Writes are not sent twice, and what was not answered is not used again.
func (s *Store) read(ctx context.Context, server rueidis.Client, command func(rueidis.Builder) rueidis.Completed) rueidis.RedisResult {
	r, err := do(ctx, s, func(ctx context.Context) rueidis.RedisResult {
		return server.Do(ctx, command(server.B()).Pin())
	})
	if err != nil {
		return rueidis.NewErrorResult(err)
	}
	return r
}

// mapError returns the driver's error for err, which is what a command was answered with, or why it was not.
func (s *Store) mapError(err error) error {
	if err == nil || errors.Is(err, driver.ErrUnavailable) {
		return err
	}
	if rueidis.IsRedisNil(err) {
		return driver.ErrNotFound
	}
	if errors.Is(err, rueidis.ErrClosing) || errors.Is(err, context.Canceled) {
		select {
		case <-s.closing:
			return driver.ErrClosed
		default: // a node's connections are closed when it leaves the cluster
			return driver.Unavailable(errors.New("redis: the connection was closed"))
		}
	}
	if errors.Is(err, context.DeadlineExceeded) { // rueidis' own, while connecting; not the caller's
		return driver.Unavailable(errors.New("redis: the server does not answer"))
	}
	if _, ok := rueidis.IsRedisErr(err); !ok {
		return driver.Unavailable(fmt.Errorf("redis: %w", err))
	}
	kind, message := driver.ErrUnavailable, plain(err.Error())
	switch {
	case strings.HasPrefix(message, "READONLY"):
		kind = driver.ErrReadOnly
		if s.sentinels != nil { // it was the primary when the connection was made
			s.sentinels.suspect()
		}
	case strings.HasPrefix(message, "WRONGTYPE"):
		kind = driver.ErrCorrupt
	case strings.Contains(message, "invalid bulk length"), strings.Contains(message, "proto-max-bulk-len"):
		kind = driver.ErrTooLarge
	}
	return fmt.Errorf("%w: redis: %s", kind, message)
}

var (
	wholeID   = regexp.MustCompile(`\b([0-9a-f]{8})[0-9a-f]{56}\b`)
	afterAuth = regexp.MustCompile(`\bAUTH .*`)
)

// plain returns a server's error message without what must not be shown: servers quote the arguments of a command
// that they do not know, among them whole IDs, values, and the password of a login.
func plain(message string) string {
	message, _, _ = strings.Cut(message, ", with args beginning with")
	message = afterAuth.ReplaceAllString(message, "AUTH [secret]")
	return wholeID.ReplaceAllString(message, "$1")
}
