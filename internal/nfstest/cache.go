//go:build linux

package nfstest

import (
	"maps"
	"syscall"
	"time"
)

// nameKey is a name in a directory.
type nameKey struct {
	dir  uint64
	name string
}

// node is what a client remembers of a file: its inode, in Linux.
type node struct {
	ino  uint64
	last nameKey // the name by which it was last found

	// Attribute cache.
	attr    attr
	seq     uint64        // of the answer that attr is from; 0: there was none
	fetched time.Time     // by the client's clock
	timeo   time.Duration // how long attr is believed after fetched
	since   time.Time     // when timeo was last changed
	expired bool          // attr is to be fetched before it is believed again

	// Of a directory: names, and the whole list of them as of listedAt. A name is believed if it was found in the present
	// generation, which ends with every change that another client made.
	generation uint64
	names      map[string]name
	listing    []entry
	listedAt   uint64 // change attribute; 0: there is no listing

	// Of a file: its data as of dataAt, and what is not yet written to the server.
	data   []byte
	dataAt uint64 // change attribute; 0: there is no data
	dirty  []extent

	refs    map[nameKey]struct{} // names that lead here
	handles map[*handle]struct{} // open files
	silly   *nameKey             // where it was renamed to when it was removed or replaced while open
	kernel  uint64               // how often the kernel counts it
}

// name is a cached name: what it leads to, 0 for nothing.
type name struct {
	ino        uint64
	generation uint64
	seq        uint64
}

// extent is data that was written and not yet sent.
type extent struct {
	offset int
	data   []byte
}

// handle is an open file or directory.
type handle struct {
	node   *node
	write  bool
	sync   bool
	closed bool // by the application; the kernel has yet to say that this was the last descriptor

	// Of a directory: what was read of it so far.
	entries []entry
	eof     bool
	change  uint64 // of the directory when the reading began
}

// now is the client's clock, which Advance sets forward.
func (c *client) now() time.Time { return time.Now().Add(c.advanced) }

// node returns what is remembered of a file. c.mu is held.
func (c *client) node(ino uint64) *node {
	n := c.nodes[ino]
	if n == nil {
		n = &node{ino: ino, names: make(map[string]name), refs: make(map[nameKey]struct{}), handles: make(map[*handle]struct{})}
		c.nodes[ino] = n
	}
	return n
}

// change is what tells two states of a file apart: NFSv4's change attribute, which differs after every change, or the ctime in
// NFSv3, which differs if the server's clock has moved on (Linux, nfs_timespec_to_change_attr).
func (c *client) change(a attr) uint64 {
	if c.options.Version == 4 {
		return a.change
	}
	return uint64(a.ctime.UnixNano())
}

// limits returns acregmin and acregmax, or acdirmin and acdirmax (nfs(5)).
func (c *client) limits(a attr) (least, most time.Duration) {
	switch {
	case c.options.NoAC:
		return 0, 0
	case a.isDir():
		return c.options.AcDirMin, c.options.AcDirMax
	}
	return c.options.AcRegMin, c.options.AcRegMax
}

// learn takes in what an answer says. c.mu is held.
func (c *client) learn(r reply) {
	for _, w := range r.wcc {
		if w.post.ino == 0 {
			continue
		}
		n := c.node(w.post.ino)
		// After a change of our own, and no other, the names in a directory are still right (Linux, nfs_wcc_update_inode).
		if n.seq != 0 && r.seq > n.seq && c.change(n.attr) == c.change(w.pre) && c.change(w.pre) != c.change(w.post) {
			if n.dataAt == c.change(w.pre) {
				n.dataAt = c.change(w.post)
			}
			n.attr.change, n.attr.ctime = w.post.change, w.post.ctime
		}
		if w.pre.change != w.post.change {
			n.listedAt = 0 // by us, and even if the clock does not show it
		}
		c.learnAttr(r.seq, w.post)
	}
	if r.obj.ino != 0 {
		c.learnAttr(r.seq, r.obj)
	}
}

