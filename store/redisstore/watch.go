package redisstore

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/redis/rueidis"
)

const (
	// A connection that tells of changes is asked for a sign of life every feedPing, and given up when none comes within
	// feedTimeout. A server answers after it has told of what came before, but for what it did in the same instant.
	feedPing    = time.Second
	feedTimeout = 2 * time.Second
	// watchDelay is Description.WatchDelay: the next question after a change is asked within feedTimeout, as the one before
	// is answered or given up by then, and is itself.
	watchDelay = 2 * feedTimeout
	// feedRetry is how long after a connection has ended, or could not be made, the next is tried.
	feedRetry = 500 * time.Millisecond
	// feedGrace is for how long a node of a cluster is listened to that is named no more. A node that was cut off from the
	// others names those of before, and may be asked in turn with them.
	feedGrace = 10 * time.Second
)

// Watch tells of changes, by connections of its own on which the server sends the keys that change (CLIENT TRACKING in its
// broadcasting mode): one, or one to each primary of a cluster. The server sends them for every record with the store's
// prefix, also for touches and for what expires, after each of its rounds. See docs/stores/redis.md for what that costs.
//
// In a cluster, a primary that is new is noticed when the nodes are asked for it, each second.
func (s *Store) Watch(ctx context.Context, changed func(driver.ID), whole func(bool)) error {
	select {
	case <-s.closing:
		return driver.ErrClosed
	case <-ctx.Done():
		return ctx.Err()
	case s.slots <- struct{}{}: // so that Close waits for it
	}
	defer func() { <-s.slots }()
	run, end := context.WithCancelCause(ctx)
	defer end(nil)
	defer context.AfterFunc(s.ctx, func() { end(driver.ErrClosed) })()

	f := &feed{s: s, run: run, end: end, changed: changed, whole: whole, nodes: make(map[string]*feedNode)}
	if s.cluster == nil {
		f.name([]string{s.addr})
		<-run.Done()
	} else {
		f.followCluster()
	}
	f.mu.Lock()
	f.over = true
	f.mu.Unlock()
	f.listening.Wait()
	if err := ctx.Err(); err != nil {
		return err
	}
	return context.Cause(run)
}

// feed is one call of Watch.
type feed struct {
	s         *Store
	run       context.Context
	end       context.CancelCauseFunc // ends run
	listening sync.WaitGroup

	mu sync.Mutex

	// mu guards the fields below. It is held while the functions are called, so that none is when Watch has returned, and
	// those of whole come in order.
	changed func(driver.ID)
	whole   func(bool)
	nodes   map[string]*feedNode // those that are listened to, by address
	unknown bool                 // nobody could say which nodes there are
	told    bool                 // what whole was last called with
	over    bool                 // Watch returns
}

// feedNode is a server that is listened to.
type feedNode struct {
	stop   context.CancelFunc
	named  time.Time // when it was last named a primary
	needed bool      // it was when last asked
	tells  bool
}

// update changes the feed's state, and tells whether it is whole if that is another than before.
func (f *feed) update(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if change(); f.over {
		return
	}
	whole := !f.unknown
	for _, n := range f.nodes {
		whole = whole && (n.tells || !n.needed)
	}
	if whole != f.told {
		f.told = whole
		f.whole(whole)
	}
}

// name says which servers there are to listen to.
func (f *feed) name(addrs []string) {
	f.update(func() {
		f.unknown = false
		for _, n := range f.nodes {
			n.needed = false
		}
		now := time.Now()
		for _, addr := range addrs {
			n := f.nodes[addr]
			if n == nil {
				ctx, stop := context.WithCancel(f.run)
				n = &feedNode{stop: stop}
				f.nodes[addr] = n
				f.listening.Go(func() { f.listen(ctx, addr, n) })
			}
			n.named, n.needed = now, true
		}
		for addr, n := range f.nodes {
			if now.Sub(n.named) > feedGrace {
				n.stop()
				delete(f.nodes, addr)
			}
		}
	})
}

// followCluster listens to the primaries that a cluster has, until the feed ends.
func (f *feed) followCluster() {
	tick := time.NewTicker(feedPing)
	defer tick.Stop()
	for {
		ctx, cancel := context.WithTimeout(f.run, feedTimeout)
		addrs, err := f.s.cluster.allPrimaries(ctx)
		cancel()
		if err == nil {
			f.name(addrs)
		} else {
			f.update(func() { f.unknown = true })
		}
		select {
		case <-f.run.Done():
			return
		case <-tick.C:
		}
	}
}

