// Package filestore keeps records in one directory of files that any number of processes share, on one machine or, over
// NFS, on several.
//
// It needs no server and no lock, neither flock nor a lock file: a write is decided by one rename, so that a process
// that is killed, stopped, or swapped out at any point holds up nobody and undoes nothing (record.go has the
// argument). Readers open one file and read it. What was saved survives the end of every process, and with SyncData
// also a power failure.
//
//	store, err := filestore.Open(ctx, "/var/lib/app/sessions", filestore.Config{})
//	if err != nil {
//		return err
//	}
//	defer store.Close()
//	sessions, err := holdfast.New(store, holdfast.Config{})
//
// All processes must run as the user that owns the directory. It must be on a local disk, and on Linux Open refuses network
// file systems, unless Config.Network says NFS: then records are kept in a way that is right for machines that share a
// directory over NFS (nfs.go has the argument).
package filestore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/holdfast-sessions/holdfast/driver"
)

// Config are the settings of a store. The zero value is ready for use.
type Config struct {
	// SyncData waits for the disk in Save and Delete, so that they survive a power failure. Without it they survive
	// the end of every process, but what was written in about the last 30 seconds may be lost with the power. With
	// Network: NFS they always wait for the server's disk.
	SyncData bool
	// SweepEvery is how often expired records, and what killed processes left behind, are removed. It varies by a
	// tenth so that processes do not sweep at the same moment. 0: 1 minute. Negative: never.
	SweepEvery time.Duration
	// Layout is where in the directory the records are. All processes must use one; the directory remembers it.
	Layout Layout
	// Network says what to do about network file systems: refuse them, keep records in a way that is right on NFS, or
	// take the risk.
	Network Network
	// Logger gets a warning when a sweep meets something it cannot read. nil: slog.Default().
	Logger *slog.Logger
}

func (c Config) withDefaults() Config {
	if c.SweepEvery == 0 {
		c.SweepEvery = time.Minute
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	return c
}

// Store is a directory of records. It implements driver.Store, driver.Lister, driver.Sweeper, driver.Stater,
// driver.Toucher and driver.Describer. Create it with Open.
type Store struct {
	config  Config
	dir     dir
	path    string      // absolute
	self    fs.FileInfo // of dir, to see whether path still leads there
	layout  Layout      // Flat, Hashed or nfsLayout
	settled atomic.Bool // no process can choose another layout
	nfs     *nfs        // with Network: NFS, else nil
	closed  atomic.Bool
	stop    func()
	swept   sync.WaitGroup
}

// Open returns the store in directory path, which it makes, with mode 0700, if it is missing and its parent is not.
// It refuses a directory that others can write to or own. A goroutine of the store's removes what has expired, until
// Close.
func Open(ctx context.Context, path string, c Config) (*Store, error) {
	if !supported {
		return nil, fmt.Errorf("session directory: %w on %s", errors.ErrUnsupported, runtime.GOOS)
	}
	c = c.withDefaults()
	s, err := openWithin(ctx, path, c)
	if err != nil {
		return nil, fmt.Errorf("session directory: %w", err)
	}
	sweeping, stop := context.WithCancel(context.Background())
	s.stop = stop
	if s.config.SweepEvery > 0 {
		s.swept.Go(func() { s.sweepUntil(sweeping) })
	}
	return s, nil
}

func open(ctx context.Context, path string, c Config, step step) (*Store, error) {
	if path == "" {
		return nil, errors.New("no path given")
	}
	if c.Network == NFS && c.Layout != KeepLayout {
		return nil, fmt.Errorf("layout=%s does not go with network=nfs, which has a layout of its own; leave it out", c.Layout)
	}
	path, err := filepath.Abs(path)
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return nil, err
	}
	if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("%s: its parent is missing; make it (mkdir -p '%s') or mount it", path, filepath.Dir(path))
		}
		return nil, fmt.Errorf("%w: %w", driver.ErrReadOnly, err)
	}
	info, err := os.Lstat(path)
	if err != nil {
		return nil, driver.Unavailable(err)
	}
	if info.Mode()&fs.ModeSymlink != 0 {
		return nil, fmt.Errorf("%s is a symbolic link; give the directory that it leads to", path)
	}
	if !info.IsDir() {
		return nil, fmt.Errorf("%s is %s, want a directory", path, kind(info))
	}
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, driver.Unavailable(err)
	}
	s := &Store{config: c, dir: dir{root, step}, path: path, stop: func() {}}
	if c.Network == NFS {
		s.nfs = &nfs{s: s, gate: newGate(64), upkeep: newGate(4)}
	}
	err = s.inspect()
	if err == nil {
		var settled bool
		s.layout, settled, err = s.decideLayout(ctx)
		s.settled.Store(settled)
	}
	if err == nil && s.layout != Flat {
		err = s.makeBuckets(ctx)
	}
	if err != nil {
		_ = root.Close() // opened for nothing
		return nil, err
	}
	return s, nil
}

