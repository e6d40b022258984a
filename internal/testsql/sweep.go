package testsql

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-sessions/holdfast/internal/testserver"
	"github.com/holdfast-sessions/holdfast/store/sqlstore"
)

// fill adds rows that expire at a time.
func (db Database) fill(t testing.TB, n int, expires time.Time) {
	t.Helper()
	ms := expires.UnixMilli()
	MustExec(t, db.Admin, fmt.Sprintf(db.Fill, n, ms, (ms-1)/900_000+1))
}

func (db Database) rows(t testing.TB) int64 {
	t.Helper()
	return MustInt(t, db.Admin, "SELECT COUNT(*) FROM "+Table)
}

// SweepMargin is attack 19 for the clean-up in the background: what has not expired by the clock of a server that is ten
// minutes behind, and what was extended meanwhile, is not removed. The rest is.
func SweepMargin(t *testing.T, db Database) {
	s := db.Open(t, "&sweep=never")
	now := time.Now()
	keep := int64(0)
	for _, age := range []time.Duration{-time.Hour, -time.Minute, 0, time.Second, 5 * time.Minute, 10 * time.Minute, 14 * time.Minute} {
		db.fill(t, 10, now.Add(-age))
		keep += 10
	}
	db.fill(t, 10, now.Add(-31*time.Minute))
	db.fill(t, 2500, now.Add(-100*24*time.Hour))
	MustSave(t, s, ID(1), Record("ada"), 0)
	keep++
	db.Open(t, "&sweep=1s")
	Eventually(t, "what expired half an hour ago is removed", func() bool { return db.rows(t) <= keep })
	if n := db.rows(t); n != keep {
		t.Errorf("%d rows are left, want %d", n, keep)
	}

	// By hand, all that has expired goes.
	var steps []int
	st, err := s.Stat(t.Context())
	if err != nil || st.Records != 11+10 || st.Expired != 50 || st.Bytes <= 0 {
		t.Errorf("Stat = %+v, %v, want 21 records and 50 expired", st, err)
	}
	removed, err := s.Sweep(t.Context(), func(n int) { steps = append(steps, n) })
	if err != nil || removed != 50 || len(steps) == 0 || steps[len(steps)-1] != 50 {
		t.Errorf("Sweep = %d, %v, progress %v, want 50", removed, err, steps)
	}
	if n := db.rows(t); n != 21 {
		t.Errorf("%d rows are left, want 21", n)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Sweep(ctx, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("Sweep with a cancelled context = %v", err)
	}
	MustExec(t, db.Admin, "DELETE FROM "+Table)
}

// Elected proves that of several processes one removes rows, and that another takes over when it ends.
func Elected(t *testing.T, db Database) {
	owner := func() (o string) {
		if err := db.Admin.QueryRowContext(t.Context(), "SELECT owner FROM "+Table+"_meta WHERE name = 'sweep'").Scan(&o); err != nil {
			t.Error(err)
		}
		return o
	}
	stores := []*sqlstore.Store{db.Open(t, "&sweep=1s")}
	var first string
	before := owner()
	Eventually(t, "a process has the task", func() bool { first = owner(); return first != before && first != "" })
	for range 3 {
		stores = append(stores, db.Open(t, "&sweep=1s"))
	}
	until := func() int64 { return MustInt(t, db.Admin, "SELECT until FROM "+Table+"_meta WHERE name = 'sweep'") }
	for range 3 { // rounds
		last := until()
		Eventually(t, "the task is kept", func() bool { return until() > last })
		if o := owner(); o != first {
			t.Errorf("the task went from %s to %s while its holder lives", first, o)
		}
	}
	if err := stores[0].Close(); err != nil {
		t.Fatal(err)
	}
	Eventually(t, "another process has the task", func() bool { return owner() != first })
	db.fill(t, 5, time.Now().Add(-time.Hour))
	Eventually(t, "it removes rows", func() bool { return db.rows(t) == 0 })
}

// CleanUp removes many expired rows while requests run: no request fails, nothing deadlocks, no statement removes more than
// 1,000 rows. Latencies are reported, beside those of a quiet time.
func CleanUp(t *testing.T, db Database) {
	n := testserver.Scale(max(db.Usual, 5000), 1_000_000)
	s := db.Open(t, "&sweep=never")
	const live = 500
	for i := range live {
		MustSave(t, s, ID(i), Record("ada", "data", fmt.Sprint(i)), 0)
	}
	for done := 0; done < n; done += 20_000 {
		db.fill(t, min(n-done, 20_000), time.Now().Add(-time.Duration(1+done%90)*24*time.Hour))
	}
	w := &workers{store: s, live: live}
	quiet := w.during(t, func() {
		Eventually(t, "2,000 requests", func() bool { return w.calls.Load() >= 2000 })
	})
	counters := func() (deadlocks, waits, statements, rows int64) {
		if db.Deadlocks != nil {
			deadlocks, waits = db.Deadlocks(t), db.LockWaits(t)
		}
		if db.Deletes != nil {
			statements, rows = db.Deletes(t)
		}
		return
	}
	deadlocks, waits, statements, rows := counters()
	var largest, batches, removed int
	start := time.Now()
	busy := w.during(t, func() {
		var err error
		last := 0
		removed, err = s.Sweep(context.WithoutCancel(t.Context()), func(n int) {
			largest, last, batches = max(largest, n-last), n, batches+1
		})
		if err != nil {
			t.Errorf("Sweep = %v", err)
		}
	})
	took := time.Since(start)
	deadlocks2, waits2, statements2, rows2 := counters()
	t.Logf("%d rows in %v, %d batches; requests quiet: %s; meanwhile: %s; lock waits %d", removed, took.Round(time.Millisecond), batches, quiet, busy, waits2-waits)
	if removed < n || largest > 1000 {
		t.Errorf("removed %d of %d rows, up to %d in a batch", removed, n, largest)
	}
	if deadlocks2 != deadlocks {
		t.Errorf("%d deadlocks", deadlocks2-deadlocks)
	}
	// A request waits only when it writes a row that is being removed, which the workers do now and then.
	if d := waits2 - waits; d > int64(busy.calls/10+10) {
		t.Errorf("%d lock waits for %d requests", d, busy.calls)
	}
	if db.Deletes != nil {
		own := w.deletes.Load()
		if rows := rows2 - rows; rows < int64(n) || statements2-statements < int64(n/1000) {
			t.Errorf("the server counts %d statements that removed %d rows (%d of requests), want at most 1,000 each", statements2-statements, rows, own)
		}
	}
	if w.failed.Load() > 0 {
		t.Errorf("%d requests failed", w.failed.Load())
	}
	for i := range live {
		if _, err := s.Load(t.Context(), ID(i)); err != nil {
			t.Errorf("a live record: %v", err)
		}
	}
	MustExec(t, db.Admin, "DELETE FROM "+Table)
}

// workers do what requests do.
type workers struct {
	store   *sqlstore.Store
	live    int
	calls   atomic.Int64
	failed  atomic.Int64
	deletes atomic.Int64
}

// latencies are those of some calls.
type latencies struct {
	calls         int
	p50, p99, max time.Duration
}

func (l latencies) String() string {
	return fmt.Sprintf("%d calls, p50 %v, p99 %v, max %v", l.calls, l.p50, l.p99, l.max)
}

// during runs workers as long as f runs.
func (w *workers) during(t *testing.T, f func()) latencies {
	const n = 4
	var all [n][]time.Duration
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for i := range n {
		wg.Go(func() {
			for k := i; ; k += n {
				select {
				case <-stop:
					return
				default:
				}
				w.calls.Add(1)
				start := time.Now()
				if err := w.request(context.WithoutCancel(t.Context()), k); err != nil {
					w.failed.Add(1)
					t.Errorf("a request: %v", err)
				}
				all[i] = append(all[i], time.Since(start))
			}
		})
	}
	f()
	close(stop)
	wg.Wait()
	took := slices.Concat(all[:]...)
	slices.Sort(took)
	if len(took) == 0 {
		return latencies{}
	}
	return latencies{len(took), took[len(took)/2].Round(time.Microsecond), took[len(took)*99/100].Round(time.Microsecond), took[len(took)-1].Round(time.Microsecond)}
}

// request loads and writes one of the worker's own records, as n divides live; now and then it ends a session and begins another, also
// one that has expired and is about to be removed.
func (w *workers) request(ctx context.Context, k int) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	id := ID(k % w.live)
	rec, err := w.store.Load(ctx, id)
	switch {
	case err != nil:
	case k%10 == 0:
		err = w.store.Save(ctx, id, After(rec, Set("n", fmt.Sprint(k))), rec.Revision)
	case k%10 == 1:
		next := After(rec)
		next.Seen, next.Expires = time.Now().Truncate(time.Millisecond), rec.Expires.Add(time.Second)
		err = w.store.Touch(ctx, id, next, rec.Revision)
	case k%50 == 2:
		other := ID(1_000_000 + k)
		old := Record("gone")
		old.Expires = time.Now().Add(-48 * time.Hour).Truncate(time.Millisecond)
		if err = w.store.Save(ctx, other, old, 0); err == nil {
			err = w.store.Save(ctx, other, Record("anew"), 0) // takes the expired one over, or its place
		}
		if err == nil {
			w.deletes.Add(1)
			err = w.store.Delete(ctx, other)
		}
	}
	return err
}
