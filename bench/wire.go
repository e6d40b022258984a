package main

import (
	"encoding/binary"
	"io"
	"net"
	"sync"
)

// traffic is what went over the wire.
type traffic struct {
	roundTrips int // how often the client sent something after an answer, or at first
	bytes      int // both ways
	statements int // sent to a database, also those that are only prepared
}

// A tap is a TCP proxy that counts what passes. It is for one client that does one thing at a time.
type tap struct {
	listener net.Listener
	pumps    sync.WaitGroup

	mu    sync.Mutex // mu guards the fields below
	conns []net.Conn
	count traffic
	asked bool // the client sent something that is not answered yet
	kind  string
}

func newTap(at server) (*tap, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	t := &tap{listener: listener, kind: at.kind}
	t.pumps.Go(func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return // closed
			}
			upstream, err := net.Dial("tcp", at.addr)
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
	var frames frames
	_, _ = io.Copy(io.MultiWriter(counting(func(b []byte) {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.count.bytes += len(b)
		if asks {
			t.count.statements += frames.statements(t.kind, b)
			if !t.asked {
				t.count.roundTrips++
			}
		}
		t.asked = asks
	}), dst), src) // an end of either is the end
}

// frames cuts what a client sends to a database into messages.
type frames struct{ rest []byte }

// statements returns how many statements end in b, which follows what came before.
func (f *frames) statements(kind string, b []byte) (n int) {
	if kind != "mysql" && kind != "postgres" {
		return 0
	}
	f.rest = append(f.rest, b...)
	for {
		var head, size int
		var is byte
		switch {
		case kind == "mysql" && len(f.rest) >= 5: // 3 bytes length, number, command
			head, size, is = 4, int(f.rest[0])|int(f.rest[1])<<8|int(f.rest[2])<<16, f.rest[4]
		case kind == "postgres" && len(f.rest) >= 5 && f.rest[0] == 0: // the first message has no type
			size = int(binary.BigEndian.Uint32(f.rest))
		case kind == "postgres" && len(f.rest) >= 5:
			head, size, is = 1, int(binary.BigEndian.Uint32(f.rest[1:])), f.rest[0]
		default:
			return n
		}
		if len(f.rest) < head+size {
			return n
		}
		const query, prepare, execute = 3, 22, 23
		if kind == "mysql" && (is == query || is == prepare || is == execute) || kind == "postgres" && (is == 'Q' || is == 'E') {
			n++
		}
		f.rest = f.rest[head+size:]
	}
}

// counting is called with what is written to it.
type counting func([]byte)

func (c counting) Write(b []byte) (int, error) {
	c(b)
	return len(b), nil
}

func (t *tap) server() server { return server{t.kind, t.listener.Addr().String()} }

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
	roundTrips, bytes, statements float64
}

// overTheWire counts what a library's requests send and get.
func overTheWire(lib library, o operation, sh shape, at server) (wire, error) {
	t, err := newTap(at)
	if err != nil {
		return wire{}, err
	}
	defer t.close()
	a, err := lib.open(o.setup(t.server()))
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
	return wire{float64(count.roundTrips) / n, float64(count.bytes) / n, float64(count.statements) / n}, nil
}
