package testserver_test

import (
	"net"
	"sync"
	"testing"

	"github.com/holdfast-sessions/holdfast/internal/testserver"
)

// No two servers are given one port, also not while neither listens.
func TestPortsAreReserved(t *testing.T) {
	const n = 400
	var mu sync.Mutex
	taken := make(map[string]bool)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range n / 8 {
				addr := testserver.FreeAddr(t)
				mu.Lock()
				if taken[addr] {
					t.Errorf("%s was given twice", addr)
				}
				taken[addr] = true
				mu.Unlock()
				l, err := net.Listen("tcp", addr)
				if err != nil {
					t.Errorf("a server cannot take the port: %v", err)
					continue
				}
				l.Close()
			}
		})
	}
	wg.Wait()
}
