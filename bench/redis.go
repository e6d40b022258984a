package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"sync"
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/holdfast-sessions/holdfast/internal/testserver"
)

// A host stands in for a test, of which a program has none, so that it can start the servers that tests use.
type host struct {
	testing.TB // nil: what is not below is not used

	dir     string
	cleanup []func()
	failure string
}

func (h *host) Helper()          {}
func (h *host) Name() string     { return "the benchmark over Redis" }
func (h *host) TempDir() string  { return h.dir }
func (h *host) Cleanup(f func()) { h.cleanup = append(h.cleanup, f) }
func (h *host) Skip(a ...any)    { h.fail(fmt.Sprint(a...)) }
func (h *host) Fatal(a ...any)   { h.fail(fmt.Sprint(a...)) }

func (h *host) Fatalf(format string, a ...any) { h.fail(fmt.Sprintf(format, a...)) }

func (h *host) fail(text string) {
	h.failure = text
	runtime.Goexit()
}

// startRedis starts a Redis server and returns its address and what stops it.
func startRedis() (addr string, stop func(), err error) {
	dir, err := os.MkdirTemp("", "holdfast-bench-")
	if err != nil {
		return "", nil, err
	}
	h := &host{dir: dir, failure: "not started"}
	stop = func() {
		for _, f := range h.cleanup {
			f()
		}
		_ = os.RemoveAll(dir) // what stays is small and in the temporary directory
	}
	done := make(chan struct{})
	go func() { // it may end by Goexit
		defer close(done)
		addr = testserver.Redis(h).Addr
		h.failure = ""
	}()
	<-done
	if h.failure != "" {
		stop()
		return "", nil, errors.New(h.failure)
	}
	return addr, stop, nil
}

// emptyRedis removes everything that the server keeps.
func emptyRedis(addr string) error {
	client := redis.NewClient(&redis.Options{Addr: addr})
	defer client.Close()
	return client.FlushAll(context.Background()).Err()
}

// traffic is what went over the wire.
type traffic struct {
	roundTrips int // how often the client sent something after an answer, or at first
	bytes      int // both ways
}

// A tap is a TCP proxy that counts what passes. It is for one client that does one thing at a time.
type tap struct {
	listener net.Listener
	pumps    sync.WaitGroup

	mu    sync.Mutex // mu guards the fields below
	conns []net.Conn
	count traffic
	asked bool // the client sent something that is not answered yet
}

func newTap(server string) (*tap, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	t := &tap{listener: listener}
	t.pumps.Go(func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return // closed
			}
			upstream, err := net.Dial("tcp", server)
			if err != nil {
				_ = client.Close() // the client notices
				continue
			}
			t.mu.Lock()
			t.conns = append(t.conns, client, upstream)
			t.mu.Unlock()
			t.pumps.Go(func() { t.pump(upstream, client, true) })
			t.pumps.Go(func() { t.pump(client, upstream, false) })
		}
	})
	return t, nil
}

// pump copies from src to dst until one of them is closed, and then closes both.
func (t *tap) pump(dst, src net.Conn, asks bool) {
	defer dst.Close()
	defer src.Close()
	_, _ = io.Copy(io.MultiWriter(counting(func(n int) {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.count.bytes += n
		if asks && !t.asked {
			t.count.roundTrips++
		}
		t.asked = asks
	}), dst), src) // an end of either is the end
}

// counting is called with the length of what is written to it.
type counting func(int)

func (c counting) Write(b []byte) (int, error) {
	c(len(b))
	return len(b), nil
}

func (t *tap) addr() string { return t.listener.Addr().String() }

// take returns what was counted since the last call.
func (t *tap) take() traffic {
	t.mu.Lock()
	defer t.mu.Unlock()
	count := t.count
	t.count = traffic{}
	return count
}

func (t *tap) close() {
	_ = t.listener.Close()
	t.mu.Lock()
	for _, c := range t.conns {
		_ = c.Close()
	}
	t.mu.Unlock()
	t.pumps.Wait()
}

// wire is what one request sends and gets over the wire, on average.
type wire struct {
	roundTrips, bytes float64
}

// overTheWire counts what a library's requests send and get.
func overTheWire(lib library, o operation, sh shape, redis string) (wire, error) {
	t, err := newTap(redis)
	if err != nil {
		return wire{}, err
	}
	defer t.close()
	a, err := lib.open(o.setup(t.addr()))
	if err != nil {
		return wire{}, err
	}
	defer a.close()
	h := a.handler(o, sh)
	const n = 100
	// The first requests connect and load the scripts.
	var count traffic
	for range 2 {
		requests, err := a.requests(o, sh, n)
		if err != nil {
			return wire{}, err
		}
		t.take()
		if _, err := repeat(h, requests, n); err != nil {
			return wire{}, err
		}
		count = t.take()
	}
	return wire{float64(count.roundTrips) / n, float64(count.bytes) / n}, nil
}
