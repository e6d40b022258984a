package memcached

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"github.com/holdfast-sessions/holdfast/driver"
)

const (
	// defaultItemBytes is memcached's limit for an item unless its setting -I says otherwise, and for servers that do not
	// tell.
	defaultItemBytes = 1 << 20
	// itemOverhead is more than memcached's own share of an item (56 bytes, the key and a CR LF in 1.6), so that what the
	// store takes for storable is.
	itemOverhead = 256
)

// Config is what a URL cannot say.
type Config struct {
	// Logger gets a warning when a server goes down and when one is found restarted, and so empty. nil: slog.Default().
	Logger *slog.Logger
}

// Open asks the servers that a URL names what they are:
//
//	memcached://host[:port][,host[:port]...][?hash=ketama&weights=1,2&prefix=holdfast:&copies=2&...]
//
// One that does not answer is logged, and is used from when it does; if none answers, the error matches
// driver.ErrUnavailable. Errors say what to do.
func Open(ctx context.Context, url string, c ...Config) (*Store, error) {
	conf, err := parseURL(url)
	if err != nil {
		return nil, fmt.Errorf("memcached store: %w", err)
	}
	logger := slog.Default()
	if len(c) > 0 && c[0].Logger != nil {
		logger = c[0].Logger
	}
	s := newStore(conf, logger)
	if err := s.start(ctx, conf); err != nil {
		_ = s.Close() // always nil
		return nil, fmt.Errorf("memcached store: %w", err)
	}
	return s, nil
}

func newStore(c config, logger *slog.Logger) *Store {
	s := &Store{
		ring:    newRing(c.hash, c.hosts),
		prefix:  c.prefix,
		grace:   c.grace,
		copies:  c.copies == 2,
		closing: make(chan struct{}),
	}
	for _, addr := range c.addrs {
		dialing, hangUp := context.WithCancel(context.Background())
		s.servers = append(s.servers, &server{
			addr:    addr,
			log:     logger,
			timeout: c.timeout,
			slots:   make(chan struct{}, c.conns),
			closing: s.closing,
			dialing: dialing,
			hangUp:  hangUp,
			busy:    make(map[*lane]struct{}),
		})
	}
	return s
}

// start asks all servers at once for their settings, and fills in s.description.
func (s *Store) start(ctx context.Context, c config) error {
	errs := make([]error, len(s.servers))
	limits := make([]int, len(s.servers))
	var wg sync.WaitGroup
	for i, srv := range s.servers {
		wg.Go(func() { limits[i], errs[i] = srv.settings(ctx) })
	}
	wg.Wait()
	item := 0
	var down []error
	for i, err := range errs {
		switch {
		case errors.Is(err, driver.ErrUnavailable):
			down = append(down, err)
			limits[i] = defaultItemBytes
		case err != nil:
			return err
		}
		if item == 0 || limits[i] < item {
			item = limits[i]
		}
	}
	if len(down) == len(s.servers) {
		return errors.Join(down...)
	}
	limit := item - itemOverhead - len(s.prefix) - valueHeader
	if c.maxBytes > 0 {
		limit = min(limit, c.maxBytes)
	}
	s.description = driver.Description{
		Name: "memcached", Shared: true, Evicts: true, MaxBytes: limit,
		Durable: "nothing: a server that restarts is empty",
	}
	if s.copies {
		s.description.Durable = "the restart of one server, as the next has a copy"
	}
	return nil
}

// settings returns the largest item that the server takes.
func (s *server) settings(ctx context.Context) (itemBytes int, _ error) {
	info, err := ask(ctx, s, func(l *lane) (map[string]string, error) { return l.stats("settings") })
	switch {
	case err != nil:
		return 0, err
	case info["cas_enabled"] == "no":
		return 0, fmt.Errorf("memcached %s: %w", s.addr, errNoCAS)
	}
	if n := number(info, "item_size_max"); n > 0 {
		return int(n), nil
	}
	return defaultItemBytes, nil
}
