package filestore

import "fmt"

// Network says what to do about network file systems, which Linux tells a store of.
type Network string

// What Config.Network may say.
const (
	// Refuse refuses a directory on NFS, CIFS, SMB or 9p.
	Refuse Network = ""
	// NFS keeps records in another way, which is right for machines that share a directory over NFS. All processes
	// must use it; the directory remembers it.
	NFS Network = "nfs"
	// Unsafe takes any directory, and keeps records as on a local disk: sessions may be lost, and logouts undone. It
	// is not supported.
	Unsafe Network = "unsafe"
)

// networkFileSystem returns the name of a file system that other machines may write to, by the type that statfs(2)
// gives on Linux (include/uapi/linux/magic.h), and "" for all others. FUSE is not among them, as its type says nothing
// about what is behind it.
func networkFileSystem(fsType uint32) string {
	switch fsType {
	case 0x6969:
		return "NFS"
	case 0xFF534D42:
		return "CIFS"
	case 0xFE534D42:
		return "SMB"
	case 0x01021997:
		return "9p"
	}
	return ""
}

// wantLocal refuses a network file system. All that record.go argues rests on rename(2) answering whether it was this
// call that renamed, and on a name leading to the same file for all processes at every moment. Over a network, a rename
// whose answer was lost is sent again and fails although it succeeded, and each machine keeps names for seconds.
func (s *Store) wantLocal(fsType uint32) error {
	name := networkFileSystem(fsType)
	switch {
	case name == "", name == "NFS" && s.config.Network == NFS:
		return nil
	case s.config.Network == NFS:
		return fmt.Errorf("%s is on a network file system (%s) that network=nfs is not for; use NFS, a directory on a local disk, or, for several "+
			"machines, a Redis, Memcached or SQL store", s.path, name)
	case s.config.Network == Unsafe:
		s.config.Logger.Warn("file store: on a network file system, which is not supported: sessions may be lost",
			"directory", s.path, "type", name)
		return nil
	}
	return fmt.Errorf("%s is on a network file system (%s), where a rename that succeeded may be reported as failed and other machines see "+
		"changes late, so that logins get lost and logouts come undone; for NFS, say network=nfs; else use a directory on a local disk, or, for several "+
		"machines, a Redis, Memcached or SQL store (to try it all the same, unsupported: network=unsafe)", s.path, name)
}
