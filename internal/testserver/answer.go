package testserver

import (
	"bytes"
	"io"
	"net"
	"sync"
	"testing"
)

// Answer returns an address where everybody gets one answer to whatever they send first, and the connection is closed if it
// is "".
func Answer(t testing.TB, answer string) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() { l.Close(); <-done })
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = conn.Read(make([]byte, 4096))
			if answer != "" {
				_, _ = conn.Write([]byte(answer))
				_, _ = io.Copy(io.Discard, conn)
			}
			conn.Close()
		}
	}()
	return l.Addr().String()
}

// Buffer is a bytes.Buffer for the log of something that is still at work.
type Buffer struct {
	mu sync.Mutex

	// mu guards the field below.
	b bytes.Buffer
}

func (b *Buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *Buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}
