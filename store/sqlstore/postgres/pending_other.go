//go:build !unix

package postgres

import "net"

// pending cannot tell here: a call that meets a connection that the server has closed fails.
func pending(net.Conn) bool { return false }
