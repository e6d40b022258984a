//go:build unix

package filestore_test

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/internal/testserver"
	"github.com/holdfast-sessions/holdfast/store/filestore"
)

// Attack 7, the directory: each of these is refused by Open, with the fix in the error.
func TestOpenRefuses(t *testing.T) {
	nobody := func(t *testing.T, path string) {
		if os.Geteuid() != 0 {
			t.Skip("only root can make a directory of another user's")
		}
		must(t, os.Chown(path, 65534, 65534))
	}
	tests := []struct {
		name string
		make func(t *testing.T, path string)
		want string
		is   error
	}{
		{"world-writable", func(t *testing.T, path string) { mustDir(t, path, 0o777) }, "fix: chmod 0700 '", nil},
		{"world-writable and sticky", func(t *testing.T, path string) { mustDir(t, path, 0o777|os.ModeSticky) }, "fix: chmod 0700 '", nil},
		{"group-writable", func(t *testing.T, path string) { mustDir(t, path, 0o770) }, "fix: chmod 0700 '", nil},
		{"another user's", func(t *testing.T, path string) { mustDir(t, path, 0o700); nobody(t, path) }, "chown -R", nil},
		{"symbolic link", func(t *testing.T, path string) {
			mustDir(t, path+".real", 0o700)
			must(t, os.Symlink(path+".real", path))
		}, "symbolic link; give the directory that it leads to", nil},
		{"dangling link", func(t *testing.T, path string) { must(t, os.Symlink("nowhere", path)) }, "symbolic link", nil},
		{"a file", func(t *testing.T, path string) { must(t, os.WriteFile(path, nil, 0o600)) }, "want a directory", nil},
		{"a FIFO", func(t *testing.T, path string) { must(t, syscall.Mkfifo(path, 0o600)) }, "want a directory", nil},
		{"read-only file system", func(t *testing.T, path string) {
			mustDir(t, path, 0o700)
			mustMount(t, path, readOnly, "mode=0700")
		}, "mount -o remount,rw", driver.ErrReadOnly},
		{"read-only parent", func(t *testing.T, path string) {
			mustMount(t, filepath.Dir(path), readOnly, "mode=0700")
		}, "read-only file system", driver.ErrReadOnly},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "sessions")
			tt.make(t, path)
			_, err := filestore.Open(t.Context(), path, filestore.Config{})
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Open = %v, want it to say %q", err, tt.want)
			}
			if tt.is != nil {
				wantErr(t, "Open", err, tt.is)
			}
		})
	}
	t.Run("no parent", func(t *testing.T) {
		_, err := filestore.Open(t.Context(), filepath.Join(t.TempDir(), "a", "b"), filestore.Config{})
		if err == nil || !strings.Contains(err.Error(), "mkdir -p") {
			t.Errorf("Open = %v", err)
		}
	})
}

// A network file system is refused by the type that Linux gives, and taken with a warning if that is asked for.
func TestNetworkFileSystem(t *testing.T) {
	tests := []struct {
		name   string
		fsType uint32
		want   string // in the error, "" for none
	}{
		{"NFS", 0x6969, "(NFS)"},
		{"CIFS", 0xFF534D42, "(CIFS)"},
		{"SMB2", 0xFE534D42, "(SMB)"},
		{"9p", 0x01021997, "(9p)"},
		{"FUSE", 0x65735546, ""},
		{"ext4", 0xEF53, ""},
		{"tmpfs", 0x01021994, ""},
		{"overlayfs", 0x794C7630, ""},
		{"XFS", 0x58465342, ""},
		{"unknown", 0, ""},
	}
	for _, tt := range tests {
		err := filestore.WantLocal(filestore.Config{}, tt.fsType)
		if (err != nil) != (tt.want != "") {
			t.Errorf("%s: %v", tt.name, err)
		}
		if err != nil {
			for _, want := range []string{tt.want, "/srv/sessions", "local disk", "Redis", "network=nfs", "network=unsafe"} {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%s: %v, want it to say %q", tt.name, err, want)
				}
			}
		}
		err = filestore.WantLocal(filestore.Config{Network: filestore.NFS}, tt.fsType)
		if (err != nil) != (tt.want != "" && tt.name != "NFS") {
			t.Errorf("%s, nfs: %v", tt.name, err)
		}
		var log testserver.Buffer
		c := filestore.Config{Network: filestore.Unsafe, Logger: slog.New(slog.NewTextHandler(&log, nil))}
		if err := filestore.WantLocal(c, tt.fsType); err != nil {
			t.Errorf("%s, unsafe: %v", tt.name, err)
		}
		if warned := strings.Contains(log.String(), "not supported"); warned != (tt.want != "") {
			t.Errorf("%s, unsafe: log: %s", tt.name, log.String())
		}
	}
}

