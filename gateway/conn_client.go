package gateway

import (
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// clientConn is a connection to a client, below TLS. A client that takes nothing of an answer for too long loses it.
type clientConn struct {
	net.Conn          // reads from here
	socket   net.Conn // writes go here; the same, unless the PROXY protocol is spoken
	remote   net.Addr
	release  func() // gives the place among the connections back
	once     sync.Once
	timeout  time.Duration
	armed    atomic.Int64 // when the deadline was set, on clock
	explicit atomic.Bool  // somebody above has set one: leave it alone
	clock    clock
}

func (c *clientConn) RemoteAddr() net.Addr { return c.remote }

func (c *clientConn) Write(b []byte) (int, error) {
	// Setting a deadline costs as much as a small write, so it is done once in a quarter of its time.
	if now := int64(c.clock.now()); !c.explicit.Load() && (now-c.armed.Load() > int64(c.timeout/4) || c.armed.Load() == 0) {
		c.armed.Store(now)
		_ = c.socket.SetWriteDeadline(time.Now().Add(c.timeout))
	}
	return c.socket.Write(b)
}

func (c *clientConn) SetWriteDeadline(t time.Time) error {
	c.explicit.Store(!t.IsZero())
	c.armed.Store(0)
	return c.socket.SetWriteDeadline(t)
}

func (c *clientConn) SetDeadline(t time.Time) error {
	if err := c.SetReadDeadline(t); err != nil {
		return err
	}
	return c.SetWriteDeadline(t)
}

// CloseWrite passes on the half-close.
func (c *clientConn) CloseWrite() error {
	if cw, ok := c.socket.(interface{ CloseWrite() error }); ok {
		return cw.CloseWrite()
	}
	return c.Close()
}

func (c *clientConn) Close() error {
	err := c.socket.Close()
	c.once.Do(c.release)
	return err
}
