//go:build linux

package nfstest

import (
	"errors"
	"os"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestSeen: what one client does, another sees.
func TestSeen(t *testing.T) {
	_, a, b := two(t, ClientOptions{})
	must(t, os.MkdirAll(a.path("d", "e"), 0o700))
	mustWrite(t, a.path("d", "e", "f"), "text")
	wantText(t, a.path("d", "e", "f"), "text")
	wantText(t, b.path("d", "e", "f"), "text")
	must(t, os.Rename(b.path("d", "e", "f"), b.path("d", "g")))
	wantText(t, b.path("d", "g"), "text")
	must(t, os.Symlink("d/g", b.path("link")))
	wantText(t, a.path("link"), "text")
	must(t, os.Link(a.path("d", "g"), a.path("d", "h")))
	wantText(t, b.path("d", "h"), "text")
	must(t, os.Remove(b.path("d", "e")))
	must(t, os.RemoveAll(b.path("d")))
	must(t, os.Remove(a.path("link")))
}

// TestStaleNegative: a name that was absent stays so until the attributes of its directory are too old.
func TestStaleNegative(t *testing.T) {
	_, a, b := two(t, ClientOptions{})
	wantStat(t, b.path("f"), syscall.ENOENT)
	mustWrite(t, a.path("f"), "text")
	wantStat(t, b.path("f"), syscall.ENOENT)
	if _, err := os.ReadFile(b.path("f")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("open: %v, want ENOENT: what is not there has no attributes to ask for", err)
	}
	b.Advance(29 * time.Second)
	wantStat(t, b.path("f"), syscall.ENOENT)
	b.Advance(time.Second)
	wantStat(t, b.path("f"), 0)
}

// TestStalePositive: a name that is gone still leads to the file, as long as nobody opens it.
func TestStalePositive(t *testing.T) {
	for _, version := range []int{3, 4} {
		_, a, b := two(t, ClientOptions{Version: version})
		mustWrite(t, a.path("f"), "text")
		know(t, b.path("f"))
		must(t, os.Remove(a.path("f")))
		wantStat(t, b.path("f"), 0)
		if _, err := os.ReadFile(b.path("f")); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("version %d: open: %v, want ENOENT: the server was to be asked", version, err)
		}
		wantStat(t, b.path("f"), syscall.ENOENT)
	}
}

// TestOpenDirRevalidates: a directory that is opened by its name is looked at, and if it has changed, everything that was
// known of its names is dropped.
func TestOpenDirRevalidates(t *testing.T) {
	_, a, b := two(t, ClientOptions{})
	must(t, os.Mkdir(a.path("d"), 0o700))
	wantNames(t, b.path("d"))
	wantStat(t, b.path("d", "f"), syscall.ENOENT)
	mustWrite(t, a.path("d", "f"), "text")
	wantStat(t, b.path("d", "f"), syscall.ENOENT)
	wantNames(t, b.path("d"), "f")
	wantStat(t, b.path("d", "f"), 0)
}

// TestReaddirPlus: who has listed a directory knows the files in it, also when they have been replaced.
func TestReaddirPlus(t *testing.T) {
	s := Start(t)
	a, b, c := s.Mount(t, ClientOptions{}), s.Mount(t, ClientOptions{}), s.Mount(t, ClientOptions{NoReaddirPlus: true})
	mustWrite(t, a.path("f"), "old")
	for _, c := range []*Client{b, c} {
		wantNames(t, c.dir, "f")
	}
	mustWrite(t, a.path("g"), "newer")
	must(t, os.Rename(a.path("g"), a.path("f")))
	for c, want := range map[*Client]int64{b: 3, c: 5} {
		if info, err := os.Stat(c.path("f")); err != nil || info.Size() != want {
			t.Errorf("stat: %v, %v, want %d bytes", info, err, want)
		}
		wantText(t, c.path("f"), "newer")
	}
}

