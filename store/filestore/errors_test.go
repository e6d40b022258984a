//go:build unix

package filestore_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/store/filestore"
)

// TestEveryCallFails lets each file-system call of each operation fail in each way. The store must say so in the
// right words, the record must be the old or the new one, and the same operation must work afterwards.
func TestEveryCallFails(t *testing.T) {
	for _, network := range []filestore.Network{filestore.Refuse, filestore.NFS} {
		t.Run("network="+string(network), func(t *testing.T) { testEveryCallFails(t, network) })
	}
}

func testEveryCallFails(t *testing.T, network filestore.Network) {
	errnos := []syscall.Errno{
		syscall.ENOSPC, syscall.EDQUOT, syscall.EIO, syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM,
		syscall.EROFS, syscall.EACCES, syscall.EPERM,
	}
	dir := fastDir(t)
	plain := mustOpen(t, dir, filestore.Config{Network: network, SweepEvery: -1})
	var failAt, calls int
	var errno syscall.Errno
	s, err := filestore.OpenStepped(t.Context(), dir, filestore.Config{Network: network}, func(call, name string) error {
		calls++
		if calls == failAt {
			return &fs.PathError{Op: call, Path: name, Err: errno}
		}
		return nil
	})
	must(t, err)
	t.Cleanup(func() { s.Close() })

	operations := []struct {
		name  string
		start time.Duration // of the record before it; 0: none
		do    func(id driver.ID, rec driver.Record) error
		done  string // n after it, "" for no record
	}{
		{"Load", time.Hour, func(id driver.ID, rec driver.Record) error { _, err := s.Load(t.Context(), id); return err }, "old"},
		{"Save", time.Hour, func(id driver.ID, rec driver.Record) error {
			return s.Save(t.Context(), id, next(rec, "new"), rec.Revision)
		}, "new"},
		{"create", 0, func(id driver.ID, rec driver.Record) error {
			return s.Save(t.Context(), id, newRecord("new", time.Hour), 0)
		}, "new"},
		{"create over expired", -time.Hour, func(id driver.ID, rec driver.Record) error {
			return s.Save(t.Context(), id, newRecord("new", time.Hour), 0)
		}, "new"},
		{"Touch", time.Hour, func(id driver.ID, rec driver.Record) error {
			return s.Touch(t.Context(), id, next(rec, "old"), rec.Revision)
		}, "old"},
		{"Delete", time.Hour, func(id driver.ID, rec driver.Record) error { return s.Delete(t.Context(), id) }, ""},
	}
	for _, o := range operations {
		for _, errno = range errnos {
			t.Run(o.name+"/"+errno.Error(), func(t *testing.T) {
				for failAt = 1; ; failAt++ {
					id, rec, before := mustID(t), newRecord("old", o.start), ""
					if o.start != 0 {
						mustSave(t, plain, id, rec, 0)
					}
					if o.start > 0 {
						before = "old"
					}
					calls = 0
					err := o.do(id, rec)
					if calls < failAt {
						return // all of them have failed once
					}
					what := fmt.Sprintf("call %d fails: %v", failAt, err)
					after := nOf(t, plain, id)
					denied := errno == syscall.EROFS || errno == syscall.EACCES || errno == syscall.EPERM
					switch {
					case err == nil && after != o.done:
						t.Errorf("%s, and the record is %q, want %q", what, after, o.done)
					case err == nil:
					case after != before && after != o.done:
						t.Errorf("%s, and the record is %q, want %q or %q", what, after, before, o.done)
					case errors.Is(err, driver.ErrReadOnly) && (!denied || after != before):
						t.Errorf("%s, and the record is %q, was %q", what, after, before)
					case errors.Is(err, driver.ErrNotFound) || errors.Is(err, driver.ErrConflict):
						t.Errorf("%s, which the store cannot know", what)
					case !errors.Is(err, driver.ErrReadOnly) && !errors.Is(err, driver.ErrUnavailable):
						t.Errorf("%s, want ErrUnavailable or ErrReadOnly", what)
					case strings.Contains(err.Error(), id.Hex()):
						t.Errorf("the error has the whole ID: %s", what)
					}
					calls = failAt // the rest succeeds
					if after == before && o.start >= 0 && o.name != "Load" {
						// A conflict says that the first one had been decided, and makes it visible.
						if err := o.do(id, rec); err != nil && !(errors.Is(err, driver.ErrConflict) && (o.name == "Save" || o.name == "Touch")) {
							t.Errorf("%s; again: %v", what, err)
						}
						if got := nOf(t, plain, id); got != o.done {
							t.Errorf("%s; again: the record is %q, want %q", what, got, o.done)
						}
					}
					must(t, plain.Delete(t.Context(), id))
				}
			})
		}
	}
}

