//go:build linux

package nfstest

import (
	"hash/fnv"
	"math/rand/v2"
	"slices"
	"sync"
	"syscall"
	"time"
)

// rootIno is the file handle of the exported directory, and FUSE's node ID of the root.
const rootIno = 1

// attr are the attributes of a file (RFC 1813, fattr3).
type attr struct {
	ino                 uint64
	mode                uint32 // with the type, as in stat(2)
	nlink, uid, gid     uint32
	size                uint64
	atime, mtime, ctime time.Time
	change              uint64 // RFC 8881, section 5.8.1.4; NFSv3 has the ctime only
}

func (a attr) isDir() bool { return a.mode&syscall.S_IFMT == syscall.S_IFDIR }

// wcc says how an operation has changed a directory (RFC 1813, wcc_data; RFC 8881, change_info4). If another client changed it
// since this one looked, pre differs from what this one knows. post.ino is 0 if the server has nothing to say.
type wcc struct{ pre, post attr }

// entry is a name in a directory.
type entry struct {
	cookie uint64
	name   string
	attr   attr
}

// reply is what the server answers to a request.
type reply struct {
	seq      uint64 // the order in which requests were executed
	err      syscall.Errno
	obj      attr   // of the object asked for or made; ino is 0 if there is none
	wcc      [2]wcc // of the directories, or the file, that the request changed
	data     []byte // READ, READLINK
	entries  []entry
	eof      bool
	verifier uint64 // WRITE, COMMIT: another one after a restart of the server (RFC 1813, section 3.3.7)
}

// setAttrs are the attributes to set; nil leaves one as it is.
type setAttrs struct {
	mode, uid, gid *uint32
	size           *uint64
	atime, mtime   *time.Time
	mtimeNow       bool // by the server's clock
	atimeNow       bool
}

// inode is a file, directory or symbolic link of the server. Its number is its file handle, and is never given to another.
type inode struct {
	attr
	names    map[string]uint64 // of a directory
	parent   uint64            // of a directory
	data     []byte            // or what a symbolic link points to
	stable   []byte            // the data that survives a restart, if unstable
	unstable bool              // data was written and not committed
	verifier uint64            // of the exclusive CREATE that made it
}

// server is an NFS server in memory. Requests are executed one at a time, wholly or not at all, and never answered from a
// cache of replies: one that is repeated is executed again, as by a server that was restarted or has a small cache.
type server struct {
	skew, granularity time.Duration

	mu sync.Mutex // guards the fields below

	inodes   map[uint64]*inode
	next     uint64
	seq      uint64
	last     time.Time
	verifier uint64
	down     chan struct{} // closed when the server is up again; nil while it is up
}

func newServer(o Options) *server {
	s := &server{skew: o.ClockSkew, granularity: o.Granularity, inodes: make(map[uint64]*inode), next: rootIno - 1, verifier: rand.Uint64()}
	root := s.make(syscall.S_IFDIR|0o755, setAttrs{})
	root.parent = root.ino
	return s
}

// now is the server's clock. Without a granularity, no two changes have the same time.
func (s *server) now() time.Time {
	t := time.Now().Add(s.skew)
	if s.granularity > 0 {
		return t.Truncate(s.granularity)
	}
	if !t.After(s.last) {
		t = s.last.Add(1)
	}
	s.last = t
	return t
}

func (s *server) make(mode uint32, set setAttrs) *inode {
	s.next++
	now := s.now()
	i := &inode{attr: attr{ino: s.next, mode: mode, nlink: 1, atime: now, mtime: now, ctime: now, change: 1}}
	if i.isDir() {
		i.names = make(map[string]uint64)
		i.nlink = 2
	}
	s.apply(i, set)
	s.inodes[i.ino] = i
	return i
}

