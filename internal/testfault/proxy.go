package testfault

import (
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"
)

// Proxy forwards connections to a server, and hurts them on command.
type Proxy struct {
	// Addr is where it listens.
	Addr string

	to       string
	listener net.Listener
	wg       sync.WaitGroup

	mu sync.Mutex

	// mu guards the fields below, and those of every link.
	changed *sync.Cond // when a link may have to go on, or to end
	closed  bool
	links   map[*link]struct{}
	random  *rand.Rand
	refuse  bool
	hold    bool
	holdOne bool // the next link that is sent something is held
	cutAt   int  // of what a server sends next, so many bytes arrive; negative: all
	cutOnce bool // only on the first link
	delay   time.Duration
	jitter  time.Duration
	stats   ProxyStats
}

// ProxyStats are what a proxy has counted.
type ProxyStats struct {
	Accepted int   // connections
	Open     int   // connections, at present
	Up, Down int64 // bytes that arrived at the server, and at the client
	Cuts     int   // connections that were cut on command
	Held     int   // connections that are silent because of HoldOne
}

// link is one connection of a client and the one to the server that belongs to it.
type link struct {
	p              *Proxy
	client, server net.Conn
	closed         bool
	held           bool
	budget         int // bytes of answers until it is cut; negative: for ever
}

// NewProxy starts a proxy in front of the server at an address. Its random choices follow from the seed. It ends with
// the test.
func NewProxy(t testing.TB, to string, seed uint64) *Proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &Proxy{
		Addr: l.Addr().String(), to: to, listener: l,
		links: make(map[*link]struct{}), random: rand.New(rand.NewPCG(seed, 1)), cutAt: -1,
	}
	p.changed = sync.NewCond(&p.mu)
	p.wg.Go(p.accept)
	t.Cleanup(p.Close)
	return p
}

// Close ends every connection and waits until nothing of the proxy is left.
func (p *Proxy) Close() {
	p.mu.Lock()
	p.closed = true
	p.cutAll()
	p.mu.Unlock()
	_ = p.listener.Close() // closed already is fine
	p.wg.Wait()
}

// Stats returns what was counted so far.
func (p *Proxy) Stats() ProxyStats {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.stats
	s.Open = len(p.links)
	for l := range p.links {
		if l.held {
			s.Held++
		}
	}
	return s
}

// Cut ends every connection there is, in the middle of whatever goes on, and returns how many there were. About half of
// them end with a reset, the others in order.
func (p *Proxy) Cut() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.cutAll()
}

func (p *Proxy) cutAll() int {
	n := len(p.links)
	for l := range p.links {
		l.cut()
	}
	p.stats.Cuts += n
	p.changed.Broadcast()
	return n
}

// CutAnswers ends each connection when n more bytes of answers have arrived on it. A negative n stops that, also for
// connections that have some bytes left.
func (p *Proxy) CutAnswers(n int) { p.cutAnswers(n, false) }

// CutOneAnswer ends the next connection on which an answer comes, after n bytes of answers.
func (p *Proxy) CutOneAnswer(n int) { p.cutAnswers(n, true) }

func (p *Proxy) cutAnswers(n int, once bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cutAt, p.cutOnce = n, once
	if n < 0 {
		for l := range p.links {
			l.budget = -1
		}
	}
}

// Hold keeps everything back from now on: connections stay open, new ones are taken, and nothing arrives, as when
// packets are dropped on the way. Release lets everything through that was kept.
func (p *Proxy) Hold() { p.set(func() { p.hold = true }) }

// HoldOne keeps back what is sent on one connection, the next that a client uses.
func (p *Proxy) HoldOne() { p.set(func() { p.holdOne = true }) }

// Release ends Hold and HoldOne.
func (p *Proxy) Release() {
	p.set(func() {
		p.hold, p.holdOne = false, false
		for l := range p.links {
			l.held = false
		}
	})
}

// Delay makes every piece of data, either way, wait for d and a random part of jitter.
func (p *Proxy) Delay(d, jitter time.Duration) { p.set(func() { p.delay, p.jitter = d, jitter }) }

// Refuse ends new connections as soon as they are made, if on.
func (p *Proxy) Refuse(on bool) { p.set(func() { p.refuse = on }) }

func (p *Proxy) set(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f()
	p.changed.Broadcast()
}

func (p *Proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return
		}
		p.wg.Go(func() { p.connect(client) })
	}
}

func (p *Proxy) connect(client net.Conn) {
	p.mu.Lock()
	p.stats.Accepted++
	refused := p.refuse || p.closed
	p.mu.Unlock()
	var server net.Conn
	var err error
	if !refused {
		server, err = net.Dial("tcp", p.to)
	}
	if refused || err != nil {
		reset(client)
		return
	}
	l := &link{p: p, client: client, server: server, budget: -1}
	p.mu.Lock()
	if p.closed {
		l.cut()
	} else {
		p.links[l] = struct{}{}
	}
	p.mu.Unlock()
	p.wg.Go(func() { l.pump(server, client, true) })
	l.pump(client, server, false)
}

// pump copies what comes from one side to the other until either of them ends.
func (l *link) pump(to, from net.Conn, up bool) {
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			pass, more := l.admit(n, up)
			if pass > 0 {
				if _, writeErr := to.Write(buf[:pass]); writeErr != nil {
					more = false
				}
			}
			if !more {
				l.end(pass < n)
				return
			}
		}
		if err != nil {
			l.end(false)
			return
		}
	}
}

// admit waits until n bytes may go on, and returns how many of them do, and whether the link lives on.
func (l *link) admit(n int, up bool) (pass int, more bool) {
	p := l.p
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.holdOne && up {
		p.holdOne, l.held = false, true
	}
	for (p.hold || l.held) && !l.closed {
		p.changed.Wait()
	}
	if wait := p.delay; wait > 0 && !l.closed {
		if p.jitter > 0 {
			wait += time.Duration(p.random.Int64N(int64(p.jitter)))
		}
		p.mu.Unlock()
		time.Sleep(wait) // Close waits for it; delays are short
		p.mu.Lock()
	}
	if l.closed {
		return 0, false
	}
	if up {
		p.stats.Up += int64(n)
		return n, true
	}
	if l.budget < 0 && p.cutAt >= 0 {
		l.budget = p.cutAt
		if p.cutOnce {
			p.cutAt = -1
		}
	}
	if l.budget >= 0 {
		if n > l.budget {
			p.stats.Down += int64(l.budget)
			return l.budget, false
		}
		l.budget -= n
	}
	p.stats.Down += int64(n)
	return n, true
}

// end closes a link. onCommand says that it was cut in the middle of an answer.
func (l *link) end(onCommand bool) {
	p := l.p
	p.mu.Lock()
	defer p.mu.Unlock()
	if onCommand && !l.closed {
		p.stats.Cuts++
	}
	l.cut()
	p.changed.Broadcast()
}

// cut closes a link's connections. p.mu is held.
func (l *link) cut() {
	if l.closed {
		return
	}
	l.closed = true
	delete(l.p.links, l)
	if l.p.random.IntN(2) == 0 {
		reset(l.client)
		reset(l.server)
		return
	}
	_ = l.client.Close() // nobody is interested
	_ = l.server.Close()
}

// reset closes a connection with RST, as a peer that has lost its memory does.
func reset(c net.Conn) {
	if t, ok := c.(*net.TCPConn); ok {
		_ = t.SetLinger(0) // the connection may be gone
	}
	_ = c.Close()
}
