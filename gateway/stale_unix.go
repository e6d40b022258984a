//go:build unix

package gateway

import (
	"net"
	"syscall"
)

// stale reports whether the other side of an idle connection has ended it, or has sent something nobody asked
// for. It tells a dead connection before a request is lost on it: http.Transport, too, notices the end, but only
// when its reading goroutine gets to run.
func stale(c net.Conn, secure bool) bool {
	sc, ok := c.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return true
	}
	dead := false
	err = raw.Control(func(fd uintptr) {
		var b [1]byte
		n, _, err := syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		switch {
		case err == syscall.EAGAIN || err == syscall.EINTR:
		case err != nil || n == 0:
			dead = true
		default:
			dead = !secure // TLS has messages of its own
		}
	})
	return dead || err != nil
}
