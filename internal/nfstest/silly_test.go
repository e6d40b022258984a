//go:build linux

package nfstest

import (
	"io"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestSillyRename: a file that its client has open is renamed when it is removed; the other client sees the new name, until the
// last close.
func TestSillyRename(t *testing.T) {
	for what, remove := range map[string]func(c *Client) error{
		"remove": func(c *Client) error { return os.Remove(c.path("f")) },
		"replace": func(c *Client) error {
			mustWrite(t, c.path("g"), "new")
			return os.Rename(c.path("g"), c.path("f"))
		},
	} {
		t.Run(what, func(t *testing.T) {
			_, a, b := two(t, ClientOptions{})
			mustWrite(t, a.path("f"), "old")
			f, err := os.Open(a.path("f"))
			must(t, err)
			second, err := os.Open(a.path("f"))
			must(t, err)
			must(t, remove(a))
			hidden := wantHidden(t, b, 1)
			wantText(t, b.path(hidden), "old")
			if text, err := io.ReadAll(f); err != nil || string(text) != "old" {
				t.Errorf("the open file holds %q, %v, want old", text, err)
			}
			wantErr(t, "remove the hidden file while it is open", os.Remove(a.path(hidden)), syscall.EBUSY)
			must(t, f.Close())
			wantHidden(t, b, 1)
			must(t, second.Close())
			eventually(t, func() bool { return len(hiddenNames(t, b)) == 0 })
			if what == "replace" {
				wantText(t, b.path("f"), "new")
			} else {
				wantNames(t, b.dir)
			}
		})
	}
}

// TestClosedIsNotOpen: a file that was just closed is removed or replaced, not hidden.
func TestClosedIsNotOpen(t *testing.T) {
	_, a, b := two(t, ClientOptions{})
	for range 50 {
		mustWrite(t, a.path("f"), "one")
		wantText(t, a.path("f"), "one")
		mustWrite(t, a.path("g"), "two")
		must(t, os.Rename(a.path("g"), a.path("f")))
		wantHidden(t, b, 0)
		must(t, os.Remove(a.path("f")))
		wantHidden(t, b, 0)
	}
}

// TestSillyRenameByName: what a client hides is whatever another has put under the name meanwhile, and that is what goes.
func TestSillyRenameByName(t *testing.T) {
	_, a, b := two(t, ClientOptions{})
	mustWrite(t, a.path("f"), "old")
	know(t, b.path("f"))
	f, err := os.Open(b.path("f"))
	must(t, err)
	mustWrite(t, a.path("g"), "new")
	must(t, os.Rename(a.path("g"), a.path("f")))
	must(t, os.Remove(b.path("f")))
	wantText(t, a.path(wantHidden(t, a, 1)), "new")
	must(t, f.Close())
	eventually(t, func() bool { return len(hiddenNames(t, a)) == 0 })
	wantNames(t, a.dir)
}

// TestRemovedByAnother: a file that another client has removed is gone, also where it is open.
func TestRemovedByAnother(t *testing.T) {
	_, a, b := two(t, ClientOptions{})
	mustWrite(t, a.path("f"), "text")
	f, err := os.OpenFile(b.path("f"), os.O_RDWR, 0)
	must(t, err)
	must(t, os.Remove(a.path("f")))
	buf := make([]byte, 4)
	_, err = f.ReadAt(buf, 0)
	wantErr(t, "read what was not read before", err, syscall.ESTALE)
	_, err = f.Write(buf)
	must(t, err)
	wantErr(t, "close after a write", f.Close(), syscall.ESTALE)

	must(t, os.Mkdir(a.path("d"), 0o700))
	d, err := os.OpenRoot(b.path("d"))
	must(t, err)
	defer d.Close()
	must(t, os.Remove(a.path("d")))
	_, err = d.Stat(".")
	must(t, err)
	_, err = d.Create("f")
	wantErr(t, "create in a directory that is gone", err, syscall.ESTALE)
	_, err = d.Stat(".")
	wantErr(t, "stat a directory that is gone", err, syscall.ESTALE)
}

// TestHiddenRemovedByAnother: the other client may remove the hidden file, and the one that has it open loses it.
func TestHiddenRemovedByAnother(t *testing.T) {
	_, a, b := two(t, ClientOptions{})
	mustWrite(t, a.path("f"), "text")
	f, err := os.Open(a.path("f"))
	must(t, err)
	must(t, os.Remove(a.path("f")))
	must(t, os.Remove(b.path(wantHidden(t, b, 1))))
	a.Advance(time.Minute)
	_, err = f.ReadAt(make([]byte, 4), 0)
	wantErr(t, "read", err, syscall.ESTALE)
	must(t, f.Close())
}

func hiddenNames(t *testing.T, c *Client) (names []string) {
	t.Helper()
	f, err := os.Open(c.dir)
	must(t, err)
	defer f.Close()
	all, err := f.Readdirnames(-1)
	must(t, err)
	for _, name := range all {
		if strings.HasPrefix(name, ".nfs") {
			names = append(names, name)
		}
	}
	return names
}

// wantHidden returns the name of a hidden file, of which there must be n.
func wantHidden(t *testing.T, c *Client, n int) string {
	t.Helper()
	names := hiddenNames(t, c)
	if len(names) != n {
		t.Fatalf("%q are hidden, want %d", names, n)
	}
	if n == 0 {
		return ""
	}
	return names[0]
}

// eventually waits for what the simulator does without anybody waiting for it.
func eventually(t *testing.T, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it did not happen")
		}
	}
}
