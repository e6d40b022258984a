//go:build linux

package nfstest

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"syscall"
	"time"
)

// client is one machine that has mounted the server: its caches, and what the kernel of that machine does with them. Its methods
// are the calls that FUSE passes on; no lock is held while a request is under way.
type client struct {
	server  *server
	net     *network
	options ClientOptions

	mu sync.Mutex // guards the fields below

	nodes    map[uint64]*node
	handles  map[uint64]*handle
	last     uint64 // handle
	silly    uint32 // counts the names of silly renames
	advanced time.Duration
	kernel   kernelView
}

func newClient(s *server, n *network, o ClientOptions) *client {
	return &client{server: s, net: n, options: o, nodes: make(map[uint64]*node), handles: make(map[uint64]*handle), kernel: newKernelView()}
}

// lookup finds a name (Linux, nfs_lookup and nfs_lookup_revalidate): in the cache as long as the directory has not changed, as
// far as its cached attributes tell; otherwise at the server. fresh reports that the server was asked.
func (c *client) lookup(dir uint64, name string, why intent) (a attr, fresh bool, errno syscall.Errno) {
	c.mu.Lock()
	cached, ok := c.node(dir).names[name]
	outdated := !ok && c.kernel.ino(nameKey{dir, name}) != 0
	c.mu.Unlock()
	switch {
	case !ok && !outdated && (why == intentCreate || why == intentReplace):
		// Whether it exists is for the request that follows to find out (Linux, nfs_is_exclusive_create).
		return attr{}, false, syscall.ENOENT
	case ok && cached.ino == 0 && why == intentCreate:
		return attr{}, false, syscall.ENOENT
	case ok && why != intentCreate:
		if _, errno := c.revalidate(dir, false); errno != 0 {
			return attr{}, false, errno
		}
		// If the directory has changed, the name is no longer there.
		c.mu.Lock()
		cached, ok = c.node(dir).names[name]
		if ok && cached.ino != 0 {
			c.node(cached.ino).last = nameKey{dir, name}
		}
		c.mu.Unlock()
		if ok && cached.ino == 0 {
			return attr{}, false, syscall.ENOENT
		}
		if ok {
			a, errno = c.revalidateKnown(cached.ino)
			return a, false, errno
		}
	}
	generation := c.generationOf(dir)
	r := c.net.call(Lookup, func() reply { return c.server.lookup(dir, name) }, name)
	if r.err == syscall.ESTALE {
		c.stale(dir)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.options.Version == 4 {
		r.wcc = [2]wcc{} // an NFSv4 client does not ask for the directory's attributes with a name
	}
	c.learn(r)
	d := c.node(dir)
	switch r.err {
	case 0:
		c.found(d, name, r, generation)
	case syscall.ENOENT:
		c.setName(d, name, 0, r.seq, generation)
		if why == intentCreate {
			return attr{}, false, syscall.ENOENT
		}
	}
	return r.obj, r.err == 0, r.err
}

// revalidateKnown returns the attributes that are known, however old: finding a name does not refresh those of what it leads to.
func (c *client) revalidateKnown(ino uint64) (attr, syscall.Errno) {
	c.mu.Lock()
	n := c.node(ino)
	a, known := n.attr, n.seq != 0
	c.mu.Unlock()
	if known {
		return a, 0
	}
	return c.revalidate(ino, true)
}

// getattr is stat(2). What was written and not yet sent counts.
func (c *client) getattr(ino uint64) (attr, syscall.Errno) {
	a, errno := c.revalidate(ino, false)
	if errno != 0 {
		return a, errno
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.withDirty(ino, a), 0
}

// withDirty returns the attributes with the size that the file will have. c.mu is held.
func (c *client) withDirty(ino uint64, a attr) attr {
	for _, e := range c.node(ino).dirty {
		a.size = max(a.size, uint64(e.offset+len(e.data)))
	}
	return a
}

func (c *client) setattr(ino uint64, set setAttrs) (attr, syscall.Errno) {
	if errno := c.flush(ino); errno != 0 {
		return attr{}, errno
	}
	c.mu.Lock()
	name := c.node(ino).last.name
	c.mu.Unlock()
	r := c.net.call(Setattr, func() reply { return c.server.setattr(ino, set) }, name)
	if set.size != nil {
		c.mu.Lock()
		c.node(ino).dataAt = 0
		c.mu.Unlock()
	}
	return c.settle(ino, r)
}

// open opens a file. The server is asked whether it has changed since it was last closed (nfs(5), close-to-open): in NFSv3, about
// the file that the cached name leads to, even if that file now has another name; in NFSv4, about the name (RFC 8881, section
// 18.16). If the handle or the name is stale, the answer is ESTALE, and the kernel walks the path again (Linux, EOPENSTALE).
// fresh says that the name was just looked up at the server.
func (c *client) open(ino uint64, flags uint32, fresh bool) (uint64, syscall.Errno) {
	if !fresh && !c.options.NoCTO {
		if errno := c.reopen(ino); errno != 0 {
			return 0, errno
		}
	}
	if flags&syscall.O_TRUNC != 0 {
		var none uint64
		if _, errno := c.setattr(ino, setAttrs{size: &none}); errno != 0 {
			return 0, errno
		}
	}
	return c.newHandle(ino, flags), 0
}

func (c *client) reopen(ino uint64) syscall.Errno {
	c.mu.Lock()
	key := c.node(ino).last
	c.mu.Unlock()
	if c.options.Version != 4 {
		_, errno := c.revalidate(ino, true)
		return errno
	}
	r := c.net.call(Open, func() reply { return c.server.lookup(key.dir, key.name) }, key.name)
	if r.err == 0 && r.obj.ino == ino {
		_, errno := c.settle(ino, r)
		return errno
	}
	if r.err != 0 && r.err != syscall.ENOENT && r.err != syscall.ESTALE {
		return r.err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.learn(r)
	d := c.node(key.dir)
	c.forgetName(d, key.name)
	d.expired = true
	return syscall.ESTALE
}

// openDir opens a directory, as open does in NFSv3. One that is opened as "." is not looked at again (Linux revalidates names).
func (c *client) openDir(ino uint64, fresh bool) (uint64, syscall.Errno) {
	if !fresh && !c.options.NoCTO {
		if _, errno := c.revalidate(ino, true); errno != 0 {
			return 0, errno
		}
	}
	return c.newHandle(ino, 0), 0
}

func (c *client) newHandle(ino uint64, flags uint32) uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last++
	h := &handle{
		node:  c.node(ino),
		write: flags&syscall.O_ACCMODE != syscall.O_RDONLY,
		sync:  flags&syscall.O_DSYNC != 0 || c.options.NoAC, // O_SYNC includes it
	}
	h.node.handles[h] = struct{}{}
	c.handles[c.last] = h
	return c.last
}

func (c *client) handle(id uint64) *handle {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.handles[id]
}

// release is the last close of an open file. If that was removed or replaced while open, what it was renamed to is now removed
// (Linux, nfs_complete_unlink), by its name and without anybody waiting for the answer.
func (c *client) release(id uint64) {
	c.mu.Lock()
	h := c.handles[id]
	delete(c.handles, id)
	n := h.node
	delete(n.handles, h)
	key := n.silly
	if len(n.handles) > 0 {
		key = nil
	}
	if key != nil {
		n.silly = nil
	}
	c.collect(n)
	c.mu.Unlock()
	if key != nil {
		c.net.background(func() { _ = c.remove(key.dir, key.name) }) // nobody is told
	}
}

// remove removes a file.
func (c *client) remove(dir uint64, name string) syscall.Errno {
	return c.settleRemoved(dir, name, c.net.call(Remove, func() reply { return c.server.remove(dir, name) }, name))
}

func (c *client) rmdir(dir uint64, name string) syscall.Errno {
	return c.settleRemoved(dir, name, c.net.call(Rmdir, func() reply { return c.server.rmdir(dir, name) }, name))
}

// settleRemoved takes in the answer to a request after which there is nothing under the name.
func (c *client) settleRemoved(dir uint64, name string, r reply) syscall.Errno {
	if r.err == syscall.ESTALE {
		c.stale(dir)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.learn(r)
	d := c.node(dir)
	if old := c.nodes[d.names[name].ino]; old != nil {
		old.expired = true
	}
	switch r.err {
	case 0:
		c.setName(d, name, 0, r.seq, d.generation)
	case syscall.ENOENT: // Linux, nfs_dentry_handle_enoent
		c.forgetName(d, name)
	}
	return r.err
}

// unlink is unlink(2): it removes a file, or renames it if this client has it open.
func (c *client) unlink(dir uint64, name string) syscall.Errno {
	if ino, open := c.openTarget(dir, name); open {
		return c.sillyRename(dir, name, ino)
	}
	return c.remove(dir, name)
}

// openTarget returns the file that this client believes to be under a name, if it has that open.
func (c *client) openTarget(dir uint64, name string) (ino uint64, open bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := c.nodes[c.kernel.ino(nameKey{dir, name})]
	if n == nil || n.attr.isDir() {
		return 0, false
	}
	// The kernel tells us of the last close of a file after close(2) has returned. NFS knows at once.
	for deadline := time.Now().Add(closeWait); len(n.handles) > 0 && n.allClosed() && time.Now().Before(deadline); {
		c.mu.Unlock()
		time.Sleep(100 * time.Microsecond)
		c.mu.Lock()
	}
	return n.ino, len(n.handles) > 0
}

// closeWait is how long after close(2) FUSE may tell of it. A descriptor that was duplicated is waited for in vain.
const closeWait = 200 * time.Millisecond

func (n *node) allClosed() bool {
	for h := range n.handles {
		if !h.closed {
			return false
		}
	}
	return true
}

// sillyRename hides a file that is open instead of removing it (nfs(5); Linux, nfs_sillyrename): it asks the server to rename
// whatever is now under the name, which another client may have changed, to a name that other clients see.
func (c *client) sillyRename(dir uint64, name string, ino uint64) syscall.Errno {
	c.mu.Lock()
	n := c.node(ino)
	if n.silly != nil && *n.silly == (nameKey{dir, name}) {
		c.mu.Unlock()
		return syscall.EBUSY
	}
	c.silly++
	hidden := fmt.Sprintf(".nfs%016x%08x", ino, c.silly)
	c.mu.Unlock()
	// Another client that hides the same file counts on its own.
	for {
		_, _, errno := c.lookup(dir, hidden, intentNone)
		if errno == syscall.ENOENT {
			break
		}
		if errno != 0 {
			return errno
		}
		c.mu.Lock()
		c.silly++
		hidden = fmt.Sprintf(".nfs%016x%08x", ino, c.silly)
		c.mu.Unlock()
	}
	r := c.net.call(Rename, func() reply { return c.server.rename(dir, name, dir, hidden) }, name, hidden)
	if errno := c.settleRemoved(dir, name, r); errno != 0 {
		return errno
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	n.silly = &nameKey{dir, hidden}
	d := c.node(dir)
	c.found(d, hidden, r, d.generation)
	return 0
}

// rename is rename(2). A file that is replaced is hidden first if this client has it open (Linux, nfs_rename).
func (c *client) rename(fromDir uint64, from string, toDir uint64, to string) syscall.Errno {
	if ino, open := c.openTarget(toDir, to); open {
		if errno := c.sillyRename(toDir, to, ino); errno != 0 {
			return errno
		}
	}
	r := c.net.call(Rename, func() reply { return c.server.rename(fromDir, from, toDir, to) }, from, to)
	if r.err == syscall.ESTALE {
		c.stale(fromDir)
		c.stale(toDir)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.learn(r)
	d := c.node(toDir)
	switch {
	case r.err == syscall.ENOENT:
		c.forgetName(c.node(fromDir), from)
	case r.err == 0:
		c.forgetName(c.node(fromDir), from)
		if old := c.nodes[d.names[to].ino]; old != nil {
			old.expired = true
		}
		if r.obj.ino != 0 {
			c.found(d, to, r, d.generation)
		}
	}
	return r.err
}

// create makes and opens a file.
func (c *client) create(dir uint64, name string, flags uint32, set setAttrs) (attr, uint64, syscall.Errno) {
	var verifier uint64
	first := set
	if flags&syscall.O_EXCL != 0 {
		verifier = rand.Uint64() | 1
		if c.options.Version != 4 {
			// NFSv3 has no room for the attributes beside the verifier (RFC 1813, section 3.3.8); until the SETATTR that
			// follows, others see a file that nobody may open. RFC 8881 has EXCLUSIVE4_1.
			first = setAttrs{uid: set.uid, gid: set.gid}
		}
	} else if flags&syscall.O_TRUNC != 0 {
		first.size = new(uint64)
	}
	r := c.net.call(Create, func() reply { return c.server.create(dir, name, first, verifier) }, name)
	a, errno := c.settleName(dir, name, r)
	if errno == 0 && first.mode == nil {
		a, errno = c.setattr(a.ino, setAttrs{mode: set.mode, mtimeNow: true, atimeNow: true})
	}
	if errno != 0 {
		return attr{}, 0, errno
	}
	return a, c.newHandle(a.ino, flags), 0
}

func (c *client) mkdir(dir uint64, name string, set setAttrs) (attr, syscall.Errno) {
	r := c.net.call(Mkdir, func() reply { return c.server.mkdir(dir, name, set) }, name)
	return c.settleName(dir, name, r)
}

func (c *client) symlink(dir uint64, name, target string, set setAttrs) (attr, syscall.Errno) {
	r := c.net.call(Symlink, func() reply { return c.server.symlink(dir, name, target, set) }, name)
	return c.settleName(dir, name, r)
}

func (c *client) link(ino, dir uint64, name string) (attr, syscall.Errno) {
	r := c.net.call(Link, func() reply { return c.server.link(ino, dir, name) }, name)
	if r.err == syscall.ESTALE {
		c.stale(ino)
	}
	return c.settleName(dir, name, r)
}

func (c *client) fsstat() syscall.Errno {
	return c.net.call(Fsstat, func() reply { return c.server.getattr(rootIno) }).err
}

func (c *client) forget(ino, count uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if n := c.nodes[ino]; n != nil {
		n.kernel -= min(count, n.kernel)
		if n.kernel == 0 {
			c.kernel.forget(ino)
		}
		c.collect(n)
	}
}
