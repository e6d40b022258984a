package redisstore

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync"

	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/redis/rueidis"
)

// waitConns bounds the writes under way to one server when each waits for replicas on a connection of its own.
const waitConns = 32

// Open connects to what a URL names, asks it what it is, and checks that the user has the rights the store needs:
//
//	redis://[[user]:password@]host[:port][/db][?prefix=holdfast:&password_file=...]
//	redis-sentinel://[[user]:password@]sentinel[:port],...[/db]?master=name[&sentinel_user=...&sentinel_password_file=...]
//	redis-cluster://[[user]:password@]node[:port],...
//
// rediss, rediss-sentinel and rediss-cluster are the same over TLS: [&ca_file=...&server_name=...&cert_file=...&key_file=...].
// For all: [&wait=1&wait_timeout=1s] has replicas confirm each write, and [&cache=64MB&cache_ttl=5s] keeps what was
// read lately in memory. User and password are for the data servers.
//
// Its errors are one line that says what to do, and never show the password. Where no server can be reached
// they match driver.ErrUnavailable.
func Open(ctx context.Context, url string) (*Store, error) {
	c, err := parseURL(url)
	if err != nil {
		return nil, fmt.Errorf("redis store: %w", err)
	}
	s := newStore(c)
	if err := s.connect(ctx, c); err != nil {
		s.cancel()
		s.watchers.Wait()
		if s.sentinels != nil {
			s.sentinels.close()
		}
		return nil, fmt.Errorf("redis store %s: %w", strings.Join(c.addrs, ","), openError(err, c))
	}
	if err := s.start(ctx, c); err != nil {
		_ = s.Close() // always nil
		return nil, fmt.Errorf("redis store %s: %w", strings.Join(c.addrs, ","), err)
	}
	return s, nil
}

// newStore makes a store that is not connected yet.
func newStore(c config) *Store {
	ctx, cancel := context.WithCancel(context.Background())
	s := &Store{
		prefix:      c.prefix,
		db:          c.db,
		wait:        c.wait,
		waitTimeout: c.waitTimeout,
		slots:       make(chan struct{}, maxCalls),
		closing:     make(chan struct{}),
		ctx:         ctx,
		cancel:      cancel,
		save:        newScript(preludeLua + saveLua),
		touch:       newScript(preludeLua + touchLua),
		merge:       newScript(preludeLua + mergeLua),
		remove:      newScript(deleteLua),
	}
	if c.cacheBytes > 0 {
		s.cache = newCache(c.cacheBytes, c.cacheTTL)
	}
	return s
}

// connect makes the client, which connects at once to a cluster and later otherwise.
func (s *Store) connect(ctx context.Context, c config) (err error) {
	d := dialer{tls: c.tls, ends: s.ctx}
	o := clientOption(c.login, d.dial)
	o.SelectDB = c.db
	s.addr, s.user = strings.Join(c.addrs, ","), c.login.user
	if c.kind == sentinelled {
		if s.sentinels, err = newSentinels(c, d); err != nil {
			return err
		}
		o.DialCtxFn = func(ctx context.Context, addr string, _ *net.Dialer, _ *tls.Config) (net.Conn, error) {
			return s.sentinels.dial(ctx, addr)
		}
	}
	s.feedOption = o
	if s.cache != nil {
		s.track(&o)
	}
	if s.wait > 0 {
		o.BlockingPoolSize = waitConns
	}
	switch c.kind {
	case single:
		s.client, err = newSingle(o, s.addr)
	case sentinelled:
		s.client, err = newSingle(o, s.addr) // an address for nobody: see sentinels.dial
		if err == nil {
			s.watchers.Go(func() { s.sentinels.watch(s.ctx) })
		}
	case clustered:
		// Two nodes that send each other a command would never end it otherwise.
		o.ClusterOption.MaxMovedRedirections = maxRedirects
		o.TLSConfig = c.tls // chooses among ports; d makes connections
		err = s.connectCluster(ctx, o, c, d)
	}
	return err
}

// connectCluster makes the client in the background, because rueidis does not heed a context there. rueidis gets one
// node, which says who the others are: with several, of which some are dead, it waits for those.
func (s *Store) connectCluster(ctx context.Context, o rueidis.ClientOption, c config, d dialer) error {
	type result struct {
		client rueidis.Client
		err    error
	}
	made := make(chan result, 1)
	s.watchers.Go(func() {
		addr, err := firstAlive(ctx, d, c)
		if err != nil {
			made <- result{nil, err}
			return
		}
		o.InitAddress = []string{addr}
		client, err := rueidis.NewClient(o)
		made <- result{client, err}
	})
	var r result
	select {
	case r = <-made:
	case <-ctx.Done():
		s.cancel() // ends its connections, and thereby it
		if r = <-made; r.client != nil {
			r.client.Close()
		}
		return driver.Unavailable(ctx.Err())
	}
	if r.err != nil {
		return r.err
	}
	if r.client.Mode() != rueidis.ClientModeCluster { // rueidis takes a single server too, or what it takes for one
		err := r.client.Do(ctx, r.client.B().ClusterSlots().Build().Pin()).Error()
		r.client.Close()
		if deniedCommand(err) != "" {
			return err
		}
		return errNoCluster
	}
	s.client, s.cluster = r.client, &cluster{client: r.client}
	return nil
}

