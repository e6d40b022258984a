package filestore_test

import (
	"os"
	"syscall"
	"testing"
)

// mustMount mounts an empty file system in memory, or skips the test.
func mustMount(t testing.TB, path string, flags int, options string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root can mount a small or read-only file system")
	}
	if err := syscall.Mount("tmpfs", path, "tmpfs", uintptr(flags), options); err != nil {
		t.Skipf("mount: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(path, syscall.MNT_DETACH); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
}

const readOnly = syscall.MS_RDONLY
