package redisstore

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redis/rueidis"
)

const (
	// watchEvery is how often the Sentinels are asked who the primary is, in case what they announce got lost.
	watchEvery = time.Second
	// sentinelTimeout is how long a Sentinel may take to answer. More than half of them are enough.
	sentinelTimeout = time.Second
)

// sentinels makes every connection lead to the primary that Redis Sentinel names. A connection is made to the server
// that the Sentinels name at that moment, and only if it says itself that it is a primary; when they name another,
// all connections to the old one are closed. So a primary that was demoted, or comes back after it was replaced, is
// never taken for the primary by mistake of this end.
type sentinels struct {
	master string
	login  login // of the data servers
	dialer dialer
	nodes  []rueidis.Client
	addrs  []string
	// calls are the questions under way, which close waits for.
	calls sync.WaitGroup

	// mu guards the fields below
	mu      sync.Mutex
	conns   map[*primaryConn]struct{}
	current string // what the connections lead to
	epoch   uint64 // of the last failover that is known
}

// primaryConn is a connection to what was the primary when it was made.
type primaryConn struct {
	net.Conn
	addr string
	of   *sentinels
}

func (c *primaryConn) Close() error {
	c.of.mu.Lock()
	delete(c.of.conns, c)
	c.of.mu.Unlock()
	return c.Conn.Close()
}

func newSentinels(c config, d dialer) (*sentinels, error) {
	w := &sentinels{master: c.master, login: c.login, dialer: d, addrs: c.addrs, conns: make(map[*primaryConn]struct{})}
	for _, addr := range c.addrs {
		o := clientOption(c.sentinelLogin, d.dial)
		o.PipelineMultiplex, o.RingScaleEachConn, o.DisableRetry = -1, 4, true
		o.ReadBufferEachConn, o.WriteBufferEachConn = 4<<10, 4<<10
		node, err := newSingle(o, addr)
		if err != nil {
			w.close()
			return nil, err
		}
		w.nodes = append(w.nodes, node)
	}
	return w, nil
}

// dial connects to the primary, whatever address it is given.
func (w *sentinels) dial(ctx context.Context, _ string) (net.Conn, error) {
	addr, err := w.primary(ctx)
	if err != nil {
		return nil, err
	}
	plain, err := w.dialer.dial(ctx, addr)
	if err != nil {
		return nil, fmt.Errorf("the primary %s: %w", addr, err)
	}
	switch role, err := roleOf(plain, w.login); {
	case err != nil:
		_ = plain.Close() // it is of no use
		return nil, fmt.Errorf("the primary %s: %w", addr, err)
	case role != "" && role != "master":
		_ = plain.Close() // nothing is under way
		return nil, fmt.Errorf("%s, which Sentinel names as the primary, says that it is a %s", addr, role)
	}
	conn := &primaryConn{plain, addr, w}
	w.mu.Lock()
	w.conns[conn] = struct{}{}
	w.mu.Unlock()
	w.moveTo(addr)
	return conn, nil
}

// watch moves to another primary as soon as the Sentinels announce or name one, until ctx ends.
func (w *sentinels) watch(ctx context.Context) {
	var listeners sync.WaitGroup
	defer listeners.Wait()
	for _, node := range w.nodes {
		listeners.Go(func() { w.listen(ctx, node) })
	}
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if addr, err := w.primary(ctx); err == nil {
			w.moveTo(addr)
		}
	}
}

