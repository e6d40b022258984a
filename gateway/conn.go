package gateway

import (
	"crypto/tls"
	"net"
	"sync/atomic"
)

// conn is a connection to an upstream that knows whether anything was sent on it.
type conn struct {
	net.Conn
	sent atomic.Int64 // bytes
}

func (c *conn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.sent.Add(int64(n))
	return n, err
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
