// Package mac computes HMAC-SHA256 of short strings without allocating, from many goroutines.
package mac

import (
	"crypto/hmac"
	"crypto/sha256"
	"hash"
	"sync"
)

// MAC is a keyed function for one purpose. Its methods may be called concurrently.
type MAC struct{ pool sync.Pool }

// state is what one computation needs.
type state struct {
	hash hash.Hash
	in   []byte
	out  [sha256.Size]byte
}

// maxKept bounds the buffer that a state keeps.
const maxKept = 4 << 10

// New returns the MAC whose key is HMAC-SHA256(key, purpose): two purposes have nothing to do with each other.
func New(key []byte, purpose string) *MAC {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(purpose))
	derived := h.Sum(nil)
	return &MAC{sync.Pool{New: func() any { return &state{hash: hmac.New(sha256.New, derived)} }}}
}

// Sum returns the MAC of prefix and s, one after the other. A purpose has prefixes of one length only, or the border
// would not be clear.
func (m *MAC) Sum(prefix []byte, s string) [sha256.Size]byte {
	st := m.pool.Get().(*state)
	st.in = append(append(st.in[:0], prefix...), s...)
	st.hash.Reset()
	st.hash.Write(st.in)
	st.hash.Sum(st.out[:0])
	out := st.out
	if cap(st.in) > maxKept {
		st.in = nil
	}
	m.pool.Put(st)
	return out
}
