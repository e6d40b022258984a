package memcached

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/bradfitz/gomemcache/memcache"

	"github.com/holdfast-sessions/holdfast/driver"
)

const (
	// connectTimeout bounds making a connection, the first question to the server included.
	connectTimeout = 3 * time.Second
	// A server that refuses a connection, closes two one after the other, or is silent, and answers nobody meanwhile,
	// counts as down. It is left alone for this long, then twice as long, up to a second: calls that need a connection fail
	// at once meanwhile, and one of them tries again after that.
	backoffMin = 50 * time.Millisecond
	backoffMax = time.Second
	// closePatience is how long Close lets calls that are under way go on.
	closePatience = time.Second
)

// server is one memcached, its connections, and what has been seen of it.
//
// gomemcache heeds no context. So each connection has a client of its own (see lane), used by one call at a time, in a
// goroutine that goes on when its caller gives up: the caller returns at once, and the connection is used again only when
// the answer has been read to its end. (Closing it instead costs the server a connection for each request that is
// cancelled, until it refuses further ones.)
type server struct {
	addr    string // host:port
	log     *slog.Logger
	timeout time.Duration

	slots   chan struct{} // has one element for each call that is under way
	closing chan struct{} // closed by Close, the store's
	seen    counts

	// dialing ends when Close has lost its patience.
	dialing context.Context
	hangUp  context.CancelFunc

	mu sync.Mutex

	// mu guards the fields below.
	idle     []*lane
	busy     map[*lane]struct{}
	stopped  bool          // Close has lost its patience
	life     uint64        // of the server that was connected to last; see parseLife. 0: it does not tell
	evicted  uint64        // as that server counted when last asked
	answered time.Time     // when a call was answered last, or a connection made
	down     error         // why it counts as down; nil: it does not
	retry    time.Time     // when to try again
	backoff  time.Duration // what was added for that
	retrying bool          // somebody is trying
}

// counts are what a store has seen of one server since Open.
type counts struct {
	missing, ended, expired, vanished, second atomic.Uint64
	restarts, evictions                       atomic.Uint64
	highest                                   atomic.Uint64 // the highest CAS ID of this life
}

// lane is a connection and the client that speaks on it.
type lane struct {
	net.Conn
	client *memcache.Client
	srv    *server
	life   uint64 // of the server behind it
	broken atomic.Bool
}

// Close closes the connection; gomemcache calls it when it does not trust the connection any more.
func (l *lane) Close() error {
	l.broken.Store(true)
	return l.Conn.Close()
}

// SetDeadline does nothing: gomemcache would give every line of an answer a deadline of its own. See extend.
func (l *lane) SetDeadline(time.Time) error { return nil }

// PickServer and Each make a lane its client's selector.
func (l *lane) PickServer(string) (net.Addr, error) { return address(l.srv.addr), nil }
func (l *lane) Each(f func(net.Addr) error) error   { return f(address(l.srv.addr)) }

// address is what gomemcache keeps a connection by.
type address string

func (a address) Network() string { return "tcp" }
func (a address) String() string  { return string(a) }

// dialed gives the client the connection of its lane.
func (l *lane) dialed(context.Context, string, string) (net.Conn, error) {
	if l.broken.Load() {
		return nil, net.ErrClosed // a lane does not reconnect
	}
	return l, nil
}

// do calls f with a connection of its own. It returns when ctx ends, at the latest, and f may go on then: it must not
// touch what the caller goes on with. What do returns that is not f's own error matches driver.ErrUnavailable.
func (s *server) do(ctx context.Context, f func(*lane) error) error {
	_, err := ask(ctx, s, func(l *lane) (struct{}, error) { return struct{}{}, f(l) })
	return err
}

// ask is do for an f that returns something.
func ask[T any](ctx context.Context, s *server, f func(*lane) (T, error)) (T, error) {
	var none T
	select {
	case <-s.closing:
		return none, driver.ErrClosed
	default:
	}
	if err := ctx.Err(); err != nil {
		return none, driver.Unavailable(err)
	}
	select {
	case s.slots <- struct{}{}:
	case <-s.closing:
		return none, driver.ErrClosed
	case <-ctx.Done():
		return none, driver.Unavailable(ctx.Err())
	}
	type answer struct {
		value T
		err   error
	}
	done := make(chan answer, 1)
	go func() { // stop waits for it by taking all slots
		defer func() { <-s.slots }()
		l, err := s.lane()
		if err != nil {
			done <- answer{none, err}
			return
		}
		l.extend()
		value, err := f(l)
		s.put(l)
		done <- answer{value, s.explain(err)}
	}()
	select {
	case a := <-done:
		return a.value, a.err
	case <-ctx.Done():
		return none, driver.Unavailable(ctx.Err())
	}
}

// extend gives the server its time to answer, from now on.
func (l *lane) extend() {
	_ = l.Conn.SetDeadline(time.Now().Add(l.srv.timeout)) // fails on a closed connection only, and then the call does
}

// explain maps an error of the client or of the network.
func (s *server) explain(err error) error {
	if err = mapError(err); err == nil || !errors.Is(err, driver.ErrUnavailable) {
		return err
	}
	select {
	case <-s.closing:
		return driver.ErrClosed
	default:
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return driver.Unavailable(fmt.Errorf("memcached %s does not answer", s.addr))
	}
	return fmt.Errorf("memcached %s: %w", s.addr, err)
}

