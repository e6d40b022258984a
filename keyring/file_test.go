package keyring_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-sessions/holdfast/keyring"
)

func mustCreate(t testing.TB) (path string, set *keyring.Set) {
	t.Helper()
	path, set = filepath.Join(t.TempDir(), "keys.json"), keyring.NewSet()
	must(t, keyring.Create(path, set))
	return path, set
}

func wantOnly(t testing.TB, path string) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Dir(path))
	must(t, err)
	if len(entries) != 1 || entries[0].Name() != filepath.Base(path) {
		t.Errorf("the directory has %v, want %s alone", entries, filepath.Base(path))
	}
}

func TestCreate(t *testing.T) {
	path, set := mustCreate(t)
	info, err := os.Stat(path)
	must(t, err)
	if info.Mode() != 0o600 {
		t.Errorf("mode %v, want 0600", info.Mode())
	}
	wantError(t, keyring.Create(path, keyring.NewSet()), "already exists: its keys are needed")
	if got := mustRead(t, path); got != string(set.Encode()) {
		t.Error("the file was replaced")
	}
	wantOnly(t, path)
	wantError(t, keyring.Create(filepath.Join(path, "x"), set), "not a directory")
	dangling := path + ".link"
	must(t, os.Symlink("nowhere", dangling))
	wantError(t, keyring.Create(dangling, set), "already exists")
}

// Attack 7, and requirement 18: what others can read, change or replace is refused, when a server starts and when a
// command changes it.
func TestPrivate(t *testing.T) {
	path, _ := mustCreate(t)
	refused := func(path, want string) {
		t.Helper()
		_, err := keyring.Open(t.Context(), "file:"+path)
		wantError(t, err, want)
		_, err = keyring.Update(t.Context(), path, add)
		wantError(t, err, want)
	}
	for _, mode := range []os.FileMode{0o604, 0o644, 0o640, 0o666, 0o602, 0o620, 0o601, 0o777} {
		must(t, os.Chmod(path, mode))
		refused(path, fmt.Sprintf("other users can use it (mode %04o): chmod 600 it; if somebody may have read it, also replace its keys", mode))
	}
	must(t, os.Chmod(path, 0o600))
	dir := filepath.Dir(path)
	must(t, os.Chmod(dir, 0o777))
	refused(path, "other users can replace it, as its directory has mode 0777: chmod o-w")
	link := filepath.Join(t.TempDir(), "link")
	must(t, os.Symlink(path, link))
	refused(link, "other users can replace it")
	must(t, os.Chmod(dir, 0o777|os.ModeSticky))
	ring, err := keyring.Open(t.Context(), "file:"+path)
	must(t, err)
	must(t, ring.Close())
	must(t, os.Chmod(dir, 0o700))

	_, err = keyring.Open(t.Context(), "file:"+dir)
	wantError(t, err, "it is not a file")
	_, err = keyring.Update(t.Context(), dir, add)
	wantError(t, err, "is a directory")
	refused(filepath.Join(dir, "none"), "no such file: make one with holdfast key new")
	pipe := filepath.Join(dir, "pipe")
	must(t, syscall.Mkfifo(pipe, 0o600))
	refused(pipe, "not a file")
}

func TestUpdate(t *testing.T) {
	path, set := mustCreate(t)
	link := filepath.Join(t.TempDir(), "link")
	must(t, os.Symlink(path, link))
	left := filepath.Join(filepath.Dir(path), strings.ReplaceAll(keyring.TempPattern(path), "*", "123")) // by a killed process
	must(t, os.WriteFile(left, []byte("secret"), 0o600))

	changed, err := keyring.Update(t.Context(), link, add)
	must(t, err)
	if got := mustRead(t, path); got != string(changed.Encode()) || len(changed.Keys()) != 2 || changed.Active() != changed.Keys()[0] || changed.Active().ID() != set.Active().ID() {
		t.Error("the file has other keys than Update returned")
	}
	if to, err := os.Readlink(link); err != nil || to != path {
		t.Errorf("the link points to %q, %v", to, err)
	}
	wantOnly(t, path)
	info, err := os.Stat(path)
	must(t, err)
	if info.Mode() != 0o600 {
		t.Errorf("mode %v, want 0600", info.Mode())
	}

	wrong := errors.New("wrong")
	before := mustRead(t, path)
	if _, err := keyring.Update(t.Context(), path, func(*keyring.Set) (*keyring.Set, error) { return nil, wrong }); !errors.Is(err, wrong) {
		t.Errorf("Update: %v, want the error of the change", err)
	}
	_, err = keyring.Update(t.Context(), path, func(s *keyring.Set) (*keyring.Set, error) { return s, nil })
	must(t, err)
	if same, err := os.Stat(path); err != nil || !os.SameFile(info, same) || mustRead(t, path) != before {
		t.Errorf("the file was replaced, %v, though nothing changed", err)
	}

	// Something that does not lock, such as a deployment.
	_, err = keyring.Update(t.Context(), path, func(s *keyring.Set) (*keyring.Set, error) {
		must(t, os.WriteFile(path, set.Encode(), 0o600))
		return add(s)
	})
	wantError(t, err, "changed meanwhile by something else: try again")
	if mustRead(t, path) != string(set.Encode()) {
		t.Error("what something else wrote is lost")
	}
	wantOnly(t, path)
}

