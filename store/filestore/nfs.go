package filestore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/holdfast-sessions/holdfast/driver"
)

// How records are kept with Network: NFS, where an answer may be lost and the request be sent again (a rename that was
// done is then answered ENOENT), where each machine remembers names and attributes for up to a minute, where a file that a
// machine removes or replaces while it has it open is renamed by its name first (nfs(5), "silly rename"), and where
// flock may not work.
//
// A record is a directory of its own, SHARD/ID. In it are one token, an empty file whose name says all but the fields
// (token.go), and the data file that the token names. No name in it is ever used twice, and nothing is ever replaced: a
// name holds a generation, a random number that one attempt draws. So a cache that knows a name knows the right file, a
// silly rename hits no other file, and a request that comes twice or late finds nothing to do. (Making a file is the
// exception: it would come back. So a token is never made in place but is a rename of a draft.)
//
//	F  find: open the directory by its name, for which a machine asks the server whether what it remembers of the
//	   names in it still holds (close-to-open; an open descriptor does not do that), and list it
//	W  write the data file, sync and close it; whatever fails there happens before anything is decided
//	M  move: rename the token that F found to the new one
//	C  clean up: remove the data files that F found and the new token does not name
//
// Save and Touch (without W) move at to at, Delete moves at to end, Save of a new record moves end, or an expired at,
// to at. If there is no directory, Save makes one under another name, with data and token in it, and renames that.
//
// Who won. The source of M exists once at the server, so of all renames from one generation one succeeds, ever. Who is
// not told so looks who came after: its own generation among those that the token knows, and it won; the generation it
// started from without its own after it, and it lost, for good; anything else, and it says ErrUnavailable, "may or may not
// have happened". An ended record keeps its token for endedKept so that those who ask find it.
//
// A record ended only if a token says so: a list is not a snapshot, and one without a token, or with two, is drawn
// again. A directory with nothing in it is absent if rmdir removes it.
//
// Why C removes nothing that is needed. Let T be the token that F found and M moved away. A data file on the same list was
// written by somebody who had found T or an earlier token, since T was there until M. All of these are gone now, so its
// writer cannot win any more; if it has won, the token that names it is T or an earlier one, or it is what the new token
// names. Nothing else removes data files, except whose own attempt has lost for good, and what follows.
//
// Removal. An ended token becomes gone, from which nobody starts: the directory will never have another token. Then
// whatever is in it goes, the token last, then the directory by rmdir, which hits nothing else as no record is empty.
// A writer so slow that it puts its data file in just before the rmdir leaves a directory without a token if the process
// that removes it is killed at that moment. A sweeper removes it when nothing in it has changed for leftoverAge by the
// server's clock: a list of a directory that does not change is complete, so there is no token.
//
// The rules of every store. (1) Two writers: M. (2) Logout is final: after end no rename from an earlier at succeeds. (3)
// "Not found" is said of a token that says so, or when shard and root were opened by name first and the name is still
// not there; a file that is not there yet or any more is looked for again until the deadline, and then it is
// ErrUnavailable. (4) Expiry: the token says when; Load ends what it says is gone, so that no slow Save extends it. (5)
// A whole record: a data file does not change once a token names it. A cancelled call may go on to M, as one without
// an answer does. (6) Names come from IDs only.
const (
	// endedKept is how long an ended token stays: longer than anybody waits for an answer.
	endedKept = time.Minute
	// leftoverAge is how long nothing happens to a leftover before it counts as one.
	leftoverAge = 15 * time.Minute
)

// nfs keeps records by this protocol.
type nfs struct {
	s      *Store
	lanes  lanes
	alone  locks
	gate   *gate // of requests
	upkeep *gate // of what goes through all records, so that it takes no place from requests
}

// found is the directory of a record, as one list showed it. It stays open until close.
type found struct {
	dir
	token
	data  []string // data files
	other []string // drafts, and what an NFS client renamed
}

// errTorn says that a list shows no state that a directory is ever in.
var errTorn = fmt.Errorf("%w: no list of the record's directory was whole", driver.ErrUnavailable)

// find does F. It returns driver.ErrNotFound if there is no record's directory.
func (n *nfs) find(ctx context.Context, id driver.ID) (found, error) {
	var f found
	err := n.retry(ctx, func() (err error) {
		f, err = n.findOnce(ctx, id)
		return err
	})
	return f, err
}

