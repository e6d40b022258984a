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
	deadline writeDeadline
	explicit atomic.Bool // somebody above has set one: leave it alone
}

func (c *clientConn) RemoteAddr() net.Addr { return c.remote }

func (c *clientConn) Write(b []byte) (int, error) {
	if !c.explicit.Load() {
		c.deadline.arm(c.socket)
	}
	return c.socket.Write(b)
}

func (c *clientConn) SetWriteDeadline(t time.Time) error {
	c.explicit.Store(!t.IsZero())
	c.deadline.armed.Store(0)
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
