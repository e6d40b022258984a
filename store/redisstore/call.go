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

// do runs f, which sends a command, and returns its result, or an error when ctx ends first. f runs on in that
// case, until the server answers or the connection is given up: nothing can be taken back from a pipeline. It gets
// the store's context, because rueidis does not heed a caller's while it waits for a connection to be made.
func (s *Store) do(ctx context.Context, f func(context.Context) rueidis.RedisResult) rueidis.RedisResult {
	select {
	case <-s.closing:
		return rueidis.NewErrorResult(driver.ErrClosed)
	default:
	}
	if err := ctx.Err(); err != nil {
		return rueidis.NewErrorResult(driver.Unavailable(err))
	}
	select {
	case s.slots <- struct{}{}:
	case <-ctx.Done():
		return rueidis.NewErrorResult(driver.Unavailable(ctx.Err()))
	case <-s.closing:
		return rueidis.NewErrorResult(driver.ErrClosed)
	}
	done := make(chan rueidis.RedisResult, 1)
	go func() { // Close waits for it by taking all slots
		done <- f(s.ctx)
		<-s.slots
	}()
	select {
	case r := <-done:
		return r
	case <-ctx.Done():
		return rueidis.NewErrorResult(driver.Unavailable(ctx.Err()))
	}
}

// mapError returns the driver's error for err, which is what a command was answered with, or why it was not.
func mapError(err error) error {
	if err == nil || errors.Is(err, driver.ErrUnavailable) {
		return err
	}
	if rueidis.IsRedisNil(err) {
		return driver.ErrNotFound
	}
	if errors.Is(err, rueidis.ErrClosing) || errors.Is(err, context.Canceled) { // canceled: by Close
		return driver.ErrClosed
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
