//go:build linux

package nfstest

import (
	"fmt"
	"math/rand/v2"
	"path"
	"slices"
	"sync"
	"syscall"
	"time"
)

// Op is a request from a client to the server: a procedure of NFSv3 (RFC 1813).
type Op string

// A mount with Version 4 has Open in place of a Getattr or a Lookup when a file is opened; its other requests have the names of
// NFSv3 here, too.
const (
	Getattr  Op = "GETATTR"
	Setattr  Op = "SETATTR"
	Lookup   Op = "LOOKUP"
	Readlink Op = "READLINK"
	Read     Op = "READ"
	Write    Op = "WRITE"
	Create   Op = "CREATE"
	Mkdir    Op = "MKDIR"
	Symlink  Op = "SYMLINK"
	Remove   Op = "REMOVE"
	Rmdir    Op = "RMDIR"
	Rename   Op = "RENAME"
	Link     Op = "LINK"
	Readdir  Op = "READDIR" // or READDIRPLUS
	Commit   Op = "COMMIT"
	Fsstat   Op = "FSSTAT"
	Open     Op = "OPEN"
)

// Changes are the operations that a read-only server refuses.
func Changes() []Op {
	return []Op{Setattr, Write, Create, Mkdir, Symlink, Remove, Rmdir, Rename, Link, Commit}
}

// Kind is what happens to a request.
type Kind string

const (
	// Fail: the server answers Err and does nothing.
	Fail Kind = "fail"
	// Delay: the request arrives late. With Hold it does not arrive until Release: a server that hangs.
	Delay Kind = "delay"
	// DelayAnswer: the server executes the request, and the answer arrives late.
	DelayAnswer Kind = "delay answer"
	// LostAnswer: the server executes the request and the answer is lost; the client sends the request again, the server
	// executes it again, and that answer is what the call returns (nfs(5), timeo and retrans). Of a RENAME or REMOVE this is
	// ENOENT, of a MKDIR or LINK EEXIST, although it was done. An exclusive CREATE succeeds (RFC 1813, section 3.3.8).
	LostAnswer Kind = "lost answer"
	// Repeat: the server executes and answers the request, and later a copy of it, which the client had sent because it was
	// impatient; nobody waits for the answer to that.
	Repeat Kind = "repeat"
)

// Always, as a Fault's Count, is every request.
const Always = -1

// Fault says what happens to some requests.
type Fault struct {
	Kind Kind
	// Ops are the requests. Empty: all.
	Ops []Op
	// Name is a pattern of path.Match. Not empty: only requests for such a name (of a rename, the old or the new one); READ,
	// WRITE, COMMIT, GETATTR, SETATTR and READDIR name no file, but here have the name that the client last knew it by.
	Name string
	// Skip is how many requests pass before the first that is hit.
	Skip int
	// Count is how many requests are hit. 0: one.
	Count int
	// Probability is that of a request being hit. 0: it is.
	Probability float64
	// Seed determines which.
	Seed uint64
	// Err is what Fail answers.
	Err syscall.Errno
	// After is how long Delay, DelayAnswer, LostAnswer and Repeat wait. 0: 2 ms. Clients with deadlines should wait longer.
	After time.Duration
	// Hold: they wait for Release instead.
	Hold bool
}

func (f Fault) validate() error {
	if !slices.Contains([]Kind{Fail, Delay, DelayAnswer, LostAnswer, Repeat}, f.Kind) {
		return fmt.Errorf("fault: kind %q unknown", f.Kind)
	}
	if f.Kind == Fail && f.Err == 0 {
		return fmt.Errorf("fault: %s needs Err", Fail)
	}
	_, err := path.Match(f.Name, "")
	return err
}

// faults are what is in force, of a client or of all.
type faults struct {
	mu sync.Mutex // guards the fields below

	list []*armed
}

type armed struct {
	Fault
	rand *rand.Rand
	left int
}

func (fs *faults) add(f Fault) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	a := &armed{Fault: f, rand: rand.New(rand.NewPCG(f.Seed, 0)), left: f.Count}
	if a.left == 0 {
		a.left = 1
	}
	fs.list = append(fs.list, a)
}

func (fs *faults) clear() {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	fs.list = nil
}

