//go:build linux

package nfstest

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"
)

// TestLostAnswer: a request whose answer was lost is executed twice, and the second answer is what the call returns.
func TestLostAnswer(t *testing.T) {
	_, a, b := two(t, ClientOptions{})
	exclusive := func(path string) error {
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err == nil {
			err = f.Close()
		}
		return err
	}
	mustWrite(t, a.path("f"), "text")
	must(t, os.Mkdir(a.path("gone"), 0o700))
	for _, test := range []struct {
		op   Op
		do   func() error
		want syscall.Errno
		has  []string // afterwards
	}{
		{Rename, func() error { return os.Rename(a.path("f"), a.path("g")) }, syscall.ENOENT, []string{"g", "gone"}},
		{Link, func() error { return os.Link(a.path("g"), a.path("h")) }, syscall.EEXIST, []string{"g", "gone", "h"}},
		{Remove, func() error { return syscall.Unlink(a.path("h")) }, syscall.ENOENT, []string{"g", "gone"}},
		{Rmdir, func() error { return syscall.Rmdir(a.path("gone")) }, syscall.ENOENT, []string{"g"}},
		{Mkdir, func() error { return os.Mkdir(a.path("d"), 0o700) }, syscall.EEXIST, []string{"d", "g"}},
		{Symlink, func() error { return os.Symlink("x", a.path("s")) }, syscall.EEXIST, []string{"d", "g", "s"}},
		{Create, func() error { return exclusive(a.path("e")) }, 0, []string{"d", "e", "g", "s"}},
		{Create, func() error { return exclusive(a.path("e")) }, syscall.EEXIST, []string{"d", "e", "g", "s"}},
		{Write, func() error { return os.WriteFile(a.path("e"), []byte("x"), 0o600) }, 0, []string{"d", "e", "g", "s"}},
	} {
		a.Calls()
		a.Inject(Fault{Kind: LostAnswer, Ops: []Op{test.op}})
		wantErr(t, string(test.op), test.do(), test.want)
		a.ClearFaults()
		if n := a.Calls()[test.op]; n != 2 && !(test.op == Create && test.want == syscall.EEXIST) {
			t.Errorf("%s was sent %d times, want 2", test.op, n)
		}
		wantNames(t, b.dir, test.has...)
		wantNames(t, a.dir, test.has...)
	}
	wantText(t, b.path("e"), "x")
}

// TestLateRetry: between the lost answer and the repeated request, others do things.
func TestLateRetry(t *testing.T) {
	_, a, b := two(t, ClientOptions{})
	mustWrite(t, a.path("f"), "one")
	a.Inject(Fault{Kind: LostAnswer, Ops: []Op{Rename}, Hold: true})
	done := make(chan error)
	go func() { done <- os.Rename(a.path("f"), a.path("g")) }()
	a.WaitHeld(1)
	wantText(t, b.path("g"), "one")
	mustWrite(t, b.path("f"), "two")
	a.Release()
	must(t, <-done)
	wantText(t, b.path("g"), "two") // renamed a second time
	wantStat(t, b.path("f"), syscall.ENOENT)
}

// TestRepeat: a copy of a request arrives when nobody remembers it.
func TestRepeat(t *testing.T) {
	_, a, b := two(t, ClientOptions{})
	mustWrite(t, a.path("f"), "one")
	a.Inject(Fault{Kind: Repeat, Ops: []Op{Remove}, Name: "f*", Hold: true})
	must(t, os.Remove(a.path("f")))
	mustWrite(t, b.path("f"), "two")
	wantNames(t, a.dir, "f")
	a.WaitHeld(1)
	a.Release(Remove)
	eventually(t, func() bool { _, err := os.ReadFile(b.path("f")); return errors.Is(err, fs.ErrNotExist) })
	wantNames(t, a.dir)
}

