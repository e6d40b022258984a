// Package base64url reads base64url without padding (RFC 4648, section 5), strictly: every value has one encoding, and
// anything else is refused. encoding/base64 alone skips line breaks.
package base64url

import (
	"encoding/base64"
	"encoding/binary"
	"slices"
)

var strict = base64.RawURLEncoding.Strict()

// pairs are the two characters of each 12 bits, the first in the low byte.
var pairs = func() (t [1 << 12]uint16) {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	for i := range t {
		t[i] = uint16(alphabet[i>>6]) | uint16(alphabet[i&63])<<8
	}
	return t
}()

// Len returns the length of the encoding of n bytes.
func Len(n int) int { return base64.RawURLEncoding.EncodedLen(n) }

// Encode returns the encoding of b.
func Encode(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

// Append appends the encoding of b to dst.
func Append(dst, b []byte) []byte { return base64.RawURLEncoding.AppendEncode(dst, b) }

// AppendPublic does what Append does in two thirds of the time, which matters where each write encodes a whole session
// (BenchmarkAppend). It is for what is no secret, such as what was sealed: it looks b up in a table of several cache lines.
func AppendPublic(dst, b []byte) []byte {
	n := len(dst)
	dst = slices.Grow(dst, Len(len(b)))[:n+Len(len(b))]
	out := dst[n:]
	for len(b) >= 8 { // of which 6 are taken
		v := binary.BigEndian.Uint64(b) >> 16
		binary.LittleEndian.PutUint64(out, uint64(pairs[v>>36])|uint64(pairs[v>>24&0xfff])<<16|
			uint64(pairs[v>>12&0xfff])<<32|uint64(pairs[v&0xfff])<<48)
		b, out = b[6:], out[8:]
	}
	base64.RawURLEncoding.Encode(out, b)
	return dst
}

// Decode returns what s is the encoding of, and whether it is the only encoding of that.
func Decode(s string) ([]byte, bool) {
	return DecodeAppend(nil, []byte(s))
}

// DecodeAppend appends to dst what text is the encoding of, and says whether it is the only encoding of that.
func DecodeAppend(dst, text []byte) ([]byte, bool) {
	n := len(dst)
	dst, err := strict.AppendDecode(dst, text)
	return dst, err == nil && len(dst)-n == strict.DecodedLen(len(text))
}
