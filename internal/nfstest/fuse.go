//go:build linux

package nfstest

import (
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// fuseFS translates FUSE's calls to those of a client. The kernel is told to cache nothing: names and attributes are valid for
// no time, and files are read and written directly.
type fuseFS struct {
	fuse.RawFileSystem

	c *client
}

func newFuseFS(c *client) *fuseFS { return &fuseFS{fuse.NewDefaultRawFileSystem(), c} }

func (f *fuseFS) String() string { return "nfstest" }

func status(errno syscall.Errno) fuse.Status { return fuse.Status(errno) }

func fill(out *fuse.Attr, a attr) {
	*out = fuse.Attr{
		Ino: a.ino, Size: a.size, Blocks: (a.size + 511) / 512, Mode: a.mode, Nlink: a.nlink,
		Owner: fuse.Owner{Uid: a.uid, Gid: a.gid}, Blksize: 4096,
	}
	out.SetTimes(&a.atime, &a.mtime, &a.ctime)
}

// enter answers with a file to which a name leads.
func (f *fuseFS) enter(out *fuse.EntryOut, key nameKey, a attr) {
	f.c.mu.Lock()
	defer f.c.mu.Unlock()
	f.c.kernel.set(key, a.ino)
	f.fillEntry(out, a)
}

// fillEntry is enter with c.mu held.
func (f *fuseFS) fillEntry(out *fuse.EntryOut, a attr) {
	f.c.node(a.ino).kernel++
	out.NodeId, out.Generation = a.ino, 1
	fill(&out.Attr, f.c.withDirty(a.ino, a))
}

// owned are the attributes of what a caller makes. The header's memory is FUSE's, and a request may outlive the call.
func owned(header *fuse.InHeader, mode uint32) setAttrs {
	uid, gid := header.Uid, header.Gid
	return setAttrs{mode: &mode, uid: &uid, gid: &gid}
}

func (f *fuseFS) Lookup(_ <-chan struct{}, header *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	c, key, tid := f.c, nameKey{header.NodeId, name}, header.Pid
	c.mu.Lock()
	a, again := c.kernel.again(tid, key)
	if again {
		if a.errno == 0 {
			f.fillEntry(out, a.attr)
		}
		c.mu.Unlock()
		return status(a.errno)
	}
	delete(c.kernel.looked, tid)
	c.mu.Unlock()
	found, fresh, errno := c.lookup(key.dir, name, intentOf(tid, name))
	c.mu.Lock()
	defer c.mu.Unlock()
	c.kernel.answered(tid, key, found, errno)
	if errno != 0 {
		return status(errno)
	}
	if fresh {
		c.kernel.looked[tid] = found.ino
	}
	f.fillEntry(out, found)
	return fuse.OK
}

// justLookedUp reports whether the thread has asked the server for what it now opens.
func (f *fuseFS) justLookedUp(header *fuse.InHeader) bool {
	f.c.mu.Lock()
	defer f.c.mu.Unlock()
	ino := f.c.kernel.looked[header.Pid]
	delete(f.c.kernel.looked, header.Pid)
	return ino == header.NodeId
}

func (f *fuseFS) Forget(ino, count uint64) { f.c.forget(ino, count) }

func (f *fuseFS) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	a, errno := f.c.getattr(in.NodeId)
	fill(&out.Attr, a)
	return status(errno)
}

func (f *fuseFS) SetAttr(_ <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	var set setAttrs
	if v, ok := in.GetMode(); ok {
		set.mode = &v
	}
	if v, ok := in.GetUID(); ok {
		set.uid = &v
	}
	if v, ok := in.GetGID(); ok {
		set.gid = &v
	}
	if v, ok := in.GetSize(); ok {
		set.size = &v
	}
	if in.Valid&fuse.FATTR_ATIME != 0 {
		t := time.Unix(int64(in.Atime), int64(in.Atimensec))
		set.atime, set.atimeNow = &t, in.Valid&fuse.FATTR_ATIME_NOW != 0
	}
	if in.Valid&fuse.FATTR_MTIME != 0 {
		t := time.Unix(int64(in.Mtime), int64(in.Mtimensec))
		set.mtime, set.mtimeNow = &t, in.Valid&fuse.FATTR_MTIME_NOW != 0
	}
	// "Now" is the server's to know (RFC 1813, SET_TO_SERVER_TIME).
	if set.atimeNow {
		set.atime = nil
	}
	if set.mtimeNow {
		set.mtime = nil
	}
	a, errno := f.c.setattr(in.NodeId, set)
	fill(&out.Attr, a)
	return status(errno)
}

func (f *fuseFS) Open(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	id, errno := f.c.open(in.NodeId, in.Flags, f.justLookedUp(&in.InHeader))
	out.Fh, out.OpenFlags = id, fuse.FOPEN_DIRECT_IO
	return status(errno)
}

func (f *fuseFS) Create(_ <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	key := nameKey{in.NodeId, name}
	a, id, errno := f.c.create(key.dir, name, in.Flags, owned(&in.InHeader, in.Mode))
	if errno == 0 {
		f.enter(&out.EntryOut, key, a)
		out.Fh, out.OpenFlags = id, fuse.FOPEN_DIRECT_IO
	}
	return status(errno)
}

func (f *fuseFS) Read(_ <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	n, errno := f.c.read(f.c.handle(in.Fh), int(in.Offset), buf[:min(len(buf), int(in.Size))])
	if errno != 0 {
		return nil, status(errno) // a result would be taken for success
	}
	return fuse.ReadResultData(buf[:n]), fuse.OK
}

