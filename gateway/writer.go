package gateway

import (
	"net/http"
	"sync"
	"time"
)

// clientWriter is the http.ResponseWriter of an exchange. It counts, and gives up a stream of HTTP/2 whose client takes
// nothing more: over HTTP/1, its connection does that (clientConn).
type clientWriter struct {
	http.ResponseWriter
	timeout time.Duration
	http2   bool
	stalled *time.Timer // of HTTP/2, once there was a write
	n       int64       // bytes of the body

	// mu serializes giving up with the end of the handler, after which there is no stream to give up.
	mu   sync.Mutex
	over bool
}

// Unwrap is for http.ResponseController.
func (w *clientWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *clientWriter) Write(b []byte) (int, error) {
	if w.http2 {
		// A deadline of the stream would also end one that only has nothing to say.
		if w.stalled == nil {
			w.stalled = time.AfterFunc(w.timeout, w.giveUp)
		} else {
			w.stalled.Reset(w.timeout)
		}
		defer w.stalled.Stop()
	}
	n, err := w.ResponseWriter.Write(b)
	w.n += int64(n)
	return n, err
}

func (w *clientWriter) giveUp() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.over {
		_ = http.NewResponseController(w.ResponseWriter).SetWriteDeadline(time.Unix(1, 0))
	}
}

// end is for when the handler returns. http.Server then writes what it has buffered.
func (w *clientWriter) end() {
	if !w.http2 {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.over = true
	_ = http.NewResponseController(w.ResponseWriter).SetWriteDeadline(time.Now().Add(w.timeout))
}
