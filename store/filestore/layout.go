package filestore

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"syscall"

	"github.com/holdfast-sessions/holdfast/driver"
)

// Layout says where in its directory a store keeps the records.
type Layout string

// The layouts that Config.Layout may name.
const (
	// KeepLayout keeps to the layout that a directory has; one that has none yet becomes flat, which is what the
	// release before this one reads.
	KeepLayout Layout = ""
	// Flat keeps all records in the directory itself.
	Flat Layout = "flat"
	// Hashed keeps them in 256 subdirectories, 00 to ff, by the first byte of the ID.
	Hashed Layout = "hashed"

	// nfsLayout is that of Network: NFS. Its subdirectories have names of their own, n00 to nff, so that no release takes
	// them for those of another layout.
	nfsLayout Layout = "nfs"
)

// All processes must agree on the layout, or they miss each other's records. What they agree on is the target of the
// symbolic link ".layout": making a link fails if there is one already, so that the first process to make it decides,
// once and for all. (A file could be seen, or left behind by a killed process, before it says anything.) Nothing
// follows the link; it leads nowhere.
//
// A directory without the link is undecided: it is new, or the release before, which knows only the flat layout, has
// used it, or somebody restored it without links. So whoever wants another layout than the flat one first makes sure
// that there is no flat record, and whoever wants the flat one that there are no subdirectories. Between processes of
// this release that is not what decides, so it may take time.
const layoutName = ".layout"

// decideLayout finds out, or settles, which layout the directory has. It is not settled if a full disk has no room for
// the link: then the layout is flat until another process says otherwise.
func (s *Store) decideLayout(ctx context.Context) (l Layout, settled bool, err error) {
	for {
		if err := ctx.Err(); err != nil {
			return "", false, err
		}
		l, settled, err = s.claim(ctx)
		if !errors.Is(err, fs.ErrExist) {
			return l, settled, err
		}
		// Somebody was faster: look what the link says.
	}
}

// claim does one attempt of decideLayout. It returns fs.ErrExist if another process decided meanwhile.
func (s *Store) claim(ctx context.Context) (l Layout, settled bool, err error) {
	target, err := s.dir.readlink(layoutName)
	if err == nil {
		return Layout(target), true, s.wantLayout(Layout(target))
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return "", false, driver.Unavailable(withoutPath(err))
	}
	wanted := cmp.Or(s.config.Layout, Flat)
	if s.nfs != nil {
		wanted = nfsLayout
	}
	if err := s.wantNone(ctx, wanted); err != nil {
		return "", false, err
	}
	err = s.dir.symlink(string(wanted), layoutName)
	switch {
	case err == nil:
		return wanted, true, nil
	case errors.Is(err, fs.ErrExist):
		return "", false, fs.ErrExist
	case isFull(err) && wanted == Flat: // those who are logged in can go on
		return Flat, false, nil
	}
	return "", false, driver.Unavailable(withoutPath(err))
}

// wantLayout returns an error if the layout that the directory has is not one to work with.
func (s *Store) wantLayout(got Layout) error {
	switch wanted := s.config.Layout; {
	case got == nfsLayout && s.nfs != nil:
		return nil
	case got == nfsLayout:
		return fmt.Errorf("%s is for network=nfs, and not all processes may see it as a local disk; add network=nfs", s.path)
	case s.nfs != nil && (got == Flat || got == Hashed):
		return fmt.Errorf("%s is not for network=nfs; leave that out, or move the sessions to a new directory: "+
			"holdfast store copy 'file:%s' 'file:NEW?network=nfs'", s.path, s.path)
	case got != Flat && got != Hashed:
		return fmt.Errorf("%w: %s has the layout %q, which this release does not know", driver.ErrVersion, s.path, got)
	case wanted != KeepLayout && wanted != got:
		return fmt.Errorf("%s has the %s layout; leave out layout=%s, or move the sessions to a new directory: "+
			"holdfast store copy 'file:%s' 'file:NEW?layout=%s'", s.path, got, wanted, s.path, wanted)
	}
	return nil
}

// decided returns an error if another process has given the directory another layout than this one uses, which it can
// while the link is missing. A record that is not found is absent, and one can be made, only if it returns nil.
func (s *Store) decided(making bool) error {
	if s.settled.Load() {
		return nil
	}
	l, settled, err := s.decideLayout(context.Background())
	switch {
	case err != nil:
		return driver.Unavailable(err)
	case l != s.layout:
		return fmt.Errorf("%w: %s has been given the %s layout; restart this process", driver.ErrUnavailable, s.path, l)
	case settled:
		s.settled.Store(true)
	case making: // which another process could miss
		return driver.Unavailable(syscall.ENOSPC)
	}
	return nil
}