// retry calls f until it returns nil or an error that another try will not change, or ctx ends.
func (n *nfs) retry(ctx context.Context, f func() error) error {
	wait := 200 * time.Microsecond
	for {
		if err := n.s.ready(ctx); err != nil {
			return err
		}
		err := f()
		if err != errTorn && !errors.Is(err, errShort) && !isStale(err) {
			return err
		}
		if !pause(ctx, wait) {
			return driver.Unavailable(withoutPath(err))
		}
		wait = min(2*wait, 50*time.Millisecond)
	}
}

// isStale reports whether err says that a name or a file is not there, which other machines may have changed since it
// was looked at.
func isStale(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESTALE) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF)
}

func (n *nfs) findOnce(ctx context.Context, id driver.ID) (found, error) {
	d, err := n.s.dir.sub(n.s.at(id))
	if errors.Is(err, fs.ErrNotExist) {
		if err := n.refresh(id); err != nil {
			return found{}, err
		}
		d, err = n.s.dir.sub(n.s.at(id))
		if errors.Is(err, fs.ErrNotExist) {
			return found{}, driver.ErrNotFound
		}
	}
	if err != nil {
		return found{}, err
	}
	f, err := list(ctx, d)
	if err == errTorn && f.data == nil && f.other == nil { // empty: absent, if so it is
		if err = n.s.dir.remove(n.s.at(id)); err == nil {
			err = driver.ErrNotFound
		} else if errors.Is(err, fs.ErrExist) {
			err = errTorn
		}
	}
	if err != nil {
		d.close()
	}
	return f, err
}

