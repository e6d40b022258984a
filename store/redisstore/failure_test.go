package redisstore_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/internal/testfault"
	"github.com/holdfast-sessions/holdfast/internal/testserver"
	"github.com/holdfast-sessions/holdfast/store/redisstore"
)

// late is how long after its deadline a call may return on a busy machine. It is well below the time after which the
// store gives up a silent connection, which would end calls that do not heed their deadline.
const late = 2 * time.Second

func TestServerKilled(t *testing.T) {
	srv := testserver.Redis(t, testserver.RedisOptions{Config: []string{"appendonly yes", "appendfsync always"}})
	s := mustOpen(t, "redis://"+srv.Addr)
	rec := record("ada", "a", "1")
	mustSave(t, s, idOf(1), rec, 0)

	srv.Stop()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	start := time.Now()
	if _, err := s.Load(ctx, idOf(1)); !errors.Is(err, driver.ErrUnavailable) || errors.Is(err, driver.ErrNotFound) {
		t.Errorf("server killed: Load = %v, want ErrUnavailable", err)
	}
	if err := s.Save(ctx, idOf(1), after(rec), rec.Revision); !errors.Is(err, driver.ErrUnavailable) {
		t.Errorf("server killed: Save = %v, want ErrUnavailable", err)
	}
	if err := s.Delete(ctx, idOf(1)); !errors.Is(err, driver.ErrUnavailable) {
		t.Errorf("server killed: Delete = %v, want ErrUnavailable", err)
	}
	for _, err := range s.List(ctx) {
		if !errors.Is(err, driver.ErrUnavailable) {
			t.Errorf("server killed: List = %v, want ErrUnavailable", err)
		}
	}
	if d := time.Since(start); d > 2*time.Second+late {
		t.Errorf("four calls took %v, their deadline was 2s", d)
	}

	srv.Restart()
	wantStored(t, s, idOf(1), rec)
	mustSave(t, s, idOf(1), after(rec), rec.Revision)
}

// A server that was restarted while nobody asked is noticed before the next call, which succeeds, also a write.
func TestServerRestartedUnnoticed(t *testing.T) {
	srv := testserver.Redis(t)
	s := mustOpen(t, "redis://"+srv.Addr)
	for i := range 3 {
		srv.Restart()
		mustSave(t, s, idOf(i), record("ada"), 0)
	}
}

func TestServerFrozen(t *testing.T) {
	srv := testserver.Redis(t)
	s := mustOpen(t, "redis://"+srv.Addr)
	rec := record("ada", "a", "1")
	mustSave(t, s, idOf(1), rec, 0)

	srv.Freeze()
	patient := make(chan error, 1)
	go func() {
		_, err := s.Load(context.Background(), idOf(1))
		patient <- err
	}()
	wantTimeout(t, s, 200*time.Millisecond)
	cancelled, cancel := context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, cancel)
	if _, err := s.Load(cancelled, idOf(1)); !errors.Is(err, driver.ErrUnavailable) || !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: Load = %v, want ErrUnavailable and context.Canceled", err)
	}
	srv.Thaw()
	if err := <-patient; err != nil {
		t.Errorf("a call that waited beside those that gave up: %v", err)
	}
	wantStored(t, s, idOf(1), rec)

	// Longer than the store keeps a connection that is silent, and with more calls than fit on it.
	srv.Freeze()
	var wg sync.WaitGroup
	for range 3000 {
		wg.Go(func() { wantTimeout(t, s, 500*time.Millisecond) })
	}
	wg.Wait()
	for range 4 {
		wantTimeout(t, s, time.Second)
	}
	srv.Thaw()
	eventually(t, "after the server answers again", func() error {
		_, err := s.Load(t.Context(), idOf(1))
		return err
	})
}

func wantTimeout(t *testing.T, s *redisstore.Store, timeout time.Duration) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	start := time.Now()
	_, err := s.Load(ctx, idOf(1))
	if !errors.Is(err, driver.ErrUnavailable) {
		t.Errorf("frozen: Load = %v, want ErrUnavailable", err)
	}
	if d := time.Since(start); d > timeout+late {
		t.Errorf("frozen: Load took %v, its deadline was %v", d, timeout)
	}
}

