package keyring

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"
)

// Create writes a key ring to a new file, with mode 0600. It fails if there is something at path, and leaves that as it
// is; a process that is killed leaves nothing behind at path, or the whole ring.
func Create(path string, s *Set) error {
	temp, err := writeTemp(path, s, -1, -1)
	if err != nil {
		return pathError("make key ring", path, err)
	}
	defer os.Remove(temp)
	// Unlike a rename, a link never replaces.
	if err := os.Link(temp, path); err != nil {
		if errors.Is(err, fs.ErrExist) {
			err = fmt.Errorf("%w: its keys are needed for what they sealed; add one to it with holdfast key rotate", fs.ErrExist)
		}
		return pathError("make key ring", path, err)
	}
	if err := syncDir(filepath.Dir(path)); err != nil {
		return pathError("make key ring", path, err)
	}
	return nil
}

// Update replaces the key ring in a file by what change returns for it, and returns that. Readers see the one or the
// other, whole, also after a crash. Of two updates at a time one waits for the other, in other processes too (on Unix), until
// ctx ends. The file keeps its owner; a symbolic link keeps pointing to the file, which is the one that is replaced. It changes
// nothing if change returns an error, or the set that it got.
func Update(ctx context.Context, path string, change func(*Set) (*Set, error)) (*Set, error) {
	set, err := update(ctx, path, change)
	if err != nil {
		return nil, pathError("change key ring", path, err)
	}
	return set, nil
}

func update(ctx context.Context, path string, change func(*Set) (*Set, error)) (*Set, error) {
	if real, err := filepath.EvalSymlinks(path); err == nil { // otherwise opening it says why not
		path = real
	}
	f, err := openLocked(ctx, path)
	if err != nil {
		return nil, err
	}
	defer f.Close() // which unlocks it
	b, err := readAll(f)
	if err != nil {
		return nil, err
	}
	set, err := Parse(b)
	if err != nil {
		return nil, err
	}
	changed, err := change(set)
	if err != nil || changed == set {
		return changed, err
	}
	removeTemps(path)
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	uid, gid := owner(info)
	temp, err := writeTemp(path, changed, uid, gid)
	if err != nil {
		return nil, err
	}
	defer os.Remove(temp)
	// Somebody who does not lock, an editor or a deployment, may have replaced the file meanwhile.
	if now, err := os.ReadFile(path); err != nil || !bytes.Equal(now, b) {
		return nil, errors.New("it was changed meanwhile by something else: try again")
	}
	if err := os.Rename(temp, path); err != nil {
		return nil, err
	}
	return changed, syncDir(filepath.Dir(path))
}

// openLocked opens the file and locks it, and makes sure that it is still the one at path: whoever had the lock before
// replaced it.
func openLocked(ctx context.Context, path string) (*os.File, error) {
	for {
		f, err := openPrivate(path, os.O_RDWR)
		if err != nil {
			return nil, err
		}
		locked, err := lock(f)
		if err == nil && locked {
			mine, err1 := f.Stat()
			there, err2 := os.Stat(path)
			if err1 == nil && err2 == nil && os.SameFile(mine, there) {
				return f, nil
			}
		}
		_ = f.Close() // nothing was written
		if err != nil {
			return nil, fmt.Errorf("lock: %w", err)
		}
		if locked {
			continue
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("another process is changing it: %w", ctx.Err())
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// openPrivate opens a file that nobody but its owner can use, and nobody else can replace.
func openPrivate(path string, flag int) (*os.File, error) {
	f, err := os.OpenFile(path, flag|nonblock, 0) // a pipe would be waited for
	if err != nil {
		var p *os.PathError
		switch {
		case errors.Is(err, fs.ErrNotExist):
			err = errors.New("there is no such file: make one with holdfast key new FILE")
		case errors.As(err, &p):
			err = p.Err // the path is said by the caller
		}
		return nil, err
	}
	if err := private(path, f); err != nil {
		_ = f.Close() // nothing was written
		return nil, err
	}
	return f, nil
}

func private(path string, f *os.File) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return errors.New("it is not a file")
	}
	if runtime.GOOS == "windows" {
		return nil // its modes say nothing of other users
	}
	const fix = "chmod 600 it; if somebody may have read it, also replace its keys: holdfast key rotate --now FILE, then holdfast key retire --now FILE ID"
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return fmt.Errorf("other users can use it (mode %04o): %s", mode, fix)
	}
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return err
	}
	dir, err := os.Stat(filepath.Dir(real))
	if err != nil {
		return err
	}
	if dir.Mode().Perm()&0o002 != 0 && dir.Mode()&fs.ModeSticky == 0 {
		return fmt.Errorf("other users can replace it, as its directory has mode %04o: chmod o-w the directory", dir.Mode().Perm())
	}
	return nil
}

// tempPattern is what the names of new files for path look like, until they replace it.
func tempPattern(path string) string { return "." + filepath.Base(path) + ".*.tmp" }

// removeTemps removes what killed processes left behind, as there are secrets in it. The caller has the lock.
func removeTemps(path string) {
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		return // a directory that may not be listed can be written to all the same
	}
	for _, e := range entries {
		if rest, ok := strings.CutPrefix(e.Name(), "."+filepath.Base(path)+"."); ok {
			if n, ok := strings.CutSuffix(rest, ".tmp"); ok && strings.Trim(n, "0123456789") == "" {
				_ = os.Remove(filepath.Join(filepath.Dir(path), e.Name())) // the next change tries again
			}
		}
	}
}

// writeTemp writes the set to a new file beside path, which belongs to uid and gid if they are not -1, and returns its
// path.
func writeTemp(path string, s *Set, uid, gid int) (temp string, err error) {
	f, err := os.CreateTemp(filepath.Dir(path), tempPattern(path)) // mode 0600
	if err != nil {
		return "", err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	if uid >= 0 && (uid != os.Geteuid() || gid != os.Getegid()) {
		if err := f.Chown(uid, gid); err != nil {
			_ = f.Close() // it is removed
			return "", fmt.Errorf("leave it to its owner, user %d: %w", uid, err)
		}
	}
	_, err = f.Write(s.Encode())
	if err == nil {
		err = f.Sync()
	}
	return f.Name(), errors.Join(err, f.Close())
}

// pathError says what was being done to which file, once.
func pathError(doing, path string, err error) error {
	if p, ok := err.(*os.PathError); ok {
		err = p.Err
	}
	return fmt.Errorf("%s %s: %w", doing, path, err)
}
