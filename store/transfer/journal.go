package transfer

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/holdfast-sessions/holdfast/driver"
)

// ErrJournal says that a journal cannot be used: it is of another pair of stores, in use, or damaged.
var ErrJournal = errors.New("the journal cannot be used")

// Journal is a file that remembers which states of which records two stores had in common, so that the next run does
// not write them again, and knows what has ended in either store between the runs. One file serves both directions: a
// run from the second store to the first, to go back, ends in the first what was ended in the second.
//
// Each step that writes to TO is in the file before it is taken. A process may be killed at any moment; after a power
// failure the last second may be missing, and what ended within it is found again only if it is still marked.
//
// The file begins with three lines, the version and the names of the stores, quoted. Then come steps of 64 bytes,
// numbers big-endian:
//
//	 0   1  what: 1 to be written, 2 done, 3 in neither store any more, 4 listed in its user's record
//	 1  32  ID
//	33   8  revision in the first store; with 1, the revision that is to be written
//	41   8  revision in the second store; with 1, 0 if that is what is written to, or 1 if it is the first
//	49   8  expires, milliseconds since 1970
//	57   3  0
//	60   4  CRC-32C of the above
//
// It holds whole IDs, and is readable by its owner alone: whoever has it can end sessions, given access to the store,
// but not use them.
type Journal struct {
	path    string
	header  string
	swapped bool

	mu sync.Mutex

	// mu guards the fields below.
	file    *os.File
	buffer  []byte
	size    int64
	synced  time.Time
	entries map[driver.ID]entry // as read, until take
}

const (
	opIntent byte = 1 + iota
	opDone
	opGone
	opListed
)

