//go:build unix

package filestore_test

import (
	"context"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/store/filestore"
)

var _ driver.Toucher = (*filestore.Store)(nil)

func openNFS(t testing.TB, dir string) *filestore.Store {
	t.Helper()
	return mustOpen(t, dir, filestore.Config{Network: filestore.NFS, SweepEvery: -1})
}

// TestNFSLostAnswers loses the answer to each call of each operation, which is then made again: alone, each of them is
// done, and says so. (Over simulated NFS, and with two machines: internal/nfstest.)
func TestNFSLostAnswers(t *testing.T) {
	dir := fastDir(t)
	plain := openNFS(t, dir)
	lose, calls := 0, 0
	s, err := filestore.OpenIntercepted(t.Context(), dir, filestore.Config{Network: filestore.NFS}, func(call, _ string, do func() error) error {
		switch call {
		case "create", "mkdir", "rename", "remove":
			if calls++; calls == lose {
				_ = do()
			}
		}
		return do()
	})
	must(t, err)
	t.Cleanup(func() { s.Close() })
	live, gone := newRecord("old", time.Hour), newRecord("old", -time.Hour)
	tests := []struct {
		name   string
		start  *driver.Record
		do     func(id driver.ID) error
		want   string
		atMost int // calls that change something
	}{
		{"create", nil, func(id driver.ID) error { return s.Save(t.Context(), id, newRecord("new", time.Hour), 0) }, "new", 5},
		{"create over expired", &gone, func(id driver.ID) error { return s.Save(t.Context(), id, newRecord("new", time.Hour), 0) }, "new", 3},
		{"Save", &live, func(id driver.ID) error { return s.Save(t.Context(), id, next(live, "new"), live.Revision) }, "new", 3},
		{"Touch", &live, func(id driver.ID) error { return s.Touch(t.Context(), id, next(live, "old"), live.Revision) }, "old", 1},
		{"Delete", &live, func(id driver.ID) error { return s.Delete(t.Context(), id) }, "", 2},
	}
	for _, tt := range tests {
		for lose = 1; ; lose++ {
			id := mustID(t)
			if tt.start != nil {
				mustSave(t, plain, id, *tt.start, 0)
			}
			calls = 0
			if err := tt.do(id); err != nil {
				t.Errorf("%s, answer %d lost: %v", tt.name, lose, err)
			}
			if got := nOf(t, plain, id); got != tt.want {
				t.Errorf("%s, answer %d lost: %q, want %q", tt.name, lose, got, tt.want)
			}
			if calls < lose {
				if calls > tt.atMost {
					t.Errorf("%s makes %d calls that change something, want at most %d", tt.name, calls, tt.atMost)
				}
				break
			}
		}
	}
}

// TestNFSCalls are the calls of each operation, in their order.
func TestNFSCalls(t *testing.T) {
	var calls []string
	numbers := regexp.MustCompile(`[0-9a-f]{16}`)
	id := driver.ID{0xab, 1}
	s, err := filestore.OpenIntercepted(t.Context(), fastDir(t), filestore.Config{Network: filestore.NFS}, func(call, name string, do func() error) error {
		name = strings.ReplaceAll(name, id.Hex(), "ID")
		name = regexp.MustCompile(`(-G)+`).ReplaceAllString(numbers.ReplaceAllString(name, "G"), "-G")
		calls = append(calls, call+" "+name)
		return do()
	})
	must(t, err)
	t.Cleanup(func() { s.Close() })
	want := func(what string, err error, want ...string) {
		t.Helper()
		must(t, err)
		if diff := cmp.Diff(want, calls); diff != "" {
			t.Errorf("%s (-want +got):\n%s", what, diff)
		}
		calls = nil
	}
	calls = nil
	rec := newRecord("1", time.Hour)
	want("create", s.Save(t.Context(), id, rec, 0),
		"lstat nab/ID", "lstat nab", "open nab", "lstat nab/ID", "mkdir nab/ID.new-G", "lstat nab/ID.new-G", "open nab/ID.new-G",
		"create d-G", "write d-G", "sync d-G", "create t-G", "rename t-G", "rename nab/ID.new-G")
	second := next(rec, "2")
	find := []string{"lstat nab/ID", "open nab/ID", "list ."}
	want("Save", s.Save(t.Context(), id, second, rec.Revision),
		append(find, "create d-G", "write d-G", "sync d-G", "rename 1-at-G", "remove d-G")...)
	want("Save, lost", errors.Join(nil, notConflict(s.Save(t.Context(), id, second, rec.Revision))), find...)
	_, err = s.Load(t.Context(), id)
	want("Load", err, append(find, "open d-G", "read d-G")...)
	third := next(second, "2")
	want("Touch", s.Touch(t.Context(), id, third, second.Revision), append(find, "rename 1-at-G")...)
	want("Delete", s.Delete(t.Context(), id), append(find, "rename 1-at-G", "remove d-G")...)
	want("Delete again", s.Delete(t.Context(), id), find...)
	want("create over ended", s.Save(t.Context(), id, rec, 0),
		append(find, "create d-G", "write d-G", "sync d-G", "rename 1-end-G")...)
}

