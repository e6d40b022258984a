package filestore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"

	"github.com/holdfast-sessions/holdfast/driver"
)

// dir is an open directory. All file-system calls of the package are its methods, or those of its files, so that
// there is one place where a test can stop, or kill, a process between any two of them.
//
// A dir is bound to the directory that was opened, not to its name: after that was renamed, removed, or replaced,
// calls still act on the old one. The argument in record.go rests on this.
type dir struct {
	root *os.Root
	step step
}

// step makes a call, do, in a test's way: not at all, late, twice, or with another answer. nil: as it is. Of a call that
// only reads it can do no more than keep it from being made, by an error; do does nothing then.
type step func(call, name string, do func() error) error

func (d dir) before(call, name string) error {
	if d.step == nil {
		return nil
	}
	return d.step(call, name, func() error { return nil })
}

func (d dir) do(call, name string, do func() error) error {
	if d.step == nil {
		return do()
	}
	return d.step(call, name, do)
}

func (d dir) lstat(name string) (fs.FileInfo, error) {
	if err := d.before("lstat", name); err != nil {
		return nil, err
	}
	return d.root.Lstat(name)
}

// sub opens a directory in d. It refuses anything else under that name, symbolic links included.
func (d dir) sub(name string) (dir, error) {
	info, err := d.lstat(name)
	if err != nil {
		return dir{}, err
	}
	if !info.IsDir() {
		return dir{}, refuse("is %s, want a directory", kind(info))
	}
	if err := wantOwn(info); err != nil {
		return dir{}, err
	}
	if err := d.before("open", name); err != nil {
		return dir{}, err
	}
	root, err := d.root.OpenRoot(name)
	return dir{root, d.step}, err
}

// open opens a regular file for reading, of our own and with one name.
func (d dir) open(name string) (*os.File, fs.FileInfo, error) {
	if err := d.before("open", name); err != nil {
		return nil, nil, err
	}
	// With O_NONBLOCK a FIFO cannot block us, and package os saves four calls of fcntl.
	f, err := d.root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = refuse("holds %s, want a regular file", kind(info))
	}
	if err == nil {
		err = wantOwn(info)
	}
	if err == nil && links(info) > 1 {
		err = refuse("holds a file with %d hard links; remove the others, or the record", links(info))
	}
	if err != nil {
		_ = f.Close() // nothing was read
		return nil, nil, err
	}
	return f, info, nil
}

// read returns the whole file, of at most so many bytes.
func (d dir) read(name string, most int64) ([]byte, error) {
	f, info, err := d.open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if info.Size() > most {
		return nil, fmt.Errorf("%w: a file of %d bytes", driver.ErrCorrupt, info.Size())
	}
	if err := d.before("read", name); err != nil {
		return nil, err
	}
	b := make([]byte, info.Size())
	_, err = io.ReadFull(f, b)
	return b, err
}

// readStart returns the first bytes of the file, at most n, and how many it has.
func (d dir) readStart(name string, n int) (start []byte, size int64, err error) {
	f, info, err := d.open(name)
	if err != nil {
		return nil, 0, err
	}
	defer f.Close()
	if err := d.before("read", name); err != nil {
		return nil, 0, err
	}
	b := make([]byte, n)
	n, err = io.ReadFull(f, b)
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		err = nil
	}
	return b[:n], info.Size(), err
}

// write makes a new file.
func (d dir) write(name string, sync bool, parts ...[]byte) (err error) {
	var f *os.File
	err = d.do("create", name, func() error {
		file, err := d.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL|syscall.O_NONBLOCK, 0o600)
		if err == nil {
			f = file
		}
		return err
	})
	if f == nil {
		return err
	}
	defer func() {
		if e := f.Close(); err == nil {
			err = e
		}
	}()
	for _, b := range parts {
		if err != nil {
			return err
		}
		err = d.do("write", name, func() error {
			_, err := f.Write(b)
			return err
		})
	}
	if err != nil || !sync {
		return err
	}
	return d.do("sync", name, f.Sync)
}

