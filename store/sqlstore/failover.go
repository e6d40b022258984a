package sqlstore

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	holdfast "github.com/holdfast-sessions/holdfast/driver"
)

// Host is one server that a store can use.
type Host struct {
	// Name is shown in errors.
	Name string
	// Connect makes a connection and readies its session. It reports what the server is. dial must be used for every
	// connection to the server; those are closed with the store.
	Connect func(ctx context.Context, dial Dial) (c driver.Conn, state HostState, err error)
}

// HostState is what a server says of itself when a connection is made.
type HostState struct {
	// Writable says that it takes writes.
	Writable bool
	// Timeline grows with each promotion of a replica, on the server that is promoted and on those that follow it. So of
	// two servers that take writes, the one with the lower timeline is a former primary. Only timelines of one Origin
	// compare: of servers that were copied from each other. 0: not known.
	Timeline uint64
	Origin   string
}

// Dial connects to an address.
type Dial func(ctx context.Context, network, addr string) (net.Conn, error)

// Hosts is a connector that connects to the first of several servers that takes writes. It begins with the one that
// took them last, so that a server that is down costs time once and not with each connection.
//
// Of several hosts, one that is read-only is passed over, for reads too: a replica lags, by hours if nobody looks after
// it. What it does not have yet looks like a logout, and what it has still, like a session that never ended. So is a
// former primary that came back and takes writes, if its timeline tells that it is one. A single host is used whatever
// it is.
type Hosts struct {
	hosts   []Host
	timeout time.Duration

	last atomic.Int32 // the host that was good last
	// generation is raised when a server turns out to be no longer the one to write to. Connections of an older
	// generation are not used again.
	generation atomic.Uint64
	left       atomic.Int64 // when, in nanoseconds since 1970

	mu sync.Mutex

	// mu guards the fields below.
	conns     map[*netConn]struct{} // nil once closed
	closed    bool
	timelines map[string]uint64 // the highest that was seen, by origin
	surveyed  chan struct{}     // closed when all hosts were asked for theirs; nil: nobody has begun to ask
}

// NewHosts returns a connector that gives each host so long to answer.
func NewHosts(timeout time.Duration, hosts ...Host) *Hosts {
	return &Hosts{hosts: hosts, timeout: timeout, conns: make(map[*netConn]struct{}), timelines: make(map[string]uint64)}
}

// Len returns the number of hosts.
func (h *Hosts) Len() int { return len(h.hosts) }

// Driver is part of database/sql's interface.
func (h *Hosts) Driver() driver.Driver { return noDriver{} }

type noDriver struct{}

func (noDriver) Open(string) (driver.Conn, error) {
	return nil, errors.New("sqlstore: use the connector")
}

// Connect connects to the first host that takes writes.
func (h *Hosts) Connect(ctx context.Context) (driver.Conn, error) {
	generation := h.generation.Load()
	first := int(h.last.Load())
	failed := &noHostError{}
	for i := range h.hosts {
		n := (first + i) % len(h.hosts)
		host := h.hosts[n]
		logins := 1
		if i == 0 && len(h.hosts) > 1 {
			logins = 2
		}
		c, state, err := h.try(ctx, host, len(h.hosts)-i, logins)
		if err == nil && len(h.hosts) > 1 {
			var promoted bool
			if promoted, err = h.judge(ctx, n, state); err != nil {
				_ = c.Close() // not used
			}
			if promoted { // what is connected to its predecessor is not used again
				generation = h.generation.Add(1)
			}
		}
		if err == nil {
			h.last.Store(int32(n))
			return newConn(c, h, generation), nil
		}
		if ctx.Err() != nil {
			return nil, err
		}
		failed.names, failed.errs = append(failed.names, host.Name), append(failed.errs, err)
	}
	if len(failed.errs) == 1 {
		return nil, failed.errs[0]
	}
	return nil, failed
}

// judge returns why host number n is not the one to use, or nil, and whether it was promoted since it was last known who
// is.
func (h *Hosts) judge(ctx context.Context, n int, state HostState) (promoted bool, err error) {
	known := h.note(state)
	if !state.Writable {
		return false, errReadOnlyHost
	}
	if state.Timeline == 0 {
		return false, nil
	}
	// A process that has just started does not know whether there was a promotion. None of its connections is used before
	// it does.
	select {
	case <-h.survey(n):
	case <-ctx.Done():
		return false, ctx.Err()
	}
	if highest := h.note(HostState{Origin: state.Origin}); state.Timeline < highest {
		return false, fmt.Errorf("takes writes, but is a former primary: its timeline is %d, and another host's is %d; make it that one's standby", state.Timeline, highest)
	}
	return known != 0 && state.Timeline > known, nil
}

// note remembers a timeline, and returns the highest of its origin that was known before.
func (h *Hosts) note(state HostState) (known uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	known = h.timelines[state.Origin]
	if state.Timeline > known {
		h.timelines[state.Origin] = state.Timeline
	}
	return known
}

// surveyTimeout is how long hosts have that are only asked for their timelines.
const surveyTimeout = time.Second

// survey asks all hosts but number n for their timelines, once. The channel is closed when that is over; those that do
// not answer are passed over. It has a time of its own, so that a first caller who leaves early does not leave the others
// with half of the answers.
func (h *Hosts) survey(n int) <-chan struct{} {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.surveyed != nil {
		return h.surveyed
	}
	done := make(chan struct{})
	h.surveyed = done
	ctx, cancel := context.WithTimeout(context.Background(), surveyTimeout)
	var wg sync.WaitGroup
	for i, host := range h.hosts {
		if i == n {
			continue
		}
		wg.Go(func() {
			if c, state, err := h.try(ctx, host, 1, 1); err == nil {
				_ = c.Close() // not used
				h.note(state)
			}
		})
	}
	go func() { // close waits for it
		wg.Wait()
		cancel()
		close(done)
	}()
	return done
}

