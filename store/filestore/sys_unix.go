//go:build unix

package filestore

import (
	"io/fs"
	"syscall"
)

const supported = true

func owner(info fs.FileInfo) int {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return int(st.Uid)
	}
	return -1
}

func links(info fs.FileInfo) uint64 {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return uint64(st.Nlink)
	}
	return 1
}

// full reports whether err says that the disk or the user's share of it is full.
func full(err error) bool { return err == syscall.ENOSPC || err == syscall.EDQUOT }
