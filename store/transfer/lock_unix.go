//go:build unix

package transfer

import (
	"os"
	"syscall"
)

// lock keeps other processes from using the file until it is closed, or fails if one does.
func lock(f *os.File) error { return syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) }