// wantNone returns an error if an undecided directory holds what another layout than the wanted one keeps there.
func (s *Store) wantNone(ctx context.Context, wanted Layout) error {
	err := s.dir.list(ctx, ".", sweepPortion, func(names []string) error {
		for _, name := range names {
			_, suffix, isRecord := cutName(name)
			isRecord = isRecord && (suffix == "" || isLeftover(suffix)) && !strings.HasPrefix(name, probePrefix)
			switch {
			case wanted != nfsLayout && isBucket(name, nfsLayout):
				return fmt.Errorf("%s has subdirectories of network=nfs, but its link %s is missing, as after a copy that left out symbolic "+
					"links; open it with network=nfs once", s.path, layoutName)
			case wanted == nfsLayout && (isRecord || isBucket(name, Hashed)):
				return fmt.Errorf("%s has sessions that are not for network=nfs; leave that out, or move them to a new directory: "+
					"holdfast store copy 'file:%s' 'file:NEW?network=nfs'", s.path, s.path)
			case wanted == Flat && isRecord:
				return errFlat // as is to be expected; look no further
			case wanted == Flat && isBucket(name, Hashed):
				return fmt.Errorf("%s has subdirectories of the hashed layout, but its link %s is missing, as after a copy that left out "+
					"symbolic links; open it with layout=hashed once", s.path, layoutName)
			case wanted == Hashed && isRecord:
				return fmt.Errorf("%s has sessions in the flat layout; leave out layout=hashed, or move them to a new directory: "+
					"holdfast store copy 'file:%s' 'file:NEW?layout=hashed'", s.path, s.path)
			}
		}
		return nil
	})
	if err == errFlat {
		return nil
	}
	return err
}

var errFlat = errors.New("flat")

// bucket is the name of the subdirectory for all IDs with this first byte.
func (l Layout) bucket(first byte) string {
	name := hex.EncodeToString([]byte{first})
	if l == nfsLayout {
		name = "n" + name
	}
	return name
}

func isBucket(name string, l Layout) bool {
	b, err := hex.DecodeString(name[max(0, len(name)-2):])
	return err == nil && len(b) == 1 && l.bucket(b[0]) == name
}

// makeBuckets makes the subdirectories that are missing, and refuses what is in their place.
func (s *Store) makeBuckets(ctx context.Context) error {
	for b := range 256 {
		if err := ctx.Err(); err != nil {
			return err
		}
		name := s.layout.bucket(byte(b))
		info, err := s.dir.lstat(name)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			err = s.dir.mkdir(name)
			if errors.Is(err, fs.ErrExist) {
				err = nil
			}
			if isFull(err) {
				return nil // whoever makes a record makes them
			}
		case err == nil && !info.IsDir():
			err = refuse("is %s, want a directory", kind(info))
		case err == nil:
			err = wantOwn(info)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, driver.Unavailable(withoutPath(err)))
		}
	}
	if s.config.SyncData {
		return s.dir.sync(".")
	}
	return nil
}

// at is the name of a record's directory.
func (s *Store) at(id driver.ID) string { return s.inBucket(id) + id.Hex() }

// inBucket is what comes before names that begin with id.
func (s *Store) inBucket(id driver.ID) string {
	if s.layout != Flat {
		return s.layout.bucket(id[0]) + "/"
	}
	return ""
}

// parent is the directory that at is in.
func (s *Store) parent(id driver.ID) string {
	if s.layout != Flat {
		return s.layout.bucket(id[0])
	}
	return "."
}

// walk yields the names of records, and of what is made or removed, n at a time: one subdirectory after the other, so
// that neither memory nor the time between two portions grows with the number of records. Names are relative to where
// their IDs belong; others are left out.
func (s *Store) walk(ctx context.Context, n int, portion func(names []string) error) error {
	if s.layout == Flat {
		return s.dir.list(ctx, ".", n, portion)
	}
	list := s.dir.list
	if s.nfs != nil {
		list = s.nfs.list
	}
	for b := range 256 {
		err := list(ctx, s.layout.bucket(byte(b)), n, func(names []string) error {
			own := names[:0]
			for _, name := range names {
				if id, _, ok := cutName(name); ok && int(id[0]) == b {
					own = append(own, name)
				}
			}
			return portion(own)
		})
		if errors.Is(err, fs.ErrNotExist) {
			err = s.present()
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// isFull reports whether err says that the disk is full, whatever package os wraps it in.
func isFull(err error) bool {
	if p, ok := errors.AsType[*fs.PathError](err); ok {
		return full(p.Err)
	}
	if l, ok := errors.AsType[*os.LinkError](err); ok {
		return full(l.Err)
	}
	return false
}
