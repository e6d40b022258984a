package filestore

import (
	"os"
	"syscall"
)

// fileSystemType returns what statfs(2) says that the open directory is on, and 0 if it says nothing.
func fileSystemType(root *os.Root) (uint32, error) {
	f, err := root.OpenFile(".", os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	var st syscall.Statfs_t
	for {
		err := syscall.Fstatfs(int(f.Fd()), &st)
		if err == syscall.EINTR {
			continue
		}
		if err == syscall.ENOSYS || err == syscall.EPERM { // a sandbox that does not let us ask
			return 0, nil
		}
		return uint32(st.Type), err // the width of Type varies; the numbers have 32 bits
	}
}
