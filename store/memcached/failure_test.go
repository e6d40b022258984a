package memcached_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/internal/testfault"
	"github.com/holdfast-sessions/holdfast/internal/testserver"
	"github.com/holdfast-sessions/holdfast/store/memcached"
)

// late is how long after its deadline a call may return on a busy machine.
const late = 2 * time.Second

// saveMany saves n records and returns the IDs that are on each server.
func saveMany(t *testing.T, s *memcached.Store, servers, n int) (on [][]driver.ID) {
	t.Helper()
	on = make([][]driver.ID, servers)
	for i := range n {
		first, _ := s.ServerOf(idOf(i))
		on[first] = append(on[first], idOf(i))
		mustSave(t, s, idOf(i), record(idOf(i).Hex()), 0)
	}
	return on
}

// One server of three is killed: its sessions are unavailable, never lost, until it is back, and the others are not
// touched. Back it is empty, and that is counted.
func TestServerKilled(t *testing.T) {
	srvs, url := mustServers(t, 3)
	s := mustOpen(t, url)
	on := saveMany(t, s, 3, 60)
	srvs[1].Stop()
	start := time.Now()
	for range 50 {
		for i, ids := range on {
			for _, id := range ids {
				rec, err := s.Load(t.Context(), id)
				switch {
				case i == 1:
					wantErr(t, "Load from the dead server", err, driver.ErrUnavailable)
				case err != nil || rec.User != id.Hex():
					t.Fatalf("Load from another server = %v", err)
				}
			}
		}
		wantErr(t, "Save on the dead server", s.Save(t.Context(), on[1][0], record("ada"), 0), driver.ErrUnavailable)
		wantErr(t, "Delete on the dead server", s.Delete(t.Context(), on[1][0]), driver.ErrUnavailable)
	}
	if d := time.Since(start); d > 10*time.Second {
		t.Errorf("3,100 calls, a third of them to a dead server, took %v", d)
	}
	srvs[1].Restart()
	eventually(t, "after the restart", func() error {
		if _, err := s.Load(t.Context(), on[1][0]); !errors.Is(err, driver.ErrNotFound) {
			return fmt.Errorf("Load = %v, want ErrNotFound", err)
		}
		return nil
	})
	before := s.Losses()
	for i, ids := range on {
		for _, id := range ids {
			rec, err := s.Load(t.Context(), id)
			if i == 1 {
				wantErr(t, "Load from the empty server", err, driver.ErrNotFound)
				mustSave(t, s, id, record("anew"), 0)
			} else if err != nil || rec.User != id.Hex() {
				t.Errorf("Load from another server = %v", err)
			}
		}
	}
	l := s.Losses()
	if l.Restarts != 1 || l.Missing-before.Missing != uint64(len(on[1])) || l.Ended != 0 || l.Expired != 0 {
		t.Errorf("Losses = %+v, want 1 restart and %d missing more than %d", l, len(on[1]), before.Missing)
	}
}

// A dead server is connected to by one caller at a time, and rarely.
func TestNoConnectStorm(t *testing.T) {
	srvs, url := mustServers(t, 1)
	p := mustProxy(t, srvs[0].Addr)
	s := mustOpen(t, strings.Replace(url, srvs[0].Addr, p.addr, 1))
	p.refuse.Store(true)
	p.cutAll()
	p.accepted.Store(0)
	var calls atomic.Int64
	var wg sync.WaitGroup
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	for range 50 {
		wg.Go(func() {
			for ctx.Err() == nil {
				if _, err := s.Load(ctx, idOf(1)); !errors.Is(err, driver.ErrUnavailable) {
					t.Errorf("Load = %v, want ErrUnavailable", err)
				}
				calls.Add(1)
			}
		})
	}
	wg.Wait()
	// 50, 100, 200, 400 ms: at most one attempt each, after those that were under way when the first failed, of two each.
	if n := p.accepted.Load(); n > 2*50+10 || calls.Load() < 1000 {
		t.Errorf("%d connections were tried in a second by %d calls", n, calls.Load())
	}
	p.refuse.Store(false)
	eventually(t, "after it is back", func() error { return s.Save(t.Context(), idOf(1), record("ada"), 0) })
}