// Attack 17: cancelling at any moment never shows anybody another's data.
func TestCancelNeverMixesAnswers(t *testing.T) {
	srv := testserver.Redis(t)
	s := mustOpen(t, "redis://"+srv.Addr)
	const users = 200
	owner := func(i int) string { return fmt.Sprintf("user%d", i) }
	check := func(i int, rec driver.Record) {
		v, _ := rec.Fields.Get("owner")
		if rec.User != owner(i) || string(v) != owner(i) {
			t.Errorf("%s is shown the record of %q with the fields of %q", owner(i), rec.User, v)
		}
	}
	for i := range users {
		mustSave(t, s, idOf(i), record(owner(i), "owner", owner(i), "padding", strings.Repeat(owner(i), 1+i)), 0)
	}
	var wg sync.WaitGroup
	var answered, cancelled atomic.Int64
	for i := range users {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(i), 17))
			for n := range 100 {
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(r.IntN(4000))*time.Microsecond)
				rec, err := s.Load(ctx, idOf(i))
				if err == nil {
					answered.Add(1)
					check(i, rec)
					changes := []driver.Change{set("owner", owner(i)), set(fmt.Sprint("n", n%3), owner(i))}
					rec, err = s.Merge(ctx, idOf(i), rec, after(rec, changes...), changes)
				}
				if err == nil {
					check(i, rec)
				} else if cancelled.Add(1); !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("%s: %v", owner(i), err)
				}
				cancel()
			}
		})
	}
	wg.Wait()
	if answered.Load() == 0 || cancelled.Load() == 0 {
		t.Errorf("%d answered, %d cancelled: want some of each", answered.Load(), cancelled.Load())
	}
	for i := range users {
		rec, err := s.Load(t.Context(), idOf(i))
		if err != nil {
			t.Fatal(err)
		}
		check(i, rec)
	}
}

// A write whose answer is lost is not sent again; a read is, once.
func TestLostAnswer(t *testing.T) {
	srv := testserver.Redis(t)
	admin := mustAdmin(t, srv)
	p := mustProxy(t, srv.Addr)
	s := mustOpen(t, "redis://"+p.addr)
	rec := record("ada", "a", "1")
	mustSave(t, s, idOf(2), rec, 0)
	changes := []driver.Change{set("a", "2")}
	next := after(rec, changes...)

	lose := func(f func() error) {
		t.Helper()
		mustDo(t, admin, "CONFIG", "RESETSTAT")
		p.cut.Store(true)
		err := f()
		p.cut.Store(false)
		if !errors.Is(err, driver.ErrUnavailable) {
			t.Errorf("answer lost: %v, want ErrUnavailable", err)
		}
	}
	lose(func() error { return s.Save(t.Context(), idOf(1), rec, 0) })
	if got := sent(t, admin); got != "evalsha=1" {
		t.Errorf("the server was sent %s, want evalsha=1", got)
	}
	wantStored(t, s, idOf(1), rec)

	merge := func() error {
		_, err := s.Merge(t.Context(), idOf(1), rec, next, changes)
		return err
	}
	if _, err := s.Merge(t.Context(), idOf(2), rec, next, changes); err != nil { // so that the server knows the script
		t.Fatal(err)
	}
	lose(merge)
	if got := sent(t, admin); got != "evalsha=1" {
		t.Errorf("the server was sent %s, want evalsha=1", got)
	}
	wantStored(t, s, idOf(1), next)

	lose(func() error { return s.Delete(t.Context(), idOf(1)) })
	if got := sent(t, admin); got != "del=1" {
		t.Errorf("the server was sent %s, want del=1", got)
	}
	if err := s.Save(t.Context(), idOf(1), after(next), next.Revision); !errors.Is(err, driver.ErrConflict) {
		t.Errorf("after Delete: Save = %v, want ErrConflict", err)
	}
	lose(func() error { _, err := s.Load(t.Context(), idOf(2)); return err })
	if got := sent(t, admin); got != "get=2" {
		t.Errorf("a read whose answers are lost: the server was sent %s, want get=2", got)
	}
}

// proxy forwards connections, or cuts them when an answer comes, or keeps what comes to itself until it is sent on.
type proxy struct {
	addr  string
	cut   atomic.Bool
	stall atomic.Pointer[chan struct{}] // closed to go on
}

func mustProxy(t *testing.T, to string) *proxy {
	t.Helper()
	p := &proxy{}
	p.addr = testfault.Forward(t, to, func(server, client net.Conn) { _, _ = io.Copy(server, client) }, p.answers)
	return p
}

// answers copies the server's answers. The first answer of a connection is to its login, and is never cut.
func (p *proxy) answers(client, server net.Conn) {
	buf := make([]byte, 64<<10)
	for first := true; ; first = false {
		n, err := server.Read(buf)
		if err != nil || p.cut.Load() && !first {
			return
		}
		if stalled := p.stall.Load(); stalled != nil {
			<-*stalled
		}
		if _, err := client.Write(buf[:n]); err != nil {
			return
		}
	}
}