// TestHeldDir: a directory that is held open, and opened again as ".", is not looked at.
func TestHeldDir(t *testing.T) {
	_, a, b := two(t, ClientOptions{})
	must(t, os.Mkdir(a.path("d"), 0o700))
	root, err := os.OpenRoot(b.path("d"))
	must(t, err)
	defer root.Close()
	list := func() []string {
		f, err := root.Open(".")
		must(t, err)
		defer f.Close()
		names, err := f.Readdirnames(-1)
		must(t, err)
		return names
	}
	if names := list(); len(names) > 0 {
		t.Errorf("%q are in an empty directory", names)
	}
	mustWrite(t, a.path("d", "f"), "text")
	if names := list(); len(names) > 0 {
		t.Errorf("%q are in the directory, want the list of before", names)
	}
	b.Advance(30 * time.Second)
	if names := list(); !slices.Equal(names, []string{"f"}) {
		t.Errorf("%q are in the directory, want f", names)
	}
}

// TestOpenByStaleName: with NFSv3 a name that another client gave to a new file opens the old one, with NFSv4 the new one.
func TestOpenByStaleName(t *testing.T) {
	for version, want := range map[int]string{3: "old", 4: "new"} {
		_, a, b := two(t, ClientOptions{Version: version})
		mustWrite(t, a.path("f"), "old")
		know(t, b.path("f"))
		must(t, os.Rename(a.path("f"), a.path("g")))
		mustWrite(t, a.path("f"), "new")
		wantText(t, b.path("f"), want)
		b.Advance(time.Minute)
		wantText(t, b.path("f"), "new")
	}
}

// TestStaleNameOfDirectory: with both versions a directory is opened by a name that it no longer has.
func TestStaleNameOfDirectory(t *testing.T) {
	for _, version := range []int{3, 4} {
		_, a, b := two(t, ClientOptions{Version: version})
		must(t, os.Mkdir(a.path("d"), 0o700))
		know(t, b.path("d"))
		must(t, os.Rename(a.path("d"), a.path("e")))
		mustWrite(t, a.path("e", "f"), "")
		wantNames(t, b.path("d"), "f")
		wantNames(t, b.dir, "e")
		wantStat(t, b.path("d"), syscall.ENOENT)
	}
}

// TestExclusiveAsks: whether a name exists that is to be made is for the server to say.
func TestExclusiveAsks(t *testing.T) {
	_, a, b := two(t, ClientOptions{})
	for _, make := range []func(path string) error{
		func(path string) error {
			f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
			if err == nil {
				err = f.Close()
			}
			return err
		},
		func(path string) error { return os.Mkdir(path, 0o700) },
		func(path string) error { return os.Symlink("x", path) },
	} {
		wantStat(t, b.path("f"), syscall.ENOENT)
		must(t, make(a.path("f")))
		wantStat(t, b.path("f"), syscall.ENOENT)
		wantErr(t, "make what another client has", make(b.path("f")), syscall.EEXIST)
		wantStat(t, b.path("f"), 0)
		must(t, os.Remove(a.path("f")))
		wantStat(t, b.path("f"), 0)
		must(t, make(b.path("f")))
		must(t, os.Remove(b.path("f")))
		b.Advance(time.Minute)
		a.Advance(time.Minute)
	}
}

// TestDataCache: an open file shows what it held until its attributes are too old; one that is opened anew is looked at.
func TestDataCache(t *testing.T) {
	_, a, b := two(t, ClientOptions{})
	mustWrite(t, a.path("f"), "one")
	f, err := os.Open(b.path("f"))
	must(t, err)
	defer f.Close()
	read := func(want string) {
		t.Helper()
		buf := make([]byte, 10)
		if n, _ := f.ReadAt(buf, 0); string(buf[:n]) != want { // io.EOF
			t.Errorf("read %q, want %q", buf[:n], want)
		}
	}
	read("one")
	mustWrite(t, a.path("f"), "two")
	read("one")
	b.Advance(3 * time.Second)
	read("two")
	mustWrite(t, a.path("f"), "three")
	read("two")
	wantText(t, b.path("f"), "three")
}

