package filestore

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/holdfast-sessions/holdfast/driver"
)

// How compare-and-set works without a lock.
//
// Each record is a directory of its own, named by its ID:
//
//	data            the record
//	at-G            the token, an empty file. G is the generation of data
//	G-H.tmp         a candidate: what a writer wants to put in the place of generation G, as generation H
//	ended           what the token is renamed to when the record ends
//
// A generation is a random number that one attempt to write draws; no name that contains one is ever made twice.
// A record exists if and only if its data does. It is made elsewhere, with data and token in it, and appears by one
// rename(2) of the whole directory, which fails if there is one already.
//
// Save of a new generation H over G:
//
//	S1  open the directory; everything below acts on that directory, whatever its name leads to by then
//	S2  read the start of data: is this the revision to replace, is it unexpired, what is G?
//	S3  write G-H.tmp
//	S4  rename at-G to at-H. ENOENT: lost; finish what the winner began, then ErrConflict
//	S5  rename G-H.tmp to data. ENOENT: somebody has done it for us
//
// Two writers never both succeed. S4 is the decision. rename(2) moves its source away, so that of all renames of
// at-G one succeeds. at-G never comes back: only S4 of the attempt that drew G makes that name, once.
//
// What was decided is never undone, however long a writer sleeps between two steps (SIGSTOP, a debugger, swap).
// A sleeper before S4 wakes to find at-G gone. A sleeper before S5 holds back nothing: whoever loses to it finds
// at-H and G-H.tmp and does S5 in its place; when it wakes, G-H.tmp is gone. Nor can it turn data back: data goes
// from G to H by the one rename of the one G-H.tmp, and the next one, of H-I.tmp, comes later, because S4 from H
// follows an S2 that read H in data.
//
// Readers open data and read it: no token, no list. A Save takes effect for everybody at S5, and whoever noticed
// it earlier, by losing, has done S5 before saying so.
//
// Delete renames the whole directory to a name that is never used again, and removes it there: one step, which no
// writer can hold up. Writers that have it open go on inside the removed directory, where nobody looks; those that
// come later find nothing and get ErrConflict. That is why S1 matters: os.Root binds them to the directory.
//
// An expired record is ended where it is, for it may be extended at the same moment:
//
//	E1  read generation G, expired, in data
//	E2  rename at-G to ended. ENOENT: not the last word; finish what the winner of G began, and look again
//	E3  remove candidates, then data, then ended
//	E4  rmdir the directory by name
//
// E2 competes with S4 for the token: either the record is extended or it has ended. Once ended, no S4 succeeds in
// this directory ever again. E3 acts on the open directory, so that it cannot hit a record made anew under the same
// ID, and E4 cannot either, as rmdir fails unless the directory is empty, and a record never is: this is what the
// directory per record is for. With one file per record, an unlink would remove whatever has the name by then.
// Candidates go before data in E3 so that a winner asleep before S5 cannot bring data back.
//
// Load of an expired record ends it too, so that it stays as absent as Load said, even if a writer that had read it
// before it expired is still on its way to S4.
//
// A process may die anywhere (SIGKILL):
//
//	after S3  a candidate of a generation that is past, or becomes past with the next Save. The sweeper removes it.
//	          It may do so at once, as S4 from a past generation fails for ever.
//	after S4  data is one generation behind. Nobody has been told; the next writer to come does S5.
//	after E2  data is there, expired; every writer finds ended and does E3; so does the sweeper.
//	Delete    a directory under a name that no record has. The sweeper removes it.
//	create    the same. The sweeper first renames it, after 15 minutes, so that a maker who is merely asleep
//	          cannot publish a directory half removed.
//
// explore_test.go runs these steps in every order with up to two preemptions, and with a kill before each of them;
// process_test.go kills and stops real processes.
const (
	nameData  = "data"
	nameEnded = "ended"
	atPrefix  = "at-"
	tmpSuffix = ".tmp"
)

// generation tells apart all attempts to write a record.
type generation uint64

func newGeneration() generation { return generation(rand.Uint64()) }

func (g generation) String() string {
	return hex.EncodeToString(binary.BigEndian.AppendUint64(nil, uint64(g)))
}

func (g generation) token() string { return atPrefix + g.String() }

func (g generation) candidate(next generation) string {
	return g.String() + "-" + next.String() + tmpSuffix
}

// cutCandidate is the inverse of candidate.
func cutCandidate(name string) (prev, next string, ok bool) {
	name, ok = strings.CutSuffix(name, tmpSuffix)
	if !ok {
		return "", "", false
	}
	return strings.Cut(name, "-")
}

