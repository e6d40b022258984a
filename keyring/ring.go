package keyring

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// Config is how a ring follows its source. The zero value means the defaults.
type Config struct {
	// Every is how often a file or a URL is read again. Default 5 seconds.
	Every time.Duration
	// Client asks URLs. Default: one that follows no redirects, and gives up after 10 seconds.
	Client *http.Client
	// OnReload is called when the ring has changed (nil), and when the source cannot be read or is no key ring any more (why
	// not), once for each different error in a row. The ring waits for it to return.
	OnReload func(error)
	// Logger gets the same. Default: slog.Default().
	Logger *slog.Logger
}

// Ring is a set of keys that follows its source. Its methods may be called concurrently.
type Ring struct {
	set    atomic.Pointer[Set]
	config Config
	source source
	name   string
	seen   [sha256.Size]byte // hash of what was read last; of the watcher alone
	said   string            // the error that was reported last; likewise

	reloads, failures atomic.Uint64

	stop context.CancelFunc
	done sync.WaitGroup
}

// New returns a ring that stays as it is: nothing is read, and there is nothing to close.
func New(s *Set) *Ring {
	r := &Ring{stop: func() {}}
	r.set.Store(s)
	return r
}

// Open is Config.Open with the defaults.
func Open(ctx context.Context, url string) (*Ring, error) { return Config{}.Open(ctx, url) }

// Open reads a key ring, and follows it until Close: a change is in effect after Every, at most. The URL is one of
//
//	file:/path, file:///path   a file that only its owner can use, mode 0600; it may be a symbolic link
//	env:NAME                   an environment variable, which is read once
//	https://host/path          an answer with status 200; http:// only to this machine (127.0.0.1, ::1, localhost)
//
// It fails if the source is not a key ring, or is one that others could know, and says how to put it right. Later
// failures change nothing: the keys that were read last stay, with their states. ctx is for opening alone.
func (c Config) Open(ctx context.Context, url string) (*Ring, error) {
	if c.Every <= 0 {
		c.Every = 5 * time.Second
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	src, err := c.parseURL(url)
	if err != nil {
		return nil, fmt.Errorf("key ring: %w", err)
	}
	r := &Ring{config: c, source: src, name: src.name(), stop: func() {}}
	seen, set, err := r.read(ctx)
	if err != nil {
		src.close()
		return nil, err
	}
	r.seen = seen
	r.set.Store(set)
	if src.watched() {
		watch, stop := context.WithCancel(context.Background())
		r.stop = stop
		r.done.Go(func() { r.watch(watch) })
	}
	return r, nil
}

// Close ends following the source, and waits for it. The keys can be used for as long as somebody has the ring.
func (r *Ring) Close() error {
	r.stop()
	r.done.Wait()
	return nil
}

// Active returns the key that seals.
func (r *Ring) Active() Key { return r.set.Load().Active() }

// Find returns the key with an ID, and its state: Unknown if the ring has never had it. The key can be used if the state is
// Waiting, Active or DecryptOnly.
func (r *Ring) Find(id uint32) (Key, State) { return r.set.Load().Find(id) }

// Keys returns the keys that can be used, the oldest first. The caller may change the slice.
func (r *Ring) Keys() []Key {
	var usable []Key
	for _, k := range r.set.Load().keys {
		if k.state.Usable() {
			usable = append(usable, k)
		}
	}
	return usable
}

// Source names where the keys are from, without passwords and options; "" for a ring of New.
func (r *Ring) Source() string { return r.name }

// Set returns all keys, as they are now.
func (r *Ring) Set() *Set { return r.set.Load() }

// Stats is how a ring has fared since it was opened.
type Stats struct {
	Reloads  uint64 // how often the keys have changed
	Failures uint64 // how often the source could not be read, or was no key ring
}

// Stats counts.
func (r *Ring) Stats() Stats { return Stats{r.reloads.Load(), r.failures.Load()} }

func (r *Ring) watch(ctx context.Context) {
	defer r.source.close()
	tick := time.NewTicker(r.config.Every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			r.reload(ctx)
		}
	}
}

// reload reads the source once more.
func (r *Ring) reload(ctx context.Context) {
	seen, set, err := r.read(ctx)
	switch {
	case ctx.Err() != nil: // Close
	case err != nil:
		r.failures.Add(1)
		if err.Error() == r.said {
			return
		}
		r.said = err.Error()
		r.config.Logger.Error("key ring not reloaded: the keys that were read last stay", "source", r.name, "err", err)
		r.report(err)
	case set == nil: // the same bytes
		if r.said != "" {
			r.said = ""
			r.config.Logger.Info("key ring readable again, and the same", "source", r.name)
		}
	default:
		set.inherit(r.set.Load())
		r.seen, r.said = seen, ""
		r.set.Store(set)
		r.reloads.Add(1)
		r.config.Logger.Info("key ring reloaded", "source", r.name, "active", hexID(set.Active().ID()), "keys", len(set.keys))
		r.report(nil)
	}
}

func (r *Ring) report(err error) {
	if r.config.OnReload != nil {
		r.config.OnReload(err)
	}
}

// read returns a hash of what the source has, and the set; no set if it is what was read before.
func (r *Ring) read(ctx context.Context) (seen [sha256.Size]byte, set *Set, err error) {
	b, err := r.source.read(ctx)
	if err != nil {
		return seen, nil, fmt.Errorf("key ring %s: %w", r.name, err)
	}
	if seen = sha256.Sum256(b); seen == r.seen {
		return seen, nil, nil
	}
	if set, err = parsePrivate(b); err != nil {
		return seen, nil, fmt.Errorf("key ring %s: %w", r.name, err)
	}
	return seen, set, nil
}

// published are the IDs of keys that are in this repository.
var published = []uint32{0x00474106, 0xd3ba5f81, 0x95966335}

// parsePrivate is Parse, but refuses keys that everybody knows.
func parsePrivate(b []byte) (*Set, error) {
	set, err := Parse(b)
	if err != nil {
		return nil, err
	}
	for _, id := range published {
		if k, state := set.Find(id); state.Usable() {
			return nil, fmt.Errorf("key %s is the example that Holdfast's source is published with, and everybody knows it; %s", hexID(k.ID()), newSecret)
		}
	}
	return set, nil
}

// inherit takes over what was derived from keys that old has too, so that a reload costs no request anything.
func (s *Set) inherit(old *Set) {
	for i, k := range s.keys {
		if was, state := old.Find(k.ID()); state.Usable() && k.state.Usable() && subtle.ConstantTimeCompare(was.m.secret(), k.m.secret()) == 1 {
			s.keys[i].m = was.m
		}
	}
}