// TestSyncOrder: with SyncData, what a name leads to reaches the disk before the name does, and both before the answer.
func TestSyncOrder(t *testing.T) {
	var calls []string
	generations := regexp.MustCompile(`[0-9a-f]{16}`)
	id := mustID(t)
	s, err := filestore.OpenStepped(t.Context(), fastDir(t), filestore.Config{SyncData: true}, func(call, name string) error {
		switch call {
		case "mkdir", "create", "sync", "rename", "remove":
			name = strings.ReplaceAll(name, id.Hex(), "ID")
			calls = append(calls, call+" "+generations.ReplaceAllString(name, "G"))
		}
		return nil
	})
	must(t, err)
	t.Cleanup(func() { s.Close() })
	rec := newRecord("1", time.Hour)
	want := func(what string, err error, want ...string) {
		t.Helper()
		must(t, err)
		if diff := cmp.Diff(want, calls); diff != "" {
			t.Errorf("%s (-want +got):\n%s", what, diff)
		}
		calls = nil
	}
	want("create", s.Save(t.Context(), id, rec, 0),
		"mkdir ID.new-G", "create data", "sync data", "create at-G", "sync at-G", "sync .", "rename ID.new-G", "sync .")
	want("Save", s.Save(t.Context(), id, next(rec, "2"), rec.Revision),
		"create G-G.tmp", "sync G-G.tmp", "rename at-G", "rename G-G.tmp", "sync .")
	want("Delete", s.Delete(t.Context(), id),
		"rename ID", "sync .", "remove at-G", "remove data", "remove ended", "remove ID.end-G")
}

// nOf returns field n of a record, or "" if there is none.
func nOf(t testing.TB, s driver.Store, id driver.ID) string {
	t.Helper()
	rec, err := s.Load(t.Context(), id)
	if errors.Is(err, driver.ErrNotFound) {
		return ""
	}
	must(t, err)
	n, _ := rec.Fields.Get("n")
	return string(n)
}

