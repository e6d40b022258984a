// Package framing refuses HTTP/1 messages that two programs might not take apart alike: net/http accepts some of
// them, and another program before or behind the gateway may see a different request in them (request smuggling).
//
// A Conn stands between a client's connection and http.Server. It follows the bytes that the server reads, message by
// message, and holds back what would complete a header or a chunk that is refused. The server then reads an error,
// which it answers 400 if that is in a header; in a body, the handler gets it. Docs: gateway.md, "Framing".
package framing

import (
	"crypto/tls"
	"net"
	"sync/atomic"
)

// Conn is a connection that is read by an http.Server, as HTTP/1.
type Conn struct {
	net.Conn
	onRefuse func(error)
	passing  atomic.Bool
	refused  atomic.Bool // onRefuse was called

	// The fields below are used by Read only. The server does not read on two goroutines at once.
	parser parser
	err    error // why nothing more is passed on
}

// NewConn returns a Conn that reads from c. max is the MaxHeaderBytes of the server. onRefuse is called at most once,
// on the goroutine that reads, with an Error.
func NewConn(c net.Conn, max int, onRefuse func(error)) *Conn {
	// The server reads max and 4 KiB, after it may have read 4 KiB ahead.
	return &Conn{Conn: c, onRefuse: onRefuse, parser: parser{max: max + 8<<10}}
}

// Read passes on what is well framed, and then an Error.
func (c *Conn) Read(p []byte) (int, error) {
	if c.passing.Load() {
		return c.Conn.Read(p)
	}
	if c.err != nil {
		if len(p) == 1 {
			// The server, which answers an earlier request, only wants to know whether the client is still there.
			return c.waitForEnd(p)
		}
		return 0, c.refuse()
	}
	n, err := c.Conn.Read(p)
	if n == 0 || c.passing.Load() { // perhaps since the call above
		return n, err
	}
	if n, c.err = c.parser.feed(p[:n]); c.err == nil {
		return n, err
	}
	if n == 0 {
		return 0, c.refuse()
	}
	return n, nil
}

func (c *Conn) refuse() error {
	if !c.refused.Swap(true) {
		c.onRefuse(c.err)
	}
	return c.err
}

// Refused reports whether the server got an Error. To a handler, that looks as if the client had gone away.
func (c *Conn) Refused() bool { return c.refused.Load() }

// waitForEnd reads until the client has gone or the server no longer wants to know.
func (c *Conn) waitForEnd(p []byte) (int, error) {
	for {
		if _, err := c.Conn.Read(p); err != nil {
			return 0, err
		}
	}
}

// Pass lets everything through from now on: the connection is no longer HTTP/1. It must be called before the client is
// told so.
func (c *Conn) Pass() { c.passing.Store(true) }

// CloseWrite passes on the half-close.
func (c *Conn) CloseWrite() error {
	if cw, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return cw.CloseWrite()
	}
	return c.Close()
}

// NetConn returns the connection that c reads from.
func (c *Conn) NetConn() net.Conn { return c.Conn }

// TLSConn is a Conn over TLS. http.Server knows by its method that there is TLS.
type TLSConn struct {
	*Conn
	tls *tls.Conn
}

// NewTLSConn is NewConn for a connection over TLS whose handshake is done.
func NewTLSConn(c *tls.Conn, max int, onRefuse func(error)) *TLSConn {
	return &TLSConn{Conn: NewConn(c, max, onRefuse), tls: c}
}

// ConnectionState returns what was negotiated.
func (c *TLSConn) ConnectionState() tls.ConnectionState { return c.tls.ConnectionState() }