// listen keeps a connection to a server on which it tells of changes, until ctx ends.
func (f *feed) listen(ctx context.Context, addr string, n *feedNode) {
	for {
		err := f.connect(ctx, addr, func() { f.update(func() { n.tells = true }) })
		if ctx.Err() != nil {
			return
		}
		if reason := untold(err); reason != "" {
			f.end(fmt.Errorf("redis: %s; grant it with ACL SETUSER %s +client|tracking", reason, f.s.userName()))
			return
		}
		f.update(func() {
			if n.tells = false; !n.needed { // and if it is again, it begins anew, with whole(false)
				n.stop()
				delete(f.nodes, addr)
			}
		})
		select {
		case <-ctx.Done():
			return
		case <-time.After(feedRetry):
		}
	}
}

var errFeedEnded = errors.New("the connection ended, or the database was emptied")

// connect makes a connection, calls up when the server tells of changes on it, and returns why that has ended.
func (f *feed) connect(ctx context.Context, addr string, up func()) error {
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	end := sync.OnceFunc(func() { close(ended) })
	o := f.s.feedOption
	dial := o.DialCtxFn
	o.DialCtxFn = func(dialing context.Context, addr string, d *net.Dialer, t *tls.Config) (net.Conn, error) {
		dialing, stop := context.WithCancel(dialing)
		defer stop()
		defer context.AfterFunc(ctx, stop)()
		conn, err := dial(dialing, addr, d, t)
		if err != nil {
			return nil, err
		}
		return &closer{conn, context.AfterFunc(ctx, func() { conn.Close() })}, nil
	}
	o.PipelineMultiplex, o.RingScaleEachConn, o.DisableRetry = -1, 4, true
	o.WriteBufferEachConn = 4 << 10
	o.DisableCache = false
	o.ClientTrackingOptions = []string{"BCAST", "PREFIX", f.s.prefix}
	o.NewCacheStoreFn = func(rueidis.CacheStoreOption) rueidis.CacheStore { return noStore{} }
	o.OnInvalidations = func(keys []rueidis.RedisMessage) {
		if keys == nil { // the database was emptied, or the connection ended
			end()
			return
		}
		f.tell(keys)
	}
	client, err := newSingle(o, addr)
	if err != nil {
		cancel()
		return err
	}
	defer client.Close()
	defer cancel() // first, so that a connection that is silent is not waited for
	alive := func(timeout time.Duration) error {
		ctx, cancel := context.WithTimeout(ctx, timeout)
		defer cancel()
		err := client.Do(ctx, client.B().Ping().Build().Pin()).Error()
		if deniedCommand(err) == "PING" {
			return nil // the refusal is a sign of life too
		}
		return err
	}
	if err := alive(connectTimeout); err != nil {
		return err
	}
	up()
	tick := time.NewTicker(feedPing)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ended:
			return errFeedEnded
		case <-tick.C:
		}
		if err := alive(feedTimeout); err != nil {
			return err
		}
	}
}

// tell tells of keys that have changed.
func (f *feed) tell(keys []rueidis.RedisMessage) {
	for i := range keys {
		id, ok := f.s.parseKey(keys[i])
		if !ok {
			continue
		}
		f.s.forget(id) // first: who is told may ask at once
		f.mu.Lock()
		if !f.over {
			f.changed(id)
		}
		f.mu.Unlock()
	}
}

// untold returns why a server never tells of changes, or "".
func untold(err error) string {
	if !errors.Is(err, rueidis.ErrNoCache) {
		return ""
	}
	switch message := err.Error(); {
	case strings.Contains(message, "NOPERM"):
		return "the user may not run CLIENT TRACKING"
	case strings.Contains(strings.ToLower(message), "unknown"), err == rueidis.ErrNoCache: // it alone: no RESP3
		return "the server does not tell what changes (CLIENT TRACKING)"
	}
	return ""
}

// userName is how ACL SETUSER names the user.
func (s *Store) userName() string {
	if s.user == "" {
		return "default"
	}
	return s.user
}