// On a full disk nobody loses a session, and everybody can log out.
func TestDiskFull(t *testing.T) {
	for _, options := range []string{"size=1m", "nr_inodes=24"} {
		t.Run(options, func(t *testing.T) {
			dir := t.TempDir()
			mustMount(t, dir, 0, "mode=0700,"+options)
			s := mustOpen(t, dir, filestore.Config{SweepEvery: -1})
			big := func(rec driver.Record) driver.Record {
				rec.Fields = rec.Fields.With(driver.Change{Name: "big", Value: make([]byte, 200<<10)})
				return rec
			}
			var ids []driver.ID
			var recs []driver.Record
			for {
				id, rec := mustID(t), big(newRecord(fmt.Sprint(len(ids)), time.Hour))
				if err := s.Save(t.Context(), id, rec, 0); err != nil {
					wantErr(t, "Save of a new record", err, driver.ErrUnavailable)
					wantErr(t, "Save of a new record", err, syscall.ENOSPC)
					_, err := s.Load(t.Context(), id)
					wantErr(t, "Load of what could not be saved", err, driver.ErrNotFound)
					break
				}
				ids, recs = append(ids, id), append(recs, rec)
			}
			refused := 0
			for i, id := range ids {
				rec := next(recs[i], "other")
				rec.Fields = rec.Fields.With(driver.Change{Name: "more", Value: make([]byte, 300<<10)})
				err := s.Save(t.Context(), id, rec, recs[i].Revision)
				if err == nil {
					recs[i] = wantN(t, s, id, "other")
					continue
				}
				wantErr(t, "Save", err, driver.ErrUnavailable)
				wantN(t, s, id, fmt.Sprint(i))
				refused++
			}
			if refused == 0 && options == "size=1m" {
				t.Error("no Save was refused")
			}
			must(t, s.Delete(t.Context(), ids[0]))
			_, err := s.Load(t.Context(), ids[0])
			wantErr(t, "Load after Delete", err, driver.ErrNotFound)
			mustSave(t, s, ids[1], next(recs[1], "room again"), recs[1].Revision)
			wantN(t, s, ids[1], "room again")
			for _, id := range ids {
				must(t, s.Delete(t.Context(), id))
			}
			wantEmpty(t, dir)
			other := mustOpen(t, dir, filestore.Config{}) // a full disk does not keep a process from starting
			must(t, other.Close())
		})
	}
}

func wantEmpty(t testing.TB, dir string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	must(t, err)
	entries = slices.DeleteFunc(entries, func(e fs.DirEntry) bool { return e.Name() == ".layout" })
	if len(entries) > 0 {
		t.Errorf("%d left behind: %v", len(entries), entries)
	}
}

// A file that was cut or changed anywhere is corrupt: neither absent, nor another session, nor a panic.
func TestDamage(t *testing.T) {
	dir := fastDir(t)
	s := mustOpen(t, dir, filestore.Config{SweepEvery: -1})
	id := mustID(t)
	mustSave(t, s, id, newRecord("1", time.Hour), 0)
	path := filepath.Join(dir, id.Hex(), "data")
	whole, err := os.ReadFile(path)
	must(t, err)
	want := func(what string, b []byte, want error) {
		t.Helper()
		must(t, os.WriteFile(path, b, 0o600))
		_, err := s.Load(t.Context(), id)
		wantErr(t, what, err, want)
		if _, err := s.SweepOnce(t.Context()); err != nil {
			t.Errorf("%s: sweep: %v", what, err)
		}
	}
	for n := range whole {
		want(fmt.Sprintf("cut to %d bytes", n), whole[:n], driver.ErrCorrupt)
		for bit := range 8 {
			b := bytes.Clone(whole)
			b[n] ^= 1 << bit
			is := driver.ErrCorrupt
			if n == 3 {
				is = driver.ErrVersion
			}
			// Changes that only look like expiry to a sweep would be cleaned up.
			must(t, os.WriteFile(path, b, 0o600))
			_, err := s.Load(t.Context(), id)
			wantErr(t, fmt.Sprintf("bit %d of byte %d flipped", bit, n), err, is)
		}
	}
	want("extended", append(bytes.Clone(whole), 0), driver.ErrCorrupt)
	must(t, os.WriteFile(path, whole, 0o600))
	wantN(t, s, id, "1")

	must(t, os.WriteFile(path, whole[:20], 0o600))
	if unreadable, err := s.SweepOnce(t.Context()); unreadable != 1 || err != nil {
		t.Errorf("sweep found %d unreadable records (%v), want 1", unreadable, err)
	}
	for item, err := range s.List(t.Context()) {
		t.Errorf("List yields %v, %v", item.ID, err)
	}
	wantErr(t, "Save with prev 0 over a damaged record", s.Save(t.Context(), id, newRecord("2", time.Hour), 0), driver.ErrCorrupt)
	must(t, s.Delete(t.Context(), id))
	mustSave(t, s, id, newRecord("3", time.Hour), 0)
	wantN(t, s, id, "3")
}