// lane returns a connection that nobody uses, or makes one.
func (s *server) lane() (*lane, error) {
	for {
		s.mu.Lock()
		if n := len(s.idle); n > 0 {
			l := s.idle[n-1]
			s.idle = s.idle[:n-1]
			s.busy[l] = struct{}{}
			s.mu.Unlock()
			// A server that was restarted, or that closed the connection, is noticed here and not by the call.
			if alive(l.Conn) {
				return l, nil
			}
			l.broken.Store(true)
			s.put(l)
			continue
		}
		err := s.mayConnect(time.Now())
		s.mu.Unlock()
		if err != nil {
			return nil, err
		}
		return s.connect()
	}
}

// mayConnect returns why the server is not to be connected to now, or nil. mu is held.
func (s *server) mayConnect(now time.Time) error {
	if s.down == nil {
		return nil
	}
	if s.retrying || now.Before(s.retry) {
		return driver.Unavailable(fmt.Errorf("memcached %s is down: %w", s.addr, s.down))
	}
	s.retrying = true
	return nil
}

// connect makes a connection, and asks the server who it is. One that breaks before the answer is tried again at once:
// nothing was asked of it but that.
func (s *server) connect() (*lane, error) {
	ctx, cancel := context.WithTimeout(s.dialing, connectTimeout)
	defer cancel()
	start := time.Now()
	l, info, err := s.dial(ctx)
	if errors.Is(err, errClosed) && s.isUp() {
		start = time.Now()
		l, info, err = s.dial(ctx)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.retrying = false
	switch {
	case s.stopped:
		if l != nil {
			_ = l.Close()
		}
		return nil, driver.ErrClosed
	case err != nil && s.answered.After(start):
		// It answers others: it is slow, or has no room for a further connection.
		return nil, driver.Unavailable(fmt.Errorf("memcached %s: %w", s.addr, err))
	case err != nil:
		if s.down == nil {
			s.log.Warn("memcached server is down", "server", s.addr, "error", err)
			s.backoff = backoffMin / 2
		}
		s.backoff = min(2*s.backoff, backoffMax)
		s.down, s.retry = err, time.Now().Add(s.backoff)
		return nil, driver.Unavailable(fmt.Errorf("memcached %s is down: %w", s.addr, err))
	}
	if s.down != nil {
		s.down = nil
		s.log.Info("memcached server is back", "server", s.addr)
	}
	s.answered = time.Now()
	s.note(info)
	s.busy[l] = struct{}{}
	return l, nil
}

// isUp reports whether the server is not known to be down.
func (s *server) isUp() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.down == nil
}

// dial connects and reads the server's statistics. A server that does not know them (a proxy) has none.
func (s *server) dial(ctx context.Context) (*lane, map[string]string, error) {
	conn, err := (&net.Dialer{KeepAlive: 15 * time.Second}).DialContext(ctx, "tcp", s.addr)
	if err != nil {
		return nil, nil, dialError(err)
	}
	l := &lane{Conn: conn, srv: s}
	l.client = memcache.NewFromSelector(l)
	l.client.DialContext = l.dialed
	defer context.AfterFunc(ctx, func() { _ = l.Close() })()
	info, err := l.stats("")
	switch {
	case ctx.Err() != nil:
		err = errSilent
	case broken(err):
		err = errClosed
	case err != nil:
		err = errors.New(answer(err))
	default:
		l.life = parseLife(info)
		return l, info, nil
	}
	_ = conn.Close()
	return nil, nil, err
}

// note takes down what the server says of itself. mu is held.
func (s *server) note(info map[string]string) {
	life := parseLife(info)
	evicted := number(info, "evictions")
	if s.life != 0 && life != s.life {
		s.seen.restarts.Add(1)
		s.seen.highest.Store(0)
		s.evicted = 0
		s.log.Warn("memcached server was restarted: the sessions it had are lost", "server", s.addr)
	} else if s.life == 0 {
		s.evicted = evicted // those from before Open
	}
	if evicted > s.evicted {
		s.seen.evictions.Add(evicted - s.evicted)
	}
	s.life, s.evicted = life, evicted
}

// put takes back a connection.
func (s *server) put(l *lane) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.busy, l)
	if l.broken.Load() || s.stopped {
		_ = l.Conn.Close()
		return
	}
	s.answered = time.Now()
	s.idle = append(s.idle, l)
}

// stop waits for the calls that are under way, and ends them after a while.
func (s *server) stop() {
	patience := time.AfterFunc(closePatience, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.stopped = true
		s.hangUp()
		for l := range s.busy {
			_ = l.Close()
		}
	})
	defer patience.Stop()
	for range cap(s.slots) {
		s.slots <- struct{}{}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.idle {
		_ = l.Close()
	}
	s.idle, s.stopped = nil, true
	s.hangUp()
}

// get returns what is stored under a key, or memcache.ErrCacheMiss.
func (l *lane) get(key string) (*memcache.Item, error) {
	it, err := l.client.Get(key)
	if err != nil {
		return nil, err
	}
	if it.Key != key {
		l.broken.Store(true) // answers have got out of step; nothing on this connection can be believed
		return nil, errors.New("the server answered for another key")
	}
	if it.CasID == 0 { // one that was down when the store was opened
		return nil, errNoCAS
	}
	for h := l.srv.seen.highest.Load(); it.CasID > h; h = l.srv.seen.highest.Load() {
		if l.srv.seen.highest.CompareAndSwap(h, it.CasID) {
			break
		}
	}
	return it, nil
}

// send sends a command that gomemcache does not know, and returns a reader for the answer, to be read to its end.
func (l *lane) send(command string) (*bufio.Reader, error) {
	if _, err := l.Conn.Write([]byte(command + "\r\n")); err != nil {
		return nil, err
	}
	return bufio.NewReader(l.Conn), nil
}
