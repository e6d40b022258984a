//go:build !unix

package gateway

import "net"

// stale cannot tell here; http.Transport notices the end of most idle connections by itself.
func stale(net.Conn, bool) bool { return false }
