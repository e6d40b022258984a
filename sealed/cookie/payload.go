package cookie

import (
	"encoding/binary"
	"math"
	"slices"

	"github.com/holdfast-sessions/holdfast/driver"
)

// The payload, version 1 (that of the envelope). Times are milliseconds since 1970; 0 is the zero Time. A varint is as
// short as possible; signed ones are zigzag-encoded, as in encoding/binary.
//
//	 0  32  ID
//	32   8  revision, big-endian
//	40      created, signed varint
//	        seen - created, signed varint
//	        expires - seen, signed varint
//	        length of user, varint
//	     u  user
//	        fields, to the end
//
// Each field:
//
//	   length of name, varint
//	n  name
//	   length of value, varint
//	v  value
//
// Everything but ID and revision is smaller than in driver.Encode: 15 bytes for the times of a usual session instead of 24, 2 or 3 for
// the lengths of a field instead of 6.
const fixedBytes = 32 + 8

// appendPayload appends the payload to b.
func appendPayload(b []byte, id driver.ID, rec driver.Record) []byte {
	b = slices.Grow(b, fixedBytes+4*binary.MaxVarintLen64+len(rec.User)+len(rec.Fields.Bytes())) // fields only shrink
	b = append(b, id[:]...)
	b = binary.BigEndian.AppendUint64(b, rec.Revision)
	created, seen, expires := driver.Millis(rec.Created), driver.Millis(rec.Seen), driver.Millis(rec.Expires)
	b = binary.AppendVarint(b, created)
	b = binary.AppendVarint(b, seen-created)
	b = binary.AppendVarint(b, expires-seen)
	b = binary.AppendUvarint(b, uint64(len(rec.User)))
	b = append(b, rec.User...)
	for name, value := range rec.Fields.All() {
		b = binary.AppendUvarint(b, uint64(len(name)))
		b = append(b, name...)
		b = binary.AppendUvarint(b, uint64(len(value)))
		b = append(b, value...)
	}
	return b
}

// decode returns what is in a payload, or ErrTampered for bytes that appendPayload does not write. It keeps nothing of b.
func decode(b []byte) (id driver.ID, rec driver.Record, err error) {
	if len(b) < fixedBytes {
		return id, rec, tampered("payload cut off")
	}
	copy(id[:], b)
	r := reader{b: b[fixedBytes:]}
	created := r.signed()
	seen := created + r.signed()
	expires := seen + r.signed()
	rec = driver.Record{
		User:     string(r.bytes(driver.MaxName)),
		Created:  driver.FromMillis(created),
		Seen:     driver.FromMillis(seen),
		Expires:  driver.FromMillis(expires),
		Revision: binary.BigEndian.Uint64(b[32:]),
	}
	// Read once to see that it can be read and how much it takes, so that one allocation does.
	size, again := 0, r
	for r.more() {
		size += 2 + len(r.bytes(driver.MaxName)) + 4 + len(r.bytes(math.MaxInt32))
	}
	if r.bad {
		return driver.ID{}, driver.Record{}, tampered("payload is none")
	}
	fields := make([]byte, 0, size)
	for again.more() {
		name := again.bytes(driver.MaxName)
		fields = binary.BigEndian.AppendUint16(fields, uint16(len(name)))
		fields = append(fields, name...)
		value := again.bytes(math.MaxInt32)
		fields = binary.BigEndian.AppendUint32(fields, uint32(len(value)))
		fields = append(fields, value...)
	}
	if rec.Fields, err = driver.ParseFields(fields); err != nil {
		return driver.ID{}, driver.Record{}, tampered("payload is none")
	}
	return id, rec, nil
}

// reader reads a payload from the front. Once it is bad, it stays bad. (It counts instead of cutting b, whose every change
// the garbage collector would have to be told.)
type reader struct {
	b   []byte
	at  int
	bad bool
}

func (r *reader) more() bool { return r.at < len(r.b) && !r.bad }

func (r *reader) signed() int64 {
	v, n := binary.Varint(r.b[r.at:])
	r.skip(n)
	return v
}

// bytes reads a length, at most limit, and as many bytes.
func (r *reader) bytes(limit uint64) []byte {
	length, n := binary.Uvarint(r.b[r.at:])
	r.skip(n)
	if r.bad || length > limit || length > uint64(len(r.b)-r.at) {
		r.bad = true
		return nil
	}
	start := r.at
	r.at += int(length)
	return r.b[start:r.at]
}

// skip drops a varint of n bytes. Its last byte is 0 only if it could have been shorter.
func (r *reader) skip(n int) {
	if n <= 0 || n > 1 && r.b[r.at+n-1] == 0 {
		r.bad, r.at = true, len(r.b)
		return
	}
	r.at += n
}