// TestUnsent: what was written is at the server when the file is synced or closed, and not before.
func TestUnsent(t *testing.T) {
	_, a, b := two(t, ClientOptions{})
	f, err := os.Create(a.path("f"))
	must(t, err)
	_, err = f.WriteString("one")
	must(t, err)
	wantText(t, b.path("f"), "")
	if info, err := f.Stat(); err != nil || info.Size() != 3 {
		t.Errorf("stat: %v, %v, want 3 bytes", info, err)
	}
	must(t, f.Sync())
	wantText(t, b.path("f"), "one")
	_, err = f.WriteString("two")
	must(t, err)
	wantText(t, b.path("f"), "one")
	must(t, f.Close())
	wantText(t, b.path("f"), "onetwo")
	wantText(t, a.path("f"), "onetwo")
}

// TestAttributeTimeout: attributes are believed for the minimum after a change, then twice as long each time.
func TestAttributeTimeout(t *testing.T) {
	_, a, b := two(t, ClientOptions{AcRegMin: 3 * time.Second, AcRegMax: 10 * time.Second})
	mustWrite(t, a.path("f"), "")
	f, err := os.Open(b.path("f"))
	must(t, err)
	defer f.Close()
	size := func() int64 {
		info, err := f.Stat()
		must(t, err)
		return info.Size()
	}
	size()
	for n, timeout := range []time.Duration{3, 6, 10, 10} {
		b.Calls()
		if n > 0 { // unchanged for that long
			b.Advance(timeout*time.Second - time.Second)
			size()
			if calls := b.Calls(); calls[Getattr] != 0 {
				t.Errorf("the server was asked before %d s", timeout)
			}
			b.Advance(time.Second)
		} else {
			b.Advance(timeout * time.Second)
		}
		size()
		if calls := b.Calls(); calls[Getattr] != 1 {
			t.Errorf("the server was asked %d times after %d s, want 1", calls[Getattr], timeout)
		}
	}
	must(t, os.Truncate(a.path("f"), 1))
	if size() != 0 {
		t.Error("the new size was seen too early")
	}
	b.Advance(10 * time.Second)
	if size() != 1 {
		t.Error("the new size was not seen")
	}
	must(t, os.Truncate(a.path("f"), 2))
	b.Advance(3 * time.Second)
	if size() != 2 {
		t.Error("after a change the timeout is not the least again")
	}
}

// TestOwnChanges: after a change of its own a client believes what it knew of the other names, unless somebody else has changed
// the directory, too.
func TestOwnChanges(t *testing.T) {
	_, a, b := two(t, ClientOptions{})
	wantStat(t, b.path("f"), syscall.ENOENT)
	mustWrite(t, b.path("g"), "")
	b.Calls()
	wantStat(t, b.path("f"), syscall.ENOENT)
	if calls := b.Calls(); len(calls) > 0 {
		t.Errorf("after an own change there were %v", calls)
	}
	mustWrite(t, a.path("f"), "")
	wantStat(t, b.path("f"), syscall.ENOENT)
	mustWrite(t, b.path("h"), "")
	wantStat(t, b.path("f"), 0)
}

// TestGranularity: with NFSv3 a second change in one step of the server's clock is not seen.
func TestGranularity(t *testing.T) {
	s := Start(t, Options{Granularity: 24 * time.Hour})
	a, b, c := s.Mount(t, ClientOptions{}), s.Mount(t, ClientOptions{}), s.Mount(t, ClientOptions{Version: 4})
	mustWrite(t, a.path("f"), "")
	wantNames(t, b.dir, "f")
	wantNames(t, c.dir, "f")
	mustWrite(t, a.path("g"), "")
	b.Advance(time.Hour)
	wantNames(t, b.dir, "f")
	wantNames(t, c.dir, "f", "g")
	wantNames(t, a.dir, "f", "g")
}

