package filestore

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash/crc32"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/holdfast-sessions/holdfast/driver"
)

// The names in the directory of a record with Network: NFS. No name is ever used twice.
//
//	1-STATE-LIFE-COUNT-REVISION-EXPIRES-SEEN-GENERATION-DATA[-GENERATION...]   the token, an empty file
//	d-GENERATION                                                               a data file; the token names one
//	t-GENERATION                                                               what becomes the first token
//
// The first character is the version of the token. STATE is at, end or gone; all else is 16 hexadecimal characters each,
// times being milliseconds since 1970 as in driver's encoding. LIFE is the generation of the directory's first token,
// COUNT how many came before this one. The last ones, at most chainLen, are the generations that came before, the newest
// first, of each lane the latest. The longest name has 244 bytes; file systems allow 255.
const (
	tokenVersion = "1-"
	dataPrefix   = "d-"
	draftPrefix  = "t-"

	numberLen = 16
	chainLen  = 7
)

// A lane is what the generations have in common that a process draws one after the other: 48 random bits, which a count
// of 16 follows. Of all calls of a process that move the token of one record, one is under way at a time, so whether a
// generation of a lane won matters only until the lane's next one does, and the token need not remember both.
const laneBits = 48

func (g generation) lane() uint64 { return uint64(g) >> (64 - laneBits) }

// lanes draws generations.
type lanes struct {
	mu sync.Mutex

	// mu guards the field below.
	last generation // 0: none yet
}

func (l *lanes) next() generation {
	const count = 64 - laneBits
	l.mu.Lock()
	defer l.mu.Unlock()
	l.last++
	for l.last<<laneBits == 0 || l.last.lane() == 0 { // used up, or none yet
		l.last = newGeneration()>>count<<count + 1
	}
	return l.last
}

// state says whether a record is there.
type state string

const (
	live  state = "at"
	ended state = "end"  // EXPIRES is when
	gone  state = "gone" // the same; it is being removed, and nobody starts from it
)

// token is what is known of a record without reading it.
type token struct {
	state      state
	life       generation
	count      uint64
	revision   uint64
	expires    uint64 // milliseconds
	seen       uint64 // milliseconds
	generation generation
	data       generation   // of the data file
	chain      []generation // that came before, the newest first
}

func (t token) name() string {
	b := make([]byte, 0, 255)
	b = append(b, tokenVersion...)
	b = append(b, t.state...)
	for _, n := range []uint64{uint64(t.life), t.count, t.revision, t.expires, t.seen, uint64(t.generation), uint64(t.data)} {
		b = appendNumber(b, n)
	}
	for _, g := range t.chain {
		b = appendNumber(b, uint64(g))
	}
	return string(b)
}

func appendNumber(b []byte, n uint64) []byte {
	return hex.AppendEncode(append(b, '-'), binary.BigEndian.AppendUint64(nil, n))
}

// parseToken is the inverse of name.
func parseToken(name string) (t token, ok bool) {
	rest, ok := strings.CutPrefix(name, tokenVersion)
	if !ok {
		return token{}, false
	}
	first, rest, _ := strings.Cut(rest, "-")
	t.state = state(first)
	if t.state != live && t.state != ended && t.state != gone {
		return token{}, false
	}
	numbers := strings.Split(rest, "-")
	const fixed = 7
	if len(numbers) < fixed || len(numbers) > fixed+chainLen {
		return token{}, false
	}
	for i, s := range numbers {
		n, ok := parseNumber(s)
		if !ok {
			return token{}, false
		}
		switch i {
		case 0:
			t.life = generation(n)
		case 1:
			t.count = n
		case 2:
			t.revision = n
		case 3:
			t.expires = n
		case 4:
			t.seen = n
		case 5:
			t.generation = generation(n)
		case 6:
			t.data = generation(n)
		default:
			t.chain = append(t.chain, generation(n))
		}
	}
	return t, true
}

func parseNumber(s string) (uint64, bool) {
	b, err := hex.DecodeString(s)
	if err != nil || len(s) != numberLen || strings.ToLower(s) != s {
		return 0, false
	}
	return binary.BigEndian.Uint64(b), true
}

// isNewerToken reports whether name is a token of a release to come.
func isNewerToken(name string) bool {
	return len(name) > 1 && name[0] > tokenVersion[0] && name[0] <= '9' && name[1] == '-'
}

