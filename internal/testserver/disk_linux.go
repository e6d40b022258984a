package testserver

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// Disk is a small file system of its own.
type Disk struct {
	// Dir is where it is mounted.
	Dir string

	t testing.TB
}

// SmallDisk mounts a file system of so many bytes, which belongs to a user of the system if the tests run as root and
// owner is not "". It ends with the test.
func SmallDisk(t testing.TB, bytes, owner string) *Disk {
	t.Helper()
	dir, err := os.MkdirTemp("", "testserver-disk-") // a database's user may not look into a test's own
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) }) // in the temporary directory
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	d := &Disk{Dir: filepath.Join(dir, "disk"), t: t}
	if err := os.Mkdir(d.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", d.Dir, "tmpfs", 0, "mode=700,size="+bytes); err != nil {
		t.Skipf("NOT RUN: %s needs root to mount a tmpfs: %v", t.Name(), err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(d.Dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	if owner != "" && os.Geteuid() == 0 {
		uid, gid, err := ids(owner)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(d.Dir, uid, gid); err != nil {
			t.Fatal(err)
		}
	}
	return d
}

// Fill takes all the room that is left, down to a byte.
func (d *Disk) Fill() {
	d.t.Helper()
	f, err := os.OpenFile(d.filler(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		d.t.Fatal(err)
	}
	defer f.Close()
	for b := make([]byte, 64<<10); len(b) > 0; {
		if _, err = f.Write(b); errors.Is(err, syscall.ENOSPC) {
			b = b[:len(b)/2]
		} else if err != nil {
			d.t.Fatal(err)
		}
	}
}

// Free gives back what Fill has taken.
func (d *Disk) Free() {
	d.t.Helper()
	if err := os.Remove(d.filler()); err != nil {
		d.t.Fatal(err)
	}
}

func (d *Disk) filler() string { return filepath.Join(d.Dir, "filler") }