func (s *server) apply(i *inode, set setAttrs) {
	if set.mode != nil {
		i.mode = i.mode&syscall.S_IFMT | *set.mode&0o7777
	}
	if set.uid != nil {
		i.uid = *set.uid
	}
	if set.gid != nil {
		i.gid = *set.gid
	}
	now := s.now()
	if set.size != nil {
		i.data = resize(i.data, int(*set.size))
		i.stable, i.unstable = nil, false
		i.size = *set.size
		i.mtime = now
	}
	if set.atime != nil {
		i.atime = *set.atime
	} else if set.atimeNow {
		i.atime = now
	}
	if set.mtime != nil {
		i.mtime = *set.mtime
	} else if set.mtimeNow {
		i.mtime = now
	}
	i.ctime = now
	i.change++
}

// resize returns data with the length n, in memory of its own.
func resize(data []byte, n int) []byte {
	b := make([]byte, n)
	copy(b, data)
	return b
}

// overlay writes data over b, which it may change.
func overlay(b []byte, offset int, data []byte) []byte {
	if n := offset + len(data); n > len(b) {
		b = resize(b, n)
	}
	copy(b[offset:], data)
	return b
}

// touch says that the contents of i have changed.
func (s *server) touch(i *inode) {
	now := s.now()
	i.mtime, i.ctime = now, now
	i.change++
}

// do executes one request.
func (s *server) do(f func(r *reply) syscall.Errno) reply {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seq++
	r := reply{seq: s.seq, verifier: s.verifier}
	r.err = f(&r)
	return r
}

// inDirs executes one request on directories, of which the reply then tells how they were before and after. f gets them in the
// order of the handles.
func (s *server) inDirs(f func(r *reply, dirs []*inode) syscall.Errno, handles ...uint64) reply {
	return s.do(func(r *reply) syscall.Errno {
		dirs := make([]*inode, len(handles))
		for n, h := range handles {
			i, errno := s.dir(h)
			if errno != 0 {
				return errno
			}
			dirs[n], r.wcc[n].pre = i, i.attr
		}
		defer func() {
			for n, d := range dirs {
				r.wcc[n].post = d.attr
			}
		}()
		return f(r, dirs)
	})
}

// get returns the inode of a handle, or ESTALE if it is gone (RFC 1813, NFS3ERR_STALE).
func (s *server) get(handle uint64) (*inode, syscall.Errno) {
	if i := s.inodes[handle]; i != nil {
		return i, 0
	}
	return nil, syscall.ESTALE
}

func (s *server) dir(handle uint64) (*inode, syscall.Errno) {
	i, errno := s.get(handle)
	if errno == 0 && !i.isDir() {
		return nil, syscall.ENOTDIR
	}
	return i, errno
}

func (s *server) child(d *inode, name string) (*inode, syscall.Errno) {
	if len(name) > 255 {
		return nil, syscall.ENAMETOOLONG
	}
	if i := s.inodes[d.names[name]]; i != nil {
		return i, 0
	}
	return nil, syscall.ENOENT
}

func (s *server) enter(d *inode, name string, i *inode) {
	d.names[name] = i.ino
	if i.isDir() {
		i.parent = d.ino
		d.nlink++
	}
	s.touch(d)
}

// leave takes a name out of a directory; the inode that it led to is not freed.
func (s *server) leave(d *inode, name string) {
	if i := s.inodes[d.names[name]]; i.isDir() {
		d.nlink--
	}
	delete(d.names, name)
	s.touch(d)
}

// drop takes one link from i and frees it after the last: its handle is stale from now on, also for clients that have it open.
func (s *server) drop(i *inode) {
	i.nlink--
	i.ctime = s.now()
	i.change++
	if i.nlink == 0 || i.isDir() {
		delete(s.inodes, i.ino)
	}
}

func (s *server) getattr(handle uint64) reply {
	return s.do(func(r *reply) syscall.Errno {
		i, errno := s.get(handle)
		if errno == 0 {
			r.obj = i.attr
		}
		return errno
	})
}

func (s *server) setattr(handle uint64, set setAttrs) reply {
	return s.do(func(r *reply) syscall.Errno {
		i, errno := s.get(handle)
		if errno != 0 {
			return errno
		}
		if set.size != nil && i.isDir() {
			return syscall.EISDIR
		}
		before := i.attr
		s.apply(i, set)
		r.wcc[0] = wcc{before, i.attr}
		return 0
	})
}

