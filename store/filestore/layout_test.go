//go:build unix

package filestore_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/store/filestore"
)

// TestLayout: what a directory has been used with decides, and nobody who asks for something else is let in.
func TestLayout(t *testing.T) {
	old := func(t *testing.T, dir string) { // as the release before left it
		s := mustOpen(t, dir, filestore.Config{SweepEvery: -1})
		mustSave(t, s, mustID(t), newRecord("old", time.Hour), 0)
		must(t, s.Close())
		must(t, os.Remove(filepath.Join(dir, ".layout")))
	}
	used := func(l filestore.Layout) func(t *testing.T, dir string) {
		return func(t *testing.T, dir string) {
			must(t, mustOpen(t, dir, filestore.Config{Layout: l, SweepEvery: -1}).Close())
		}
	}
	usedNFS := func(t *testing.T, dir string) {
		s := openNFS(t, dir)
		mustSave(t, s, mustID(t), newRecord("1", time.Hour), 0)
		must(t, s.Close())
	}
	tests := []struct {
		name  string
		start func(t *testing.T, dir string)
		asked filestore.Layout
		want  filestore.Layout
		err   string
	}{
		{"network=nfs", usedNFS, filestore.KeepLayout, "", "is for network=nfs, and not all processes may see it as a local disk; add network=nfs"},
		{"network=nfs, hashed", usedNFS, filestore.Hashed, "", "add network=nfs"},
		{"network=nfs, copied without links", func(t *testing.T, dir string) {
			usedNFS(t, dir)
			must(t, os.Remove(filepath.Join(dir, ".layout")))
		}, filestore.KeepLayout, "", "open it with network=nfs once"},
		{"network=nfs, copied without links, hashed", func(t *testing.T, dir string) {
			usedNFS(t, dir)
			must(t, os.Remove(filepath.Join(dir, ".layout")))
		}, filestore.Hashed, "", "open it with network=nfs once"},
		{"new", nil, filestore.KeepLayout, filestore.Flat, ""},
		{"new, flat", nil, filestore.Flat, filestore.Flat, ""},
		{"new, hashed", nil, filestore.Hashed, filestore.Hashed, ""},
		{"of the release before", old, filestore.KeepLayout, filestore.Flat, ""},
		{"of the release before, flat", old, filestore.Flat, filestore.Flat, ""},
		{"of the release before, hashed", old, filestore.Hashed, "", "has sessions in the flat layout; leave out layout=hashed"},
		{"flat, hashed", used(filestore.Flat), filestore.Hashed, "", "has the flat layout; leave out layout=hashed"},
		{"hashed", used(filestore.Hashed), filestore.KeepLayout, filestore.Hashed, ""},
		{"hashed, flat", used(filestore.Hashed), filestore.Flat, "", "has the hashed layout; leave out layout=flat"},
		{"copied without links", func(t *testing.T, dir string) {
			used(filestore.Hashed)(t, dir)
			must(t, os.Remove(filepath.Join(dir, ".layout")))
		}, filestore.KeepLayout, "", "open it with layout=hashed once"},
		{"copied without links, hashed", func(t *testing.T, dir string) {
			used(filestore.Hashed)(t, dir)
			must(t, os.Remove(filepath.Join(dir, ".layout")))
		}, filestore.Hashed, filestore.Hashed, ""},
		{"of a release to come", func(t *testing.T, dir string) {
			must(t, os.Symlink("spiral", filepath.Join(dir, ".layout")))
		}, filestore.KeepLayout, "", "which this release does not know"},
		{"a subdirectory is a link", func(t *testing.T, dir string) {
			used(filestore.Hashed)(t, dir)
			must(t, os.Remove(filepath.Join(dir, "7f")))
			must(t, os.Symlink("80", filepath.Join(dir, "7f")))
		}, filestore.Hashed, "", "7f: store unavailable: refused: it is a symbolic link, want a directory"},
		{"a subdirectory is world-writable", func(t *testing.T, dir string) {
			used(filestore.Hashed)(t, dir)
			must(t, os.Chmod(filepath.Join(dir, "7f"), 0o777))
		}, filestore.Hashed, "", "writable by other users"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := fastDir(t)
			if tt.start != nil {
				tt.start(t, dir)
			}
			s, err := filestore.Open(t.Context(), dir, filestore.Config{Layout: tt.asked, SweepEvery: -1})
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Fatalf("Open = %v, want %q in it", err, tt.err)
				}
				return
			}
			must(t, err)
			defer s.Close()
			id := mustID(t)
			mustSave(t, s, id, newRecord("1", time.Hour), 0)
			if _, err := os.Lstat(filepath.Join(dir, place(tt.want, id), "data")); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestLayoutRace stops a process that opens an empty directory before each of its calls, and lets another open it
// with the other layout and store something: if both are let in, they find each other's records.
func TestLayoutRace(t *testing.T) {
	for _, first := range []filestore.Layout{filestore.Flat, filestore.Hashed} {
		second := filestore.Hashed
		if first == filestore.Hashed {
			second = filestore.Flat
		}
		for stopAt, calls := 1, 1; calls >= stopAt; stopAt++ {
			dir, id := fastDir(t), mustID(t)
			calls = 0
			var other *filestore.Store
			s, err := filestore.OpenStepped(t.Context(), dir, filestore.Config{Layout: first}, func(call, name string) error {
				if calls++; calls == stopAt {
					if s, err := filestore.Open(t.Context(), dir, filestore.Config{Layout: second, SweepEvery: -1}); err == nil {
						t.Cleanup(func() { s.Close() })
						mustSave(t, s, id, newRecord("1", time.Hour), 0)
						other = s
					}
				}
				return nil
			})
			switch {
			case err == nil && other != nil:
				t.Errorf("%s stopped before call %d, and both are let in", first, stopAt)
			case err != nil && other == nil && calls >= stopAt:
				t.Errorf("%s stopped before call %d, and none is let in: %v", first, stopAt, err)
			}
			if err == nil {
				must(t, s.Close())
			}
			if calls < stopAt && stopAt < 4 {
				t.Errorf("stopped before %d calls only", stopAt-1)
			}
			if stopAt > 8 { // the subdirectories are alike
				break
			}
		}
	}
	dir, id := fastDir(t), mustID(t)
	var all sync.WaitGroup
	var mu sync.Mutex
	var in []*filestore.Store
	for i := range 20 {
		all.Go(func() {
			l := []filestore.Layout{filestore.Flat, filestore.Hashed}[i%2]
			if s, err := filestore.Open(t.Context(), dir, filestore.Config{Layout: l, SweepEvery: -1}); err == nil {
				mu.Lock()
				defer mu.Unlock()
				in = append(in, s)
			}
		})
	}
	all.Wait()
	if len(in) != 10 {
		t.Errorf("%d of 20 processes with two layouts are let in, want 10", len(in))
	}
	mustSave(t, in[0], id, newRecord("1", time.Hour), 0)
	for _, s := range in {
		wantN(t, s, id, "1")
		must(t, s.Close())
	}
}

// TestLayoutOnFullDisk: a full disk has no room to note the layout. Those who are logged in go on; as soon as another
// process has chosen another layout, this one says so instead of missing its records.
func TestLayoutOnFullDisk(t *testing.T) {
	dir, id := fastDir(t), mustID(t)
	full := true
	s, err := filestore.OpenStepped(t.Context(), dir, filestore.Config{}, func(call, name string) error {
		if full && call == "symlink" {
			return &os.LinkError{Op: call, Err: syscall.ENOSPC}
		}
		return nil
	})
	must(t, err)
	defer s.Close()
	_, err = s.Load(t.Context(), id)
	wantErr(t, "Load", err, driver.ErrNotFound)
	wantErr(t, "Save of a new record", s.Save(t.Context(), id, newRecord("1", time.Hour), 0), driver.ErrUnavailable)
	other := mustOpen(t, dir, filestore.Config{Layout: filestore.Hashed, SweepEvery: -1})
	mustSave(t, other, id, newRecord("2", time.Hour), 0)
	full = false
	for _, id := range []driver.ID{id, mustID(t)} {
		_, err = s.Load(t.Context(), id)
		wantErr(t, "Load, with another layout by now", err, driver.ErrUnavailable)
		wantErr(t, "Delete", s.Delete(t.Context(), id), driver.ErrUnavailable)
		wantErr(t, "Save", s.Save(t.Context(), id, newRecord("1", time.Hour), 0), driver.ErrUnavailable)
	}
	wantN(t, other, id, "2")

	dir = fastDir(t) // and if nobody did, it goes on
	full = true
	s, err = filestore.OpenStepped(t.Context(), dir, filestore.Config{}, func(call, name string) error {
		if full && call == "symlink" {
			return &os.LinkError{Op: call, Err: syscall.EDQUOT}
		}
		return nil
	})
	must(t, err)
	defer s.Close()
	full = false
	mustSave(t, s, id, newRecord("1", time.Hour), 0)
	if _, err := filestore.Open(t.Context(), dir, filestore.Config{Layout: filestore.Hashed}); err == nil {
		t.Error("hashed is let in beside flat")
	}
}

// TestBucketsMadeLater: subdirectories for which there was no room when the store was opened, or that somebody
// removed, are made with the first record.
func TestBucketsMadeLater(t *testing.T) {
	dir := fastDir(t)
	s := mustOpen(t, dir, filestore.Config{Layout: filestore.Hashed, SweepEvery: -1})
	entries, err := os.ReadDir(dir)
	must(t, err)
	for _, e := range entries {
		must(t, os.Remove(filepath.Join(dir, e.Name())))
	}
	id := mustID(t)
	_, err = s.Load(t.Context(), id)
	wantErr(t, "Load", err, driver.ErrNotFound)
	must(t, s.Delete(t.Context(), id))
	if removed, err := s.Sweep(t.Context(), nil); removed != 0 || err != nil {
		t.Errorf("Sweep = %d, %v", removed, err)
	}
	mustSave(t, s, id, newRecord("1", time.Hour), 0)
	wantN(t, s, id, "1")
	seen := 0
	for item, err := range s.List(t.Context()) {
		if must(t, err); item.ID != id {
			t.Errorf("List yields %v", item.ID)
		}
		seen++
	}
	if seen != 1 {
		t.Errorf("List yields %d records, want 1", seen)
	}
	// A record in a subdirectory where it does not belong is no record.
	wrong := id
	wrong[0]++
	must(t, os.Rename(filepath.Join(dir, place(filestore.Hashed, id)), filepath.Join(dir, id.Hex()[:2], wrong.Hex())))
	for item, err := range s.List(t.Context()) {
		t.Errorf("List yields %v, %v", item.ID, err)
	}
	if _, err := s.Load(t.Context(), wrong); !errors.Is(err, driver.ErrNotFound) {
		t.Errorf("Load = %v", err)
	}
}

// TestNetworkLayout: a directory is for network=nfs or it is not.
func TestNetworkLayout(t *testing.T) {
	noLink := func(t *testing.T, dir string) { must(t, os.Remove(filepath.Join(dir, ".layout"))) }
	for name, tt := range map[string]struct {
		start filestore.Config
		then  func(t *testing.T, dir string)
		asked filestore.Config
		err   string
	}{
		"nfs":                          {filestore.Config{Network: filestore.NFS}, nil, filestore.Config{Network: filestore.NFS}, ""},
		"nfs, copied without links":    {filestore.Config{Network: filestore.NFS}, noLink, filestore.Config{Network: filestore.NFS}, ""},
		"flat":                         {filestore.Config{}, nil, filestore.Config{Network: filestore.NFS}, "is not for network=nfs; leave that out, or move"},
		"hashed":                       {filestore.Config{Layout: filestore.Hashed}, nil, filestore.Config{Network: filestore.NFS}, "is not for network=nfs; leave that out, or move"},
		"flat, copied without links":   {filestore.Config{}, noLink, filestore.Config{Network: filestore.NFS}, "has sessions that are not for network=nfs"},
		"hashed, copied without links": {filestore.Config{Layout: filestore.Hashed}, noLink, filestore.Config{Network: filestore.NFS}, "has sessions that are not for network=nfs"},
		"nfs, with a layout":           {filestore.Config{Network: filestore.NFS}, nil, filestore.Config{Network: filestore.NFS, Layout: filestore.Hashed}, "layout=hashed does not go with network=nfs"},
		"nfs, unsafe":                  {filestore.Config{Network: filestore.NFS}, nil, filestore.Config{Network: filestore.Unsafe}, "add network=nfs"},
	} {
		t.Run(name, func(t *testing.T) {
			dir, id := fastDir(t), mustID(t)
			tt.start.SweepEvery = -1
			tt.asked.SweepEvery = -1
			s := mustOpen(t, dir, tt.start)
			mustSave(t, s, id, newRecord("1", time.Hour), 0)
			must(t, s.Close())
			if tt.then != nil {
				tt.then(t, dir)
			}
			s, err := filestore.Open(t.Context(), dir, tt.asked)
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Errorf("Open = %v, want %q in it", err, tt.err)
				}
				return
			}
			must(t, err)
			wantN(t, s, id, "1")
			must(t, s.Close())
		})
	}
	for stopAt, calls := 1, 1; calls >= stopAt; stopAt++ { // as in TestLayoutRace
		dir, id := fastDir(t), mustID(t)
		calls = 0
		var other *filestore.Store
		s, err := filestore.OpenStepped(t.Context(), dir, filestore.Config{}, func(call, name string) error {
			if calls++; calls == stopAt {
				if s, err := filestore.Open(t.Context(), dir, filestore.Config{Network: filestore.NFS, SweepEvery: -1}); err == nil {
					t.Cleanup(func() { s.Close() })
					mustSave(t, s, id, newRecord("1", time.Hour), 0)
					other = s
				}
			}
			return nil
		})
		if err == nil && other != nil {
			t.Errorf("stopped before call %d, and both are let in", stopAt)
		}
		if err == nil {
			must(t, s.Close())
		}
	}
}