func notConflict(err error) error {
	if errors.Is(err, driver.ErrConflict) {
		return nil
	}
	return errors.Join(errors.New("want ErrConflict"), err)
}

// TestNFSHangs: calls that hang cost their callers the deadline, and others nothing, until so many hang that nobody gets
// in; Close waits a while; and when the server is back, so is everything.
func TestNFSHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		hang := make(map[driver.ID]bool) // records that hang until back is closed
		back := make(chan struct{})
		s, err := filestore.OpenIntercepted(t.Context(), fastDir(t), filestore.Config{Network: filestore.NFS}, func(call, name string, do func() error) error {
			mu.Lock()
			id, err := driver.ParseID(filepath.Base(name))
			wait := back
			if err != nil || !hang[id] {
				wait = nil
			}
			mu.Unlock()
			if wait != nil {
				<-wait
			}
			return do()
		})
		must(t, err)
		ids := make([]driver.ID, 80)
		for i := range ids {
			ids[i] = mustID(t)
			mustSave(t, s, ids[i], newRecord("1", 1000*time.Hour), 0)
		}
		load := func(id driver.ID) error {
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
			defer cancel()
			start := time.Now()
			_, err := s.Load(ctx, id)
			if took := time.Since(start); took > 3*time.Second {
				t.Errorf("Load took %v with a deadline after 3s", took)
			}
			return err
		}
		mu.Lock()
		for _, id := range ids[1:64] {
			hang[id] = true
		}
		mu.Unlock()
		for _, id := range ids[1:64] {
			err := load(id)
			wantErr(t, "Load of a record that hangs", err, driver.ErrUnavailable)
			wantErr(t, "Load of a record that hangs", err, context.DeadlineExceeded)
		}
		must(t, load(ids[0]))
		mu.Lock()
		hang[ids[64]] = true
		mu.Unlock()
		wantErr(t, "Load of one more", load(ids[64]), driver.ErrUnavailable)
		wantErr(t, "Load when nobody gets in any more", load(ids[0]), driver.ErrUnavailable)
		start := time.Now()
		_, err = s.Load(t.Context(), ids[0])
		wantErr(t, "Load without a deadline", err, driver.ErrUnavailable)
		if took := time.Since(start); took != 30*time.Second {
			t.Errorf("Load without a deadline took %v, want 30s", took)
		}
		close(back)
		synctest.Wait()
		for _, id := range ids {
			must(t, load(id))
		}

		// A writer that hangs keeps other writers of its process from that record only.
		mu.Lock()
		back = make(chan struct{})
		mu.Unlock()
		wantErr(t, "Save that hangs", s.Save(t.Context(), ids[1], newRecord("2", 1000*time.Hour), 0), driver.ErrUnavailable)
		wantErr(t, "Delete beside it", s.Delete(t.Context(), ids[1]), driver.ErrUnavailable)
		must(t, s.Delete(t.Context(), ids[0]))
		start = time.Now()
		must(t, s.Close())
		must(t, s.Close())
		if took := time.Since(start); took != 5*time.Second {
			t.Errorf("Close took %v with a call that hangs, want 5s", took)
		}
		wantErr(t, "Load after Close", load(ids[5]), driver.ErrClosed)
		close(back)
	})
}

