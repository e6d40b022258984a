package gateway

import (
	"crypto/tls"
	"net"
	"sync/atomic"
	"time"
)

// conn is a connection to an upstream that knows whether anything was sent on it.
type conn struct {
	net.Conn
	live     *live
	deadline writeDeadline
	sent     atomic.Int64 // bytes
}

func (c *conn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if n > 0 {
		c.live.heard.Store(int64(c.live.clock.now()))
	}
	return n, err
}

// Write gives up an upstream that does not read.
func (c *conn) Write(b []byte) (int, error) {
	c.deadline.arm(c.Conn)
	n, err := c.Conn.Write(b)
	c.sent.Add(int64(n))
	return n, err
}

func (c *conn) Close() error {
	c.live.mu.Lock()
	delete(c.live.conns, c)
	c.live.mu.Unlock()
	return c.Conn.Close()
}

// CloseWrite passes on the half-close of an upgraded connection.
func (c *conn) CloseWrite() error {
	if cw, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return cw.CloseWrite()
	}
	return c.Close()
}

// writeDeadline bounds how long the other side may take nothing. To set a deadline costs as much as a small write, so it is set
// once in a quarter of the time: a write has at least three quarters of it.
type writeDeadline struct {
	timeout time.Duration
	clock   clock
	armed   atomic.Int64 // when it was set, on clock; 0: not
}

// arm is for before a write to c.
func (d *writeDeadline) arm(c net.Conn) {
	if now, armed := int64(d.clock.now()), d.armed.Load(); armed == 0 || now-armed > int64(d.timeout/4) {
		d.armed.Store(now)
		_ = c.SetWriteDeadline(time.Now().Add(d.timeout)) // on a closed connection the write fails
	}
}

// trackedConn returns the conn under c, and whether there is TLS over it.
func trackedConn(c net.Conn) (tracked *conn, secure bool) {
	t, secure := c.(*tls.Conn)
	if secure {
		c = t.NetConn()
	}
	tracked, _ = c.(*conn)
	return tracked, secure
}