// A server that was restarted while nobody asked is noticed before the next call, which succeeds, also a write.
func TestServerRestartedUnnoticed(t *testing.T) {
	srvs, url := mustServers(t, 1)
	s := mustOpen(t, url)
	for i := range 3 {
		srvs[0].Restart()
		mustSave(t, s, idOf(i), record("ada"), 0)
	}
	if l := s.Losses(); l.Restarts != 3 {
		t.Errorf("%d restarts counted, want 3", l.Restarts)
	}
}

func TestServerFrozen(t *testing.T) {
	srvs, url := mustServers(t, 2)
	s := mustOpen(t, url+"?conns=8&timeout=30s")
	on := saveMany(t, s, 2, 40)
	frozen := on[0][0]

	srvs[0].Freeze()
	patient := make(chan error, 1)
	go func() {
		_, err := s.Load(context.Background(), frozen)
		patient <- err
	}()
	wantTimeout(t, s, frozen, 200*time.Millisecond)
	cancelled, cancel := context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, cancel)
	if _, err := s.Load(cancelled, frozen); !errors.Is(err, driver.ErrUnavailable) || !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: Load = %v, want ErrUnavailable and context.Canceled", err)
	}
	var wg sync.WaitGroup
	for range 200 { // more than there are connections
		wg.Go(func() { wantTimeout(t, s, frozen, 300*time.Millisecond) })
		wg.Go(func() {
			if _, err := s.Load(t.Context(), on[1][0]); err != nil {
				t.Errorf("the other server: %v", err)
			}
		})
	}
	wg.Wait()
	srvs[0].Thaw()
	if err := <-patient; err != nil {
		t.Errorf("a call that waited beside those that gave up: %v", err)
	}
	eventually(t, "after the server answers again", func() error {
		_, err := s.Load(t.Context(), frozen)
		if errors.Is(err, driver.ErrNotFound) {
			t.Fatal("the session is gone")
		}
		return err
	})
}

func wantTimeout(t *testing.T, s *memcached.Store, id driver.ID, timeout time.Duration) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	start := time.Now()
	_, err := s.Load(ctx, id)
	wantErr(t, "frozen: Load", err, driver.ErrUnavailable)
	if d := time.Since(start); d > timeout+late {
		t.Errorf("frozen: Load took %v, its deadline was %v", d, timeout)
	}
}