// TestDelay: a delayed request is executed late, one with a delayed answer at once.
func TestDelay(t *testing.T) {
	for kind, want := range map[Kind]syscall.Errno{Delay: syscall.ENOENT, DelayAnswer: 0} {
		_, a, b := two(t, ClientOptions{})
		const after = 50 * time.Millisecond
		a.Inject(Fault{Kind: kind, After: after})
		start := time.Now()
		must(t, os.Mkdir(a.path("d"), 0o700))
		if took := time.Since(start); took < after {
			t.Errorf("%s took %v, want at least %v", kind, took, after)
		}
		a.Inject(Fault{Kind: kind, Ops: []Op{Mkdir}, Hold: true})
		done := make(chan error)
		go func() { done <- os.Mkdir(a.path("e"), 0o700) }()
		a.WaitHeld(1)
		wantStat(t, b.path("e"), want)
		a.Release(Rename)
		if a.Held() != 1 {
			t.Error("another operation was released")
		}
		a.Release(Mkdir)
		must(t, <-done)
	}
}

// TestHang: a request that hangs holds up nobody else, and goes on when it is released.
func TestHang(t *testing.T) {
	_, a, b := two(t, ClientOptions{})
	for _, name := range []string{"d", "e"} {
		must(t, os.Mkdir(a.path(name), 0o700))
	}
	const n = 20
	a.Inject(Fault{Kind: Delay, Ops: []Op{Create}, Name: "hang-*", Count: Always, Hold: true})
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			dir := a.path("d", string(rune('a'+i)))
			if err := errors.Join(os.Mkdir(dir, 0o700), os.WriteFile(filepath.Join(dir, "hang-1"), nil, 0o600)); err != nil {
				t.Error(err)
			}
		})
	}
	a.WaitHeld(n)
	mustWrite(t, a.path("e", "f"), "text")
	wantText(t, b.path("e", "f"), "text")
	wantStat(t, b.path("d", "a", "hang-1"), syscall.ENOENT)
	a.Release()
	wg.Wait()
	wantText(t, a.path("d", "a", "hang-1"), "")
}

// TestHangUntilUnmount: what hangs at the end of a test fails then.
func TestHangUntilUnmount(t *testing.T) {
	a := Start(t).Mount(t, ClientOptions{})
	a.Inject(Fault{Kind: Delay, Count: Always, Hold: true})
	done := make(chan error, 1)
	go func() { done <- os.Mkdir(a.path("d"), 0o700) }()
	a.WaitHeld(1)
	a.Unmount()
	if err := <-done; err == nil {
		t.Error("the directory was made after the unmount")
	}
}

// TestSoft: a soft mount gives up, and does not know what the server has done or will do.
func TestSoft(t *testing.T) {
	for _, softErr := range []bool{false, true} {
		want := syscall.EIO
		if softErr {
			want = syscall.ETIMEDOUT
		}
		s := Start(t)
		a := s.Mount(t, ClientOptions{Soft: true, SoftErr: softErr, Timeout: 20 * time.Millisecond})
		b := s.Mount(t, ClientOptions{AcDirMin: time.Nanosecond, AcDirMax: time.Nanosecond})
		a.Inject(Fault{Kind: Delay, Ops: []Op{Mkdir}, Hold: true})
		a.Inject(Fault{Kind: DelayAnswer, Ops: []Op{Mkdir}, Hold: true})
		wantErr(t, "mkdir that never arrives", os.Mkdir(a.path("never"), 0o700), want)
		wantErr(t, "mkdir that is not answered", os.Mkdir(a.path("done"), 0o700), want)
		wantNames(t, b.dir, "done")
		a.Release()
		eventually(t, func() bool { _, err := os.Stat(b.path("never")); return err == nil })
	}
}

// TestFull: a full disk is told of when the file is closed or synced, and what was written is lost.
func TestFull(t *testing.T) {
	for _, errno := range []syscall.Errno{syscall.ENOSPC, syscall.EDQUOT, syscall.EIO} {
		s, a, b := two(t, ClientOptions{})
		s.Inject(Fault{Kind: Fail, Ops: []Op{Write}, Err: errno, Count: Always})
		f, err := os.Create(a.path("f"))
		must(t, err)
		_, err = f.WriteString("text")
		must(t, err)
		wantErr(t, "fsync", f.Sync(), errno)
		_, err = f.WriteString("text")
		must(t, err)
		wantErr(t, "close", f.Close(), errno)
		wantText(t, b.path("f"), "")
		wantText(t, a.path("f"), "")
		s.ClearFaults()
		mustWrite(t, a.path("f"), "text")
		wantText(t, b.path("f"), "text")
	}
}

