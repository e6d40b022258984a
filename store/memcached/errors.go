package memcached

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"regexp"
	"strconv"
	"strings"
	"syscall"

	"github.com/bradfitz/gomemcache/memcache"

	"github.com/holdfast-sessions/holdfast/driver"
)

// The answers that a call deals with itself.
func isMiss(err error) bool      { return errors.Is(err, memcache.ErrCacheMiss) }
func isExists(err error) bool    { return errors.Is(err, memcache.ErrCASConflict) }
func isNotStored(err error) bool { return errors.Is(err, memcache.ErrNotStored) }

// isMoved reports whether err says that a condition of a write does not hold.
func isMoved(err error) bool { return isMiss(err) || isExists(err) || isNotStored(err) }

// mapError returns the driver's error for err, which is what a command was answered with, or why it was not.
func mapError(err error) error {
	if err == nil {
		return nil
	}
	for _, known := range []error{driver.ErrUnavailable, driver.ErrNotFound, driver.ErrConflict, driver.ErrTooLarge, driver.ErrVersion, driver.ErrCorrupt, errEnded} {
		if errors.Is(err, known) {
			return err
		}
	}
	var network net.Error
	switch {
	case broken(err):
		return driver.Unavailable(errBroken)
	case errors.As(err, &network):
		return driver.Unavailable(err)
	}
	message := answer(err)
	if strings.Contains(message, "too large") {
		return fmt.Errorf("%w: %s (memcached's setting -I)", driver.ErrTooLarge, message)
	}
	if strings.Contains(message, "out of memory") {
		return driver.Unavailable(errNoMemory)
	}
	return driver.Unavailable(errors.New(message))
}

var (
	errBroken   = errors.New("the connection broke")
	errSilent   = errors.New("it does not answer")
	errClosed   = errors.New("it closes the connection; is this memcached?")
	errNoCAS    = errors.New("the server was started with -C, without compare-and-swap: parallel requests would overwrite each other; start it without -C")
	errNoMemory = errors.New("the server is out of memory; raise its setting -m, or start it without -M")
)

// broken reports whether err says that the connection ended.
func broken(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed) ||
		errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

var (
	quoted  = regexp.MustCompile(`"(?:[^"\\]|\\.)*"$`)
	wholeID = regexp.MustCompile(`\b([0-9a-f]{8})[0-9a-f]{56}\b`)
)

// answer returns what the server said, of an error in which gomemcache quotes a line that it did not expect. Only lines
// that the protocol has for errors are shown: any other may be part of somebody's session.
func answer(err error) string {
	if line, e := strconv.Unquote(quoted.FindString(err.Error())); e == nil {
		line = strings.TrimSpace(line)
		for _, kind := range []string{"SERVER_ERROR ", "CLIENT_ERROR ", "ERROR"} {
			if strings.HasPrefix(line, kind) {
				return wholeID.ReplaceAllString(line, "$1")
			}
		}
		return "its answer is not one of memcached's"
	}
	return wholeID.ReplaceAllString(err.Error(), "$1")
}

// dialError says why a server cannot be connected to.
func dialError(err error) error {
	var dns *net.DNSError
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		return errSilent
	case errors.Is(err, syscall.ECONNREFUSED):
		return errors.New("connection refused; is memcached running there? check host and port, and its setting -l")
	case errors.As(err, &dns) && !dns.IsTimeout:
		return fmt.Errorf("host %q cannot be resolved; check its spelling", dns.Name)
	}
	return err
}
