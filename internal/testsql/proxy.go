package testsql

import (
	"io"
	"net"
	"sync/atomic"
	"testing"

	"github.com/holdfast-sessions/holdfast/internal/testfault"
)

// Proxy forwards connections to a server, counts round trips, and cuts answers on command.
type Proxy struct {
	Addr string
	// Trips counts how often a client wrote after the server had, on one connection at a time.
	Trips atomic.Int64
	// Cut has the proxy drop both connections when the next answer comes, and not deliver it.
	Cut atomic.Bool

	answered atomic.Bool
}

// NewProxy starts a proxy, which ends with the test.
func NewProxy(t testing.TB, to string) *Proxy {
	t.Helper()
	p := &Proxy{}
	p.Addr = testfault.Forward(t, to, p.requests, p.answers)
	return p
}

func (p *Proxy) requests(server, client net.Conn) {
	p.answered.Store(true)
	_, _ = io.Copy(counter{server, p}, client)
}

// counter counts a write that follows an answer.
type counter struct {
	io.Writer
	p *Proxy
}

func (c counter) Write(b []byte) (int, error) {
	if c.p.answered.Swap(false) {
		c.p.Trips.Add(1)
	}
	return c.Writer.Write(b)
}

func (p *Proxy) answers(client, server net.Conn) {
	buf := make([]byte, 64<<10)
	for {
		n, err := server.Read(buf)
		if err != nil || p.Cut.Load() {
			return
		}
		p.answered.Store(true)
		if _, err := client.Write(buf[:n]); err != nil {
			return
		}
	}
}
