package postgres_test

import (
	"net"
	"testing"
)

// mustFreeAddr returns an address where nobody listens.
func mustFreeAddr(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}