// inspect checks the directory that was opened, which is not necessarily the one that Open looked at.
func (s *Store) inspect() (err error) {
	s.self, err = s.dir.root.Stat(".")
	if err != nil {
		return driver.Unavailable(err)
	}
	if uid := owner(s.self); uid != os.Geteuid() {
		return fmt.Errorf("%s belongs to user %d and this process runs as user %d; run it as that user, or: chown -R %d '%s'",
			s.path, uid, os.Geteuid(), os.Geteuid(), s.path)
	}
	if mode := s.self.Mode().Perm(); mode&0o022 != 0 {
		return fmt.Errorf("%s is writable by other users (mode %04o), who could replace sessions; fix: chmod 0700 '%s'", s.path, mode, s.path)
	}
	fsType, err := fileSystemType(s.dir.root)
	if err != nil {
		return driver.Unavailable(err)
	}
	if err := s.wantLocal(fsType); err != nil {
		return err
	}
	// Better to refuse now than to answer the first login with an error. A full disk is no reason: those who are
	// logged in can go on.
	probe := probePrefix + newGeneration().String()
	err = s.dir.root.Mkdir(probe, 0o700)
	if err == nil {
		err = s.dir.root.Remove(probe)
	}
	if errors.Is(err, syscall.EROFS) {
		return fmt.Errorf("%w: %s is on a file system mounted read-only; remount it: mount -o remount,rw", driver.ErrReadOnly, s.path)
	}
	if errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("%w: %s is not writable (mode %04o); fix: chmod 0700 '%s'", driver.ErrReadOnly, s.path, s.self.Mode().Perm(), s.path)
	}
	return nil
}

// Suffixes of directories that are no records: 16 hexadecimal characters follow.
const (
	buildInfix = ".new-" // a record being made
	trashInfix = ".end-" // something to remove
)

// probePrefix is what the name of the directory begins with that Open makes to see whether it can.
var probePrefix = driver.ID{}.Hex() + buildInfix

// Close stops the sweeper. Calls that are under way finish or fail. With Network: NFS it waits for them, but not longer
// than 10 s for those that hang because the file server does not answer.
func (s *Store) Close() error {
	s.closed.Store(true)
	s.stop()
	s.swept.Wait()
	if s.nfs != nil {
		s.nfs.gate.close()
		s.nfs.upkeep.close()
	}
	return s.dir.root.Close()
}

// Describe implements driver.Describer.
func (s *Store) Describe() driver.Description {
	d := driver.Description{
		Name:     "file",
		Shared:   true,
		Durable:  "survives the end of every process; a power failure may lose the last 30 s",
		MaxBytes: maxRecord,
	}
	if s.config.SyncData {
		d.Durable = "survives the end of every process and a power failure"
	}
	if s.nfs != nil {
		d.Durable = "survives the end of every machine, as far as the file server keeps what it was told to sync"
	}
	return d
}

func (s *Store) ready(ctx context.Context) error {
	if s.closed.Load() {
		return driver.ErrClosed
	}
	return ctx.Err()
}

// record opens the directory of a record.
func (s *Store) record(id driver.ID) (record, error) {
	d, err := s.dir.sub(s.at(id))
	return record{d, s.config.SyncData}, err
}

// present returns an error if the directory has been removed, or another stands in its place: then records are not
// absent but elsewhere, and what is saved here would not be found by processes that are started later.
func (s *Store) present() error {
	info, err := os.Lstat(s.path)
	if err == nil && os.SameFile(info, s.self) {
		return s.decided(false)
	}
	return errMoved(s.path)
}

func errMoved(path string) error {
	return fmt.Errorf("%w: session directory %s was moved or replaced; put it back, or restart this process", driver.ErrUnavailable, path)
}

// Load implements driver.Store.
func (s *Store) Load(ctx context.Context, id driver.ID) (driver.Record, error) {
	rec, err := s.load(ctx, id)
	return rec, storeError("load", err)
}