func TestMemoryFull(t *testing.T) {
	srv := testserver.Redis(t, testserver.RedisOptions{Config: []string{"maxmemory 5mb", "maxmemory-policy noeviction"}})
	s := mustOpen(t, "redis://"+srv.Addr)
	rec := record("ada", "padding", strings.Repeat("x", 200_000))
	n := 0
	var err error
	for ; n < 100; n++ {
		if err = s.Save(t.Context(), idOf(n), rec, 0); err != nil {
			break
		}
	}
	if !errors.Is(err, driver.ErrUnavailable) || !strings.Contains(err.Error(), "OOM") {
		t.Fatalf("Save number %d = %v, want ErrUnavailable that says OOM", n, err)
	}
	wantStored(t, s, idOf(0), rec)
	if _, err := s.Load(t.Context(), idOf(n)); !errors.Is(err, driver.ErrNotFound) {
		t.Errorf("Load of what was refused = %v, want ErrNotFound", err)
	}
	for i := range 4 {
		if err := s.Delete(t.Context(), idOf(i)); err != nil {
			t.Errorf("Delete = %v", err)
		}
	}
	mustSave(t, s, idOf(n), rec, 0)
}

// A server that cannot write its snapshots refuses writes, by default, and says so.
func TestSnapshotsFail(t *testing.T) {
	srv := testserver.Redis(t, testserver.RedisOptions{Config: []string{"save 3600 1"}})
	s := mustOpen(t, "redis://"+srv.Addr)
	rec := record("ada")
	mustSave(t, s, idOf(1), rec, 0)
	snapshot := filepath.Join(srv.Dir, "dump.rdb") // cannot be replaced by a file while it is a directory
	if err := os.MkdirAll(filepath.Join(snapshot, "x"), 0o700); err != nil {
		t.Fatal(err)
	}
	status := func(want string) {
		t.Helper()
		srv.MustCommand("BGSAVE")
		eventually(t, "the snapshot", func() error {
			info := srv.MustCommand("INFO", "persistence")
			if !strings.Contains(info, "rdb_last_bgsave_status:"+want) || !strings.Contains(info, "rdb_bgsave_in_progress:0") {
				return errors.New("goes on")
			}
			return nil
		})
	}
	status("err")
	for name, err := range map[string]error{
		"Save":   s.Save(t.Context(), idOf(1), after(rec), rec.Revision),
		"Delete": s.Delete(t.Context(), idOf(1)),
	} {
		if !errors.Is(err, driver.ErrUnavailable) || !strings.Contains(err.Error(), "MISCONF") {
			t.Errorf("%s = %v, want ErrUnavailable that says MISCONF", name, err)
		}
	}
	wantStored(t, s, idOf(1), rec)
	if err := os.RemoveAll(snapshot); err != nil {
		t.Fatal(err)
	}
	status("ok")
	mustSave(t, s, idOf(1), after(rec), rec.Revision)
}

func TestReplica(t *testing.T) {
	srv := testserver.Redis(t, testserver.RedisOptions{Config: []string{"replicaof 127.0.0.1 1"}})
	s := mustOpen(t, "redis://"+srv.Addr)
	rec := record("ada")
	if _, err := s.Load(t.Context(), idOf(1)); !errors.Is(err, driver.ErrNotFound) {
		t.Errorf("Load = %v, want ErrNotFound", err)
	}
	if err := s.Save(t.Context(), idOf(1), rec, 0); !errors.Is(err, driver.ErrReadOnly) {
		t.Errorf("Save = %v, want ErrReadOnly", err)
	}
	if err := s.Delete(t.Context(), idOf(1)); !errors.Is(err, driver.ErrReadOnly) {
		t.Errorf("Delete = %v, want ErrReadOnly", err)
	}
}

func TestClose(t *testing.T) {
	srv := testserver.Redis(t)
	s := mustOpen(t, "redis://"+srv.Addr)
	rec := record("ada")
	mustSave(t, s, idOf(1), rec, 0)
	testfault.CloseFrozen(t, srv, s, 5*time.Second)
	_, loadErr := s.Load(t.Context(), idOf(1))
	_, mergeErr := s.Merge(t.Context(), idOf(1), rec, after(rec), nil)
	for name, err := range map[string]error{
		"Load": loadErr, "Merge": mergeErr,
		"Save":   s.Save(t.Context(), idOf(1), rec, 0),
		"Touch":  s.Touch(t.Context(), idOf(1), rec, 1),
		"Delete": s.Delete(t.Context(), idOf(1)),
	} {
		if !errors.Is(err, driver.ErrClosed) {
			t.Errorf("%s after Close = %v, want ErrClosed", name, err)
		}
	}
}
