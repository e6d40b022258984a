package testfault_test

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/internal/testfault"
	"github.com/holdfast-sessions/holdfast/store/memory"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// server is a stand-in for one: what it has is in memory.
type server struct {
	mu sync.Mutex

	// mu guards the fields below.
	down    bool
	frozen  chan struct{} // nil: it runs
	records *memory.Store
	old     *memory.Store // what it had earlier
	kill    func(*server) // what happens to its records when it is killed
}

func newServer() *server { return &server{records: memory.New()} }

func (s *server) close() {
	_ = s.records.Close()
	if s.old != nil {
		_ = s.old.Close()
	}
}

func (s *server) Stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.down && s.kill != nil {
		s.kill(s)
	}
	s.down = true
}

func (s *server) Restart() {
	s.Stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.down = false
}

func (s *server) Freeze() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.frozen = make(chan struct{})
}

func (s *server) Thaw() {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.frozen)
	s.frozen = nil
}

// snapshot keeps what there is.
func (s *server) snapshot() *memory.Store {
	m := memory.New()
	for item, err := range s.records.List(context.Background()) {
		if err == nil {
			_ = m.Save(context.Background(), item.ID, item.Record, 0)
		}
	}
	return m
}

func (s *server) state() (down bool, frozen chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.down, s.frozen
}

// client is a store on a server. The fields break it.
type client struct {
	*server
	addr string
	ctx  context.Context // of the test

	whenDown     error           // instead of ErrUnavailable
	unhurried    bool            // ignores deadlines
	leak         func(c *client) // is called when a call fails
	onLoad       func(c *client, id driver.ID, rec driver.Record, err error) (driver.Record, error)
	onSave       func(c *client, id driver.ID, rec driver.Record, prev uint64) error
	onDelete     func(c *client, id driver.ID) error
	neverReturns bool // stays down

	mu     sync.Mutex
	failed bool
	last   driver.Record // that was loaded
	wg     sync.WaitGroup
}

// answer waits until the server answers.
func (c *client) answer(ctx context.Context) (err error) {
	defer func() {
		if err != nil {
			c.mu.Lock()
			c.failed = true
			c.mu.Unlock()
			if c.leak != nil {
				c.leak(c)
			}
		}
	}()
	if err := ctx.Err(); err != nil {
		return driver.Unavailable(err)
	}
	down, frozen := c.state()
	c.mu.Lock()
	down = down || c.neverReturns && c.failed
	c.mu.Unlock()
	if down && c.whenDown != nil {
		return c.whenDown
	}
	if down {
		return driver.ErrUnavailable
	}
	if frozen == nil {
		return nil
	}
	if c.unhurried {
		<-frozen
		return nil
	}
	select {
	case <-frozen:
		return nil
	case <-ctx.Done():
		return driver.Unavailable(ctx.Err())
	}
}

func (c *client) Load(ctx context.Context, id driver.ID) (driver.Record, error) {
	if err := c.answer(ctx); err != nil {
		return driver.Record{}, err
	}
	rec, err := c.records.Load(context.Background(), id)
	if c.onLoad != nil {
		rec, err = c.onLoad(c, id, rec, err)
	}
	return rec, err
}

func (c *client) Save(ctx context.Context, id driver.ID, rec driver.Record, prev uint64) error {
	if err := c.answer(ctx); err != nil {
		return err
	}
	if c.onSave != nil {
		return c.onSave(c, id, rec, prev)
	}
	return c.records.Save(context.Background(), id, rec, prev)
}

func (c *client) Delete(ctx context.Context, id driver.ID) error {
	if err := c.answer(ctx); err != nil {
		return err
	}
	if c.onDelete != nil {
		return c.onDelete(c, id)
	}
	return c.records.Delete(context.Background(), id)
}

func (c *client) Close() error { return nil }

// sometimes is true once in a while.
func sometimes() bool { return rand.IntN(40) == 0 }

