// Package loopback tells names of this machine.
package loopback

import (
	"net"
	"net/netip"
	"strings"
)

// Is reports whether host, without a port, names this machine alone: localhost, or a loopback address, IPv6 with or
// without brackets. It looks nothing up.
func Is(host string) bool {
	if strings.EqualFold(host, "localhost") {
		return true
	}
	addr, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return err == nil && addr.IsLoopback()
}

// IsAddress is Is for a host and a port.
func IsAddress(address string) bool {
	host, _, err := net.SplitHostPort(address)
	return err == nil && Is(host)
}