func (s *server) lookup(dir uint64, name string) reply {
	return s.inDirs(func(r *reply, d []*inode) syscall.Errno {
		i, errno := s.child(d[0], name)
		if errno == 0 {
			r.obj = i.attr
		}
		return errno
	}, dir)
}

// create makes a file. With a verifier it is an exclusive create (RFC 1813, section 3.3.8): a repeated request has the verifier
// that the file was made with, and succeeds. Otherwise a file that exists is taken as it is.
func (s *server) create(dir uint64, name string, set setAttrs, verifier uint64) reply {
	return s.inDirs(func(r *reply, d []*inode) syscall.Errno {
		i, errno := s.child(d[0], name)
		switch {
		case errno == syscall.ENOENT:
			i = s.make(syscall.S_IFREG, set)
			i.verifier = verifier
			s.enter(d[0], name, i)
		case errno != 0:
			return errno
		case verifier != 0 && i.verifier != verifier:
			return syscall.EEXIST
		case i.isDir():
			return syscall.EISDIR
		case verifier == 0 && set.size != nil:
			s.apply(i, setAttrs{size: set.size})
		}
		r.obj = i.attr
		return 0
	}, dir)
}

func (s *server) mkdir(dir uint64, name string, set setAttrs) reply {
	return s.inDirs(func(r *reply, d []*inode) syscall.Errno {
		return s.makeNew(r, d[0], name, syscall.S_IFDIR, set, "")
	}, dir)
}

func (s *server) symlink(dir uint64, name, target string, set setAttrs) reply {
	return s.inDirs(func(r *reply, d []*inode) syscall.Errno {
		return s.makeNew(r, d[0], name, syscall.S_IFLNK|0o777, set, target)
	}, dir)
}

func (s *server) makeNew(r *reply, d *inode, name string, mode uint32, set setAttrs, target string) syscall.Errno {
	switch _, errno := s.child(d, name); errno {
	case 0:
		return syscall.EEXIST
	case syscall.ENOENT:
	default:
		return errno
	}
	i := s.make(mode, set)
	i.data, i.size = []byte(target), uint64(len(target))
	s.enter(d, name, i)
	r.obj = i.attr
	return 0
}

func (s *server) link(handle, dir uint64, name string) reply {
	return s.inDirs(func(r *reply, d []*inode) syscall.Errno {
		i, errno := s.get(handle)
		if errno != 0 {
			return errno
		}
		if i.isDir() {
			return syscall.EPERM
		}
		switch _, errno := s.child(d[0], name); errno {
		case 0:
			r.obj = i.attr
			return syscall.EEXIST
		case syscall.ENOENT:
		default:
			return errno
		}
		i.nlink++
		i.ctime = s.now()
		i.change++
		s.enter(d[0], name, i)
		r.obj = i.attr
		return 0
	}, dir)
}

func (s *server) remove(dir uint64, name string) reply {
	return s.inDirs(func(r *reply, d []*inode) syscall.Errno {
		i, errno := s.child(d[0], name)
		if errno != 0 {
			return errno
		}
		if i.isDir() {
			return syscall.EISDIR
		}
		s.leave(d[0], name)
		s.drop(i)
		return 0
	}, dir)
}

func (s *server) rmdir(dir uint64, name string) reply {
	return s.inDirs(func(r *reply, d []*inode) syscall.Errno {
		i, errno := s.child(d[0], name)
		switch {
		case errno != 0:
			return errno
		case !i.isDir():
			return syscall.ENOTDIR
		case len(i.names) > 0:
			return syscall.ENOTEMPTY
		}
		s.leave(d[0], name)
		s.drop(i)
		return 0
	}, dir)
}

