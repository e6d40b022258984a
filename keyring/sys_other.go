//go:build !unix

package keyring

import (
	"io/fs"
	"os"
)

const nonblock = 0

// lock does nothing: two changes of one file at a time are the operator's to avoid here.
func lock(*os.File) (bool, error) { return true, nil }

func owner(fs.FileInfo) (uid, gid int) { return -1, -1 }

// syncDir does nothing: a directory cannot be opened to be synced here.
func syncDir(string) error { return nil }