// TestNFSSweep: what is removed, when, and what stays.
func TestNFSSweep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := fastDir(t)
		s := openNFS(t, dir)
		path := func(id driver.ID, suffix string) string { return filepath.Join(dir, nfsPlace(id)+suffix) }
		live, expired, deleted, leftover, fresh, empty := mustID(t), mustID(t), mustID(t), mustID(t), mustID(t), mustID(t)
		rec := newRecord("1", 1000*time.Hour)
		for _, id := range []driver.ID{live, deleted} {
			mustSave(t, s, id, rec, 0)
		}
		mustSave(t, s, expired, newRecord("1", time.Minute), 0)
		must(t, s.Delete(t.Context(), deleted))
		silly := filepath.Join(path(deleted, ""), ".nfs0001")
		must(t, os.WriteFile(silly, nil, 0o600))
		// File times are by the clock outside of the bubble, as are those of a file server.
		old := fileTime(t, dir).Add(-filestore.BuildAge - time.Second)
		for _, name := range []string{path(leftover, ""), path(fresh, ""), path(empty, ""), path(live, ".new-0000000000000001"),
			path(live, ".new-0000000000000002"), path(live, ".end-0000000000000003")} {
			mustDir(t, name, 0o700)
			if !strings.HasSuffix(name, empty.Hex()) {
				must(t, os.WriteFile(filepath.Join(name, "d-0000000000000001"), nil, 0o600))
			}
			if strings.HasSuffix(name, leftover.Hex()) || strings.HasSuffix(name, "1") {
				must(t, os.Chtimes(name, old, old))
			}
		}
		sweep := func(want int) {
			t.Helper()
			if removed, err := s.Sweep(t.Context(), nil); removed != want || err != nil {
				t.Errorf("Sweep = %d, %v, want %d", removed, err, want)
			}
		}
		there := func(want bool, names ...string) {
			t.Helper()
			for _, name := range names {
				if _, err := os.Lstat(name); (err == nil) != want {
					t.Errorf("%s is there: %v, want %v", strings.TrimPrefix(name, dir), err == nil, want)
				}
			}
		}
		sweep(0)
		there(false, path(leftover, ""), path(empty, ""), path(live, ".new-0000000000000001"), path(live, ".end-0000000000000003"))
		there(true, path(fresh, ""), path(live, ".new-0000000000000002"), path(deleted, ""), silly)
		_, err := s.Load(t.Context(), leftover)
		wantErr(t, "Load of what was a leftover", err, driver.ErrNotFound)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err = s.Load(ctx, fresh)
		wantErr(t, "Load of a directory without a token", err, driver.ErrUnavailable)

		st, err := s.Stat(t.Context())
		must(t, err)
		if st.Records != 2 || st.Expired != 0 || st.Bytes == 0 {
			t.Errorf("Stat = %+v", st)
		}
		time.Sleep(61 * time.Second)
		if st, err = s.Stat(t.Context()); err != nil || st.Records != 1 || st.Expired != 1 {
			t.Errorf("Stat = %+v, %v, want 1 expired", st, err)
		}
		sweep(1)
		there(false, path(deleted, ""))
		there(true, path(expired, ""))
		sweep(0)
		time.Sleep(61 * time.Second)
		sweep(0)
		there(false, path(expired, ""))
		wantN(t, s, live, "1")
		mustSave(t, s, expired, rec, 0)
		wantN(t, s, expired, "1")
	})
}

// fileTime returns the time by the clock of the file system.
func fileTime(t testing.TB, dir string) time.Time {
	t.Helper()
	name := filepath.Join(dir, "clock")
	must(t, os.WriteFile(name, nil, 0o600))
	info, err := os.Stat(name)
	must(t, err)
	must(t, os.Remove(name))
	return info.ModTime()
}