const (
	journalVersion = "holdfast copy journal 1"
	stepBytes      = 64
	maxBuffered    = 64 << 10
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// OpenJournal opens the journal of copies between two stores, or makes it. The names are what tells stores apart:
// whatever the caller takes for that, without passwords.
func OpenJournal(path, from, to string) (*Journal, error) {
	j := &Journal{path: path, synced: time.Now(), entries: make(map[driver.ID]entry)}
	if err := j.open(from, to); err != nil {
		if j.file != nil {
			_ = j.file.Close() // nothing was written
		}
		return nil, err
	}
	return j, nil
}

func (j *Journal) open(from, to string) error {
	for {
		f, err := os.OpenFile(j.path, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
		if err != nil {
			return err
		}
		j.file = f
		if err := lock(f); err != nil {
			return fmt.Errorf("%w: another copy is using %s", ErrJournal, j.path)
		}
		// Whoever had it locked may have put a tidied one in its place.
		mine, err := f.Stat()
		if err != nil {
			return err
		}
		if !mine.Mode().IsRegular() {
			return fmt.Errorf("%w: %s is not a file", ErrJournal, j.path)
		}
		if there, err := os.Stat(j.path); err == nil && os.SameFile(mine, there) {
			break
		} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		_ = f.Close() // only locked
	}
	b, err := io.ReadAll(j.file)
	if err != nil {
		return err
	}
	forth, back := header(from, to), header(to, from)
	switch {
	case len(b) < len(forth) && strings.HasPrefix(forth, string(b)): // new, or killed when it was
		if err := j.file.Truncate(0); err != nil {
			return err
		}
		j.header, j.size = forth, int64(len(forth))
		_, err := j.file.WriteString(forth)
		return err
	case strings.HasPrefix(string(b), forth):
		j.header = forth
	case strings.HasPrefix(string(b), back):
		j.header, j.swapped = back, true
	case strings.HasPrefix(string(b), journalVersion+"\n"):
		return fmt.Errorf("%w: %s is of another pair of stores; give another file", ErrJournal, j.path)
	default:
		return fmt.Errorf("%w: %s is not a journal of this release; give another file", ErrJournal, j.path)
	}
	steps, whole, err := readSteps(b[len(j.header):], j.swapped)
	if err != nil {
		return fmt.Errorf("%w: %s: %w", ErrJournal, j.path, err)
	}
	j.entries = steps
	j.size = int64(len(j.header) + whole)
	return j.file.Truncate(j.size)
}

func header(from, to string) string {
	return journalVersion + "\n" + strconv.Quote(from) + "\n" + strconv.Quote(to) + "\n"
}

// readSteps returns what the steps amount to, and how many bytes of b are whole steps: a process that was killed, or a
// machine that went down, may have left part of one at the end.
func readSteps(b []byte, swapped bool) (map[driver.ID]entry, int, error) {
	entries := make(map[driver.ID]entry)
	whole, bad := 0, -1
	for at := 0; at+stepBytes <= len(b); at += stepBytes {
		step := b[at : at+stepBytes]
		if crc32.Checksum(step[:60], castagnoli) != binary.BigEndian.Uint32(step[60:]) || step[0] < opIntent || step[0] > opListed {
			if bad < 0 {
				bad = at
			}
			continue
		}
		if bad >= 0 {
			return nil, 0, fmt.Errorf("damaged %d bytes after its third line; remove it to copy without it", bad)
		}
		whole = at + stepBytes
		apply(entries, step, swapped)
	}
	now := time.Now().UnixMilli()
	for id, e := range entries {
		if e.expires <= now {
			delete(entries, id)
		}
	}
	return entries, whole, nil
}

func apply(entries map[driver.ID]entry, step []byte, swapped bool) {
	id := driver.ID(step[1:33])
	a, b := binary.BigEndian.Uint64(step[33:]), binary.BigEndian.Uint64(step[41:])
	e := entries[id]
	e.expires = int64(binary.BigEndian.Uint64(step[49:]))
	switch step[0] {
	case opIntent:
		// In the other direction it is not known whether it was written, and nothing follows from its absence.
		if toFirst := b == 1; toFirst == swapped {
			e.intent = a
		}
	case opDone:
		e.from, e.to, e.intent = a, b, 0
		if swapped {
			e.from, e.to, e.listed = b, a, false
		}
	case opListed:
		e.listed = !swapped
	case opGone:
		delete(entries, id)
		return
	}
	entries[id] = e
}

func (j *Journal) step(op byte, id driver.ID, e entry) []byte {
	b := make([]byte, 0, stepBytes)
	b = append(b, op)
	b = append(b, id[:]...)
	first, second := e.from, e.to
	if j.swapped {
		first, second = second, first
	}
	if op == opIntent {
		first, second = e.intent, 0
		if j.swapped {
			second = 1
		}
	}
	b = binary.BigEndian.AppendUint64(b, first)
	b = binary.BigEndian.AppendUint64(b, second)
	b = binary.BigEndian.AppendUint64(b, uint64(e.expires))
	b = append(b, 0, 0, 0)
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

// take returns what was read. The journal no longer needs it.
func (j *Journal) take() map[driver.ID]entry {
	j.mu.Lock()
	defer j.mu.Unlock()
	e := j.entries
	j.entries = nil
	if e == nil { // a second run with the same journal
		e = make(map[driver.ID]entry)
	}
	return e
}

// append adds a step. All but "to be written" may wait for the next of those: without them, a step is taken again.
func (j *Journal) append(op byte, id driver.ID, e entry) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.buffer = append(j.buffer, j.step(op, id, e)...)
	if op == opIntent || op == opListed || len(j.buffer) >= maxBuffered {
		return j.write(time.Since(j.synced) > time.Second)
	}
	return nil
}

func (j *Journal) flush(sync bool) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.write(sync)
}

// write writes what is buffered. The caller holds j.mu.
func (j *Journal) write(sync bool) error {
	if j.file == nil {
		return fmt.Errorf("%w: it is closed", ErrJournal)
	}
	n, err := j.file.Write(j.buffer)
	j.buffer = j.buffer[n:]
	j.size += int64(n)
	if err == nil && sync {
		err = j.file.Sync()
		j.synced = time.Now()
	}
	if err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	return nil
}

// tidy writes the journal anew if most of it is history. keep calls a function with every entry that matters.
func (j *Journal) tidy(keep func(func(driver.ID, entry))) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if err := j.write(true); err != nil {
		return err
	}
	n := 0
	keep(func(driver.ID, entry) { n++ })
	if j.size < 1<<20 || j.size < 4*stepBytes*int64(n) {
		return nil
	}
	var b bytes.Buffer
	b.WriteString(j.header)
	keep(func(id driver.ID, e entry) {
		if e.known() {
			b.Write(j.step(opDone, id, e))
		}
		if e.listed {
			b.Write(j.step(opListed, id, e))
		}
		if e.intent != 0 {
			b.Write(j.step(opIntent, id, e))
		}
	})
	if err := j.replace(b.Bytes()); err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	return nil
}

// replace puts a new file in the place of the journal, locked before it is there.
func (j *Journal) replace(b []byte) error {
	name := j.path + ".new"
	if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) { // of one that was killed; we have the lock
		return err
	}
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	err = lock(f)
	if err == nil {
		_, err = f.Write(b)
	}
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = os.Rename(name, j.path)
	}
	if err != nil {
		_ = f.Close()
		_ = os.Remove(name) // it would only be in the way
		return err
	}
	_ = j.file.Close() // what it holds is in the new one
	j.file, j.size = f, int64(len(b))
	return nil
}

// Close writes what is left and closes the file. Closing twice is allowed.
func (j *Journal) Close() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.file == nil {
		return nil
	}
	err := errors.Join(j.write(true), j.file.Close())
	j.file = nil
	return err
}
