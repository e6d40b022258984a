// Package base64url reads base64url without padding (RFC 4648, section 5), strictly: every value has one encoding, and
// anything else is refused. encoding/base64 alone skips line breaks.
package base64url

import "encoding/base64"

var strict = base64.RawURLEncoding.Strict()

// Len returns the length of the encoding of n bytes.
func Len(n int) int { return base64.RawURLEncoding.EncodedLen(n) }

// Encode returns the encoding of b.
func Encode(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

// Append appends the encoding of b to dst.
func Append(dst, b []byte) []byte { return base64.RawURLEncoding.AppendEncode(dst, b) }

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