func (s *Store) load(ctx context.Context, id driver.ID) (driver.Record, error) {
	if s.nfs != nil {
		return s.nfs.load(ctx, id)
	}
	for {
		if err := s.ready(ctx); err != nil {
			return driver.Record{}, err
		}
		b, err := s.dir.read(s.at(id)+"/"+nameData, maxFile)
		if errors.Is(err, fs.ErrNotExist) {
			if err = s.present(); err == nil {
				err = driver.ErrNotFound
			}
		}
		if err != nil {
			return driver.Record{}, err
		}
		rec, err := decode(id, b)
		if err != nil {
			return driver.Record{}, err
		}
		if !rec.Expired(time.Now()) {
			return rec, nil
		}
		if s.vacate(ctx, id) != driver.ErrConflict {
			return driver.Record{}, driver.ErrNotFound // also if the directory is read-only
		}
		// It was extended meanwhile.
	}
}

// Save implements driver.Store. A record takes at most 64 MiB.
func (s *Store) Save(ctx context.Context, id driver.ID, rec driver.Record, prev uint64) error {
	return storeError("save", s.save(ctx, id, rec, prev))
}

func (s *Store) save(ctx context.Context, id driver.ID, rec driver.Record, prev uint64) error {
	if err := s.ready(ctx); err != nil {
		return err
	}
	if s.nfs != nil {
		return s.nfs.save(ctx, id, rec, prev)
	}
	if err := s.present(); err != nil {
		return err
	}
	g := newGeneration()
	f, err := encode(id, g, rec)
	if err != nil {
		return err
	}
	if prev == 0 {
		return s.create(ctx, id, g, f)
	}
	r, err := s.record(id)
	if errors.Is(err, fs.ErrNotExist) {
		return driver.ErrConflict
	}
	if err != nil {
		return err
	}
	defer r.close()
	h, err := r.head()
	if errors.Is(err, fs.ErrNotExist) {
		return driver.ErrConflict
	}
	if err != nil {
		return err
	}
	if h.revision != prev || h.expired() {
		return driver.ErrConflict
	}
	return s.unlessMoved(id, r, r.replace(ctx, h, g, f), driver.ErrConflict)
}

// unlessMoved turns errStuck into other if r is no longer what id leads to: a directory that is being removed loses
// its files in any order.
func (s *Store) unlessMoved(id driver.ID, r record, err, other error) error {
	if !errors.Is(err, errStuck) {
		return err
	}
	there, err := s.dir.lstat(s.at(id))
	if errors.Is(err, fs.ErrNotExist) {
		return other
	}
	if err != nil {
		return err
	}
	here, err := r.lstat(".")
	if err != nil {
		return err
	}
	if !os.SameFile(here, there) {
		return other
	}
	return errStuck
}

// create makes a record where there is none, or an expired one.
func (s *Store) create(ctx context.Context, id driver.ID, g generation, f file) error {
	if err := s.decided(true); err != nil {
		return err
	}
	for {
		if err := s.vacate(ctx, id); err != nil {
			return err
		}
		err := s.publish(ctx, id, g, f)
		if errors.Is(err, fs.ErrExist) || errors.Is(err, fs.ErrNotExist) {
			continue // somebody was faster; or this process slept so long that a sweeper removed what it had built
		}
		if err == nil && s.config.SyncData {
			err = s.dir.sync(s.parent(id))
		}
		return err
	}
}

// publish makes the directory of a record under another name and renames it. It returns fs.ErrExist if there is a
// directory with the record's name.
func (s *Store) publish(ctx context.Context, id driver.ID, g generation, f file) error {
	name := s.at(id) + buildInfix + newGeneration().String()
	err := s.dir.mkdir(name)
	if errors.Is(err, fs.ErrNotExist) && s.layout != Flat { // the disk was full when the store was opened
		if err := s.dir.mkdir(s.parent(id)); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		err = s.dir.mkdir(name)
	}
	if err != nil {
		return err
	}
	err = s.build(name, g, f)
	if err == nil {
		err = ctx.Err()
	}
	if err == nil {
		err = s.dir.rename(name, s.at(id))
	}
	if err != nil && s.dir.remove(name) != nil { // remove needs no file descriptor
		_ = s.discard(name) // else the sweeper does it
	}
	return err
}

// discard removes a directory that is not, or no longer, named by a record.
func (s *Store) discard(name string) error {
	d, err := s.dir.sub(name)
	if err == nil {
		err = record{dir: d}.clear()
		d.close()
	}
	if err == nil {
		err = s.dir.remove(name)
	}
	if err != nil { // it is none of ours, or a writer that lost left its candidate just now
		err = s.dir.removeAll(name)
	}
	return err
}

func (s *Store) build(name string, g generation, f file) error {
	d, err := s.dir.sub(name)
	if err != nil {
		return err
	}
	defer d.close()
	if err := d.write(nameData, s.config.SyncData, f.start, f.record); err != nil {
		return err
	}
	if err := d.write(g.token(), s.config.SyncData); err != nil {
		return err
	}
	return record{d, s.config.SyncData}.syncNames()
}