// The file data, version 1. Numbers are big-endian. testdata/data-v1.hex is a fixture.
//
//	0   3  "HFS"
//	3   1  version, 1
//	4   4  CRC-32C of the 32 bytes of the ID and of everything from 8 on: a file under another ID is corrupt
//	8   8  generation
//	16     the record, as driver.Encode writes it
const (
	magic       = "HFS\x01"
	recordStart = 16

	// What a writer needs of driver's encoding.
	recordVersionAt = recordStart
	revisionAt      = recordStart + 1
	expiresAt       = recordStart + 25
	headLen         = recordStart + 33

	maxRecord = 64 << 20
	maxFile   = recordStart + maxRecord
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// file is what is written to data, in two parts to save a copy.
type file struct{ start, record []byte }

func encode(id driver.ID, g generation, rec driver.Record) (file, error) {
	if n := rec.EncodedLen(); n > maxRecord {
		return file{}, fmt.Errorf("%w: %d bytes, at most %d", driver.ErrTooLarge, n, maxRecord)
	}
	r, err := driver.Encode(rec)
	if err != nil {
		return file{}, err
	}
	start := make([]byte, recordStart)
	copy(start, magic)
	binary.BigEndian.PutUint64(start[8:], uint64(g))
	binary.BigEndian.PutUint32(start[4:], checksum(id, start, r))
	return file{start, r}, nil
}

func checksum(id driver.ID, start, record []byte) uint32 {
	c := crc32.Checksum(id[:], castagnoli)
	c = crc32.Update(c, castagnoli, start[8:recordStart])
	return crc32.Update(c, castagnoli, record)
}

func decode(id driver.ID, b []byte) (driver.Record, error) {
	if err := checkMagic(b); err != nil {
		return driver.Record{}, err
	}
	if binary.BigEndian.Uint32(b[4:]) != checksum(id, b, b[recordStart:]) {
		return driver.Record{}, fmt.Errorf("%w: checksum differs; the file was cut, changed, or is another session's", driver.ErrCorrupt)
	}
	return driver.Decode(b[recordStart:])
}

func checkMagic(b []byte) error {
	switch {
	case len(b) < headLen || string(b[:3]) != magic[:3]:
		return fmt.Errorf("%w: a file of %d bytes that does not start as one", driver.ErrCorrupt, len(b))
	case b[3] != magic[3]:
		return fmt.Errorf("%w: file version %d, this release reads %d", driver.ErrVersion, b[3], magic[3])
	}
	return nil
}

// head is what a writer has to know of the record it replaces.
type head struct {
	generation generation
	revision   uint64
	expires    int64 // milliseconds since 1970
	size       int64 // of the file
}

func (h head) expired() bool { return time.Now().UnixMilli() >= h.expires }

// record is the open directory of a record, or of one that has ended since.
type record struct {
	dir
	sync bool
}

// head reads the start of data. fs.ErrNotExist says that the record has ended. The checksum is left to Load: no
// writer comes this far without the revision that Load returned.
func (r record) head() (head, error) {
	b, size, err := r.readStart(nameData, headLen)
	if err == nil {
		err = checkMagic(b)
	}
	if err == nil && b[recordVersionAt] != driverVersion {
		err = fmt.Errorf("%w: version %d, this release reads %d", driver.ErrVersion, b[recordVersionAt], driverVersion)
	}
	if err != nil {
		return head{}, err
	}
	return head{
		generation: generation(binary.BigEndian.Uint64(b[8:])),
		revision:   binary.BigEndian.Uint64(b[revisionAt:]),
		expires:    int64(binary.BigEndian.Uint64(b[expiresAt:])),
		size:       size,
	}, nil
}

// driverVersion is the version of driver's encoding whose offsets are used here.
const driverVersion = 1

// replace does S3 to S5.
func (r record) replace(ctx context.Context, h head, next generation, f file) error {
	candidate := h.generation.candidate(next)
	err := r.write(candidate, r.sync, f.start, f.record)
	if err == nil {
		err = ctx.Err()
	}
	if err == nil && h.expired() { // it took long; another process may have said that the record is gone
		err = driver.ErrConflict
	}
	if errors.Is(err, fs.ErrNotExist) {
		return driver.ErrConflict // the directory has been removed
	}
	if err != nil {
		_ = r.remove(candidate) // else the sweeper does it
		return err
	}
	switch err := r.rename(h.generation.token(), next.token()); {
	case errors.Is(err, fs.ErrNotExist):
		_ = r.remove(candidate) // else the sweeper does it
		if err := r.settle(h.generation); err != nil {
			return err
		}
		return driver.ErrConflict
	case err != nil:
		return err
	}
	if err := r.rename(candidate, nameData); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return driver.Unavailable(withoutPath(err)) // decided; the next writer finishes it
	}
	return r.syncNames()
}

