//go:build linux

package nfstest

import (
	"bytes"
	"errors"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// intent is what a name is looked up for. A file system in the kernel is told (LOOKUP_CREATE|LOOKUP_EXCL and
// LOOKUP_RENAME_TARGET), one in user space is not: it looks at the system call that the thread is in.
type intent int

const (
	intentNone    intent = iota
	intentCreate         // the name is to be made, and must not exist
	intentReplace        // another name is to be renamed to it
)

// systemCall is a system call that a thread is in.
type systemCall struct {
	tid    int
	number uintptr
	args   [6]uintptr
}

// currentCall returns the system call of a thread that waits for FUSE.
func currentCall(tid uint32) (call systemCall, ok bool) {
	call.tid = int(tid)
	// Not by package os, which makes twice as many calls, and every LOOKUP comes here.
	fd, err := syscall.Open("/proc/"+strconv.Itoa(call.tid)+"/syscall", syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return systemCall{}, false
	}
	defer syscall.Close(fd)
	b := make([]byte, 256)
	for range 100 {
		n, err := syscall.Pread(fd, b, 0)
		if err != nil {
			return systemCall{}, false
		}
		if string(b[:n]) == "running\n" { // it has sent its request, and is about to wait for the answer
			time.Sleep(20 * time.Microsecond)
			continue
		}
		fields := strings.Fields(string(b[:n]))
		if len(fields) < 7 {
			return systemCall{}, false
		}
		number, err := strconv.ParseUint(fields[0], 10, 64)
		call.number = uintptr(number)
		for i := range call.args {
			arg, e := strconv.ParseUint(fields[i+1], 0, 64)
			err = errors.Join(err, e)
			call.args[i] = uintptr(arg)
		}
		return call, err == nil
	}
	return systemCall{}, false
}

// path returns the string at an address of the thread, "" if it cannot be read.
func (c systemCall) path(address uintptr) string {
	var path []byte
	page := uintptr(os.Getpagesize())
	for len(path) < unix.PathMax {
		b := make([]byte, page-address%page)
		remote := []unix.RemoteIovec{{Base: address, Len: len(b)}}
		n, err := unix.ProcessVMReadv(c.tid, []unix.Iovec{{Base: &b[0], Len: uint64(len(b))}}, remote, 0)
		if err != nil {
			return ""
		}
		if end := bytes.IndexByte(b[:n], 0); end >= 0 {
			return string(append(path, b[:end]...))
		}
		path = append(path, b[:n]...)
		address += uintptr(n)
	}
	return ""
}

// intentOf returns what the thread looks the name up for. It knows the calls that Go makes.
func intentOf(tid uint32, name string) intent {
	call, ok := currentCall(tid)
	if !ok {
		return intentNone
	}
	const exclusive = syscall.O_CREAT | syscall.O_EXCL
	var address, other uintptr // of the path of the name, and of another one in the call
	why := intentCreate
	switch call.number {
	case unix.SYS_OPENAT:
		if call.args[2]&exclusive != exclusive {
			return intentNone
		}
		address = call.args[1]
	case unix.SYS_MKDIRAT, unix.SYS_MKNODAT:
		address = call.args[1]
	case unix.SYS_SYMLINKAT:
		address = call.args[2]
	case unix.SYS_LINKAT:
		address, other = call.args[3], call.args[1]
	case unix.SYS_RENAMEAT, unix.SYS_RENAMEAT2:
		address, other = call.args[3], call.args[1]
		why = intentReplace
	default:
		return intentNone
	}
	path := components(call.path(address))
	if len(path) == 0 || slices.Index(path, name) != len(path)-1 {
		return intentNone
	}
	if other != 0 && slices.Contains(components(call.path(other)), name) {
		return intentNone // it may be looked up as a part of that
	}
	return why
}

// opensItself reports whether the thread opens a directory that it has open already, as ".".
func opensItself(tid uint32) bool {
	call, ok := currentCall(tid)
	return ok && call.number == unix.SYS_OPENAT && call.path(call.args[1]) == "."
}

func components(path string) []string {
	return strings.FieldsFunc(path, func(r rune) bool { return r == '/' })
}

// kernelView is what FUSE in the kernel remembers, and what it is about to ask.
type kernelView struct {
	names  map[nameKey]uint64
	byIno  map[uint64]map[nameKey]struct{}
	recent map[uint32]answer // by thread
	looked map[uint32]uint64 // by thread: what it has just looked up at the server
}

// answer is that to a LOOKUP.
type answer struct {
	key   nameKey
	attr  attr
	errno syscall.Errno
	at    time.Time
}

func newKernelView() kernelView {
	return kernelView{make(map[nameKey]uint64), make(map[uint64]map[nameKey]struct{}), make(map[uint32]answer), make(map[uint32]uint64)}
}

// ino returns what the kernel thinks to be under a name, 0 if it does not know.
func (k *kernelView) ino(key nameKey) uint64 { return k.names[key] }

func (k *kernelView) set(key nameKey, ino uint64) {
	k.drop(key)
	k.names[key] = ino
	if k.byIno[ino] == nil {
		k.byIno[ino] = make(map[nameKey]struct{})
	}
	k.byIno[ino][key] = struct{}{}
}

func (k *kernelView) drop(key nameKey) {
	ino := k.names[key]
	delete(k.names, key)
	delete(k.byIno[ino], key)
	if len(k.byIno[ino]) == 0 {
		delete(k.byIno, ino)
	}
}

func (k *kernelView) forget(ino uint64) {
	for key := range k.byIno[ino] {
		delete(k.names, key)
	}
	delete(k.byIno, ino)
}

// again returns the answer to the LOOKUP that the thread has sent last, if this is the same. When the kernel learns that a name
// which it knew leads elsewhere, or gets an error, it asks once more; an NFS client would not.
func (k *kernelView) again(tid uint32, key nameKey) (answer, bool) {
	a, ok := k.recent[tid]
	delete(k.recent, tid)
	return a, ok && a.key == key && time.Since(a.at) < 20*time.Millisecond
}

// answered takes note of the answer to a LOOKUP.
func (k *kernelView) answered(tid uint32, key nameKey, a attr, errno syscall.Errno) {
	known := k.names[key]
	if known != 0 && (errno != 0 || known != a.ino) {
		k.recent[tid] = answer{key, a, errno, time.Now()}
	}
	if errno != 0 {
		k.drop(key)
	} else {
		k.set(key, a.ino)
	}
}