func (s *server) rename(fromDir uint64, from string, toDir uint64, to string) reply {
	return s.inDirs(func(r *reply, d []*inode) syscall.Errno {
		i, errno := s.child(d[0], from)
		if errno != 0 {
			return errno
		}
		for p := d[1]; i.isDir(); p = s.inodes[p.parent] { // not into itself
			if p == i {
				return syscall.EINVAL
			}
			if p.ino == rootIno {
				break
			}
		}
		old, errno := s.child(d[1], to)
		switch {
		case errno == syscall.ENOENT:
		case errno != 0:
			return errno
		case old == i:
			return 0
		case old.isDir() && !i.isDir():
			return syscall.EISDIR
		case !old.isDir() && i.isDir():
			return syscall.ENOTDIR
		case old.isDir() && len(old.names) > 0:
			return syscall.ENOTEMPTY
		default:
			s.leave(d[1], to)
			s.drop(old)
		}
		s.leave(d[0], from)
		s.enter(d[1], to, i)
		i.ctime = s.now()
		i.change++
		r.obj = i.attr
		return 0
	}, fromDir, toDir)
}

func (s *server) read(handle uint64, offset, n int) reply {
	return s.do(func(r *reply) syscall.Errno {
		i, errno := s.get(handle)
		if errno != 0 {
			return errno
		}
		if i.isDir() {
			return syscall.EISDIR
		}
		start := min(offset, len(i.data))
		end := min(start+n, len(i.data))
		r.data = slices.Clone(i.data[start:end])
		r.eof = end == len(i.data)
		r.obj = i.attr
		return 0
	})
}

// write writes data. Unless stable, a restart of the server may forget it until COMMIT.
func (s *server) write(handle uint64, offset int, data []byte, stable bool) reply {
	return s.do(func(r *reply) syscall.Errno {
		i, errno := s.get(handle)
		if errno != 0 {
			return errno
		}
		before := i.attr
		if !stable && !i.unstable {
			i.stable, i.unstable = slices.Clone(i.data), true
		}
		i.data = overlay(i.data, offset, data)
		if stable && i.unstable {
			i.stable = overlay(i.stable, offset, data)
		}
		i.size = uint64(len(i.data))
		s.touch(i)
		r.wcc[0] = wcc{before, i.attr}
		return 0
	})
}

func (s *server) commit(handle uint64) reply {
	return s.do(func(r *reply) syscall.Errno {
		i, errno := s.get(handle)
		if errno == 0 {
			i.stable, i.unstable = nil, false
			r.obj = i.attr
		}
		return errno
	})
}

// readdir returns up to n names after the cookie. Names are in the order of a hash, as in ext4 or XFS: a list that takes several
// requests may have a name that was renamed between them under both names, or under none.
func (s *server) readdir(dir, cookie uint64, n int) reply {
	return s.inDirs(func(r *reply, d []*inode) syscall.Errno {
		for name, ino := range d[0].names {
			if c := nameCookie(name); c > cookie {
				r.entries = append(r.entries, entry{c, name, s.inodes[ino].attr})
			}
		}
		slices.SortFunc(r.entries, func(a, b entry) int {
			if a.cookie < b.cookie {
				return -1
			}
			return 1
		})
		r.eof = len(r.entries) <= n
		r.entries = r.entries[:min(n, len(r.entries))]
		return 0
	}, dir)
}

func nameCookie(name string) uint64 {
	f := fnv.New64a()
	_, _ = f.Write([]byte(name)) // it cannot fail
	h := f.Sum64()
	h = (h ^ h>>32) * 0xd6e8feb86659fd93 // or names that differ at the end would be neighbours
	return max(h^h>>32, 1)               // 0 is the beginning of a list
}

// crash stops the server and makes it forget what was written and not committed.
func (s *server) crash() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.down == nil {
		s.down = make(chan struct{})
	}
	s.verifier = rand.Uint64()
	for _, i := range s.inodes {
		if i.unstable {
			i.data, i.stable, i.unstable = i.stable, nil, false
			i.size = uint64(len(i.data))
			i.change++
		}
	}
}

// recover starts the server again.
func (s *server) recover() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.down != nil {
		close(s.down)
		s.down = nil
	}
}

// waitUp waits until the server runs; it reports false if closed was closed before.
func (s *server) waitUp(closed <-chan struct{}) bool {
	for {
		s.mu.Lock()
		down := s.down
		s.mu.Unlock()
		if down == nil {
			return true
		}
		select {
		case <-down:
		case <-closed:
			return false
		}
	}
}
