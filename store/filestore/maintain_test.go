//go:build unix

package filestore_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/internal/testserver"
	"github.com/holdfast-sessions/holdfast/store/filestore"
)

var (
	_ driver.Sweeper = (*filestore.Store)(nil)
	_ driver.Stater  = (*filestore.Store)(nil)
)

// TestSweepAndStat: Stat tells what is there, Sweep removes what it should and counts records, and Stat agrees.
func TestSweepAndStat(t *testing.T) {
	bothLayouts(t, testSweepAndStat)
}

func testSweepAndStat(t *testing.T, l filestore.Layout) {
	dir := fastDir(t)
	var log testserver.Buffer
	s := mustOpen(t, dir, filestore.Config{Layout: l, SweepEvery: -1, Logger: slog.New(slog.NewTextHandler(&log, nil))})
	const live, expired = 100, 150 // of more than one portion
	var bytes int64
	for i := range live + expired {
		id, ttl := mustID(t), time.Hour
		if i >= live {
			ttl = -time.Second
		}
		mustSave(t, s, id, newRecord("1", ttl), 0)
		info, err := os.Stat(filepath.Join(dir, place(l, id), "data"))
		must(t, err)
		bytes += info.Size()
	}
	damaged := mustID(t)
	mustSave(t, s, damaged, newRecord("1", time.Hour), 0)
	must(t, os.Truncate(filepath.Join(dir, place(l, damaged), "data"), 10))
	emptied := mustID(t) // a leftover, no record
	mustDir(t, filepath.Join(dir, place(l, emptied)), 0o700)
	mustDir(t, filepath.Join(dir, place(l, emptied)+".end-0000000000000001"), 0o700)
	mustDir(t, filepath.Join(dir, "README"), 0o700)

	want := func(records, expired, bytes int64, leftovers string) {
		t.Helper()
		got, err := s.Stat(t.Context())
		must(t, err)
		diff := cmp.Diff(driver.Stat{Records: records, Expired: expired, Bytes: bytes, Facts: []driver.Fact{
			{Name: "directory", Value: dir},
			{Name: "layout", Value: string(l)},
			{Name: "bytes are", Value: "the sizes of the records' files; on the disk each takes more"},
			{Name: "records that cannot be read", Value: "1"},
			{Name: "being made or removed, or left over", Value: leftovers},
		}}, got)
		if diff != "" {
			t.Errorf("Stat (-want +got):\n%s", diff)
		}
	}
	want(live, expired, bytes, "2")

	var progress []int
	removed, err := s.Sweep(t.Context(), func(removed int) { progress = append(progress, removed) })
	if removed != expired || err != nil {
		t.Errorf("Sweep = %d, %v, want %d", removed, err, expired)
	}
	if !slices.IsSorted(progress) || progress[len(progress)-1] != expired {
		t.Errorf("progress %v, want it to rise to %d", progress, expired)
	}
	if got := log.String(); !strings.Contains(got, "cannot be read") || strings.Contains(got, damaged.Hex()) {
		t.Errorf("log: %s", got)
	}
	portions := 3
	if l == filestore.Hashed {
		portions = 64
	}
	if len(progress) < portions {
		t.Errorf("%d portions, want %d at least", len(progress), portions)
	}
	want(live, 0, bytes*live/(live+expired), "0")
	if removed, err := s.Sweep(t.Context(), nil); removed != 0 || err != nil {
		t.Errorf("Sweep again = %d, %v", removed, err)
	}
}

// Both end with the context or the store, and say what is wrong with the directory.
func TestSweepAndStatErrors(t *testing.T) {
	dir := fastDir(t)
	t.Cleanup(func() { os.RemoveAll(dir + ".away") })
	s := mustOpen(t, dir, filestore.Config{SweepEvery: -1})
	for range 300 {
		mustSave(t, s, mustID(t), newRecord("1", -time.Second), 0)
	}
	ctx, cancel := context.WithCancel(t.Context())
	removed, err := s.Sweep(ctx, func(int) { cancel() })
	if removed == 0 || removed > 64 || !errors.Is(err, context.Canceled) {
		t.Errorf("Sweep canceled after its first portion = %d, %v", removed, err)
	}
	check := func(when string, ctx context.Context, want error) {
		t.Helper()
		removed, err := s.Sweep(ctx, nil)
		wantErr(t, when+": Sweep", err, want)
		st, err := s.Stat(ctx)
		wantErr(t, when+": Stat", err, want)
		if removed != 0 || st.Records != -1 || st.Expired != -1 || st.Bytes != -1 {
			t.Errorf("%s: Sweep = %d, Stat = %v", when, removed, st)
		}
	}
	check("canceled", ctx, context.Canceled)
	must(t, os.Rename(dir, dir+".away"))
	check("directory moved", t.Context(), driver.ErrUnavailable)
	must(t, os.Rename(dir+".away", dir))
	end := noFiles(t)
	_, sweepErr := s.Sweep(t.Context(), nil)
	_, statErr := s.Stat(t.Context())
	end()
	wantErr(t, "no file descriptors: Sweep", sweepErr, driver.ErrUnavailable)
	wantErr(t, "no file descriptors: Stat", statErr, driver.ErrUnavailable)
	removed, err = s.Sweep(t.Context(), func(int) { s.Close() })
	if removed == 0 || removed > 64 || !errors.Is(err, driver.ErrClosed) {
		t.Errorf("Sweep, closed after its first portion = %d, %v", removed, err)
	}
	check("closed", t.Context(), driver.ErrClosed)
}