// TestBroken puts stores through Outages that are broken in one way each.
func TestBroken(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() { // ends with the listener
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(io.Discard, c); c.Close() }()
		}
	}()
	tests := []struct {
		name  string
		in    string // the outage that shows it; "": all
		wants string // in a failure; "": none
		kill  func(*server)
		broke func(*client)
	}{
		{name: "works", broke: func(*client) {}},
		{name: "shows another's record", in: "restarted while idle", wants: "is shown the record of", broke: func(c *client) {
			c.onLoad = func(c *client, _ driver.ID, rec driver.Record, err error) (driver.Record, error) {
				c.mu.Lock()
				defer c.mu.Unlock()
				if err == nil && sometimes() && c.last.Revision != 0 {
					return c.last, nil
				}
				c.last = rec
				return rec, err
			}
		}},
		{name: "shows half a record", in: "restarted while idle", wants: "half a record", broke: func(c *client) {
			c.onLoad = func(_ *client, _ driver.ID, rec driver.Record, err error) (driver.Record, error) {
				if err == nil && sometimes() {
					rec.Fields = rec.Fields.With(driver.Change{Name: "end", Delete: true})
				}
				return rec, err
			}
		}},
		{name: "not found when the server is down", in: "killed", wants: "which the store cannot know", broke: func(c *client) { c.whenDown = driver.ErrNotFound }},
		{name: "not found, once in a while", in: "restarted while idle", wants: "silent logouts", broke: func(c *client) {
			c.onLoad = func(_ *client, _ driver.ID, rec driver.Record, err error) (driver.Record, error) {
				if sometimes() {
					err = driver.ErrNotFound
				}
				return rec, err
			}
		}},
		{name: "an error of its own when the server is down", in: "killed", wants: "which the contract does not allow", broke: func(c *client) { c.whenDown = io.EOF }},
		{name: "conflicts for nothing", in: "restarted while idle", wants: "nobody else wrote", broke: func(c *client) {
			c.onSave = func(c *client, id driver.ID, rec driver.Record, prev uint64) error {
				if sometimes() && prev != 0 {
					return driver.ErrConflict
				}
				return c.records.Save(context.Background(), id, rec, prev)
			}
		}},
		{name: "ignores deadlines", in: "frozen", wants: "after its deadline", broke: func(c *client) { c.unhurried = true }},
		{name: "does not come back", in: "killed", wants: "visits succeed one after the other", broke: func(c *client) { c.neverReturns = true }},
		{name: "a write after the logout brings the session back", in: "restarted while idle", wants: "are back", broke: func(c *client) {
			c.onSave = func(c *client, id driver.ID, rec driver.Record, prev uint64) error {
				err := c.records.Save(context.Background(), id, rec, prev)
				if err != nil {
					err = c.records.Save(context.Background(), id, rec, 0)
				}
				return err
			}
		}},
		{name: "acknowledges logouts that it does not do", in: "restarted while idle", wants: "are back", broke: func(c *client) {
			c.onDelete = func(c *client, id driver.ID) error {
				if rand.IntN(4) == 0 {
					return nil
				}
				return c.records.Delete(context.Background(), id)
			}
		}},
		{name: "acknowledges writes that it does not make", in: "restarted while idle", wants: "acknowledged writes are lost", broke: func(c *client) {
			c.onSave = func(c *client, id driver.ID, rec driver.Record, prev uint64) error {
				if rand.IntN(8) == 0 && prev != 0 { // of few
					return nil
				}
				return c.records.Save(context.Background(), id, rec, prev)
			}
		}},
		{name: "what was acknowledged is gone after a restart", in: "killed", wants: "silent logouts", broke: func(*client) {},
			kill: func(s *server) { _ = s.records.Close(); s.records = memory.New() }},
		{name: "two servers answer in turn", in: "restarted while idle", wants: "two servers answer", broke: func(c *client) {
			c.onSave = func(c *client, id driver.ID, rec driver.Record, prev uint64) error {
				c.server.mu.Lock()
				if c.old == nil && rand.IntN(20) == 0 {
					c.old = c.snapshot()
				}
				c.server.mu.Unlock()
				return c.records.Save(context.Background(), id, rec, prev)
			}
			c.onLoad = func(c *client, id driver.ID, rec driver.Record, err error) (driver.Record, error) {
				c.server.mu.Lock()
				old := c.old
				c.server.mu.Unlock()
				if old != nil && sometimes() {
					return old.Load(context.Background(), id)
				}
				return rec, err
			}
		}},
		{name: "leaks goroutines", in: "killed", wants: "goroutines and", broke: func(c *client) {
			c.leak = func(c *client) { c.wg.Go(func() { <-c.ctx.Done() }) }
		}},
		{name: "leaks connections", in: "killed", wants: "connections to the server, before Open", broke: func(c *client) {
			c.leak = func(c *client) {
				if conn, err := net.Dial("tcp", c.addr); err == nil {
					c.wg.Go(func() { <-c.ctx.Done(); conn.Close() })
				}
			}
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			late, wait, poll := 4*time.Second, 90*time.Second, 15*time.Second
			if tt.wants != "" {
				poll = time.Second
			}
			switch tt.name {
			case "ignores deadlines":
				late, wait = 300*time.Millisecond, time.Second
			case "does not come back":
				wait = time.Second
			}
			defer testfault.SetTimes(late, wait, poll)()
			var failures []string
			srv := newServer()
			defer srv.close()
			srv.kill = tt.kill
			target := testfault.Target{
				Server: srv, Addr: l.Addr().String(), NoProxy: true, Keeps: true,
				Open: func(t testing.TB, addr string) driver.Store {
					c := &client{server: srv, addr: addr, ctx: t.Context()}
					tt.broke(c)
					t.Cleanup(c.wg.Wait)
					return c
				},
			}
			testfault.Each(target, func(name string, run func(testing.TB)) {
				if tt.in == "" || tt.in == name {
					failures = append(failures, failuresOf(t, run)...)
				}
			})
			all := strings.Join(failures, "\n")
			if tt.wants == "" && all != "" {
				t.Errorf("failures of a store that works:\n%s", all)
			}
			if !strings.Contains(all, tt.wants) {
				t.Errorf("failures of a store that %s: want one that says %q, got:\n%s", tt.name, tt.wants, all)
			}
		})
	}
}

// recorder notes failures instead of failing the test.
type recorder struct {
	testing.TB
	ctx context.Context

	mu       sync.Mutex
	failures []string
	cleanups []func()
}

func (r *recorder) Errorf(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failures = append(r.failures, fmt.Sprintf(format, args...))
}
func (r *recorder) Fatalf(format string, args ...any) { r.Errorf(format, args...); runtime.Goexit() }
func (r *recorder) Logf(string, ...any)               {}
func (r *recorder) Cleanup(f func())                  { r.cleanups = append(r.cleanups, f) }
func (r *recorder) Context() context.Context          { return r.ctx }

// failuresOf runs f to its end.
func failuresOf(t *testing.T, f func(testing.TB)) []string {
	ctx, cancel := context.WithCancel(t.Context())
	r := &recorder{TB: t, ctx: ctx}
	done := make(chan struct{})
	go func() {
		defer close(done)
		f(r)
	}()
	<-done
	cancel()
	for i := len(r.cleanups) - 1; i >= 0; i-- {
		r.cleanups[i]()
	}
	return r.failures
}