// refresh opens what leads to id by name, so that this machine forgets names that it remembers as absent and are not.
func (n *nfs) refresh(id driver.ID) error {
	if err := n.reopened(); err != nil {
		return err
	}
	d, err := n.s.dir.sub(n.s.parent(id))
	if err == nil {
		d.close()
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// reopened does what present does, asking the server.
func (n *nfs) reopened() error {
	f, err := os.Open(n.s.path)
	if err != nil {
		return errMoved(n.s.path)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || !os.SameFile(info, n.s.self) {
		return errMoved(n.s.path)
	}
	return nil
}

// list returns what is in d. It returns errTorn, with what else there is, unless there is one token.
func list(ctx context.Context, d dir) (found, error) {
	f := found{dir: d}
	tokens, newer := 0, false
	err := d.list(ctx, ".", 64, func(names []string) error {
		for _, name := range names {
			if t, ok := parseToken(name); ok {
				f.token = t
				tokens++
			} else if isNewerToken(name) {
				newer = true
			} else if strings.HasPrefix(name, dataPrefix) {
				f.data = append(f.data, name)
			} else {
				f.other = append(f.other, name)
			}
		}
		return nil
	})
	switch {
	case err != nil:
		return f, err
	case newer:
		return f, fmt.Errorf("%w: a token that this release cannot read", driver.ErrVersion)
	case tokens != 1:
		return f, errTorn
	}
	return f, nil
}

// errUnknown says that a write may or may not have happened.
var errUnknown = fmt.Errorf("%w: no answer, and nothing tells whether it was done", driver.ErrUnavailable)

// move does M. It returns nil if next took the place of f's token, also if it has been replaced since, and
// driver.ErrConflict if that never happens.
func (n *nfs) move(ctx context.Context, id driver.ID, f found, next token) error {
	err := f.rename(f.name(), next.name())
	if err == nil {
		return nil
	}
	return n.retry(ctx, func() error {
		now, e := n.find(ctx, id)
		if errors.Is(e, driver.ErrNotFound) {
			return errUnknown
		}
		if e != nil {
			return driver.Unavailable(withoutPath(e))
		}
		defer now.close()
		switch now.fate(f.token, next.generation) {
		case won:
			return nil
		case lost:
			return driver.ErrConflict
		case pending:
			if isStale(err) { // this machine did not even ask, or got to another directory
				err = now.rename(f.name(), next.name())
			}
			return err
		}
		return errUnknown
	})
}

// clean does C, as far as it can.
func (f found) clean(next token) {
	for _, name := range f.data {
		if name != next.dataName() {
			_ = f.remove(name) // else whoever moves the token next does it
		}
	}
}

func (n *nfs) load(ctx context.Context, id driver.ID) (driver.Record, error) {
	ctx, cancel := withTimeout(ctx)
	defer cancel()
	for {
		rec, err := within(ctx, n.gate, func(ctx context.Context) (driver.Record, error) { return n.loadInside(ctx, id) })
		if err != errExpired {
			return rec, err
		}
		err = n.onlyOne(ctx, n.gate, id, func(ctx context.Context) error { return n.endExpired(ctx, id) })
		if err != driver.ErrConflict {
			return driver.Record{}, driver.ErrNotFound // also if the directory is read-only
		}
	}
}

// errExpired says that a record has expired and no token says yet that it ended.
var errExpired = errors.New("expired")

// endExpired ends a record that has expired, so that it stays so. It returns driver.ErrConflict if it was replaced.
func (n *nfs) endExpired(ctx context.Context, id driver.ID) error {
	f, err := n.find(ctx, id)
	if err != nil {
		return err
	}
	defer f.close()
	switch {
	case f.state != live:
		return nil
	case !f.expired():
		return driver.ErrConflict
	}
	return n.end(ctx, id, f)
}

// onlyOne calls f, which may move the token of id, when no other such call of this process is under way.
func (n *nfs) onlyOne(ctx context.Context, g *gate, id driver.ID, f func(ctx context.Context) error) error {
	ctx, cancel := withTimeout(ctx)
	defer cancel()
	unlock, err := n.alone.lock(ctx, id)
	if err != nil {
		return err
	}
	if err := g.enter(ctx); err != nil {
		unlock()
		return err
	}
	_, err = inside(ctx, g, func(ctx context.Context) (struct{}, error) {
		defer unlock()
		return struct{}{}, f(ctx)
	})
	return err
}

func (n *nfs) loadInside(ctx context.Context, id driver.ID) (rec driver.Record, err error) {
	corrupt := 0
	err = n.retry(ctx, func() error {
		f, err := n.find(ctx, id)
		if err != nil {
			return err
		}
		defer f.close()
		if f.state != live {
			return driver.ErrNotFound
		}
		if f.expired() {
			return errExpired
		}
		b, err := f.read(f.dataName(), maxNFSFile)
		if err == nil {
			rec, err = decodeNFS(id, f.token, b)
		}
		if errors.Is(err, driver.ErrCorrupt) {
			if corrupt++; corrupt < 3 {
				return errTorn // nobody has seen a cache answer so, and nothing but a cache would be forgiven
			}
		}
		return err
	})
	return rec, err
}

// end moves f's token to one that says that the record ended, and removes the data.
func (n *nfs) end(ctx context.Context, id driver.ID, f found) error {
	next := f.token.end(n.lanes.next(), ended, time.Now())
	if err := n.move(ctx, id, f, next); err != nil {
		return err
	}
	f.clean(next)
	return nil
}

func (n *nfs) save(ctx context.Context, id driver.ID, rec driver.Record, prev uint64) error {
	if size := rec.EncodedLen(); size > maxRecord {
		return fmt.Errorf("%w: %d bytes, at most %d", driver.ErrTooLarge, size, maxRecord)
	}
	record, err := driver.Encode(rec) // here, as the caller may leave
	if err != nil {
		return err
	}
	return n.onlyOne(ctx, n.gate, id, func(ctx context.Context) error { return n.saveInside(ctx, id, rec, record, prev) })
}

func (n *nfs) saveInside(ctx context.Context, id driver.ID, rec driver.Record, record []byte, prev uint64) error {
	if err := n.s.present(); err != nil {
		return err
	}
	return n.retry(ctx, func() error {
		f, err := n.find(ctx, id)
		if errors.Is(err, driver.ErrNotFound) {
			if prev != 0 {
				return driver.ErrConflict
			}
			return n.create(ctx, id, rec, record)
		}
		if err != nil {
			return err
		}
		defer f.close()
		there := f.state == live && !f.expired()
		switch {
		case there && f.revision != prev, !there && prev != 0:
			return driver.ErrConflict
		case f.state == gone:
			if err := n.finish(ctx, id, f); err != nil {
				return err
			}
			return errTorn // look again
		}
		g := n.lanes.next()
		next := f.next(g, live, rec, g)
		err = writeNew(f.dir, next.dataName(), encodeNFS(id, g, record))
		if err == nil {
			err = ctx.Err()
		}
		if err == nil && there && f.expired() { // it took long; another process may have said that the record is gone
			err = driver.ErrConflict
		}
		if err == nil {
			if err = n.move(ctx, id, f, next); err == nil {
				f.clean(next)
				return nil
			}
			if err != driver.ErrConflict {
				return err // it may yet be done, and then it needs its data
			}
			if prev == 0 {
				err = errTorn // somebody else began a new record, or ended or removes the old one: look again
			}
		}
		_ = f.remove(next.dataName()) // else whoever moves the token next does it
		return err
	})
}

// writeNew writes a file, to the server's disk. It returns errTorn if there is one of this name: then the answer to this
// call's own first request was lost.
func writeNew(d dir, name string, b []byte) error {
	err := d.write(name, true, b)
	if errors.Is(err, fs.ErrExist) {
		return errTorn
	}
	return err
}

// create makes a record where there is no directory. It returns errTorn if there is one by now.
func (n *nfs) create(ctx context.Context, id driver.ID, rec driver.Record, record []byte) error {
	g := n.lanes.next()
	first := token{}.next(g, live, rec, g)
	first.life, first.count, first.chain = g, 0, nil
	build := n.s.at(id) + buildInfix + g.String()
	err := n.makeDir(id, build)
	if err == nil {
		err = n.build(build, first, encodeNFS(id, g, record))
	}
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		n.discard(id, build)
		return err
	}
	err = n.s.dir.rename(build, n.s.at(id))
	if err == nil {
		return nil
	}
	now, e := n.find(ctx, id)
	switch {
	case e == nil:
		now.close()
		if now.life == first.life {
			return nil
		}
	case !errors.Is(e, driver.ErrNotFound):
		return driver.Unavailable(withoutPath(e))
	}
	// If what was built is still there, it was not renamed; discard sees to it that it never is.
	d, e := n.s.dir.sub(build)
	if e != nil {
		return errUnknown
	}
	d.close()
	n.discard(id, build)
	if errors.Is(err, fs.ErrExist) || isStale(err) {
		return errTorn
	}
	return err
}

// makeDir makes the directory build for a record, and its shard if it is missing. As the name is random, one that is
// there is the one that this call made, whose answer was lost.
func (n *nfs) makeDir(id driver.ID, build string) error {
	err := n.s.dir.mkdir(build)
	if errors.Is(err, fs.ErrNotExist) { // the disk was full when the store was opened
		if err := n.s.dir.mkdir(n.s.parent(id)); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		err = n.s.dir.mkdir(build)
	}
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	return err
}

func (n *nfs) build(name string, t token, data []byte) error {
	d, err := n.s.dir.sub(name)
	if err != nil {
		return err
	}
	defer d.close()
	if err := writeNew(d, t.dataName(), data); err != nil {
		return err
	}
	draft := draftPrefix + t.generation.String()
	if err := writeNew(d, draft, nil); err != nil {
		return err
	}
	if err := d.rename(draft, t.name()); err != nil {
		again, e := n.s.dir.sub(name)
		if e != nil {
			return err
		}
		defer again.close()
		if f, e := list(context.Background(), again); e != nil || f.generation != t.generation {
			return err
		}
	}
	return nil
}

// discard removes what create built, or a sweeper found. The name goes first, so that a rename of it that is still under
// way publishes nothing half removed.
func (n *nfs) discard(id driver.ID, build string) {
	trash := n.s.at(id) + trashInfix + n.lanes.next().String()
	if n.s.dir.rename(build, trash) == nil {
		_ = n.s.dir.removeAll(trash) // else the sweeper does it
	}
}

func (n *nfs) touch(ctx context.Context, id driver.ID, rec driver.Record, prev uint64) error {
	return n.onlyOne(ctx, n.gate, id, func(ctx context.Context) error { return n.touchInside(ctx, id, rec, prev) })
}

func (n *nfs) touchInside(ctx context.Context, id driver.ID, rec driver.Record, prev uint64) error {
	if err := n.s.present(); err != nil {
		return err
	}
	return n.retry(ctx, func() error {
		f, err := n.find(ctx, id)
		if err != nil {
			return err
		}
		defer f.close()
		if f.state != live || f.expired() {
			return driver.ErrNotFound
		}
		if f.revision != prev {
			return driver.ErrConflict
		}
		next := f.next(n.lanes.next(), live, rec, f.token.data)
		if err := ctx.Err(); err != nil {
			return err
		}
		switch err := n.move(ctx, id, f, next); err {
		case nil:
			f.clean(next)
			return nil
		case driver.ErrConflict:
			return errTorn // saved, or ended: look which
		default:
			return err
		}
	})
}

func (n *nfs) delete(ctx context.Context, id driver.ID) error {
	return n.onlyOne(ctx, n.gate, id, func(ctx context.Context) error { return n.deleteInside(ctx, id) })
}

func (n *nfs) deleteInside(ctx context.Context, id driver.ID) error {
	if err := n.s.present(); err != nil {
		return err
	}
	var failed error
	return n.retry(ctx, func() error {
		f, err := n.find(ctx, id)
		if errors.Is(err, driver.ErrNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		defer f.close()
		if f.state != live {
			return nil
		}
		if failed != nil {
			return failed
		}
		if err = n.end(ctx, id, f); err == driver.ErrConflict {
			return errTorn // saved, or ended: look which
		}
		if failed = err; err != nil {
			return errTorn // it ended all the same, if so says a second look
		}
		return nil
	})
}
