package redisstore_test

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/internal/testserver"
)

// What was read is read again without the server, until somebody changes it.
func TestCache(t *testing.T) {
	srv := testserver.Redis(t)
	s, other, admin := mustOpen(t, "redis://"+srv.Addr+"?cache=8MB&cache_ttl=1m"), mustOpen(t, "redis://"+srv.Addr), mustAdmin(t, srv)
	rec := record("ada", "a", "1")
	mustSave(t, other, idOf(1), rec, 0)
	loads := func(n int) {
		t.Helper()
		for range n {
			wantStored(t, s, idOf(1), rec)
		}
	}
	mustDo(t, admin, "CONFIG", "RESETSTAT")
	loads(10)
	if got := sent(t, admin); got != "get=1" {
		t.Errorf("ten loads sent %s, want get=1", got)
	}
	// Each kind of change by somebody else, which is told within a moment.
	sees := func(what string, want error) {
		t.Helper()
		eventually(t, what+" by another", func() error {
			got, err := s.Load(t.Context(), idOf(1))
			if !errors.Is(err, want) {
				return fmt.Errorf("Load = %v", err)
			}
			if err == nil && got.Revision != rec.Revision {
				return errors.New("old revision")
			}
			return nil
		})
	}
	next := after(rec, set("a", "2"))
	mustSave(t, other, idOf(1), next, rec.Revision)
	rec = next
	sees("Save", nil)
	touched := after(rec)
	if err := other.Touch(t.Context(), idOf(1), touched, rec.Revision); err != nil {
		t.Fatal(err)
	}
	rec = touched
	sees("Touch", nil)
	if err := other.Delete(t.Context(), idOf(1)); err != nil {
		t.Fatal(err)
	}
	sees("Delete", driver.ErrNotFound)
	// That nothing is there is not kept.
	rec = record("ada")
	mustSave(t, other, idOf(1), rec, 0)
	loads(2)
	mustDo(t, admin, "FLUSHALL")
	sees("FLUSHALL", driver.ErrNotFound)

	// A connection that ends takes the cache along: nobody knows what it would have told.
	mustSave(t, other, idOf(1), rec, 0)
	loads(2)
	mustDo(t, admin, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
	eventually(t, "after its connections were killed", func() error {
		if _, n := s.CacheBytes(); n > 0 {
			return errors.New("the cache has records")
		}
		return nil
	})
	eventually(t, "connected again", func() error { _, err := s.Load(t.Context(), idOf(1)); return err })
}

// Whoever has written, or failed to, sees what is stored, also in the midst of loads by others.
func TestCacheOwnWrites(t *testing.T) {
	srv := testserver.Redis(t)
	s, other := mustOpen(t, "redis://"+srv.Addr+"?cache=8MB&cache_ttl=1m"), mustOpen(t, "redis://"+srv.Addr)
	ctx := t.Context()
	rec := record("ada", "n", "0")
	mustSave(t, s, idOf(1), rec, 0)
	var acked atomic.Int64
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				least := acked.Load()
				got, err := s.Load(ctx, idOf(1))
				if err != nil {
					t.Errorf("Load = %v", err)
					return
				}
				if n := counter(got); int64(n) < least {
					t.Errorf("Load after %d was saved shows %d", least, n)
					return
				}
			}
		})
	}
	for n := 1; n <= testserver.Scale(300, 20000); n++ {
		changes := []driver.Change{set("n", strconv.Itoa(n))}
		next := after(rec, changes...)
		var err error
		switch n % 3 {
		case 0:
			err = s.Save(ctx, idOf(1), next, rec.Revision)
		case 1:
			_, err = s.Merge(ctx, idOf(1), rec, next, changes)
		case 2: // somebody else writes; a touch that loses the race shows what they wrote
			mustSave(t, other, idOf(1), next, rec.Revision)
			if err := s.Touch(ctx, idOf(1), after(rec), rec.Revision); !errors.Is(err, driver.ErrConflict) {
				t.Fatalf("Touch that lost a race = %v, want ErrConflict", err)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
		acked.Store(int64(n))
		if got, err := s.Load(ctx, idOf(1)); err != nil || got.Revision != next.Revision {
			t.Fatalf("Load after write %d shows revision %d, %v, want %d", n, got.Revision, err, next.Revision)
		}
		rec = next
	}
	close(stop)
	wg.Wait()
	if err := s.Delete(ctx, idOf(1)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Load(ctx, idOf(1)); !errors.Is(err, driver.ErrNotFound) {
		t.Errorf("Load after Delete = %v, want ErrNotFound", err)
	}
}

// Writers on two servers, each with a cache, lose nothing: a conflict is followed by a fresh read.
func TestCacheConflicts(t *testing.T) {
	srv := testserver.Redis(t)
	url := "redis://" + srv.Addr + "?cache=8MB&cache_ttl=1m"
	stores := []driver.Store{mustOpen(t, url), mustOpen(t, url)}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := stores[0].Save(ctx, idOf(1), record("ada", "n", "0"), 0); err != nil {
		t.Fatal(err)
	}
	const each = 200
	var wg sync.WaitGroup
	for _, s := range stores {
		wg.Go(func() {
			for done := 0; done < each; {
				rec, err := s.Load(ctx, idOf(1))
				if err == nil {
					err = s.Save(ctx, idOf(1), after(rec, set("n", strconv.Itoa(counter(rec)+1))), rec.Revision)
				}
				switch {
				case err == nil:
					done++
				case !errors.Is(err, driver.ErrConflict):
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	rec, err := mustOpen(t, "redis://"+srv.Addr).Load(ctx, idOf(1))
	if err != nil || counter(rec) != 2*each {
		t.Errorf("%d additions gave %d, %v", 2*each, counter(rec), err)
	}
}

// A session that was ended elsewhere is served for at most cache_ttl, whatever keeps the news away.
func TestCacheIsNeverStalerThanStated(t *testing.T) {
	t.Parallel()
	const ttl = 700 * time.Millisecond
	srv := testserver.Redis(t)
	writer := mustOpen(t, "redis://"+srv.Addr)
	for _, tt := range []struct {
		name  string
		fault func(p *proxy) (end func())
	}{
		{"answers stall", func(p *proxy) func() {
			stalled := make(chan struct{})
			p.stall.Store(&stalled)
			return func() { p.stall.Store(nil); close(stalled) }
		}},
		{"connection cut", func(p *proxy) func() { p.cut.Store(true); return func() { p.cut.Store(false) } }},
		{"nothing", func(*proxy) func() { return func() {} }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := mustProxy(t, srv.Addr)
			s := mustOpen(t, "redis://"+p.addr+"?cache=8MB&cache_ttl="+ttl.String())
			rec := record("ada")
			mustSave(t, writer, idOf(1), rec, 0)
			wantStored(t, s, idOf(1), rec)
			end := tt.fault(p)
			defer end()
			wantStored(t, s, idOf(1), rec)
			if err := writer.Delete(t.Context(), idOf(1)); err != nil {
				t.Fatal(err)
			}
			ended := time.Now()
			served, asked := time.Duration(-1), 0
			for time.Since(ended) < 2*ttl {
				begun := time.Now()
				ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
				_, err := s.Load(ctx, idOf(1))
				cancel()
				switch {
				case err == nil:
					served = begun.Sub(ended)
				case errors.Is(err, driver.ErrNotFound), errors.Is(err, driver.ErrUnavailable):
					asked++
				default:
					t.Fatal(err)
				}
			}
			if served > ttl {
				t.Errorf("served %v after it was ended, want at most %v", served, ttl)
			}
			if asked == 0 {
				t.Error("never asked again")
			}
			t.Logf("served for %v after it was ended", served)
		})
	}
}

// A server that is frozen is an outage as soon as what is known is too old.
func TestCacheFrozenServer(t *testing.T) {
	t.Parallel()
	srv := testserver.Redis(t)
	s := mustOpen(t, "redis://"+srv.Addr+"?cache=8MB&cache_ttl=500ms")
	rec := record("ada")
	mustSave(t, s, idOf(1), rec, 0)
	wantStored(t, s, idOf(1), rec)
	srv.Freeze()
	frozen := time.Now()
	for {
		begun := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		_, err := s.Load(ctx, idOf(1))
		cancel()
		if err == nil && begun.Sub(frozen) > 500*time.Millisecond {
			t.Fatalf("served %v after the server froze", begun.Sub(frozen))
		}
		if errors.Is(err, driver.ErrUnavailable) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	srv.Thaw()
	eventually(t, "after the server answers again", func() error { _, err := s.Load(t.Context(), idOf(1)); return err })
}

// The cache takes no more than its share, and forgets what was not used for the longest time.
func TestCacheSize(t *testing.T) {
	srv := testserver.Redis(t)
	s := mustOpen(t, "redis://"+srv.Addr+"?cache=1MB&cache_ttl=1m")
	const n = 200
	for i := range n {
		mustSave(t, s, idOf(i), record("ada", "big", strings.Repeat("x", 10_000)), 0)
	}
	mustSave(t, s, idOf(n), record("ada", "huge", strings.Repeat("x", 500_000)), 0)
	for i := range n + 1 {
		if _, err := s.Load(t.Context(), idOf(i)); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Load(t.Context(), idOf(0)); err != nil { // in use
			t.Fatal(err)
		}
	}
	if bytes, records := s.CacheBytes(); bytes > 1<<20 || records < 50 {
		t.Errorf("the cache has %d bytes in %d records, want at most 1 MiB, and that well used", bytes, records)
	}
	admin := mustAdmin(t, srv)
	mustDo(t, admin, "CONFIG", "RESETSTAT")
	for _, i := range []int{0, n - 1} {
		if _, err := s.Load(t.Context(), idOf(i)); err != nil {
			t.Fatal(err)
		}
	}
	if got := sent(t, admin); got != "" {
		t.Errorf("what was used last is read from the server: %s", got)
	}
}
