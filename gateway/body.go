package gateway

import (
	"errors"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
)

// maxReplay is how much of a request's body is kept so that it can be sent again, and how large an answer is read
// whole before its header goes to the client, so that it can be had again from elsewhere.
const maxReplay = 64 << 10

// replay is the body of a request that may be sent more than once. It keeps what the attempts have read from the
// client, up to maxReplay, and reads nothing before an attempt asks: a client that expects 100-continue sends
// nothing before.
type replay struct {
	src          io.Reader
	expects      bool        // the client sends nothing before it is asked to
	begun, ended atomic.Bool // reading from the client

	// announced is the client's trailer, whose values are there once the body has ended, and passed is what of it
	// upstreams get, by name.
	announced http.Header
	passed    []string

	// mu guards the fields below. It is held while reading from the client: an attempt that was given up may still
	// be reading when the next begins, and what it reads must not be lost.
	mu   sync.Mutex
	kept []byte
	lost bool  // more was read than is kept
	err  error // how reading from the client ended
}

// newReplay returns the body of r, or nil if it has none.
func newReplay(r *http.Request, trailer http.Header, passed []string) *replay {
	if r.Body == nil || r.Body == http.NoBody {
		return nil
	}
	b := &replay{src: r.Body, expects: r.Header.Get("Expect") != "", announced: trailer, passed: passed}
	if n := r.ContentLength; n > 0 && n <= maxReplay {
		b.kept = make([]byte, 0, n)
	}
	return b
}

// attempt returns the body from its beginning.
func (b *replay) attempt() *attemptBody {
	a := &attemptBody{replay: b}
	if len(b.passed) > 0 {
		a.trailer = make(http.Header, len(b.passed))
		for _, name := range b.passed {
			a.trailer[name] = nil // announces it
		}
	}
	return a
}

// streaming reports whether the client is still sending. It does not wait for the client, as the others may.
func (b *replay) streaming() bool {
	return b != nil && !b.ended.Load() && (b.begun.Load() || !b.expects)
}

// rewindable reports whether the body can be sent from its beginning again.
func (b *replay) rewindable() bool {
	if b == nil {
		return true
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return !b.lost
}

// clientError returns why the client's body could not be read, or nil.
func (b *replay) clientError() error {
	if b == nil {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err == io.EOF {
		return nil
	}
	return b.err
}

var errLost = errors.New("request body cannot be sent again")

type attemptBody struct {
	*replay
	off     int
	trailer http.Header // has values once Read has returned io.EOF
}

func (a *attemptBody) Read(p []byte) (int, error) {
	b := a.replay
	b.mu.Lock()
	defer b.mu.Unlock()
	if a.off < len(b.kept) {
		n := copy(p, b.kept[a.off:])
		a.off += n
		return n, nil
	}
	if b.lost && a.off == 0 {
		return 0, errLost
	}
	if b.err != nil {
		a.complete()
		return 0, b.err
	}
	b.begun.Store(true)
	n, err := b.src.Read(p)
	a.off += n
	b.err = err
	b.ended.Store(err != nil)
	switch {
	case b.lost:
	case len(b.kept)+n > maxReplay:
		b.kept, b.lost = nil, true
	default:
		b.kept = append(b.kept, p[:n]...)
	}
	a.complete()
	return n, err
}

// complete takes the trailer over once the body has ended. b.mu is held.
func (a *attemptBody) complete() {
	if a.err != io.EOF {
		return
	}
	for _, name := range a.passed {
		if values := a.announced[name]; len(values) > 0 {
			a.trailer[name] = values
		} else {
			delete(a.trailer, name)
		}
	}
}

// Close leaves the client's body open: closing it would read it to its end. ReverseProxy closes it.
func (a *attemptBody) Close() error { return nil }