// Attack 17: cancelling at any moment never shows anybody another's data, and costs no connection.
func TestCancelNeverMixesAnswers(t *testing.T) {
	t.Parallel()
	users, rounds := testserver.Scale(200, 10_000), testserver.Scale(100, 50)
	srvs, url := mustServers(t, 2)
	for _, options := range []string{"", "?copies=2"} {
		s := mustOpen(t, url+options)
		owner := func(i int) string { return fmt.Sprintf("user%d", i) }
		check := func(i int, rec driver.Record) {
			if v, _ := rec.Fields.Get("owner"); rec.User != owner(i) || string(v) != owner(i) {
				t.Errorf("%s is shown the record of %q with the fields of %q", owner(i), rec.User, v)
			}
		}
		for i := range users {
			_ = s.Delete(t.Context(), idOf(i)) // of the round before
			mustSave(t, s, idOf(i), record(owner(i), "owner", owner(i), "padding", strings.Repeat(owner(i), 1+i%300)), 0)
		}
		var wg sync.WaitGroup
		var answered, cancelled atomic.Int64
		workers := make(chan struct{}, 200)
		for i := range users {
			workers <- struct{}{}
			wg.Go(func() {
				defer func() { <-workers }()
				r := rand.New(rand.NewPCG(uint64(i), 17))
				for n := range rounds {
					ctx, cancel := context.WithTimeout(t.Context(), time.Duration(r.IntN(4000))*time.Microsecond)
					rec, err := s.Load(ctx, idOf(i))
					if err == nil {
						answered.Add(1)
						check(i, rec)
						next := after(rec, set("owner", owner(i)), set(fmt.Sprint("n", n%3), owner(i)))
						next.Tag = rec.Tag
						err = s.Save(ctx, idOf(i), next, rec.Revision)
					}
					if err != nil {
						if cancelled.Add(1); !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, driver.ErrConflict) {
							t.Errorf("%s: %v", owner(i), err)
						}
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
			check(i, mustLoad(t, s, idOf(i)))
		}
	}
	for _, srv := range srvs {
		if n := number(t, admin{t, srv.Addr}.stats(), "total_connections"); n > 200 { // two stores of 64, and the test's
			t.Errorf("the server was connected to %d times", n)
		}
	}
}

// Attack 16: of 100 writers of different fields none is lost, with the retries that the Manager makes.
func TestHundredWriters(t *testing.T) {
	_, url := mustServers(t, 2)
	for _, options := range []string{"", "?copies=2&prefix=b:"} {
		a, b := mustOpen(t, url+options), mustOpen(t, url+options)
		mustSave(t, a, idOf(1), record("ada"), 0)
		var wg sync.WaitGroup
		for i := range 100 {
			s := []*memcached.Store{a, b}[i%2]
			wg.Go(func() {
				for {
					rec, err := s.Load(t.Context(), idOf(1))
					if err != nil {
						t.Error(err)
						return
					}
					next := after(rec, set(fmt.Sprint("field", i), "set"))
					next.Tag = rec.Tag
					if err = s.Save(t.Context(), idOf(1), next, rec.Revision); err == nil {
						return
					} else if !errors.Is(err, driver.ErrConflict) {
						t.Error(err)
						return
					}
				}
			})
		}
		wg.Wait()
		if n := mustLoad(t, a, idOf(1)).Fields.Len(); n != 100 {
			t.Errorf("%d of 100 fields are there", n)
		}
	}
}

// A write whose answer is lost is not sent again; a read is, once. What was cut off in mid-answer is not a session.
func TestLostAnswer(t *testing.T) {
	srvs, url := mustServers(t, 1)
	a, p := admin{t, srvs[0].Addr}, mustProxy(t, srvs[0].Addr)
	s := mustOpen(t, strings.Replace(url, srvs[0].Addr, p.addr, 1))
	rec := record("ada", "a", strings.Repeat("x", 50_000))
	mustSave(t, s, idOf(2), rec, 0)
	for _, keep := range []int64{0, 1, 100, 30_000} { // bytes of the answer that arrive
		lose := func(f func() error) string {
			return a.sent(func() {
				p.cut.Store(keep + 1)
				wantErr(t, "answer lost", f(), driver.ErrUnavailable)
				p.cut.Store(0)
			})
		}
		if got := lose(func() error { _, err := s.Load(t.Context(), idOf(2)); return err }); got != "get=2" {
			t.Errorf("a read whose answers are lost after %d bytes: the server was sent %s, want get=2", keep, got)
		}
		if keep > 1 {
			continue
		}
		id := idOf(10 + int(keep))
		if got := lose(func() error { return s.Save(t.Context(), id, rec, 0) }); got != "set=1" {
			t.Errorf("the server was sent %s, want set=1", got)
		}
		wantStored(t, s, id, rec)
		if got := lose(func() error { return s.Delete(t.Context(), id) }); got != "set=1" {
			t.Errorf("the server was sent %s, want set=1", got)
		}
		wantErr(t, "Save after Delete", s.Save(t.Context(), id, after(rec), rec.Revision), driver.ErrConflict)
	}
	wantStored(t, s, idOf(2), rec)
}

// proxy forwards connections, refuses them, or cuts them in an answer.
type proxy struct {
	addr     string
	cut      atomic.Int64 // bytes of an answer that still arrive, and 1; 0: all
	refuse   atomic.Bool
	accepted atomic.Int64

	mu sync.Mutex

	// mu guards the field below.
	clients map[net.Conn]struct{}
}

func (p *proxy) cutAll() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.clients {
		c.Close()
	}
}

func mustProxy(t *testing.T, to string) *proxy {
	t.Helper()
	p := &proxy{clients: make(map[net.Conn]struct{})}
	p.addr = testfault.Forward(t, to, func(server, client net.Conn) {
		p.accepted.Add(1)
		if p.refuse.Load() {
			return
		}
		p.mu.Lock()
		p.clients[client] = struct{}{}
		p.mu.Unlock()
		_, _ = io.Copy(server, client)
	}, p.answers)
	return p
}

// answers forwards what the server answers. The statistics that the store asks for on each new connection pass.
func (p *proxy) answers(client, server net.Conn) {
	buf := make([]byte, 64<<10)
	for {
		n, err := server.Read(buf)
		if cut := p.cut.Load(); cut > 0 && n > 0 && !bytes.HasPrefix(buf[:n], []byte("STAT ")) {
			_, _ = client.Write(buf[:min(n, int(cut-1))])
			return
		}
		if _, werr := client.Write(buf[:n]); err != nil || werr != nil {
			return
		}
	}
}

// Without evictions (-M), a full server refuses writes, and reads and logouts work.
func TestOutOfMemory(t *testing.T) {
	srvs, url := mustServers(t, 1, testserver.MemcachedOptions{Args: []string{"-M", "-m", "4"}})
	s := mustOpen(t, url)
	value := strings.Repeat("x", 10_000)
	n := 0
	var err error
	for ; n < 10_000 && err == nil; n++ {
		err = s.Save(t.Context(), idOf(n), record("ada", "a", value), 0)
	}
	wantErr(t, "Save when memory is full", err, driver.ErrUnavailable)
	if err != nil && !strings.Contains(err.Error(), "-m") {
		t.Errorf("Save = %v, want it to say how to get more memory", err)
	}
	for i := range n - 1 {
		rec := mustLoad(t, s, idOf(i))
		if i%10 == 0 {
			mustDelete(t, s, idOf(i))
			late := after(rec)
			late.Tag = rec.Tag
			wantErr(t, "Save after Delete", s.Save(t.Context(), idOf(i), late, rec.Revision), driver.ErrConflict)
			_, err := s.Load(t.Context(), idOf(i))
			wantErr(t, "Load after Delete", err, driver.ErrNotFound)
		}
	}
	if got := (admin{t, srvs[0].Addr}).stats()["evictions"]; got != "0" {
		t.Errorf("%s evictions", got)
	}
}

// A server whose memory is full drops sessions: found missing, counted, and named by Stat.
func TestEvictions(t *testing.T) {
	_, url := mustServers(t, 1, testserver.MemcachedOptions{Args: []string{"-m", "8"}})
	s := mustOpen(t, url)
	const n = 3000
	value := strings.Repeat("x", 5000)
	mustSave(t, s, idOf(n), record("ada"), 0)
	midway := mustLoad(t, s, idOf(n))
	for i := range n {
		mustSave(t, s, idOf(i), record("ada", "a", value), 0)
	}
	missing := uint64(0)
	for i := range n {
		if _, err := s.Load(t.Context(), idOf(i)); errors.Is(err, driver.ErrNotFound) {
			missing++
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if missing == 0 {
		t.Fatal("nothing was evicted")
	}
	st, err := s.Stat(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	l := s.Losses()
	if l.Missing != missing || l.Evictions < missing || l.Restarts != 0 {
		t.Errorf("Losses = %+v, want %d missing and at least as many evictions", l, missing)
	}
	t.Logf("%d of %d evicted; %+v", missing, n, st.Facts)
	if st.Bytes <= 0 || st.Records >= 0 || len(st.Facts) == 0 {
		t.Errorf("Stat = %+v", st)
	}
	// One that is lost between a load and the save is lost for certain.
	a := admin{t, strings.TrimPrefix(url, "memcached://")}
	a.do("delete "+key(idOf(n))+"\r\n", 1)
	next := after(midway)
	next.Tag = midway.Tag
	wantErr(t, "Save of a record that is gone", s.Save(t.Context(), idOf(n), next, midway.Revision), driver.ErrConflict)
	if got := s.Losses().Vanished; got != 1 {
		t.Errorf("%d vanished, want 1", got)
	}
}

// Lost sessions are told apart from ended and expired ones.
func TestLossesAreNotLogouts(t *testing.T) {
	srvs, url := mustServers(t, 1)
	s := mustOpen(t, url)
	short := record("ada")
	short.Expires = time.UnixMilli(time.Now().UnixMilli()).Add(50 * time.Millisecond)
	mustSave(t, s, idOf(1), short, 0)
	mustSave(t, s, idOf(2), record("ada"), 0)
	mustSave(t, s, idOf(3), record("ada"), 0)
	mustDelete(t, s, idOf(2))
	admin{t, srvs[0].Addr}.do("delete "+key(idOf(3))+"\r\n", 1) // as an eviction does
	eventually(t, "expiry", func() error {
		if time.Now().Before(short.Expires) {
			return errors.New("not yet")
		}
		return nil
	})
	for n := 1; n <= 4; n++ { // 4 was never issued
		_, err := s.Load(t.Context(), idOf(n))
		wantErr(t, "Load", err, driver.ErrNotFound)
		if errors.Is(err, driver.ErrGone) != (n <= 2) {
			t.Errorf("Load number %d = %v; want ErrGone of the expired one and the ended one, and of no other", n, err)
		}
	}
	if l, want := s.Losses(), (memcached.Losses{Expired: 1, Ended: 1, Missing: 2}); l != want {
		t.Errorf("Losses = %+v, want %+v", l, want)
	}
}

func TestClose(t *testing.T) {
	srvs, url := mustServers(t, 1)
	s := mustOpen(t, url+"?timeout=1m")
	rec := record("ada")
	mustSave(t, s, idOf(1), rec, 0)
	testfault.CloseFrozen(t, srvs[0], s, 10*time.Second)
	_, loadErr := s.Load(t.Context(), idOf(1))
	_, statErr := s.Stat(t.Context())
	for name, err := range map[string]error{
		"Load": loadErr, "Stat": statErr,
		"Save":   s.Save(t.Context(), idOf(1), rec, 0),
		"Delete": s.Delete(t.Context(), idOf(1)),
	} {
		if !errors.Is(err, driver.ErrClosed) {
			t.Errorf("%s after Close = %v, want ErrClosed", name, err)
		}
	}
}

// What an operator has to know is logged once.
func TestLog(t *testing.T) {
	srv := testserver.Memcached(t)
	var log testserver.Buffer
	s, err := memcached.Open(t.Context(), "memcached://"+srv.Addr, memcached.Config{Logger: slog.New(slog.NewTextHandler(&log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	mustSave(t, s, idOf(1), record("ada"), 0)
	srv.Stop()
	for range 20 {
		_, err := s.Load(t.Context(), idOf(1))
		wantErr(t, "Load", err, driver.ErrUnavailable)
	}
	srv.Restart()
	eventually(t, "after the restart", func() error { return s.Save(t.Context(), idOf(2), record("ada"), 0) })
	for _, want := range []string{"memcached server is down", "memcached server is back", "memcached server was restarted"} {
		if n := strings.Count(log.String(), want); n != 1 {
			t.Errorf("%q is logged %d times, want once:\n%s", want, n, log.String())
		}
	}
	if strings.Contains(log.String(), idOf(1).Hex()) {
		t.Errorf("the log shows a whole ID:\n%s", log.String())
	}
}
