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
	live  *live
	stall time.Duration // that one write may take, at most; at least three quarters of it
	armed atomic.Int64  // when the deadline for writes was set, on live.clock
	sent  atomic.Int64  // bytes
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
	// As in clientConn, the deadline is set once in a quarter of its time.
	if now, armed := int64(c.live.clock.now()), c.armed.Load(); armed == 0 || now-armed > int64(c.stall/4) {
		c.armed.Store(now)
		_ = c.Conn.SetWriteDeadline(time.Now().Add(c.stall))
	}
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

// trackedConn returns the conn under c, and whether there is TLS over it.
func trackedConn(c net.Conn) (tracked *conn, secure bool) {
	t, secure := c.(*tls.Conn)
	if secure {
		c = t.NetConn()
	}
	tracked, _ = c.(*conn)
	return tracked, secure
}