// Attack 7, what is in the directory: each of these is refused, never taken for an absent session and never followed,
// and Delete removes it alone.
func TestRefusesPlantedFiles(t *testing.T) {
	tests := []struct {
		name string
		// plant puts something in the place of the record at path; other is another record.
		plant func(t *testing.T, path, other, outside string)
	}{
		{"record is a link to another", func(t *testing.T, path, other, outside string) {
			must(t, os.RemoveAll(path))
			must(t, os.Symlink(filepath.Base(other), path))
		}},
		{"record is a link to outside", func(t *testing.T, path, other, outside string) {
			must(t, os.Rename(path, filepath.Join(outside, "record")))
			must(t, os.Symlink(filepath.Join(outside, "record"), path))
		}},
		{"record is a file", func(t *testing.T, path, other, outside string) {
			must(t, os.RemoveAll(path))
			must(t, os.WriteFile(path, nil, 0o600))
		}},
		{"record is a FIFO", func(t *testing.T, path, other, outside string) {
			must(t, os.RemoveAll(path))
			must(t, syscall.Mkfifo(path, 0o600))
		}},
		{"record is another's", func(t *testing.T, path, other, outside string) {
			must(t, os.RemoveAll(path))
			must(t, os.CopyFS(path, os.DirFS(other)))
		}},
		{"data is a link to another's", func(t *testing.T, path, other, outside string) {
			must(t, os.Remove(path+"/data"))
			must(t, os.Symlink("../"+filepath.Base(other)+"/data", path+"/data"))
		}},
		{"data is a link to outside", func(t *testing.T, path, other, outside string) {
			must(t, os.Rename(path+"/data", filepath.Join(outside, "data")))
			must(t, os.Symlink(filepath.Join(outside, "data"), path+"/data"))
		}},
		{"data is a hard link", func(t *testing.T, path, other, outside string) {
			must(t, os.Link(path+"/data", filepath.Join(outside, "data")))
		}},
		{"data is a FIFO", func(t *testing.T, path, other, outside string) {
			must(t, os.Remove(path+"/data"))
			must(t, syscall.Mkfifo(path+"/data", 0o600))
		}},
		{"data is a directory", func(t *testing.T, path, other, outside string) {
			must(t, os.Remove(path+"/data"))
			mustDir(t, path+"/data", 0o700)
		}},
		{"data is world-writable", func(t *testing.T, path, other, outside string) {
			must(t, os.Chmod(path+"/data", 0o666))
		}},
		{"data is another user's", func(t *testing.T, path, other, outside string) {
			if os.Geteuid() != 0 {
				t.Skip("only root can make a file of another user's")
			}
			must(t, os.Chown(path+"/data", 65534, 65534))
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir, outside := fastDir(t), fastDir(t)
			must(t, os.WriteFile(filepath.Join(outside, "precious"), []byte("kept"), 0o600))
			s := mustOpen(t, dir, filestore.Config{SweepEvery: -1})
			id, other := mustID(t), mustID(t)
			rec, otherRec := newRecord("mine", time.Hour), newRecord("theirs", time.Hour)
			mustSave(t, s, id, rec, 0)
			mustSave(t, s, other, otherRec, 0)
			tt.plant(t, filepath.Join(dir, id.Hex()), filepath.Join(dir, other.Hex()), outside)

			got, err := s.Load(t.Context(), id)
			if err == nil || errors.Is(err, driver.ErrNotFound) {
				t.Errorf("Load = %v, %v, want it refused", got, err)
			}
			if !errors.Is(err, driver.ErrUnavailable) && !errors.Is(err, driver.ErrCorrupt) {
				t.Errorf("Load = %v, want ErrUnavailable or ErrCorrupt", err)
			}
			if strings.Contains(err.Error(), id.Hex()) {
				t.Errorf("the error has the whole ID: %v", err)
			}
			if err := s.Save(t.Context(), id, newRecord("new", time.Hour), 0); err == nil {
				t.Error("Save with prev 0 took the place of what was planted")
			}
			if _, err := s.SweepOnce(t.Context()); err != nil && !errors.Is(err, driver.ErrUnavailable) {
				t.Errorf("sweep: %v", err)
			}
			must(t, s.Delete(t.Context(), id))
			_, err = s.Load(t.Context(), id)
			wantErr(t, "Load after Delete", err, driver.ErrNotFound)
			mustSave(t, s, id, newRecord("new", time.Hour), 0)
			wantN(t, s, id, "new")
			wantN(t, s, other, "theirs")
			if b, err := os.ReadFile(filepath.Join(outside, "precious")); err != nil || string(b) != "kept" {
				t.Errorf("outside of the directory: %q, %v", b, err)
			}
		})
	}
}

