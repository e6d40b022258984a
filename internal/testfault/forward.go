package testfault

import (
	"context"
	"net"
	"sync"
	"testing"
)

// Forward returns an address that takes clients until the test ends. Each is connected to the server at to; what it sends
// is copied by up, and what it is answered by down. When one of them returns, both connections are closed.
func Forward(t testing.TB, to string, up, down func(to, from net.Conn)) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	t.Cleanup(func() { cancel(); l.Close(); wg.Wait() })
	wg.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", to)
			if err != nil {
				client.Close()
				continue
			}
			end := func() { client.Close(); server.Close() }
			forget := context.AfterFunc(ctx, end)
			wg.Go(func() { defer end(); up(server, client) })
			wg.Go(func() { defer forget(); defer end(); down(client, server) })
		}
	})
	return l.Addr().String()
}