func (r record) syncNames() error {
	if !r.sync {
		return nil
	}
	if err := r.dir.sync("."); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil // the directory has been removed
}

// errStuck says that the token was taken, and that nobody has put anything in the place of the data it stood for.
var errStuck = fmt.Errorf("%w: data and token do not belong together", driver.ErrCorrupt)

// settle finishes what the writer that took the token of generation g began, so that data is past g when it
// returns, or gone. It returns errStuck if it finds nothing that leads on from g.
func (r record) settle(g generation) error {
	const tries = 8 // one is enough if nobody else is at work here
	for range tries {
		names, err := r.names()
		if err != nil {
			return err
		}
		if names.ended {
			return r.clear()
		}
		for _, name := range names.candidates {
			if _, next, _ := cutCandidate(name); next == names.at {
				if err := r.rename(name, nameData); err != nil && !errors.Is(err, fs.ErrNotExist) {
					return err
				}
			}
		}
		switch h, err := r.head(); {
		case errors.Is(err, fs.ErrNotExist):
			return nil
		case err != nil:
			return err
		case h.generation != g:
			return r.syncNames()
		}
	}
	return errStuck
}

// end does E2 and E3 for a record of generation g. It reports whether the record has ended.
func (r record) end(g generation) (ended bool, err error) {
	switch err := r.rename(g.token(), nameEnded); {
	case errors.Is(err, fs.ErrNotExist):
		return false, r.settle(g)
	case err != nil:
		return false, err
	}
	return true, r.clear()
}

// endExpired ends r if it has expired, and returns driver.ErrConflict if not. It reports whether r is empty then, and
// whether it was this call that ended it.
func (r record) endExpired() (emptied, byUs bool, err error) {
	h, err := r.head()
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return true, false, r.clear()
	case err != nil:
		return false, false, err
	case !h.expired():
		return false, false, driver.ErrConflict
	}
	byUs, err = r.end(h.generation)
	return byUs, byUs, err
}

// endAny ends the record whatever its generation is, also one that cannot be read.
func (r record) endAny() error {
	for {
		h, err := r.head()
		ended := false
		if err == nil {
			ended, err = r.end(h.generation)
		}
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, driver.ErrCorrupt) || errors.Is(err, driver.ErrVersion) {
			return r.clear()
		}
		if ended || err != nil {
			return err
		}
	}
}

// clear does E3: it empties the directory of a record that has ended.
func (r record) clear() error {
	names, err := r.names()
	if err != nil {
		return err
	}
	if names.at != "" { // somebody removed data by hand
		err = r.drop(atPrefix + names.at)
	}
	for _, name := range append(names.candidates, names.others...) {
		err = errors.Join(err, r.drop(name))
	}
	if err != nil {
		return err // data must not go before candidates
	}
	if err := r.drop(nameData); err != nil {
		return err
	}
	return r.drop(nameEnded)
}

func (r record) drop(name string) error {
	if err := r.remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// tidy removes the candidates of past generations. There are two lists because one is not a snapshot: when a
// candidate is made, at-G is there or already past. So if the token that the second list finds is not at-G, it is
// past for good.
func (r record) tidy(first names) error {
	if len(first.candidates) == 0 {
		return nil
	}
	second, err := r.names()
	if err != nil || second.at == "" {
		return err
	}
	for _, name := range first.candidates {
		if prev, next, _ := cutCandidate(name); prev != second.at && next != second.at {
			err = errors.Join(err, r.drop(name))
		}
	}
	return err
}

// names is what the directory of a record holds beside data.
type names struct {
	at         string // the generation of the token, or ""
	ended      bool
	candidates []string
	others     []string
}

func (r record) names() (n names, err error) {
	err = r.list(context.Background(), ".", 64, func(portion []string) error {
		for _, name := range portion {
			if at, ok := strings.CutPrefix(name, atPrefix); ok {
				n.at = at
			} else if _, _, ok := cutCandidate(name); ok {
				n.candidates = append(n.candidates, name)
			} else if name == nameEnded {
				n.ended = true
			} else if name != nameData {
				n.others = append(n.others, name)
			}
		}
		return nil
	})
	if errors.Is(err, fs.ErrNotExist) {
		err = nil // the directory has been removed
	}
	return n, err
}