// root's change leaves the file to the user that the server runs as.
func TestUpdateKeepsOwner(t *testing.T) {
	path, _ := mustCreate(t)
	uid, gid := os.Geteuid(), os.Getegid()
	if uid == 0 {
		uid, gid = 65534, 65534
		must(t, os.Chown(path, uid, gid))
	}
	_, err := keyring.Update(t.Context(), path, add)
	must(t, err)
	info, err := os.Stat(path)
	must(t, err)
	if st := info.Sys().(*syscall.Stat_t); int(st.Uid) != uid || int(st.Gid) != gid || info.Mode() != 0o600 {
		t.Errorf("the file belongs to %d:%d with mode %v, want %d:%d", st.Uid, st.Gid, info.Mode(), uid, gid)
	}
}

// Processes that change one file at a time lose nothing, and who reads it meanwhile sees whole rings only.
func TestConcurrentUpdates(t *testing.T) {
	path, _ := mustCreate(t)
	exe, err := os.Executable()
	must(t, err)
	const processes = 4
	done := make(chan error, processes)
	for range processes {
		go func() {
			cmd := exec.Command(exe)
			cmd.Env = append(os.Environ(), addTo+"="+path)
			out, err := cmd.CombinedOutput()
			if err != nil {
				err = fmt.Errorf("%w: %s", err, out)
			}
			done <- err
		}()
	}
	keys := 0
	for ended := 0; ended < processes; {
		select {
		case err := <-done:
			must(t, err)
			ended++
		default:
		}
		set, err := keyring.Parse([]byte(mustRead(t, path)))
		must(t, err)
		if n := len(set.Keys()); n < keys {
			t.Fatalf("%d keys after %d", n, keys)
		} else {
			keys = n
		}
	}
	if keys != 1+processes*addEach {
		t.Errorf("%d keys, want %d: some are lost", keys, 1+processes*addEach)
	}
	wantOnly(t, path)
}

func TestUpdateWaits(t *testing.T) {
	path, _ := mustCreate(t)
	_, err := keyring.Update(t.Context(), path, func(s *keyring.Set) (*keyring.Set, error) {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		_, err := keyring.Update(ctx, path, add)
		if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "another process is changing it") {
			t.Errorf("Update beside another: %v", err)
		}
		return add(s)
	})
	must(t, err)
}

// A process that is killed in a change leaves the old ring or the new one.
func TestKilledUpdate(t *testing.T) {
	path, _ := mustCreate(t)
	exe, err := os.Executable()
	must(t, err)
	keys := 1
	for range 5 {
		before := mustRead(t, path)
		cmd := exec.Command(exe)
		cmd.Env = append(os.Environ(), addTo+"="+path)
		must(t, cmd.Start())
		for deadline := time.Now().Add(10 * time.Second); bytes.Equal([]byte(mustRead(t, path)), []byte(before)) && time.Now().Before(deadline); {
			runtime.Gosched()
		}
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		set, err := keyring.Parse([]byte(mustRead(t, path)))
		must(t, err)
		if n := len(set.Keys()); n <= keys {
			t.Errorf("%d keys after %d", n, keys)
		} else {
			keys = n
		}
	}
	_, err = keyring.Update(t.Context(), path, add) // neither the lock nor a file stands in the way
	must(t, err)
	wantOnly(t, path)
}