// learnAttr takes in attributes. c.mu is held.
func (c *client) learnAttr(seq uint64, a attr) {
	n := c.node(a.ino)
	if seq <= n.seq {
		return // answers may overtake each other (Linux, nfs_inode_attrs_need_update)
	}
	least, most := c.limits(a)
	now := c.now()
	switch changed := n.seq != 0 && c.change(a) != c.change(n.attr); {
	case n.seq == 0 || changed:
		if changed && a.isDir() {
			n.generation++
			for name := range n.names {
				c.forgetName(n, name)
			}
		}
		n.timeo, n.since = least, now
	case !now.Before(n.since.Add(n.timeo)): // it did not change for that long (Linux, nfs_update_inode)
		n.timeo, n.since = min(2*max(n.timeo, 1), most), now
	}
	n.attr, n.seq, n.fetched, n.expired = a, seq, now, false
}

// fresh reports whether the attributes of n may be believed. c.mu is held.
func (c *client) fresh(n *node) bool {
	return n.seq != 0 && !n.expired && c.now().Before(n.fetched.Add(n.timeo))
}

// setName remembers what an answer said about a name. generation is that of the directory when the request was sent: what it
// was told of a directory that changed meanwhile is not believed (Linux, nfs_lookup). c.mu is held.
func (c *client) setName(d *node, key string, ino, seq, generation uint64) {
	old, ok := d.names[key]
	if ok && old.seq > seq {
		return
	}
	c.forgetName(d, key)
	if generation != d.generation || c.options.LookupCache == "none" || ino == 0 && c.options.LookupCache == "pos" {
		return
	}
	if len(d.names) > 10_000 { // as if memory had run short
		for name := range d.names {
			c.forgetName(d, name)
		}
	}
	d.names[key] = name{ino, generation, seq}
	if ino != 0 {
		c.node(ino).refs[nameKey{d.ino, key}] = struct{}{}
	}
}

// forgetName drops a cached name. c.mu is held.
func (c *client) forgetName(d *node, name string) {
	if old, ok := d.names[name]; ok {
		delete(d.names, name)
		if n := c.nodes[old.ino]; n != nil {
			delete(n.refs, nameKey{d.ino, name})
			c.collect(n)
		}
	}
}

// collect forgets a node that nothing leads to. c.mu is held.
func (c *client) collect(n *node) {
	if n.ino != rootIno && n.kernel == 0 && len(n.refs) == 0 && len(n.handles) == 0 {
		for name := range maps.Clone(n.names) {
			c.forgetName(n, name)
		}
		delete(c.nodes, n.ino)
	}
}

// stale takes note that the server does not know a handle any more: the names that lead to it are dropped, and their
// directories are looked at again (Linux, nfs_mark_dir_for_revalidate). The kernel then walks the path once more, since the
// call failed with ESTALE.
func (c *client) stale(ino uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := c.nodes[ino]
	if n == nil {
		return
	}
	n.expired = true
	for key := range maps.Clone(n.refs) {
		if d := c.nodes[key.dir]; d != nil {
			c.forgetName(d, key.name)
			d.expired = true
		}
	}
}

// revalidate asks the server for the attributes of a file, if what is known is too old or force says so.
func (c *client) revalidate(ino uint64, force bool) (attr, syscall.Errno) {
	c.mu.Lock()
	n := c.node(ino)
	a, known, name := n.attr, c.fresh(n), n.last.name
	c.mu.Unlock()
	if known && !force {
		return a, 0
	}
	r := c.net.call(Getattr, func() reply { return c.server.getattr(ino) }, name)
	return c.settle(ino, r)
}

// settle takes in the answer to a request about a file, and returns its attributes.
func (c *client) settle(ino uint64, r reply) (attr, syscall.Errno) {
	if r.err == syscall.ESTALE {
		c.stale(ino)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.learn(r)
	return c.node(ino).attr, r.err
}

// settleName takes in the answer to a request that has, if it succeeded, made the name lead to r.obj.
func (c *client) settleName(dir uint64, name string, r reply) (attr, syscall.Errno) {
	if r.err == syscall.ESTALE {
		c.stale(dir)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	d := c.node(dir)
	c.learn(r)
	if r.err != 0 {
		c.forgetName(d, name)
		return attr{}, r.err
	}
	c.found(d, name, r, d.generation)
	return c.node(r.obj.ino).attr, 0
}

// found remembers that a name leads to r.obj. c.mu is held.
func (c *client) found(d *node, name string, r reply, generation uint64) {
	c.setName(d, name, r.obj.ino, r.seq, generation)
	c.node(r.obj.ino).last = nameKey{d.ino, name}
}

// generationOf returns the present generation of the names in a directory.
func (c *client) generationOf(dir uint64) uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.node(dir).generation
}
