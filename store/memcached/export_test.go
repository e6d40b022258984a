package memcached

import (
	"bufio"
	"io"
	"time"

	"github.com/holdfast-sessions/holdfast/driver"
)

// Host is a server in a ring.
type Host struct {
	Name, Port string
	Weight     uint32
}

// Pick returns the number of each key's server, and of the one that has its second copy.
func Pick(hash string, hosts []Host, keys []string) (first, second []int) {
	in := make([]host, len(hosts))
	for i, h := range hosts {
		in[i] = host{name: h.Name, port: h.Port, weight: h.Weight}
	}
	r := newRing(hash, in)
	for _, key := range keys {
		first = append(first, r.pick(key))
		if len(hosts) > 1 {
			second = append(second, r.second(key))
		}
	}
	return first, second
}

// Hashes are the values of the URL's option hash.
var Hashes = hashes

// ServerOf returns the number of the server that has the record, and of the one that has its second copy.
func (s *Store) ServerOf(id driver.ID) (first, second int) {
	return s.ring.pick(s.key(id)), s.ring.second(s.key(id))
}

// DecodeValue parses a value.
func DecodeValue(b []byte) (rec driver.Record, ended bool, err error) {
	st, err := decode(b)
	return st.rec, st.ended, err
}

// EncodeValue returns the value of a record.
func EncodeValue(r driver.Record) ([]byte, error) { return encode(r) }

// Expiration returns what is sent for a key.
func Expiration(at, now time.Time, grace time.Duration) int32 { return expiration(at, now, grace) }

// ParseStats parses the answer to stats.
func ParseStats(r io.Reader) (map[string]string, error) { return parseStats(bufio.NewReader(r)) }

// ErrBusy and ErrNoCrawl are what a server says instead of a list of its keys.
var (
	ErrBusy    = errBusy
	ErrNoCrawl = errNoCrawl
)

// NextKey returns a function that parses the next line of a metadump.
func NextKey(r io.Reader) func() (key string, end bool, err error) {
	br := bufio.NewReader(r)
	return func() (string, bool, error) { return nextKey(br) }
}

// MakeTag and OpenTag are those of a record.
func MakeTag(cas, revision, life uint64, expires, now time.Time) uint64 {
	return makeTag(cas, revision, life, expires, now)
}

func OpenTag(tag, revision, life, highest uint64, now time.Time) (uint64, bool) {
	return openTag(tag, revision, life, highest, now)
}