// sync makes the names in a directory durable, "." being d itself.
func (d dir) sync(name string) error {
	if err := d.before("sync", name); err != nil {
		return err
	}
	f, err := d.root.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

func (d dir) mkdir(name string) error {
	return d.do("mkdir", name, func() error { return d.root.Mkdir(name, 0o700) })
}

// rename replaces a file that has the new name, and returns fs.ErrExist for a directory.
func (d dir) rename(old, name string) error {
	return d.do("rename", old, func() error { return d.root.Rename(old, name) })
}

// remove removes a file or an empty directory.
func (d dir) remove(name string) error {
	return d.do("remove", name, func() error { return d.root.Remove(name) })
}

func (d dir) removeAll(name string) error {
	return d.do("remove", name, func() error { return d.root.RemoveAll(name) })
}

func (d dir) readlink(name string) (string, error) {
	if err := d.before("readlink", name); err != nil {
		return "", err
	}
	return d.root.Readlink(name)
}

func (d dir) symlink(target, name string) error {
	return d.do("symlink", name, func() error { return d.root.Symlink(target, name) })
}

// list yields the names in a directory, "." being d itself, n at a time.
func (d dir) list(ctx context.Context, name string, n int, portion func(names []string) error) error {
	if err := d.before("list", name); err != nil {
		return err
	}
	f, err := d.root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	for {
		names, err := f.Readdirnames(n)
		if err == io.EOF {
			return nil
		}
		if err == nil {
			err = ctx.Err()
		}
		if err == nil {
			err = portion(names)
		}
		if err != nil {
			return err
		}
	}
}

func (d dir) close() { _ = d.root.Close() } // reading or not, nothing is buffered

// refuse returns the error for something in the directory that no Holdfast process put there.
func refuse(format string, args ...any) error {
	return fmt.Errorf("%w: refused: it "+format, append([]any{driver.ErrUnavailable}, args...)...)
}

func kind(info fs.FileInfo) string {
	switch info.Mode().Type() {
	case 0:
		return "a file"
	case fs.ModeDir:
		return "a directory"
	case fs.ModeSymlink:
		return "a symbolic link"
	case fs.ModeNamedPipe:
		return "a FIFO"
	}
	return "a special file"
}

func wantOwn(info fs.FileInfo) error {
	if uid := owner(info); uid != os.Geteuid() {
		return refuse("belongs to user %d and this process runs as user %d; chown it, or run as that user", uid, os.Geteuid())
	}
	if info.Mode().Perm()&0o022 != 0 {
		return refuse("is writable by other users (mode %04o); chmod go-w it", info.Mode().Perm())
	}
	return nil
}

// storeError maps err, from an operation on a record, onto the errors of package driver.
func storeError(op string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, fs.ErrClosed):
		return driver.ErrClosed
	}
	for _, known := range []error{
		driver.ErrNotFound, driver.ErrConflict, driver.ErrTooLarge, driver.ErrVersion, driver.ErrCorrupt,
		driver.ErrUnavailable, context.Canceled, context.DeadlineExceeded,
	} {
		if errors.Is(err, known) {
			return err
		}
	}
	if op != "load" && (errors.Is(err, syscall.EROFS) || errors.Is(err, syscall.EACCES) || errors.Is(err, syscall.EPERM)) {
		return fmt.Errorf("%w: %w", driver.ErrReadOnly, withoutPath(err))
	}
	return driver.Unavailable(withoutPath(err))
}

// withoutPath leaves paths out of err, as they hold whole IDs.
func withoutPath(err error) error {
	if p, ok := errors.AsType[*fs.PathError](err); ok {
		return fmt.Errorf("%s: %w", p.Op, p.Err)
	}
	if l, ok := errors.AsType[*os.LinkError](err); ok {
		return fmt.Errorf("%s: %w", l.Op, l.Err)
	}
	return err
}