// firstAlive returns the address of the node that answers first.
func firstAlive(ctx context.Context, d dialer, c config) (string, error) {
	ctx, cancel := context.WithCancel(ctx)
	var asked sync.WaitGroup
	defer asked.Wait()
	defer cancel()
	type result struct {
		addr string
		err  error
	}
	answers := make(chan result, len(c.addrs))
	for _, addr := range c.addrs {
		asked.Go(func() {
			conn, err := d.dial(ctx, addr)
			if err == nil {
				stop := context.AfterFunc(ctx, func() { conn.Close() })
				_, err = roleOf(conn, c.login)
				stop()
				_ = conn.Close() // rueidis makes its own
			}
			answers <- result{addr, err}
		})
	}
	var first error
	for range c.addrs {
		if r := <-answers; r.err == nil {
			return r.addr, nil
		} else if first == nil {
			first = r.err
		}
	}
	return "", first
}

var errNoCluster = errors.New("the server is not part of a Redis Cluster; write redis://, or redis-sentinel:// with the addresses of Sentinels")

// start connects, fills in s.description, and looks whether the user may do what is needed.
func (s *Store) start(ctx context.Context, c config) error {
	servers, err := s.servers(ctx)
	if err != nil {
		return openError(err, c)
	}
	var all []map[string]string
	limit := 0
	for _, server := range servers {
		info, err := s.info(ctx, server.node)
		if err != nil && deniedCommand(err) != "INFO" { // which is not needed; see describe
			return openError(err, c)
		}
		facts := parseInfo(info)
		switch mode := facts["redis_mode"]; {
		case mode == "cluster" && c.kind != clustered:
			return errors.New("the server is part of a Redis Cluster; write redis-cluster://")
		case mode == "sentinel":
			return errors.New("the server is a Redis Sentinel; write redis-sentinel:// and the name it has for the primary in master=")
		}
		all = append(all, facts)
		if n := s.bulkLimit(ctx, server.node); limit == 0 || n < limit {
			limit = n
		}
	}
	s.description = describe(c, all)
	s.description.MaxBytes = limit
	return s.probe(ctx, c, servers)
}

// servers returns the primaries, of which there is one without a cluster.
func (s *Store) servers(ctx context.Context) ([]primary, error) {
	if s.cluster == nil {
		return []primary{{node: s.client}}, nil
	}
	return s.primaries(ctx)
}

// info returns what a server says of itself.
func (s *Store) info(ctx context.Context, server rueidis.Client) (string, error) {
	return s.read(ctx, server, func(b rueidis.Builder) rueidis.Completed { return b.Info().Build() }).ToString()
}

// probe runs probe.lua on each server, on a key that does not exist and that the server is in charge of.
func (s *Store) probe(ctx context.Context, c config, servers []primary) error {
	todo := make(map[string]rueidis.Client)
	for _, server := range servers {
		todo[server.addr] = server.node
	}
	probe := newScript(probeLua)
	for tries := 0; len(todo) > 0 && tries < 1000; tries++ { // a key for each of three nodes takes a handful
		var random driver.ID
		_, _ = rand.Read(random[:]) // never fails
		addr := ""
		if s.cluster != nil {
			table, err := s.cluster.slots(ctx)
			if err != nil {
				return openError(err, c)
			}
			addr = table[slotOf(s.key(random))]
		}
		if todo[addr] == nil {
			continue
		}
		delete(todo, addr)
		w := s.run(ctx, probe, true, random, nil)
		if w.err != nil {
			return openError(w.err, c)
		}
		if denied, err := w.reply.ToString(); err != nil || denied != "" {
			return permissionError(c, "run "+denied)
		}
	}
	return nil
}

// bulkLimit returns the longest string the server takes. Not everybody may ask, and some servers do not say.
func (s *Store) bulkLimit(ctx context.Context, server rueidis.Client) int {
	const setting = "proto-max-bulk-len"
	settings, _ := s.read(ctx, server, func(b rueidis.Builder) rueidis.Completed {
		return b.ConfigGet().Parameter(setting).Build()
	}).AsStrMap() // nothing if it is refused
	if n, err := strconv.Atoi(settings[setting]); err == nil && n > 0 {
		return n
	}
	return defaultMaxBytes
}