// TestReadOnly: a read-only server lets nothing change, and everything be read.
func TestReadOnly(t *testing.T) {
	s, a, b := two(t, ClientOptions{})
	mustWrite(t, a.path("f"), "text")
	s.Inject(Fault{Kind: Fail, Ops: Changes(), Err: syscall.EROFS, Count: Always})
	for _, c := range []*Client{a, b} {
		wantErr(t, "mkdir", os.Mkdir(c.path("d"), 0o700), syscall.EROFS)
		wantErr(t, "create", os.WriteFile(c.path("g"), nil, 0o600), syscall.EROFS)
		wantErr(t, "rename", os.Rename(c.path("f"), c.path("g")), syscall.EROFS)
		wantErr(t, "remove", os.Remove(c.path("f")), syscall.EROFS)
		wantErr(t, "chmod", os.Chmod(c.path("f"), 0o644), syscall.EROFS)
		wantText(t, c.path("f"), "text")
		wantNames(t, c.dir, "f")
	}
}

// TestErrors: an error of the server is that of the call, once; the kernel's second look at a name does not hide it.
func TestErrors(t *testing.T) {
	s := Start(t)
	a := s.Mount(t, ClientOptions{NoAC: true, LookupCache: "none"})
	mustWrite(t, s.Mount(t, ClientOptions{}).path("f"), "text")
	wantStat(t, a.path("f"), 0)
	a.Inject(Fault{Kind: Fail, Ops: []Op{Lookup}, Err: syscall.EIO})
	wantStat(t, a.path("f"), syscall.EIO)
	wantStat(t, a.path("f"), 0)
	a.Inject(Fault{Kind: Fail, Ops: []Op{Read}, Err: syscall.EIO})
	_, err := os.ReadFile(a.path("f"))
	wantErr(t, "read", err, syscall.EIO)
	a.Inject(Fault{Kind: Fail, Ops: []Op{Readdir}, Err: syscall.EIO})
	_, err = os.ReadDir(a.dir)
	wantErr(t, "list", err, syscall.EIO)
	// The kernel looks once more before it gives up on a handle.
	a.Inject(Fault{Kind: Fail, Ops: []Op{Getattr}, Err: syscall.ESTALE, Count: Always})
	wantStat(t, a.path("f"), syscall.ESTALE)
}

// TestLocks: there are none.
func TestLocks(t *testing.T) {
	a := Start(t).Mount(t, ClientOptions{})
	f, err := os.Create(a.path("f"))
	must(t, err)
	defer f.Close()
	wantErr(t, "flock", syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB), syscall.ENOLCK)
	lock := syscall.Flock_t{Type: syscall.F_WRLCK}
	wantErr(t, "fcntl", syscall.FcntlFlock(f.Fd(), syscall.F_SETLK, &lock), syscall.ENOLCK)
}

// TestCrash: while the server is down nothing is answered; what was not committed before is sent again.
func TestCrash(t *testing.T) {
	s := Start(t)
	a, b := s.Mount(t, ClientOptions{WSize: 2}), s.Mount(t, ClientOptions{})
	f, err := os.Create(a.path("f"))
	must(t, err)
	_, err = f.WriteString("text")
	must(t, err)
	a.Inject(Fault{Kind: Delay, Ops: []Op{Commit}, Hold: true})
	closed := make(chan error)
	go func() { closed <- f.Close() }()
	a.WaitHeld(1)
	wantText(t, b.path("f"), "text")
	s.Crash()
	a.Release()
	listed := make(chan error)
	go func() { _, err := os.ReadDir(b.dir); listed <- err }()
	select {
	case err := <-closed:
		t.Errorf("close: %v while the server was down", err)
	case err := <-listed:
		t.Errorf("list: %v while the server was down", err)
	case <-time.After(20 * time.Millisecond):
	}
	a.Calls()
	s.Recover()
	must(t, <-closed)
	must(t, <-listed)
	wantText(t, b.path("f"), "text")
	if calls := a.Calls(); calls[Write] != 2 || calls[Commit] != 1 {
		t.Errorf("after the restart there were %v, want 2 WRITE and the second COMMIT", calls)
	}
}