// Attack 7, a swapped directory: nobody is logged out by it, and nothing is written where nobody will look.
func TestSwappedDirectory(t *testing.T) {
	dir := fastDir(t)
	t.Cleanup(func() { os.RemoveAll(dir + ".away") })
	s := mustOpen(t, dir, filestore.Config{SweepEvery: -1})
	id, absent := mustID(t), mustID(t)
	rec := newRecord("1", time.Hour)
	mustSave(t, s, id, rec, 0)
	must(t, os.Rename(dir, dir+".away"))
	for _, swap := range []string{"away", "replaced"} {
		_, err := s.Load(t.Context(), absent)
		wantErr(t, swap+": Load of an absent record", err, driver.ErrUnavailable)
		if _, err := s.Load(t.Context(), id); err != nil && !errors.Is(err, driver.ErrUnavailable) {
			t.Errorf("%s: Load = %v", swap, err)
		}
		wantErr(t, swap+": Save", s.Save(t.Context(), id, next(rec, "2"), rec.Revision), driver.ErrUnavailable)
		wantErr(t, swap+": Save of a new record", s.Save(t.Context(), absent, rec, 0), driver.ErrUnavailable)
		wantErr(t, swap+": Delete", s.Delete(t.Context(), id), driver.ErrUnavailable)
		if swap == "away" {
			mustDir(t, dir, 0o700)
		}
	}
	must(t, os.Remove(dir))
	must(t, os.Rename(dir+".away", dir))
	mustSave(t, s, id, next(rec, "2"), rec.Revision)
	wantN(t, s, id, "2")
}

// Names come from IDs alone, and nobody else may read what is stored, whatever the umask.
func TestNamesAndModes(t *testing.T) {
	old := syscall.Umask(0)
	defer syscall.Umask(old)
	dir := filepath.Join(fastDir(t), "new")
	s := mustOpen(t, dir, filestore.Config{SweepEvery: -1})
	rec := newRecord("../../etc/passwd\x00\n*", time.Hour)
	rec.User = "../../x"
	for _, id := range []driver.ID{{}, {0: '.', 1: '.', 2: '/'}, mustID(t)} {
		mustSave(t, s, id, rec, 0)
		mustSave(t, s, id, next(rec, "2"), rec.Revision)
	}
	name := regexp.MustCompile(`^(new|[0-9a-f]{64}|data|at-[0-9a-f]{16})$`)
	must(t, filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil || d.Name() == ".layout" { // a link has no mode of its own
			return err
		}
		want := os.FileMode(0o600)
		if d.IsDir() {
			want = 0o700 | os.ModeDir
		}
		if info.Mode() != want || !name.MatchString(d.Name()) {
			t.Errorf("%s has mode %v, want %v", path, info.Mode(), want)
		}
		return nil
	}))
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func mustDir(t testing.TB, path string, mode os.FileMode) {
	t.Helper()
	must(t, os.Mkdir(path, 0o700))
	must(t, os.Chmod(path, mode))
}
