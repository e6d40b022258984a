// Package signed is how a gateway proves to an application which session it saw: the header X-Session-Signature, beside
// X-Session-Id. The application knows by it that the ID comes from a gateway that has the key, for a request of this
// method to this host, just now, and not from somebody else who can reach the application.
//
//	id, err := signed.Verify(r, 30*time.Second, key)
//
// It does not prove that the session exists or who is logged in: the gateway asks no store.
//
// Format, version 1:
//
//	X-Session-Signature: v1.TIME.MAC
//
// TIME is in whole seconds since 1970, in decimal. MAC is the unpadded base64url of all 32 bytes of HMAC-SHA256(key,
// "holdfast session signature v1\n" + TIME + "\n" + ID + "\n" + METHOD + "\n" + HOST), where ID is the value of
// X-Session-Id, METHOD is the request's, and HOST is the header Host as the application gets it, in lower case.
package signed

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/holdfast-sessions/holdfast/driver"
)

// The headers, from the gateway to the application.
const (
	HeaderID        = "X-Session-Id"
	HeaderSignature = "X-Session-Signature"
)

// KeyBytes is the length of a key.
const KeyBytes = 32

var (
	// ErrNone says that the request carries no session: neither of the headers.
	ErrNone = errors.New("signed: no session ID in the request")
	// ErrInvalid says that the request carries a session ID that no gateway with one of the keys vouches for.
	ErrInvalid = errors.New("signed: session ID without a valid signature")
	// ErrTime says that the signature is valid, but older or further in the future than allowed: a replay, a request that
	// waited, or clocks that differ.
	ErrTime = errors.New("signed: session ID with a signature of another time: compare the clocks of gateway and application")
)

// Sign sets both headers of a request with that method and Host.
func Sign(h http.Header, key []byte, id driver.ID, method, host string, now time.Time) {
	name := id.Hex()
	b := make([]byte, 0, len("v1.")+20+1+43)
	b = append(b, "v1."...)
	b = strconv.AppendInt(b, now.Unix(), 10)
	sum := mac(key, string(b[len("v1."):]), name, method, host)
	b = append(b, '.')
	b = base64.RawURLEncoding.AppendEncode(b, sum)
	h[HeaderID] = []string{name}
	h[HeaderSignature] = []string{string(b)}
}

// Verify returns the session ID of a request that came through a gateway with one of the keys, at most maxAge ago or ahead.
// Several keys are for changing them: applications first learn the new one, then gateways use it.
func Verify(r *http.Request, maxAge time.Duration, keys ...[]byte) (driver.ID, error) {
	ids, signatures := r.Header[HeaderID], r.Header[HeaderSignature]
	if len(ids) == 0 && len(signatures) == 0 {
		return driver.ID{}, ErrNone
	}
	if len(ids) != 1 || len(signatures) != 1 {
		return driver.ID{}, ErrInvalid
	}
	version, rest, _ := strings.Cut(signatures[0], ".")
	stamp, text, _ := strings.Cut(rest, ".")
	sent, err := base64.RawURLEncoding.Strict().DecodeString(text)
	seconds, err2 := strconv.ParseInt(stamp, 10, 64)
	id, err3 := driver.ParseID(ids[0])
	if version != "v1" || err != nil || err2 != nil || err3 != nil {
		return driver.ID{}, ErrInvalid
	}
	valid := false
	for _, key := range keys {
		if len(key) >= KeyBytes && hmac.Equal(sent, mac(key, stamp, ids[0], r.Method, r.Host)) {
			valid = true
		}
	}
	switch age := time.Since(time.Unix(seconds, 0)); {
	case !valid:
		return driver.ID{}, ErrInvalid
	case age > maxAge || -age > maxAge:
		return driver.ID{}, ErrTime
	}
	return id, nil
}

// mac returns the MAC. None of the parts can hold a line feed.
func mac(key []byte, stamp, id, method, host string) []byte {
	m := hmac.New(sha256.New, key)
	b := make([]byte, 0, 192)
	b = append(b, "holdfast session signature v1\n"...)
	for i, part := range [...]string{stamp, id, method, strings.ToLower(host)} {
		if i > 0 {
			b = append(b, '\n')
		}
		b = append(b, part...)
	}
	m.Write(b)
	return m.Sum(nil)
}