// A copy made while a record was written, or a power failure, may leave a token that does not belong to the data. The
// record can be read and ended; it is not written to, as nobody can tell who else may.
func TestTokenAstray(t *testing.T) {
	for _, token := range []string{"", "at-0000000000000001"} {
		dir := fastDir(t)
		s := mustOpen(t, dir, filestore.Config{SweepEvery: -1})
		id, rec := mustID(t), newRecord("1", time.Hour)
		mustSave(t, s, id, rec, 0)
		tokens, err := filepath.Glob(filepath.Join(dir, id.Hex(), "at-*"))
		if err != nil || len(tokens) != 1 {
			t.Fatalf("tokens %v, %v", tokens, err)
		}
		must(t, os.Remove(tokens[0]))
		if token != "" {
			must(t, os.WriteFile(filepath.Join(dir, id.Hex(), token), nil, 0o600))
		}
		wantN(t, s, id, "1")
		wantErr(t, "Save", s.Save(t.Context(), id, next(rec, "2"), rec.Revision), driver.ErrCorrupt)
		wantN(t, s, id, "1")
		if token == "" {
			must(t, s.Delete(t.Context(), id))
		} else {
			must(t, s.DeleteInPlace(id))
		}
		mustSave(t, s, id, next(rec, "3"), 0)
		wantN(t, s, id, "3")
		must(t, s.Delete(t.Context(), id))
		wantEmpty(t, dir)
	}
}

// A record of a newer release is left as it is.
func TestNewerVersion(t *testing.T) {
	dir := fastDir(t)
	s := mustOpen(t, dir, filestore.Config{SweepEvery: -1})
	id := mustID(t)
	rec := newRecord("1", time.Hour)
	mustSave(t, s, id, rec, 0)
	path := filepath.Join(dir, id.Hex(), "data")
	b, err := os.ReadFile(path)
	must(t, err)
	b[16]++ // the version of driver's encoding
	filestore.SetChecksum(id, b)
	must(t, os.WriteFile(path, b, 0o600))
	_, err = s.Load(t.Context(), id)
	wantErr(t, "Load", err, driver.ErrVersion)
	wantErr(t, "Save", s.Save(t.Context(), id, next(rec, "2"), rec.Revision), driver.ErrVersion)
	wantErr(t, "Save with prev 0", s.Save(t.Context(), id, next(rec, "2"), 0), driver.ErrVersion)
	if unreadable, err := s.SweepOnce(t.Context()); unreadable != 1 || err != nil {
		t.Errorf("sweep found %d unreadable records (%v), want 1", unreadable, err)
	}
	after, err := os.ReadFile(path)
	must(t, err)
	if !bytes.Equal(after, b) {
		t.Error("the record was changed")
	}
}

// What this release writes, the next one must read.
func TestFixture(t *testing.T) {
	text, err := os.ReadFile("testdata/data-v1.hex")
	must(t, err)
	b, err := hex.DecodeString(strings.Join(strings.Fields(string(text)), ""))
	must(t, err)
	id, err := driver.ParseID(strings.Repeat("0123456789abcdef", 4))
	must(t, err)
	dir := fastDir(t)
	s := mustOpen(t, dir, filestore.Config{SweepEvery: -1})
	mustDir(t, filepath.Join(dir, id.Hex()), 0o700)
	must(t, os.WriteFile(filepath.Join(dir, id.Hex(), "data"), b, 0o600))
	must(t, os.WriteFile(filepath.Join(dir, id.Hex(), "at-00000000000000ff"), nil, 0o600))
	rec := wantN(t, s, id, "1")
	if rec.User != "ann" || rec.Revision != 1<<60+1 || rec.Expires != time.UnixMilli(1<<42) {
		t.Errorf("loaded %+v", rec)
	}
	mustSave(t, s, id, next(rec, "2"), rec.Revision)
	wantN(t, s, id, "2")
}
