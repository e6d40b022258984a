package holdfast

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// Handler returns next with sessions: its requests have one, by Get, and its responses are held until what they did
// to the session is stored. It costs next to nothing where the session is not used.
//
// Wrap everything that uses sessions in it once; http.TimeoutHandler belongs outside, where its answer does not store
// the half of what a handler was about to do.
func (m *Manager) Handler(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Context().Value(m) != nil { // wrapped twice
			next.ServeHTTP(w, r)
			return
		}
		x := &exchange{ResponseWriter: w, Context: r.Context(), m: m, r: r, began: time.Since(epoch)}
		inner := r.WithContext(x)
		if m.config.URLParameter != "" {
			inner = x.takeURLToken(inner)
		}
		returned := false
		defer func() {
			// The server looks at its own request, not at the copy that handlers had: at the form, whose temporary files
			// it removes, and middleware outside at the pattern.
			r.Pattern = inner.Pattern
			if r.MultipartForm == nil {
				r.MultipartForm = inner.MultipartForm
			}
			x.finish(returned)
		}()
		if _, ok := w.(http.Flusher); ok {
			next.ServeHTTP(flusher{x}, inner)
		} else {
			next.ServeHTTP(x, inner)
		}
		returned = true
	})
}

// epoch is what requests are timed from: reading one clock costs half of what time.Now does.
var epoch = time.Now()

// exchange is one request and its response on their way through a Manager. Handlers see it as their ResponseWriter
// and, in the request, as the Context that Manager.Get finds it by: one value, because every request pays for it.
type exchange struct {
	http.ResponseWriter // the one below
	context.Context     // of the request as it came
	m                   *Manager
	r                   *http.Request // as it came
	began               time.Duration // since epoch

	wroteHeader bool // used by the handler alone, like the ResponseWriter

	mu      sync.Mutex // mu guards the fields below; where both are taken, before the session's
	session *Session   // nil until it is used
	failure error      // why an error was sent instead of the handler's response

	phase atomic.Int32 // written under mu and the session's mu

	// The session's mu guards the fields below.
	carrier   carrier
	duplicate bool // two cookies of the session's name came
	send      bool // the client gets the session's token
	clear     bool // the client drops its token

	urlTokens []string // of Config.URLParameter; set before the handler runs
	inURL     bool     // a token was put into an address of this response
}

// The phases of an exchange.
const (
	phaseOpen      = iota // nothing is sent yet
	phaseCommitted        // the header is sent
	phaseFinished         // the handler returned
)

// Value makes the exchange its own Manager's value in the context.
func (x *exchange) Value(key any) any {
	if key == any(x.m) {
		return x
	}
	return x.Context.Value(key)
}

// String keeps tokens in the request's address out of logs that print its context.
func (x *exchange) String() string { return "holdfast request" }

// use returns the session, which the caller loads.
func (x *exchange) use() *Session {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.session == nil {
		x.session = &Session{m: x.m, x: x}
	}
	return x.session
}

// commit stores what the handler did to the session and completes the header, before the first byte is sent. If that
// fails it sends an error instead, and returns it for all that the handler writes.
func (x *exchange) commit() error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.phase.Load() != phaseOpen {
		return x.failure
	}
	s := x.session
	if s == nil {
		x.protectAddress()
		x.phase.Store(phaseCommitted)
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var err error
	// What the handler did is done, also for a client that has gone away.
	if ctx := context.WithoutCancel(x.Context); x.m.sealed() {
		err = s.commitSealed(ctx)
	} else if len(s.pending) > 0 {
		err = s.flush(ctx)
	}
	x.phase.Store(phaseCommitted)
	if err == nil {
		x.completeHeader(s)
		return nil
	}
	s.pending = nil
	x.failure = err
	x.wroteHeader = true
	clear(x.Header())
	x.protectAddress()
	if x.send || x.clear { // stored already: without it the client would be left with a token that has ended
		x.completeHeader(s)
	}
	if x.m.config.OnError != nil {
		x.m.config.OnError(x.ResponseWriter, x.r, err)
	} else {
		x.m.Error(x.ResponseWriter, x.r, err)
	}
	return err
}

// finish ends the exchange after the handler returned, or panicked: then nothing more is stored.
func (x *exchange) finish(returned bool) {
	if returned {
		_ = x.commit() // a failure is answered there
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	s := x.session
	if s == nil {
		x.phase.Store(phaseFinished)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if returned && s.loaded && !x.m.sealed() && (len(s.pending) > 0 || s.touchDue()) {
		ctx := context.WithoutCancel(x.Context)
		if err := s.flush(ctx); err != nil {
			x.m.config.Logger.Warn("session changed after the response was sent, and could not be saved", "err", err)
		}
		if s.touchDue() { // not after the flush
			s.touch(ctx)
		}
	}
	x.phase.Store(phaseFinished)
}

// WriteHeader sends the header, after commit. Informational ones pass at once, without the session's cookie.
func (x *exchange) WriteHeader(status int) {
	if status >= 100 && status < 200 && status != http.StatusSwitchingProtocols {
		x.ResponseWriter.WriteHeader(status)
		return
	}
	if x.commit() == nil {
		x.wroteHeader = true
		x.ResponseWriter.WriteHeader(status)
	}
}

// Write sends part of the body, after commit.
func (x *exchange) Write(b []byte) (int, error) {
	if err := x.commit(); err != nil {
		return 0, err
	}
	x.wroteHeader = true
	return x.ResponseWriter.Write(b)
}

// WriteString is Write for io.WriteString.
func (x *exchange) WriteString(s string) (int, error) {
	if err := x.commit(); err != nil {
		return 0, err
	}
	x.wroteHeader = true
	return io.WriteString(x.ResponseWriter, s)
}

// ReadFrom is Write for io.Copy. The writer below copies in its own way, such as sendfile.
func (x *exchange) ReadFrom(src io.Reader) (int64, error) {
	if err := x.commit(); err != nil {
		return 0, err
	}
	x.wroteHeader = true
	return io.Copy(x.ResponseWriter, src)
}

// FlushError sends what is written so far, after commit. It is what http.ResponseController calls.
func (x *exchange) FlushError() error {
	if err := x.commit(); err != nil {
		return err
	}
	x.wroteHeader = true
	return http.NewResponseController(x.ResponseWriter).Flush()
}

// Hijack takes over the connection, after commit. It refuses if a cookie would be lost that way: the server no longer
// sends the header. Use the session in the request before, or send status 101 by WriteHeader first.
func (x *exchange) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	if err := x.commit(); err != nil {
		return nil, nil, err
	}
	if x.send && !x.wroteHeader {
		return nil, nil, fmt.Errorf("hijack: %w: the session's new token could not be sent any more", ErrUnsupported)
	}
	return http.NewResponseController(x.ResponseWriter).Hijack()
}

// Unwrap returns the writer below, for http.ResponseController.
func (x *exchange) Unwrap() http.ResponseWriter { return x.ResponseWriter }

// flusher is an exchange over a writer that can flush. It is a type of its own so that one over a writer that cannot
// does not pretend to.
type flusher struct{ *exchange }

// Flush is FlushError for those who do not look at errors.
func (f flusher) Flush() { _ = f.FlushError() }