// next returns a token of generation g that takes the place of t, with the revision and times of rec.
func (t token) next(g generation, s state, rec driver.Record, data generation) token {
	chain := make([]generation, 0, chainLen+1)
	for _, before := range append([]generation{t.generation}, t.chain...) {
		if before.lane() != g.lane() {
			chain = append(chain, before)
		}
	}
	return token{
		state:      s,
		life:       t.life,
		count:      t.count + 1,
		revision:   rec.Revision,
		expires:    millis(rec.Expires),
		seen:       millis(rec.Seen),
		generation: g,
		data:       data,
		chain:      chain[:min(len(chain), chainLen)],
	}
}

// end returns the token of generation g that ends t.
func (t token) end(g generation, s state, now time.Time) token {
	return t.next(g, s, driver.Record{Revision: t.revision, Expires: now}, 0)
}

// fate is what a token tells of an attempt to move another one.
type fate int

const (
	unknown fate = iota // may have won or lost
	won
	lost    // and will not win any more
	pending // the token that it is about is still there, or the list is older than the one that showed it
)

// fate returns what t tells of the attempt to replace base by generation g.
//
// Had g won, it would stand before the generations that base knew of. Each that comes takes away the one before it of its
// own lane, which is never g, and, if the chain is full, the oldest. So g would not be gone before all that base knew of
// are; and a chain that is not full has never lost one to its length.
func (t token) fate(base token, g generation) fate {
	switch {
	case t.life != base.life:
		return unknown
	case t.count <= base.count:
		return pending
	case t.knows(g):
		return won
	case t.knows(base.generation), slices.ContainsFunc(base.chain, t.knows), len(t.chain) < chainLen:
		return lost
	}
	return unknown
}

func (t token) knows(g generation) bool {
	return t.generation == g || slices.Contains(t.chain, g)
}

// millis and fromMillis are as in driver's encoding: 0 is the zero Time.
func millis(t time.Time) uint64 {
	if t.IsZero() {
		return 0
	}
	return uint64(t.UnixMilli())
}

func fromMillis(ms uint64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(int64(ms))
}

func (t token) dataName() string { return dataPrefix + t.data.String() }

func (t token) expired() bool { return time.Now().UnixMilli() >= int64(t.expires) }

// A data file with Network: NFS, version 1. Numbers are big-endian. It is written once, before a token names it.
// testdata/nfs-v1.hex is a fixture.
//
//	 0  3  "HFN"
//	 3  1  version, 1
//	 4  4  CRC-32C of the 32 bytes of the ID and of everything from 8 on: a file under another ID is corrupt
//	 8  8  generation, that of its name
//	16  8  length of the record
//	24     the record, as driver.Encode writes it; the token's revision, expires and seen overrule it
const (
	nfsMagic    = "HFN\x01"
	nfsStart    = 24
	maxNFSFile  = nfsStart + maxRecord
	lengthStart = 16
)

// errShort says that a data file lacks its end, as one may while another machine's cache is about to learn of it.
var errShort = fmt.Errorf("%w: a file that lacks its end", driver.ErrUnavailable)

// encodeNFS returns the data file of generation g that holds record.
func encodeNFS(id driver.ID, g generation, record []byte) []byte {
	b := make([]byte, nfsStart, nfsStart+len(record))
	copy(b, nfsMagic)
	binary.BigEndian.PutUint64(b[8:], uint64(g))
	binary.BigEndian.PutUint64(b[lengthStart:], uint64(len(record)))
	b = append(b, record...)
	binary.BigEndian.PutUint32(b[4:], nfsChecksum(id, b))
	return b
}

func nfsChecksum(id driver.ID, b []byte) uint32 {
	return crc32.Update(crc32.Checksum(id[:], castagnoli), castagnoli, b[8:])
}

// decodeNFS returns the record of the data file that t names.
func decodeNFS(id driver.ID, t token, b []byte) (driver.Record, error) {
	switch {
	case len(b) < nfsStart:
		return driver.Record{}, errShort
	case string(b[:3]) != nfsMagic[:3]:
		return driver.Record{}, fmt.Errorf("%w: a file that does not start as one", driver.ErrCorrupt)
	case b[3] != nfsMagic[3]:
		return driver.Record{}, fmt.Errorf("%w: file version %d, this release reads %d", driver.ErrVersion, b[3], nfsMagic[3])
	case uint64(len(b)-nfsStart) < binary.BigEndian.Uint64(b[lengthStart:]):
		return driver.Record{}, errShort
	case binary.BigEndian.Uint32(b[4:]) != nfsChecksum(id, b), generation(binary.BigEndian.Uint64(b[8:])) != t.data:
		return driver.Record{}, fmt.Errorf("%w: checksum differs; the file was changed, or is another session's", driver.ErrCorrupt)
	}
	rec, err := driver.Decode(b[nfsStart:])
	rec.Revision, rec.Expires, rec.Seen = t.revision, fromMillis(t.expires), fromMillis(t.seen)
	return rec, err
}
