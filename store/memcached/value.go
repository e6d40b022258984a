package memcached

import (
	"crypto/rand"
	"fmt"
	"math"
	"time"

	"github.com/holdfast-sessions/holdfast/driver"
)

// What memcached keeps under a key. Numbers are big-endian; testdata/values.txt has fixtures.
//
//	0  1  kind: 1 a record, 2 an ended session
//
//	a record:          1  n  the record in driver's encoding, which has a version of its own
//	an ended session:  1  8  random bytes, which tell one ending from another
//
// A kind that this release does not know is ErrVersion and is left as it is. Flags are always 0.
const (
	kindRecord = 1
	kindEnded  = 2

	valueHeader = 1
	endedLen    = valueHeader + 8
)

// state is what is stored under a key.
type state struct {
	rec   driver.Record // its Tag is not set
	ended bool          // Delete was here; rec is zero
}

// revision is what a Save has to name as prev to replace what is stored.
func (st state) revision(now time.Time) uint64 {
	if st.ended || st.rec.Expired(now) {
		return 0
	}
	return st.rec.Revision
}

// encode returns the value for a record.
func encode(r driver.Record) ([]byte, error) {
	b, err := driver.Encode(r)
	if err != nil {
		return nil, err
	}
	return append([]byte{kindRecord}, b...), nil
}

// ended returns the value that ends a session.
func ended() []byte {
	b := make([]byte, endedLen)
	b[0] = kindEnded
	_, _ = rand.Read(b[valueHeader:]) // never fails
	return b
}

// decode parses a value. The record keeps b.
func decode(b []byte) (state, error) {
	if len(b) == 0 {
		return state{}, fmt.Errorf("%w: empty", driver.ErrCorrupt)
	}
	switch b[0] {
	case kindRecord:
		r, err := driver.Decode(b[valueHeader:])
		return state{rec: r}, err
	case kindEnded:
		if len(b) != endedLen {
			return state{}, fmt.Errorf("%w: an ended session of %d bytes", driver.ErrCorrupt, len(b))
		}
		return state{ended: true}, nil
	}
	return state{}, fmt.Errorf("%w: a value of kind %d, this release reads %d and %d", driver.ErrVersion, b[0], kindRecord, kindEnded)
}

const (
	// endedLife is how long the server remembers that a session was ended, so that its loss is not reported.
	endedLife = 24 * time.Hour
	// maxRelative is the longest life that memcached takes as a duration: it reads anything longer as a Unix time.
	maxRelative = 30 * 24 * time.Hour
)

// expiration returns what to send for a key that is to live until at, and for grace longer, as memcached wants it: a
// number of seconds up to 30 days, and a Unix time beyond. The first is measured from when the server gets it, so its
// clock does not matter; the second is read by its clock. What no int32 holds, from 2038 on, never ends by itself.
func expiration(at, now time.Time, grace time.Duration) int32 {
	left := max(at.Sub(now), 0) // saturates, so a far-away date does not overflow
	if left <= maxRelative-grace {
		return int32((left + grace + time.Second - 1) / time.Second)
	}
	if end := at.Unix() + int64(grace/time.Second) + 1; end <= math.MaxInt32 {
		return int32(end)
	}
	return 0
}
