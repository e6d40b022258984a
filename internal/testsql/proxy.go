package testsql

import (
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
)

// Proxy forwards connections to a server, counts round trips, and cuts answers on command.
type Proxy struct {
	Addr string
	// Trips counts how often a client wrote after the server had.
	Trips atomic.Int64
	// Cut has the proxy drop both connections when the next answer comes, and not deliver it.
	Cut atomic.Bool
}

// NewProxy starts a proxy, which ends with the test.
func NewProxy(t testing.TB, to string) *Proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &Proxy{Addr: l.Addr().String()}
	var wg sync.WaitGroup
	t.Cleanup(func() { l.Close(); wg.Wait() })
	wg.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", to)
			if err != nil {
				client.Close()
				continue
			}
			end := func() { client.Close(); server.Close() }
			var answered atomic.Bool
			answered.Store(true)
			wg.Go(func() {
				defer end()
				_, _ = io.Copy(counter{server, p, &answered}, client)
			})
			wg.Go(func() { defer end(); p.answers(client, server, &answered) })
		}
	})
	return p
}

// counter counts a write that follows an answer.
type counter struct {
	io.Writer
	p        *Proxy
	answered *atomic.Bool
}

func (c counter) Write(b []byte) (int, error) {
	if c.answered.Swap(false) {
		c.p.Trips.Add(1)
	}
	return c.Writer.Write(b)
}

func (p *Proxy) answers(client, server net.Conn, answered *atomic.Bool) {
	buf := make([]byte, 64<<10)
	for {
		n, err := server.Read(buf)
		if err != nil || p.Cut.Load() {
			return
		}
		answered.Store(true)
		if _, err := client.Write(buf[:n]); err != nil {
			return
		}
	}
}