// listen waits for one Sentinel to announce a failover. It does without where that is not allowed.
func (w *sentinels) listen(ctx context.Context, node rueidis.Client) {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for {
		subscribe := node.B().Subscribe().Channel("+switch-master").Build()
		_ = node.Receive(ctx, subscribe, func(rueidis.PubSubMessage) { // tried again, whatever the error is
			ctx, cancel := context.WithTimeout(ctx, sentinelTimeout)
			defer cancel()
			if a := w.ask(ctx, node); a.err == nil && w.learn(a.epoch) {
				w.moveTo(a.addr)
			}
		})
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// learn reports whether epoch is not older than the last that is known, and remembers it.
func (w *sentinels) learn(epoch uint64) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if epoch < w.epoch {
		return false
	}
	w.epoch = epoch
	return true
}

// moveTo closes all connections that lead elsewhere. The next call connects anew.
func (w *sentinels) moveTo(addr string) {
	w.mu.Lock()
	before := w.current
	w.current = addr
	w.mu.Unlock()
	if before != addr && before != "" {
		slog.Info("redis primary changed", "set", w.master, "from", before, "to", addr)
	}
	w.drop(func(c *primaryConn) bool { return c.addr != addr })
}

// suspect closes all connections: one of them led to a server that says it is a replica.
func (w *sentinels) suspect() { w.drop(func(*primaryConn) bool { return true }) }

func (w *sentinels) drop(which func(*primaryConn) bool) {
	w.mu.Lock()
	var drop []*primaryConn
	for c := range w.conns {
		if which(c) {
			drop = append(drop, c)
		}
	}
	w.mu.Unlock()
	for _, c := range drop {
		_ = c.Close() // rueidis notices, and says so to those who wait
	}
}

// answer is what one Sentinel says.
type answer struct {
	addr  string
	epoch uint64 // of the last failover it knows
	err   error
}

// errNoSuchMaster is a Sentinel's answer for a name that it does not watch.
var errNoSuchMaster = errors.New("they watch none of the name")

// primary asks all Sentinels at once. It decides for the one that knows the latest failover, as one that is cut off from
// the others goes on naming the primary of before, when more than half have answered and that failover is not older
// than one that is known, or when all have.
func (w *sentinels) primary(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, sentinelTimeout)
	defer cancel()
	answers := make(chan answer, len(w.nodes))
	for _, node := range w.nodes {
		w.calls.Go(func() { answers <- w.ask(ctx, node) })
	}
	var best answer
	var wrong []error
	good := 0
	for range w.nodes {
		var a answer
		select {
		case a = <-answers:
		case <-ctx.Done():
			a.err = ctx.Err()
		}
		if a.err != nil {
			wrong = append(wrong, a.err)
			continue
		}
		if good++; good == 1 || a.epoch > best.epoch {
			best = a
		}
		if 2*good > len(w.nodes) && w.learn(best.epoch) {
			return best.addr, nil
		}
	}
	if good > 0 { // also if they begin to count anew, as when all were replaced
		return best.addr, nil
	}
	for _, err := range wrong {
		if errors.Is(err, errNoSuchMaster) {
			return "", &sentinelError{fmt.Errorf("%w %q; give master= the name in their configuration (sentinel monitor NAME)", err, w.master)}
		}
	}
	return "", &sentinelError{wrong[0]}
}

// sentinelError says that no Sentinel names the primary, and what one of them said instead.
type sentinelError struct{ err error }

func (e *sentinelError) Error() string {
	return "no Sentinel names the primary: " + plain(e.err.Error())
}
func (e *sentinelError) Unwrap() error { return e.err }

func (w *sentinels) ask(ctx context.Context, node rueidis.Client) answer {
	replies := node.DoMulti(ctx,
		node.B().Arbitrary("SENTINEL", "MASTER", w.master).Build(),
		node.B().SentinelGetMasterAddrByName().Master(w.master).Build())
	facts, err := replies[0].AsStrMap()
	if err != nil {
		if strings.Contains(err.Error(), "No such master") {
			err = errNoSuchMaster
		}
		return answer{err: err}
	}
	where, err := replies[1].AsStrSlice()
	if err != nil || len(where) != 2 {
		return answer{err: fmt.Errorf("it names no address (%v)", err)}
	}
	epoch, _ := strconv.ParseUint(facts["config-epoch"], 10, 64) // 0 if it does not say
	return answer{addr: net.JoinHostPort(where[0], where[1]), epoch: epoch}
}

// close ends the connections to the Sentinels.
func (w *sentinels) close() {
	for _, node := range w.nodes {
		node.Close()
	}
	w.calls.Wait()
}
