//go:build unix

package filestore_test

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/internal/testserver"
	"github.com/holdfast-sessions/holdfast/store/filestore"
)

func TestSweep(t *testing.T) {
	dir := fastDir(t)
	s := mustOpen(t, dir, filestore.Config{SweepEvery: -1})
	live, dead, emptied := mustID(t), mustID(t), mustID(t)
	rec := newRecord("1", time.Hour)
	mustSave(t, s, live, rec, 0)
	mustSave(t, s, dead, newRecord("1", -time.Second), 0)
	mustSave(t, s, emptied, newRecord("1", time.Hour), 0)
	must(t, os.Remove(filepath.Join(dir, emptied.Hex(), "data")))
	const g = "0000000000000001"
	kept := []string{
		live.Hex(),
		live.Hex() + "/data",
		dead.Hex() + ".new-" + g,
		"README",
		"README/data",
		strings.ToUpper(live.Hex()[:63]) + "G",
		live.Hex() + ".bak",
	}
	gone := []string{
		dead.Hex(),
		emptied.Hex(),
		live.Hex() + "/" + g + "-" + "0000000000000002.tmp",
		live.Hex() + ".end-" + g,
		live.Hex() + ".end-" + g + "/data",
		live.Hex() + ".end-" + g + "/folder",
		live.Hex() + ".new-" + g,
		live.Hex() + ".new-" + g + "/data",
	}
	for _, name := range append(append([]string(nil), kept...), gone...) {
		path := filepath.Join(dir, name)
		if _, err := os.Lstat(path); err == nil {
			continue
		}
		if strings.Contains(name, "/") && !strings.HasSuffix(name, "folder") {
			must(t, os.WriteFile(path, []byte("x"), 0o600))
		} else {
			mustDir(t, path, 0o700)
		}
	}
	old := time.Now().Add(-filestore.BuildAge - time.Second)
	must(t, os.Chtimes(filepath.Join(dir, live.Hex()+".new-"+g), old, old))

	if unreadable, err := s.SweepOnce(t.Context()); unreadable != 0 || err != nil {
		t.Errorf("SweepOnce = %d, %v", unreadable, err)
	}
	for _, name := range kept {
		if _, err := os.Lstat(filepath.Join(dir, name)); err != nil {
			t.Errorf("swept away: %v", err)
		}
	}
	for _, name := range gone {
		if _, err := os.Lstat(filepath.Join(dir, name)); err == nil {
			t.Errorf("not swept: %s", name)
		}
	}
	mustSave(t, s, live, next(rec, "2"), rec.Revision)
	wantN(t, s, live, "2")
}

func TestSweeper(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := fastDir(t)
		var log testserver.Buffer
		s := mustOpen(t, dir, filestore.Config{SweepEvery: time.Hour, Logger: slog.New(slog.NewTextHandler(&log, nil))})
		id, damaged := mustID(t), mustID(t)
		mustSave(t, s, id, newRecord("1", time.Minute), 0)
		mustSave(t, s, damaged, newRecord("1", 1000*time.Hour), 0)
		must(t, os.Truncate(filepath.Join(dir, damaged.Hex(), "data"), 10))
		time.Sleep(53 * time.Minute)
		if _, err := os.Lstat(filepath.Join(dir, id.Hex())); err != nil {
			t.Errorf("swept early: %v", err)
		}
		time.Sleep(14 * time.Minute)
		if _, err := os.Lstat(filepath.Join(dir, id.Hex())); err == nil {
			t.Error("not swept after the interval and a tenth")
		}
		if got := log.String(); !strings.Contains(got, `msg="file store: records that cannot be read" count=1`) || strings.Contains(got, damaged.Hex()) {
			t.Errorf("log: %s", got)
		}
		must(t, s.Close())
		must(t, s.Close())
		_, err := s.Load(t.Context(), id)
		wantErr(t, "Load after Close", err, driver.ErrClosed)
	})
}

// A process sleeps before each call of creating a record, for so long that a sweeper takes what it has built for a
// leftover: the record is made in the end, and whole.
func TestCreatorAsleep(t *testing.T) {
	dir := fastDir(t)
	sweeper := mustOpen(t, dir, filestore.Config{SweepEvery: -1})
	sleepAt, calls := 0, 0
	s, err := filestore.OpenStepped(t.Context(), dir, filestore.Config{}, func(call, name string) error {
		if calls++; calls != sleepAt {
			return nil
		}
		builds, err := filepath.Glob(filepath.Join(dir, "*.new-*"))
		must(t, err)
		old := time.Now().Add(-filestore.BuildAge - time.Second)
		for _, path := range builds {
			must(t, os.Chtimes(path, old, old))
		}
		_, err = sweeper.SweepOnce(t.Context())
		return err
	})
	must(t, err)
	t.Cleanup(func() { s.Close() })
	for sleepAt = 1; ; sleepAt++ {
		calls = 0
		id, rec := mustID(t), newRecord("1", time.Hour)
		mustSave(t, s, id, rec, 0)
		if calls < sleepAt {
			break
		}
		wantN(t, sweeper, id, "1")
		mustSave(t, sweeper, id, next(rec, "2"), rec.Revision)
		wantN(t, sweeper, id, "2")
	}
	if builds, _ := filepath.Glob(filepath.Join(dir, "*.new-*")); len(builds) > 0 {
		t.Errorf("left behind: %v", builds)
	}
	if sleepAt < 8 {
		t.Errorf("slept before %d calls only", sleepAt-1)
	}
}

// 100 writers contend for one record: each gets through within the Manager's patience of 3 s.
func TestContention(t *testing.T) {
	dir, id := fastDir(t), mustID(t)
	s := mustOpen(t, dir, filestore.Config{SweepEvery: -1})
	mustSave(t, s, id, newRecord("", time.Hour), 0)
	var all sync.WaitGroup
	slowest := make(chan time.Duration, 100)
	for range 100 {
		all.Go(func() {
			start := time.Now()
			if _, err := add(t.Context(), s, id, "n"); err != nil {
				t.Error(err)
			}
			slowest <- time.Since(start)
		})
	}
	all.Wait()
	close(slowest)
	var worst time.Duration
	for d := range slowest {
		worst = max(worst, d)
	}
	rec, err := s.Load(t.Context(), id)
	must(t, err)
	if got := count(rec, "total"); got != 100 {
		t.Errorf("total = %d, want 100", got)
	}
	if worst > 3*time.Second {
		t.Errorf("the last writer got through after %v", worst)
	}
	t.Logf("the last writer got through after %v", worst)
}