// TestTornList: a list in several answers is no snapshot: a name that changes meanwhile is there twice, or not at all.
func TestTornList(t *testing.T) {
	for what, renames := range map[string][2]string{"twice": ordered("t-1", "t-2"), "not at all": reverse(ordered("t-1", "t-2"))} {
		t.Run(what, func(t *testing.T) {
			s := Start(t)
			a, b := s.Mount(t, ClientOptions{}), s.Mount(t, ClientOptions{DirEntries: 1})
			from, to := renames[0], renames[1]
			mustWrite(t, a.path(from), "")
			// Names that are listed between the two.
			var between string
			for n := 0; between == ""; n++ {
				name := "x-" + string(rune('a'+n%26)) + string(rune('a'+n/26))
				if c := nameCookie(name); c > min(nameCookie(from), nameCookie(to)) && c < max(nameCookie(from), nameCookie(to)) {
					between = name
				}
			}
			mustWrite(t, a.path(between), "")
			want := []string{between}
			if what == "twice" {
				want = []string{from, to, between}
			}
			slices.Sort(want)
			b.Inject(Fault{Kind: Delay, Ops: []Op{Readdir}, Skip: 1, Hold: true})
			done := make(chan []string)
			go func() {
				f, err := os.Open(b.dir)
				if err != nil {
					t.Error(err)
				}
				defer f.Close()
				names, err := f.Readdirnames(-1)
				if err != nil {
					t.Error(err)
				}
				slices.Sort(names)
				done <- names
			}()
			b.WaitHeld(1)
			must(t, os.Rename(a.path(from), a.path(to)))
			b.Release()
			if names := <-done; !slices.Equal(names, want) {
				t.Errorf("the list has %q, want %q", names, want)
			}
			if what == "twice" {
				wantNames(t, b.dir, slices.Sorted(slices.Values([]string{between, to}))...)
			}
		})
	}
}

// ordered returns two names in the order in which they are listed.
func ordered(a, b string) [2]string {
	if nameCookie(a) < nameCookie(b) {
		return [2]string{a, b}
	}
	return [2]string{b, a}
}

func reverse(n [2]string) [2]string { return [2]string{n[1], n[0]} }

// TestProbability: the same seed hits the same requests.
func TestProbability(t *testing.T) {
	var runs [2]string
	for n := range runs {
		a := Start(t).Mount(t, ClientOptions{})
		a.Inject(Fault{Kind: Fail, Ops: []Op{Mkdir}, Err: syscall.EIO, Count: Always, Probability: 0.5, Seed: 7})
		for i := range 40 {
			if os.Mkdir(a.path(string(rune('A'+i))), 0o700) == nil {
				runs[n] += "."
			} else {
				runs[n] += "x"
			}
		}
	}
	if runs[0] != runs[1] || !slices.Contains([]byte(runs[0]), '.') || !slices.Contains([]byte(runs[0]), 'x') {
		t.Errorf("%s and %s, want the same, some of each", runs[0], runs[1])
	}
}

// TestMountWhileHanging: a client can be mounted, and ended, while nothing is answered.
func TestMountWhileHanging(t *testing.T) {
	s := Start(t)
	s.Crash()
	s.Inject(Fault{Kind: Delay, Count: Always, Hold: true})
	done := make(chan error, 1)
	dir := filepath.Join(s.dir, "hangs")
	must(t, os.Mkdir(dir, 0o755))
	go func() { done <- s.rpc.Call("child.Mount", MountArgs{Dir: dir}, &None{}) }()
	eventually(t, func() bool { return slices.ContainsFunc(mounts(), func(m mounted) bool { return m.dir == dir }) })
	must(t, s.rpc.Call("child.Unmount", dir, &None{}))
	<-done // whatever it says
}