// take returns the first fault that hits the request, nil if there is none.
func (fs *faults) take(op Op, names []string) *Fault {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	for n, a := range fs.list {
		if !a.matches(op, names) {
			continue
		}
		if a.Skip > 0 {
			a.Skip--
			continue
		}
		if a.Probability > 0 && a.rand.Float64() >= a.Probability {
			continue
		}
		if a.left--; a.left == 0 {
			fs.list = slices.Delete(fs.list, n, n+1)
		}
		return &a.Fault
	}
	return nil
}

func (f *Fault) matches(op Op, names []string) bool {
	if len(f.Ops) > 0 && !slices.Contains(f.Ops, op) {
		return false
	}
	return f.Name == "" || slices.ContainsFunc(names, func(name string) bool {
		ok, _ := path.Match(f.Name, name) // validate has looked
		return ok
	})
}

// held is a request that waits for Release.
type held struct {
	op      Op
	release chan struct{}
}

// network carries the requests of one client, and counts them.
type network struct {
	server  *server
	own     faults  // of this client
	all     *faults // of all clients
	soft    time.Duration
	softErr syscall.Errno
	closed  chan struct{} // closed when the client is unmounted
	late    sync.WaitGroup

	mu sync.Mutex // guards the fields below

	ended bool // nothing is added to late
	held  []*held
	calls map[Op]int
}

// background runs f until the unmount waits for it; after that it does not, and returns false.
func (n *network) background(f func()) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.ended {
		n.late.Go(f)
	}
	return !n.ended
}

// end has all requests fail, and waits for those that nobody waits for.
func (n *network) end() {
	n.mu.Lock()
	n.ended = true
	n.mu.Unlock()
	close(n.closed)
	n.late.Wait()
}

// call sends a request to the server and returns its answer. It retries for ever, as a hard mount does; on a soft mount it
// gives up, and the request may still be executed (nfs(5), soft). After the unmount it is EIO.
func (n *network) call(op Op, do func() reply, names ...string) reply {
	f := n.own.take(op, names)
	if f == nil {
		f = n.all.take(op, names)
	}
	if n.soft == 0 {
		return n.exchange(op, f, do)
	}
	answer := make(chan reply, 1)
	if !n.background(func() { answer <- n.exchange(op, f, do) }) {
		return reply{err: syscall.EIO}
	}
	timeout := time.NewTimer(n.soft)
	defer timeout.Stop()
	select {
	case r := <-answer:
		return r
	case <-timeout.C:
		return reply{err: n.softErr}
	}
}

func (n *network) exchange(op Op, f *Fault, do func() reply) reply {
	send := func() reply {
		n.mu.Lock()
		n.calls[op]++
		n.mu.Unlock()
		if !n.server.waitUp(n.closed) {
			return reply{err: syscall.EIO}
		}
		return do()
	}
	if f == nil {
		return send()
	}
	switch f.Kind {
	case Fail:
		return reply{err: f.Err}
	case Delay:
		if !n.wait(op, f) {
			return reply{err: syscall.EIO}
		}
		return send()
	case DelayAnswer:
		r := send()
		if !n.wait(op, f) {
			return reply{err: syscall.EIO}
		}
		return r
	case LostAnswer:
		send()
		if !n.wait(op, f) {
			return reply{err: syscall.EIO}
		}
		return send()
	default: // Repeat
		r := send()
		n.background(func() {
			if n.wait(op, f) {
				send()
			}
		})
		return r
	}
}

// wait waits as long as the fault says; it reports false if the client was unmounted before.
func (n *network) wait(op Op, f *Fault) bool {
	h := &held{op, make(chan struct{})}
	if f.Hold {
		n.mu.Lock()
		n.held = append(n.held, h)
		n.mu.Unlock()
	} else {
		after := f.After
		if after == 0 {
			after = 2 * time.Millisecond
		}
		defer time.AfterFunc(after, func() { close(h.release) }).Stop()
	}
	select {
	case <-h.release:
		return true
	case <-n.closed:
		return false
	}
}

// release lets the held requests go on, those of ops or all.
func (n *network) release(ops []Op) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.held = slices.DeleteFunc(n.held, func(h *held) bool {
		if len(ops) > 0 && !slices.Contains(ops, h.op) {
			return false
		}
		close(h.release)
		return true
	})
}

func (n *network) countHeld() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.held)
}
