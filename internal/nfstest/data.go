//go:build linux

package nfstest

import (
	"slices"
	"syscall"
)

// content returns the data of a file, or what a symbolic link points to: cached as long as the file has not changed, as far as
// its cached attributes tell (Linux, nfs_revalidate_mapping). The caller must not change it.
func (c *client) content(ino uint64) ([]byte, syscall.Errno) {
	a, errno := c.revalidate(ino, false)
	if errno != 0 {
		return nil, errno
	}
	c.mu.Lock()
	n := c.node(ino)
	data, ok, name := n.data, n.dataAt == c.change(a), n.last.name
	c.mu.Unlock()
	if ok {
		return data, 0
	}
	op := Read
	if a.mode&syscall.S_IFMT == syscall.S_IFLNK {
		op = Readlink
	}
	data = nil
	var at uint64
	for {
		offset := len(data) // the request may outlive this call
		r := c.net.call(op, func() reply { return c.server.read(ino, offset, c.options.RSize) }, name)
		if _, errno := c.settle(ino, r); errno != 0 {
			return nil, errno
		}
		if at == 0 {
			at = c.change(r.obj)
		}
		data = append(data, r.data...)
		if r.eof {
			break
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	n.data, n.dataAt = data, at
	return data, 0
}

// read reads from an open file: what this client has written is there, sent or not.
func (c *client) read(h *handle, offset int, buf []byte) (int, syscall.Errno) {
	data, errno := c.content(h.node.ino)
	if errno != 0 {
		return 0, errno
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	h.closed = false
	if dirty := h.node.dirty; len(dirty) > 0 {
		data = slices.Clone(data)
		for _, e := range dirty {
			data = overlay(data, e.offset, e.data)
		}
	}
	return copy(buf, data[min(offset, len(data)):]), 0
}

// write keeps the data until the file is closed or synced, unless it was opened with O_SYNC or the mount has noac.
func (c *client) write(h *handle, offset int, data []byte) syscall.Errno {
	c.mu.Lock()
	h.closed = false
	n := h.node
	if last := len(n.dirty) - 1; last >= 0 && n.dirty[last].offset+len(n.dirty[last].data) == offset {
		n.dirty[last].data = append(n.dirty[last].data, data...)
	} else {
		n.dirty = append(n.dirty, extent{offset, slices.Clone(data)})
	}
	c.mu.Unlock()
	if h.sync {
		return c.flush(n.ino)
	}
	return 0
}

// flush sends what was written to the server, and returns when it is on its disk (nfs(5), close-to-open): in one WRITE if that
// suffices, otherwise in several and a COMMIT, all of them once more if the server was restarted between (RFC 1813, section
// 4.8). Data that the server refuses is lost; the error is that of close(2) or fsync(2).
func (c *client) flush(ino uint64) syscall.Errno {
	c.mu.Lock()
	n := c.nodes[ino]
	if n == nil || len(n.dirty) == 0 {
		c.mu.Unlock()
		return 0
	}
	dirty, name := n.dirty, n.last.name
	n.dirty = nil
	// Our own WRITEs change the file from what we know to what we know; see learn.
	if n.seq != 0 && (n.dataAt == c.change(n.attr) || n.attr.size == 0) {
		if n.attr.size == 0 {
			n.data = nil
		}
		data := slices.Clone(n.data)
		for _, e := range dirty {
			data = overlay(data, e.offset, e.data)
		}
		n.data, n.dataAt = data, c.change(n.attr)
	}
	c.mu.Unlock()
	errno := c.send(ino, name, dirty)
	if errno != 0 {
		c.mu.Lock()
		n.dataAt = 0
		c.mu.Unlock()
	}
	return errno
}

func (c *client) send(ino uint64, name string, dirty []extent) syscall.Errno {
	var pieces []extent
	for _, e := range dirty {
		for offset := e.offset; len(e.data) > 0; {
			size := min(c.options.WSize, len(e.data))
			pieces = append(pieces, extent{offset, e.data[:size]})
			offset, e.data = offset+size, e.data[size:]
		}
	}
	stable := len(pieces) == 1
	for {
		var verifiers []uint64
		for _, p := range pieces {
			r := c.net.call(Write, func() reply { return c.server.write(ino, p.offset, p.data, stable) }, name)
			if _, errno := c.settle(ino, r); errno != 0 {
				return errno
			}
			verifiers = append(verifiers, r.verifier)
		}
		if stable {
			return 0
		}
		r := c.net.call(Commit, func() reply { return c.server.commit(ino) }, name)
		if _, errno := c.settle(ino, r); errno != 0 {
			return errno
		}
		if !slices.ContainsFunc(verifiers, func(v uint64) bool { return v != r.verifier }) {
			return 0
		}
	}
}

// closeHandle is close(2): it sends what was written. The kernel tells of the last close of a file by release.
func (c *client) closeHandle(h *handle) syscall.Errno {
	c.mu.Lock()
	h.closed = true
	c.mu.Unlock()
	if !h.write {
		return 0
	}
	return c.flush(h.node.ino)
}

// list returns the name at a position of an open directory. It is read on from the server as far as needed, DirEntries names at
// a time, unless the whole of it is cached and it has not changed, as far as its cached attributes tell (Linux, nfs_readdir).
func (c *client) list(h *handle, position int) (e entry, ok bool, errno syscall.Errno) {
	ino := h.node.ino
	if position == 0 {
		a, errno := c.revalidate(ino, false)
		if errno != 0 {
			return entry{}, false, errno
		}
		c.mu.Lock()
		h.entries, h.eof, h.change = nil, false, 0
		if h.node.listedAt == c.change(a) {
			h.entries, h.eof = h.node.listing, true
		}
		c.mu.Unlock()
	}
	for {
		c.mu.Lock()
		entries, eof, name := h.entries, h.eof, h.node.last.name
		c.mu.Unlock()
		if position < len(entries) {
			return entries[position], true, 0
		}
		if eof {
			return entry{}, false, 0
		}
		var cookie uint64
		if len(entries) > 0 {
			cookie = entries[len(entries)-1].cookie
		}
		generation := c.generationOf(ino)
		r := c.net.call(Readdir, func() reply { return c.server.readdir(ino, cookie, c.options.DirEntries) }, name)
		if _, errno := c.settle(ino, r); errno != 0 {
			return entry{}, false, errno
		}
		c.mu.Lock()
		if h.change == 0 {
			h.change = c.change(r.wcc[0].post)
		}
		if !c.options.NoReaddirPlus { // names are as good as looked up (Linux, nfs_prime_dcache)
			for _, e := range r.entries {
				c.learnAttr(r.seq, e.attr)
				c.setName(h.node, e.name, e.attr.ino, r.seq, generation)
			}
		}
		h.entries, h.eof = append(entries, r.entries...), r.eof
		if r.eof {
			h.node.listing, h.node.listedAt = h.entries, h.change
		}
		c.mu.Unlock()
	}
}
