//go:build linux

package nfstest

import (
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/holdfast-sessions/holdfast/internal/testserver"
)

// TestLikeLocal: one client, or two that believe nothing for any time, are a file system like any other.
func TestLikeLocal(t *testing.T) {
	s := Start(t)
	v3, v4 := s.Mount(t, ClientOptions{}), s.Mount(t, ClientOptions{Version: 4, DirEntries: 2, WSize: 3, RSize: 2})
	none := ClientOptions{NoAC: true, LookupCache: "none"}
	for n, clients := range [][]*Client{{v3}, {v4}, {s.Mount(t, none), s.Mount(t, none)}} {
		for seed := range uint64(testserver.Scale(5, 500)) {
			root := fmt.Sprintf("%d-%d", n, seed)
			local := t.TempDir()
			must(t, os.Chmod(local, 0o700))
			must(t, os.Mkdir(clients[0].path(root), 0o700))
			r := rand.New(rand.NewPCG(seed, uint64(n)))
			var log []string
			for range 300 {
				do := randomCall(r)
				c := clients[r.IntN(len(clients))]
				got, want := do(c.path(root)), do(local)
				log = append(log, got)
				if got != want {
					t.Fatalf("mounts %d, seed %d: %s, want %s, after\n%s", n, seed, got, want, strings.Join(log, "\n"))
				}
			}
			for _, c := range clients {
				if got, want := tree(t, c.path(root)), tree(t, local); got != want {
					t.Fatalf("mounts %d, seed %d: there is\n%s\nwant\n%s", n, seed, got, want)
				}
			}
		}
	}
}

// randomCall returns a call, which says what it did and got.
func randomCall(r *rand.Rand) func(root string) string {
	path := func() string {
		name := string("abc"[r.IntN(3)])
		for r.IntN(3) == 0 {
			name += "/" + string("abc"[r.IntN(3)])
		}
		return name
	}
	a, b, text := path(), path(), strings.Repeat(string("xyz"[r.IntN(3)]), r.IntN(9))
	what := []string{"mkdir", "rmdir", "unlink", "rename", "link", "symlink", "write", "create", "append", "truncate", "read", "readlink", "list",
		"stat", "chmod"}[r.IntN(15)]
	return func(root string) string {
		a, b := filepath.Join(root, a), filepath.Join(root, b)
		var err error
		var got string
		switch what {
		case "mkdir":
			err = os.Mkdir(a, 0o700)
		case "rmdir":
			err = syscall.Rmdir(a)
		case "unlink":
			err = syscall.Unlink(a)
		case "rename":
			err = syscall.Rename(a, b)
		case "link":
			err = syscall.Link(a, b)
		case "symlink":
			err = os.Symlink(text+"x", a)
		case "write":
			err = os.WriteFile(a, []byte(text), 0o600)
		case "create", "append":
			flags := os.O_WRONLY | os.O_APPEND
			if what == "create" {
				flags = os.O_WRONLY | os.O_CREATE | os.O_EXCL
			}
			var f *os.File
			if f, err = os.OpenFile(a, flags, 0o640); err == nil {
				_, err = f.WriteString(text)
				_, _ = f.WriteAt([]byte("!"), 5) // an error with O_APPEND
				if e := f.Close(); err == nil {
					err = e
				}
			}
		case "truncate":
			err = os.Truncate(a, int64(len(text)))
		case "read":
			var b []byte
			b, err = os.ReadFile(a)
			got = string(b)
		case "readlink":
			got, err = os.Readlink(a)
		case "list":
			var entries []os.DirEntry
			entries, err = os.ReadDir(a)
			for _, e := range entries {
				got += e.Name() + e.Type().String() + " "
			}
		case "stat":
			var info fs.FileInfo
			if info, err = os.Lstat(a); err == nil {
				got = describe(info)
			}
		case "chmod":
			err = os.Chmod(a, 0o600|fs.FileMode(len(text)))
		}
		// The text of the error has the path.
		if err != nil {
			got = ""
			var errno syscall.Errno
			if e, ok := err.(interface{ Unwrap() error }); ok {
				err = e.Unwrap()
			}
			errno, _ = err.(syscall.Errno)
			got = fmt.Sprint(errno)
		}
		return fmt.Sprintf("%s %s %s %q: %q", what, strings.TrimPrefix(a, root), strings.TrimPrefix(b, root), text, got)
	}
}

// describe returns what is the same on all file systems.
func describe(info fs.FileInfo) string {
	st := info.Sys().(*syscall.Stat_t)
	if info.IsDir() {
		return fmt.Sprintf("%v links=%d uid=%d", info.Mode(), st.Nlink, st.Uid)
	}
	return fmt.Sprintf("%v links=%d uid=%d size=%d", info.Mode(), st.Nlink, st.Uid, info.Size())
}

func tree(t *testing.T, root string) string {
	t.Helper()
	var lines []string
	must(t, filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		line := strings.TrimPrefix(path, root) + " " + describe(info)
		switch e.Type() {
		case 0:
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" %q", b)
		case fs.ModeSymlink:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			line += " -> " + target
		}
		lines = append(lines, line)
		return nil
	}))
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// TestParallel: clients work at once, in the same directories, while requests are lost, late and repeated; then all see the same.
func TestParallel(t *testing.T) {
	s := Start(t)
	clients := []*Client{
		s.Mount(t, ClientOptions{DirEntries: 2}), s.Mount(t, ClientOptions{Version: 4, WSize: 3}),
		s.Mount(t, ClientOptions{NoAC: true}), s.Mount(t, ClientOptions{Soft: true, LookupCache: "none"}),
	}
	for n, kind := range []Kind{LostAnswer, Repeat, Delay, DelayAnswer} {
		s.Inject(Fault{Kind: kind, Count: Always, Probability: 0.05, Seed: uint64(n)})
	}
	var wg sync.WaitGroup
	for n, c := range clients {
		for worker := range 3 {
			wg.Go(func() {
				r := rand.New(rand.NewPCG(uint64(n), uint64(worker)))
				for range testserver.Scale(200, 5000) {
					randomCall(r)(c.dir)
				}
			})
		}
	}
	wg.Wait()
	s.ClearFaults()
	for _, c := range clients {
		c.Unmount()
	}
	want := tree(t, s.Mount(t, ClientOptions{}).dir)
	if got := tree(t, s.Mount(t, ClientOptions{Version: 4}).dir); got != want {
		t.Errorf("one client sees\n%s\nanother\n%s", got, want)
	}
	if strings.Contains(want, ".nfs") {
		t.Logf("hidden files were left, as a lost answer leaves them:\n%s", want)
	}
}
