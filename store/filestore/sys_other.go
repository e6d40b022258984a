//go:build !unix

package filestore

import "io/fs"

const supported = false

func owner(fs.FileInfo) int    { return -1 }
func links(fs.FileInfo) uint64 { return 1 }
func full(error) bool          { return false }
