package testfault_test

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-sessions/holdfast/internal/testfault"
)

// echo is a server that sends everything back. It knows how many connections it has.
type echo struct {
	addr string
	wg   sync.WaitGroup
}

func mustEcho(t *testing.T) *echo {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	e := &echo{addr: l.Addr().String()}
	e.wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			e.wg.Go(func() { defer c.Close(); _, _ = io.Copy(c, c) })
		}
	})
	t.Cleanup(func() { l.Close(); e.wg.Wait() })
	return e
}

func mustDial(t *testing.T, addr string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// ask sends bytes and returns those that come back before the connection ends or time is up.
func ask(t *testing.T, c net.Conn, what []byte, patience time.Duration) (got int, err error) {
	t.Helper()
	if _, err := c.Write(what); err != nil {
		return 0, err
	}
	if err := c.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	answer := make([]byte, len(what))
	got, err = io.ReadFull(c, answer)
	if !bytes.Equal(answer[:got], what[:got]) {
		t.Errorf("the proxy changes bytes")
	}
	return got, err
}

const (
	long  = 30 * time.Second
	short = 50 * time.Millisecond
)

func TestProxy(t *testing.T) {
	e := mustEcho(t)
	p := testfault.NewProxy(t, e.addr, 1)
	a, b := mustDial(t, p.Addr), mustDial(t, p.Addr)
	large := bytes.Repeat([]byte("0123456789"), 20_000)
	for _, c := range []net.Conn{a, b} {
		if n, err := ask(t, c, large[:10], long); err != nil {
			t.Errorf("%d bytes come back, %v, want 10", n, err)
		}
	}
	if n, err := ask(t, mustDial(t, p.Addr), large, long); n != len(large) || err != nil {
		t.Errorf("%d bytes come back, %v, want %d", n, err, len(large))
	}
	if s := p.Stats(); s.Accepted != 3 || s.Up < int64(len(large)) || s.Down < int64(len(large)) || s.Cuts != 0 {
		t.Errorf("Stats = %+v", s)
	}
	p.Close()
	p.Close()
	for _, c := range []net.Conn{a, b} {
		if _, err := io.Copy(io.Discard, c); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error("a connection outlives the proxy")
		}
	}
	if c, err := net.Dial("tcp", p.Addr); err == nil {
		c.Close()
		t.Error("the proxy takes connections after Close")
	}
}

func TestProxyCuts(t *testing.T) {
	e := mustEcho(t)
	p := testfault.NewProxy(t, e.addr, 2)
	hello := []byte("hello, hello")

	c := mustDial(t, p.Addr)
	if _, err := ask(t, c, hello, long); err != nil {
		t.Fatal(err)
	}
	if n := p.Cut(); n != 1 {
		t.Errorf("Cut = %d connections, want 1", n)
	}
	if n, err := ask(t, c, hello, long); n != 0 || err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("after Cut: %d bytes, %v", n, err)
	}
	if n, err := ask(t, mustDial(t, p.Addr), hello, long); err != nil {
		t.Errorf("a connection after Cut: %d bytes, %v", n, err)
	}

	p.CutAnswers(5)
	for range 2 {
		if n, err := ask(t, mustDial(t, p.Addr), hello, long); n > 5 || err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("answers cut after 5 bytes: %d bytes, %v", n, err)
		}
	}
	p.CutAnswers(-1)
	x, y := mustDial(t, p.Addr), mustDial(t, p.Addr)
	p.CutOneAnswer(0)
	if n, err := ask(t, x, hello, long); n != 0 || err == nil {
		t.Errorf("one answer cut: %d bytes, %v", n, err)
	}
	if _, err := ask(t, y, hello, long); err != nil {
		t.Errorf("the other connection: %v", err)
	}

	p.Refuse(true)
	// The connection is made and reset: so soon, on a busy machine, that Dial says so.
	if c, err := net.Dial("tcp", p.Addr); err == nil {
		t.Cleanup(func() { c.Close() })
		if n, err := ask(t, c, hello, long); n != 0 || err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("refused: %d bytes, %v", n, err)
		}
	} else if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("refused: %v", err)
	}
	if _, err := ask(t, y, hello, long); err != nil {
		t.Errorf("a connection from before: %v", err)
	}
}

func TestProxyHolds(t *testing.T) {
	e := mustEcho(t)
	p := testfault.NewProxy(t, e.addr, 3)
	hello := []byte("hello, hello")
	x, y := mustDial(t, p.Addr), mustDial(t, p.Addr)
	late := func(c net.Conn) {
		t.Helper()
		if n, err := ask(t, c, hello, short); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("held: %d bytes, %v", n, err)
		}
	}
	arrives := func(c net.Conn) {
		t.Helper()
		if err := c.SetReadDeadline(time.Now().Add(long)); err != nil {
			t.Fatal(err)
		}
		if n, err := io.ReadFull(c, make([]byte, len(hello))); err != nil {
			t.Errorf("released: %d bytes, %v", n, err)
		}
	}
	p.Hold()
	late(x)
	late(mustDial(t, p.Addr))
	p.Release()
	arrives(x)

	p.HoldOne()
	late(y)
	if _, err := ask(t, x, hello, long); err != nil {
		t.Errorf("one held, the other: %v", err)
	}
	if n := p.Stats().Held; n != 1 {
		t.Errorf("%d are held, want 1", n)
	}
	p.Release()
	arrives(y)

	p.Delay(short, short)
	start := time.Now()
	if _, err := ask(t, x, hello, long); err != nil || time.Since(start) < 2*short {
		t.Errorf("delayed twice by %v: after %v, %v", short, time.Since(start), err)
	}
	p.Delay(0, 0)
	p.Hold() // Close has to end it all the same
	late(x)
}