// TestClockSkew: the times of files are the server's.
func TestClockSkew(t *testing.T) {
	a := Start(t, Options{ClockSkew: 48 * time.Hour}).Mount(t, ClientOptions{})
	mustWrite(t, a.path("f"), "")
	info, err := os.Stat(a.path("f"))
	must(t, err)
	if ahead := time.Until(info.ModTime()); ahead < 47*time.Hour || ahead > 49*time.Hour {
		t.Errorf("the file is from %v ahead, want 48h", ahead)
	}
}

// TestMountOptions: with lookupcache=none or pos, and with noac, a new name is seen at once; with nocto an old file is opened.
func TestMountOptions(t *testing.T) {
	s := Start(t)
	a := s.Mount(t, ClientOptions{})
	none, pos, noac := s.Mount(t, ClientOptions{LookupCache: "none"}), s.Mount(t, ClientOptions{LookupCache: "pos"}), s.Mount(t, ClientOptions{NoAC: true})
	nocto := s.Mount(t, ClientOptions{NoCTO: true})
	for _, c := range []*Client{none, pos, noac} {
		wantStat(t, c.path("f"), syscall.ENOENT)
	}
	mustWrite(t, a.path("f"), "one")
	for _, c := range []*Client{none, pos, noac} {
		know(t, c.path("f"))
	}
	must(t, os.Remove(a.path("f")))
	wantStat(t, none.path("f"), syscall.ENOENT)
	wantStat(t, pos.path("f"), 0)
	wantStat(t, noac.path("f"), syscall.ENOENT)

	mustWrite(t, a.path("f"), "one")
	wantText(t, nocto.path("f"), "one")
	wantText(t, nocto.path("f"), "one")
	mustWrite(t, a.path("f"), "two")
	wantText(t, nocto.path("f"), "one")

	f, err := os.Create(noac.path("g"))
	must(t, err)
	defer f.Close()
	_, err = f.WriteString("text")
	must(t, err)
	wantText(t, a.path("g"), "text")
}

// TestCalls: the requests of usual calls are those of a Linux client.
func TestCalls(t *testing.T) {
	c := Start(t).Mount(t, ClientOptions{})
	list := func() error { _, err := os.ReadDir(c.path("d")); return err }
	read := func() error { _, err := os.ReadFile(c.path("d", "f")); return err }
	look := func() error { wantStat(t, c.path("d", "x"), syscall.ENOENT); return nil }
	for _, test := range []struct {
		what string
		do   func() error
		want map[Op]int
	}{
		{"make a directory", func() error { return os.Mkdir(c.path("d"), 0o700) }, map[Op]int{Mkdir: 1}},
		{"write a new file", func() error {
			f, err := os.OpenFile(c.path("d", "f"), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
			must(t, err)
			_, err = f.WriteString("text")
			return errors.Join(err, f.Sync(), f.Close())
		}, map[Op]int{Create: 1, Setattr: 1, Write: 1}},
		{"list", list, map[Op]int{Getattr: 1, Readdir: 1}},
		{"list again", list, map[Op]int{Getattr: 1}},
		{"read what was written", read, map[Op]int{Getattr: 1}},
		{"rename", func() error { return syscall.Rename(c.path("d", "f"), c.path("d", "g")) }, map[Op]int{Rename: 1}},
		{"look for nothing", look, map[Op]int{Lookup: 1}},
		{"look again", look, map[Op]int{}},
		{"remove", func() error { return os.Remove(c.path("d", "g")) }, map[Op]int{Remove: 1}},
	} {
		c.Calls()
		must(t, test.do())
		if diff := cmp.Diff(test.want, c.Calls()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", test.what, diff)
		}
	}
}

func wantNames(t *testing.T, dir string, want ...string) {
	t.Helper()
	f, err := os.Open(dir)
	must(t, err)
	defer f.Close()
	names, err := f.Readdirnames(-1)
	must(t, err)
	slices.Sort(names)
	if !slices.Equal(names, want) {
		t.Errorf("the directory has %q, want %q", names, want)
	}
}