var errReadOnlyHost = errors.New("is read-only")

// noHostError says what is wrong with each of several hosts.
type noHostError struct {
	names []string
	errs  []error
}

func (e *noHostError) Error() string {
	return "no host takes writes: " + errors.Join(e.errs...).Error()
}
func (e *noHostError) Unwrap() []error { return e.errs }

// try connects to one host. It leaves the remaining hosts their share of the time. A login that breaks off after the host was
// reached is repeated, up to that many logins: a host that takes writes is not left for another one because of one
// connection. Where timelines do not tell, the other may be a former primary.
func (h *Hosts) try(ctx context.Context, host Host, remaining, logins int) (driver.Conn, HostState, error) {
	timeout := h.timeout
	if deadline, ok := ctx.Deadline(); ok {
		timeout = min(timeout, time.Until(deadline)/time.Duration(remaining))
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var reached atomic.Bool
	dial := func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := h.dial(ctx, network, addr)
		reached.Store(err == nil)
		return c, err
	}
	for ; ; logins-- {
		c, state, err := host.Connect(ctx, dial)
		switch {
		case err != nil && ctx.Err() != nil:
			return nil, state, fmt.Errorf("no answer within %v: %w", timeout.Round(time.Millisecond), err)
		case err == nil || logins == 1 || !reached.Load():
			return c, state, err
		}
	}
}

// leave makes sure that no connection that exists now is used for another call, and reports whether to look for a better
// one: a single host that is read-only is asked once a second whether it still is. Calls that find out together leave
// once, and not each what the others have found since.
func (h *Hosts) leave() bool {
	now := time.Now().UnixNano()
	ago := time.Duration(now - h.left.Load())
	switch {
	case len(h.hosts) == 1 && ago < time.Second:
		return false
	case ago >= 100*time.Millisecond:
		h.left.Store(now)
		h.generation.Add(1)
	}
	return true
}

// close closes every connection, also those that a client library still holds to say goodbye on. If hosts are just being
// asked for their timelines, it waits for the end of that.
func (h *Hosts) close() {
	h.mu.Lock()
	conns, surveyed := h.conns, h.surveyed
	h.conns, h.closed = nil, true
	h.mu.Unlock()
	for c := range conns {
		_ = c.Conn.Close() // nothing is expected of it any more
	}
	if surveyed != nil {
		<-surveyed
	}
}

func (h *Hosts) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	d := &net.Dialer{KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 3}}
	c, err := d.DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	nc := &netConn{Conn: c, hosts: h}
	h.mu.Lock()
	closed := h.closed
	if !closed {
		h.conns[nc] = struct{}{}
	}
	h.mu.Unlock()
	if closed {
		_ = c.Close() // not used
		return nil, holdfast.ErrClosed
	}
	return nc, nil
}

// netConn is a connection that is in hosts.conns until it is closed.
type netConn struct {
	net.Conn
	hosts *Hosts
}

// SyscallConn is for the client libraries' checks that the server has not closed the connection.
func (c *netConn) SyscallConn() (syscall.RawConn, error) {
	s, ok := c.Conn.(syscall.Conn)
	if !ok {
		return nil, errors.ErrUnsupported
	}
	return s.SyscallConn()
}

func (c *netConn) Close() error {
	c.hosts.mu.Lock()
	delete(c.hosts.conns, c)
	c.hosts.mu.Unlock()
	return c.Conn.Close()
}

// conn is a connection to a database that is not used again once its server was left.
type conn struct {
	fullConn
	hosts      *Hosts
	generation uint64
}

// fullConn is what the client libraries' connections implement.
type fullConn interface {
	driver.Conn
	driver.ConnPrepareContext
	driver.ConnBeginTx
	driver.ExecerContext
	driver.QueryerContext
	driver.NamedValueChecker
	driver.Pinger
	driver.SessionResetter
}

func newConn(c driver.Conn, h *Hosts, generation uint64) driver.Conn {
	return &conn{fullConn: c.(fullConn), hosts: h, generation: generation}
}

// ResetSession is called before each use but the first.
func (c *conn) ResetSession(ctx context.Context) error {
	if c.generation != c.hosts.generation.Load() {
		return driver.ErrBadConn
	}
	return c.fullConn.ResetSession(ctx)
}

// IsValid is called after each use.
func (c *conn) IsValid() bool {
	if c.generation != c.hosts.generation.Load() {
		return false
	}
	v, ok := c.fullConn.(driver.Validator)
	return !ok || v.IsValid()
}

// Unreachable returns what is wrong if err says that a host could not be connected to, and "" otherwise. program is
// what should be running there.
func Unreachable(err error, program string) string {
	var dns *net.DNSError
	var op *net.OpError
	switch {
	case errors.As(err, &dns):
		return fmt.Sprintf("host %q cannot be resolved", dns.Name)
	case errors.As(err, &op) && op.Op == "dial" && strings.Contains(err.Error(), "refused"):
		return fmt.Sprintf("%s: connection refused; is %s running there?", op.Addr, program)
	case errors.As(err, &op) && op.Op == "dial":
		return fmt.Sprintf("%s: %v", op.Addr, op.Err)
	}
	return ""
}
