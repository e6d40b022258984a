//go:build linux

package nfstest

import (
	"bytes"
	"fmt"
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
	for range 100 {
		b, err := os.ReadFile("/proc/" + strconv.Itoa(int(tid)) + "/syscall")
		if err != nil {
			return systemCall{}, false
		}
		if string(b) == "running\n" { // it has sent its request, and is about to wait for the answer
			time.Sleep(20 * time.Microsecond)
			continue
		}
		call.tid = int(tid)
		_, err = fmt.Sscanf(string(b), "%d %v %v %v %v %v %v", &call.number,
			&call.args[0], &call.args[1], &call.args[2], &call.args[3], &call.args[4], &call.args[5])
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
	var address uintptr
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
		address = call.args[3]
	case unix.SYS_RENAMEAT, unix.SYS_RENAMEAT2:
		address = call.args[3]
		why = intentReplace
		if from := components(call.path(call.args[1])); slices.Contains(from, name) {
			return intentNone // it may be looked up as a part of the other path
		}
	default:
		return intentNone
	}
	path := components(call.path(address))
	if len(path) == 0 || slices.Index(path, name) != len(path)-1 {
		return intentNone
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