// vacate makes sure that id leads to no directory, ending an expired record. It returns driver.ErrConflict if there
// is a live one.
func (s *Store) vacate(ctx context.Context, id driver.ID) error {
	_, err := s.endExpired(ctx, id)
	return err
}

// endExpired does what vacate does, and reports whether it was this call that ended the record, which of all calls
// in all processes one does.
func (s *Store) endExpired(ctx context.Context, id driver.ID) (ended bool, err error) {
	for {
		if err := ctx.Err(); err != nil {
			return ended, err
		}
		r, err := s.record(id)
		if errors.Is(err, fs.ErrNotExist) {
			return ended, s.present()
		}
		if err != nil {
			return ended, err
		}
		emptied, byUs, err := r.endExpired()
		ended = ended || byUs
		err = s.unlessMoved(id, r, err, nil)
		r.close()
		if err != nil {
			return ended, err
		}
		if !emptied {
			continue
		}
		err = s.dir.remove(s.at(id))
		if err == nil || errors.Is(err, fs.ErrNotExist) {
			return ended, nil
		}
		if !errors.Is(err, fs.ErrExist) { // it is not empty: made anew, or a loser has yet to remove its candidate
			return ended, err
		}
	}
}

// Touch implements driver.Toucher. Only with Network: NFS does it spare the fields; otherwise it does what Save does.
func (s *Store) Touch(ctx context.Context, id driver.ID, next driver.Record, prev uint64) error {
	return storeError("save", s.touch(ctx, id, next, prev))
}

func (s *Store) touch(ctx context.Context, id driver.ID, next driver.Record, prev uint64) error {
	if err := s.ready(ctx); err != nil {
		return err
	}
	if s.nfs != nil {
		return s.nfs.touch(ctx, id, next, prev)
	}
	err := driver.ErrConflict
	if prev != 0 { // 0 would make a record
		err = s.save(ctx, id, next, prev)
	}
	if err == driver.ErrConflict {
		if _, absent := s.load(ctx, id); absent != nil {
			return absent
		}
	}
	return err
}

// Delete implements driver.Store.
func (s *Store) Delete(ctx context.Context, id driver.ID) error {
	return storeError("delete", s.delete(ctx, id))
}

func (s *Store) delete(ctx context.Context, id driver.ID) error {
	if err := s.ready(ctx); err != nil {
		return err
	}
	if s.nfs != nil {
		return s.nfs.delete(ctx, id)
	}
	if err := s.present(); err != nil {
		return err
	}
	trash := s.at(id) + trashInfix + newGeneration().String()
	err := s.dir.rename(s.at(id), trash)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if l, ok := errors.AsType[*os.LinkError](err); ok && full(l.Err) {
		return s.deleteInPlace(id) // the longer name may need another block for the directory
	}
	if err == nil && s.config.SyncData {
		err = s.dir.sync(s.parent(id))
	}
	if err != nil {
		return err
	}
	_ = s.discard(trash) // else the sweeper does it
	return nil
}

// deleteInPlace ends a record on a full disk, needing no space.
func (s *Store) deleteInPlace(id driver.ID) error {
	r, err := s.record(id)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer r.close()
	if err := r.endAny(); err != nil {
		return err
	}
	_ = s.dir.remove(s.at(id)) // else the sweeper does it
	return r.syncNames()
}

// List implements driver.Lister. It leaves out records that it cannot read: Load says what is wrong with them.
func (s *Store) List(ctx context.Context) iter.Seq2[driver.Item, error] {
	return func(yield func(driver.Item, error) bool) {
		if err := s.ready(ctx); err != nil {
			yield(driver.Item{}, err)
			return
		}
		errStop := errors.New("stop")
		seen := make(map[driver.ID]struct{}) // a name that goes and comes back may be listed twice
		err := s.walk(ctx, 256, func(names []string) error {
			for _, name := range names {
				id, err := driver.ParseID(name)
				if err != nil {
					continue
				}
				if _, again := seen[id]; again {
					continue
				}
				rec, err := s.load(ctx, id)
				if errors.Is(err, driver.ErrNotFound) || errors.Is(err, driver.ErrCorrupt) || errors.Is(err, driver.ErrVersion) {
					continue
				}
				if err != nil {
					return err
				}
				seen[id] = struct{}{}
				if !yield(driver.Item{ID: id, Record: rec}, nil) {
					return errStop
				}
			}
			return nil
		})
		if err != nil && err != errStop {
			yield(driver.Item{}, storeError("load", err))
		}
	}
}