// TestNFSContention: 100 writers of a process, and 8 of 8 processes, all get through, and no addition is lost.
func TestNFSContention(t *testing.T) {
	dir, id := fastDir(t), mustID(t)
	stores := make([]*filestore.Store, 8)
	for i := range stores {
		stores[i] = openNFS(t, dir)
	}
	mustSave(t, stores[0], id, newRecord("", time.Hour), 0)
	var all sync.WaitGroup
	const writers, each = 16, 10
	for i := range writers {
		all.Go(func() {
			for range each {
				if _, err := add(t.Context(), stores[i%len(stores)], id, "n"); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for range 100 {
		all.Go(func() {
			if _, err := add(t.Context(), stores[0], id, "n"); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	rec, err := stores[1].Load(t.Context(), id)
	must(t, err)
	if got := count(rec, "total"); got != writers*each+100 {
		t.Errorf("total = %d, want %d", got, writers*each+100)
	}
}

// Attack 7, as in TestRefusesPlantedFiles.
func TestNFSRefusesPlantedFiles(t *testing.T) {
	data := func(t *testing.T, path string) string {
		names, err := filepath.Glob(path + "/d-*")
		if err != nil || len(names) != 1 {
			t.Fatalf("data files %v, %v", names, err)
		}
		return names[0]
	}
	for name, plant := range map[string]func(t *testing.T, path, other, outside string){
		"record is a link to another": func(t *testing.T, path, other, outside string) {
			must(t, os.RemoveAll(path))
			must(t, os.Symlink("../"+filepath.Join(filepath.Base(filepath.Dir(other)), filepath.Base(other)), path))
		},
		"record is a link to outside": func(t *testing.T, path, other, outside string) {
			must(t, os.Rename(path, filepath.Join(outside, "record")))
			must(t, os.Symlink(filepath.Join(outside, "record"), path))
		},
		"record is a file": func(t *testing.T, path, other, outside string) {
			must(t, os.RemoveAll(path))
			must(t, os.WriteFile(path, nil, 0o600))
		},
		"record is another's": func(t *testing.T, path, other, outside string) {
			must(t, os.RemoveAll(path))
			must(t, os.CopyFS(path, os.DirFS(other)))
		},
		"data is a link to outside": func(t *testing.T, path, other, outside string) {
			name := data(t, path)
			must(t, os.Rename(name, filepath.Join(outside, "data")))
			must(t, os.Symlink(filepath.Join(outside, "data"), name))
		},
		"data is a hard link": func(t *testing.T, path, other, outside string) {
			must(t, os.Link(data(t, path), filepath.Join(outside, "data")))
		},
		"data is a directory": func(t *testing.T, path, other, outside string) {
			name := data(t, path)
			must(t, os.Remove(name))
			mustDir(t, name, 0o700)
		},
		"data is world-writable": func(t *testing.T, path, other, outside string) {
			must(t, os.Chmod(data(t, path), 0o666))
		},
		"directory is world-writable": func(t *testing.T, path, other, outside string) {
			must(t, os.Chmod(path, 0o777))
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir, outside := fastDir(t), fastDir(t)
			must(t, os.WriteFile(filepath.Join(outside, "precious"), []byte("kept"), 0o600))
			s := openNFS(t, dir)
			id, other := mustID(t), mustID(t)
			mustSave(t, s, id, newRecord("mine", time.Hour), 0)
			mustSave(t, s, other, newRecord("theirs", time.Hour), 0)
			plant(t, filepath.Join(dir, nfsPlace(id)), filepath.Join(dir, nfsPlace(other)), outside)
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			_, err := s.Load(ctx, id)
			if !errors.Is(err, driver.ErrUnavailable) && !errors.Is(err, driver.ErrCorrupt) || strings.Contains(err.Error(), id.Hex()) {
				t.Errorf("Load = %v, want ErrUnavailable or ErrCorrupt, without the whole ID", err)
			}
			if err := s.Save(ctx, id, newRecord("new", time.Hour), 0); err == nil {
				t.Error("Save with prev 0 took the place of what was planted")
			}
			_, _ = s.Sweep(t.Context(), nil) // refuses, or not
			wantN(t, s, other, "theirs")
			if b, err := os.ReadFile(filepath.Join(outside, "precious")); err != nil || string(b) != "kept" {
				t.Errorf("outside of the directory: %q, %v", b, err)
			}
			if entries, err := os.ReadDir(outside); err != nil || len(entries) > 2 {
				t.Errorf("outside of the directory: %v, %v", entries, err)
			}
		})
	}
}

// TestNFSDamage: a data file that was changed is corrupt, one that was cut is unavailable, as on another machine it may be
// whole; both can be deleted, and made anew.
func TestNFSDamage(t *testing.T) {
	dir := fastDir(t)
	s := openNFS(t, dir)
	id := mustID(t)
	rec := newRecord("1", time.Hour)
	mustSave(t, s, id, rec, 0)
	names, err := filepath.Glob(filepath.Join(dir, nfsPlace(id), "d-*"))
	must(t, err)
	whole, err := os.ReadFile(names[0])
	must(t, err)
	load := func(b []byte, patience time.Duration) error {
		must(t, os.WriteFile(names[0], b, 0o600))
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		_, err := s.Load(ctx, id)
		return err
	}
	for n := range whole {
		if err := load(whole[:n], 10*time.Millisecond); !errors.Is(err, driver.ErrUnavailable) || errors.Is(err, driver.ErrNotFound) {
			t.Errorf("cut to %d bytes: %v, want ErrUnavailable", n, err)
		}
	}
	for n := range whole {
		b := append([]byte(nil), whole...)
		b[n] ^= 1
		want := driver.ErrCorrupt
		if n == 3 {
			want = driver.ErrVersion
		}
		patience := time.Minute
		if n >= 16 && n < 24 { // the length: the file may lack its end
			want, patience = driver.ErrUnavailable, 10*time.Millisecond
			if n == 23 { // it is shorter
				want, patience = driver.ErrCorrupt, time.Minute
				b[n] = 1
			}
		}
		if err := load(b, patience); !errors.Is(err, want) {
			t.Errorf("byte %d changed: %v, want %v", n, err, want)
		}
	}
	wantErr(t, "extended", load(append(append([]byte(nil), whole...), 0), time.Minute), driver.ErrCorrupt)
	must(t, load(whole, time.Minute))
	mustSave(t, s, id, next(rec, "2"), rec.Revision)
	wantN(t, s, id, "2")

	// A token of a release to come is left as it is.
	token, err := filepath.Glob(filepath.Join(dir, nfsPlace(id), "1-at-*"))
	must(t, err)
	newer := filepath.Join(filepath.Dir(token[0]), "2-unheard-of")
	must(t, os.Rename(token[0], newer))
	_, err = s.Load(t.Context(), id)
	wantErr(t, "Load", err, driver.ErrVersion)
	wantErr(t, "Save", s.Save(t.Context(), id, rec, 0), driver.ErrVersion)
	wantErr(t, "Delete", s.Delete(t.Context(), id), driver.ErrVersion)
	if unreadable, err := s.SweepOnce(t.Context()); unreadable != 1 || err != nil {
		t.Errorf("sweep found %d unreadable records (%v), want 1", unreadable, err)
	}
	if _, err := os.Lstat(newer); err != nil {
		t.Error(err)
	}
}

// What this release writes with network=nfs, the next one must read.
func TestNFSFixture(t *testing.T) {
	text, err := os.ReadFile("testdata/nfs-v1.hex")
	must(t, err)
	b, err := hex.DecodeString(strings.Join(strings.Fields(string(text)), ""))
	must(t, err)
	id, err := driver.ParseID(strings.Repeat("0123456789abcdef", 4))
	must(t, err)
	dir := fastDir(t)
	s := openNFS(t, dir)
	record := filepath.Join(dir, nfsPlace(id))
	mustDir(t, record, 0o700)
	must(t, os.WriteFile(filepath.Join(record, "d-a1b2c3d4e5f60001"), b, 0o600))
	const token = "1-at-a1b2c3d4e5f60001-0000000000000001-1000000000000002-0000040000000000-0000020000000000-a1b2c3d4e5f60002-a1b2c3d4e5f60001"
	must(t, os.WriteFile(filepath.Join(record, token), nil, 0o600))
	rec := wantN(t, s, id, "1")
	if rec.User != "ann" || rec.Revision != 1<<60+2 || rec.Expires != time.UnixMilli(1<<42) || rec.Seen != time.UnixMilli(1<<41) {
		t.Errorf("loaded %+v", rec)
	}
	mustSave(t, s, id, next(rec, "2"), rec.Revision)
	wantN(t, s, id, "2")
}