func (f *fuseFS) Write(_ <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	errno := f.c.write(f.c.handle(in.Fh), int(in.Offset), data)
	return uint32(len(data)), status(errno)
}

func (f *fuseFS) Flush(_ <-chan struct{}, in *fuse.FlushIn) fuse.Status {
	return status(f.c.closeHandle(f.c.handle(in.Fh)))
}

func (f *fuseFS) Fsync(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	return status(f.c.flush(in.NodeId))
}

func (f *fuseFS) Release(_ <-chan struct{}, in *fuse.ReleaseIn) { f.c.release(in.Fh) }

func (f *fuseFS) OpenDir(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	id, errno := f.c.openDir(in.NodeId, f.justLookedUp(&in.InHeader) || opensItself(in.Pid))
	out.Fh = id
	return status(errno)
}

func (f *fuseFS) ReadDir(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	h := f.c.handle(in.Fh)
	dots := []fuse.DirEntry{
		{Name: ".", Mode: syscall.S_IFDIR, Ino: in.NodeId, Off: 1},
		{Name: "..", Mode: syscall.S_IFDIR, Off: 2},
	}
	for n, full := int(in.Offset), false; !full; n++ {
		if n < len(dots) {
			full = !out.AddDirEntry(dots[n])
			continue
		}
		e, ok, errno := f.c.list(h, n-len(dots))
		if errno != 0 {
			return status(errno)
		}
		if !ok {
			break
		}
		de := fuse.DirEntry{Name: e.name, Ino: e.attr.ino, Off: uint64(n + 1)}
		if f.c.options.Version == 4 || !f.c.options.NoReaddirPlus { // READDIR of NFSv3 does not tell the type
			de.Mode = e.attr.mode
		}
		full = !out.AddDirEntry(de)
	}
	return fuse.OK
}

func (f *fuseFS) ReleaseDir(in *fuse.ReleaseIn) { f.c.release(in.Fh) }

// FsyncDir does nothing: a server has written a change of a directory before it answers (RFC 1813, section 4.8).
func (f *fuseFS) FsyncDir(<-chan struct{}, *fuse.FsyncIn) fuse.Status { return fuse.OK }

func (f *fuseFS) Mkdir(_ <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	a, errno := f.c.mkdir(in.NodeId, name, owned(&in.InHeader, in.Mode))
	if errno == 0 {
		f.enter(out, nameKey{in.NodeId, name}, a)
	}
	return status(errno)
}

func (f *fuseFS) Symlink(_ <-chan struct{}, in *fuse.InHeader, target, name string, out *fuse.EntryOut) fuse.Status {
	a, errno := f.c.symlink(in.NodeId, name, target, owned(in, 0o777))
	if errno == 0 {
		f.enter(out, nameKey{in.NodeId, name}, a)
	}
	return status(errno)
}

func (f *fuseFS) Link(_ <-chan struct{}, in *fuse.LinkIn, name string, out *fuse.EntryOut) fuse.Status {
	a, errno := f.c.link(in.Oldnodeid, in.NodeId, name)
	if errno == 0 {
		f.enter(out, nameKey{in.NodeId, name}, a)
	}
	return status(errno)
}

func (f *fuseFS) Readlink(_ <-chan struct{}, in *fuse.InHeader) ([]byte, fuse.Status) {
	target, errno := f.c.content(in.NodeId)
	return target, status(errno)
}

// gone takes note that the kernel does not know a name any more.
func (f *fuseFS) gone(errno syscall.Errno, keys ...nameKey) fuse.Status {
	if errno == 0 || errno == syscall.ENOENT {
		f.c.mu.Lock()
		defer f.c.mu.Unlock()
		for _, key := range keys {
			f.c.kernel.drop(key)
		}
	}
	return status(errno)
}

func (f *fuseFS) Unlink(_ <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	return f.gone(f.c.unlink(in.NodeId, name), nameKey{in.NodeId, name})
}

func (f *fuseFS) Rmdir(_ <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	return f.gone(f.c.rmdir(in.NodeId, name), nameKey{in.NodeId, name})
}

func (f *fuseFS) Rename(_ <-chan struct{}, in *fuse.RenameIn, from, to string) fuse.Status {
	if in.Flags != 0 {
		return fuse.EINVAL // as in Linux, nfs_rename
	}
	c, source, target := f.c, nameKey{in.NodeId, from}, nameKey{in.Newdir, to}
	c.mu.Lock()
	ino := c.kernel.ino(source)
	c.mu.Unlock()
	errno := c.rename(source.dir, from, target.dir, to)
	code := f.gone(errno, source, target)
	if errno == 0 && ino != 0 {
		c.mu.Lock()
		c.kernel.set(target, ino) // the kernel moves the name, whatever the server has moved
		c.mu.Unlock()
	}
	return code
}

// There is no lock manager.
func (f *fuseFS) GetLk(<-chan struct{}, *fuse.LkIn, *fuse.LkOut) fuse.Status {
	return status(syscall.ENOLCK)
}
func (f *fuseFS) SetLk(<-chan struct{}, *fuse.LkIn) fuse.Status  { return status(syscall.ENOLCK) }
func (f *fuseFS) SetLkw(<-chan struct{}, *fuse.LkIn) fuse.Status { return status(syscall.ENOLCK) }

func (f *fuseFS) StatFs(_ <-chan struct{}, _ *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	*out = fuse.StatfsOut{Blocks: 1 << 30, Bfree: 1 << 29, Bavail: 1 << 29, Files: 1 << 20, Ffree: 1 << 19, Bsize: 4096, Frsize: 4096, NameLen: 255}
	return status(f.c.fsstat())
}