// TestSweepWhileRequestsRun: two stores here and one in another process sweep the same directory over and over while
// requests run. No request fails or is held up, each expired record counts once, and no live one goes.
func TestSweepWhileRequestsRun(t *testing.T) {
	dir := fastDir(t)
	n := testserver.Scale(2_000, 100_000)
	stores := []*filestore.Store{
		mustOpen(t, dir, filestore.Config{SweepEvery: -1}),
		mustOpen(t, dir, filestore.Config{SweepEvery: -1}),
	}
	kept := make([]driver.ID, 100)
	for i := range kept {
		kept[i] = mustID(t)
		mustSave(t, stores[0], kept[i], newRecord("1", time.Hour), 0)
	}
	requests := func(running func() bool) time.Duration {
		var all sync.WaitGroup
		var mu sync.Mutex
		var took []time.Duration
		for i := range 2 {
			all.Go(func() {
				var own []time.Duration
				for round := 0; running(); round++ {
					start := time.Now()
					if err := request(stores[i], kept[round%len(kept)], mustID(t)); err != nil {
						t.Error(err)
						return
					}
					own = append(own, time.Since(start))
				}
				mu.Lock()
				defer mu.Unlock()
				took = append(took, own...)
			})
		}
		all.Wait()
		slices.Sort(took)
		if len(took) == 0 {
			t.Fatal("no request ran")
		}
		t.Logf("%d requests", len(took))
		return took[len(took)*99/100]
	}
	var rounds atomic.Int64
	quiet := requests(func() bool { return rounds.Add(1) < 2_000 })

	for range n {
		mustSave(t, stores[0], mustID(t), newRecord("1", -time.Second), 0)
	}
	t.Setenv(idleEnv, "1")
	ws := newWorkers(t, dir)
	w := ws.start()
	if _, err := io.WriteString(w.stdin, "sweep\nsweep\n"); err != nil {
		t.Fatal(err)
	}
	must(t, w.stdin.Close())
	var sweeping sync.WaitGroup
	var removed, swept atomic.Int64
	for _, s := range stores {
		sweeping.Go(func() {
			defer swept.Add(1)
			for range 2 {
				n, err := s.Sweep(t.Context(), nil)
				if err != nil {
					t.Errorf("Sweep: %v", err)
				}
				removed.Add(int64(n))
			}
		})
	}
	busy := requests(func() bool { return swept.Load() < int64(len(stores)) })
	sweeping.Wait()
	byWorker := 0
	for e := ws.next(); e.line != ""; e = ws.next() {
		var n int
		if _, err := fmt.Sscanf(e.line, "swept %d", &n); err != nil {
			t.Fatalf("worker says %q", e.line)
		}
		byWorker += n
	}
	if got := int(removed.Load()) + byWorker; got != n {
		t.Errorf("%d records removed by three, want %d", got, n)
	}
	st, err := stores[0].Stat(t.Context())
	if err != nil || st.Records != int64(len(kept)) || st.Expired != 0 {
		t.Errorf("Stat = %+v, %v, want %d records", st, err, len(kept))
	}
	t.Logf("%d records removed, %d of them by another process; p99 of a request (5 calls) %v, quiet %v", n, byWorker, busy, quiet)
}

// request loads and saves a record that is there, and makes and ends another.
func request(s *filestore.Store, id, anew driver.ID) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if _, err := add(ctx, s, id, "n"); err != nil {
		return fmt.Errorf("load and save: %w", err)
	}
	if err := s.Save(ctx, anew, newRecord("1", time.Hour), 0); err != nil {
		return fmt.Errorf("create: %w", err)
	}
	if _, err := s.Load(ctx, anew); err != nil {
		return fmt.Errorf("load of a new record: %w", err)
	}
	if err := s.Delete(ctx, anew); err != nil {
		return fmt.Errorf("delete: %w", err)
	}
	return nil
}
