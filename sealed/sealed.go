// Package sealed has what the sealers, its subpackages, share: how they find a token's key, and the report in which they
// explain a token to an operator.
package sealed

import (
	"errors"
	"fmt"
	"time"

	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/keyring"
)

const (
	// DefaultMaxBytes is the longest token that a sealer makes unless it is configured: what four cookies hold, each of
	// 4,096 bytes less 512 for its name and what a browser counts besides.
	DefaultMaxBytes = 4 * (4096 - 512)
	// LimitBytes is the longest token that a sealer opens, and the largest MaxBytes. It is not what is configured, so that
	// to configure less logs nobody out.
	LimitBytes = 64 << 10
	// minBytes is the smallest MaxBytes: an empty session fits, whatever the settings.
	minBytes = 1024
)

// MaxBytes returns what n, a setting, stands for, or how to fix it.
func MaxBytes(n int) (int, error) {
	switch {
	case n == 0:
		return DefaultMaxBytes, nil
	case n < minBytes || n > LimitBytes:
		return 0, fmt.Errorf("MaxBytes is %d: want %d to %d, or 0 for %d", n, minBytes, LimitBytes, DefaultMaxBytes)
	}
	return n, nil
}

// Find returns the key of a token, and whether the token should be made anew with another. A token of a key that waits is
// not stale: whoever made it knows that the key has become active, and the process that does not yet would otherwise
// put the older key back, and the other the newer, request by request. It returns ErrForeignSeal or ErrRetiredKey if there
// is no key.
func Find(keys *keyring.Ring, id uint32) (key keyring.Key, stale bool, err error) {
	key, state := keys.Find(id)
	switch state {
	case keyring.Active, keyring.Waiting:
		return key, false, nil
	case keyring.DecryptOnly:
		return key, true, nil
	case keyring.Retired:
		return keyring.Key{}, false, driver.ErrRetiredKey
	}
	return keyring.Key{}, false, fmt.Errorf("key %08x is not in the key ring: %w", id, driver.ErrForeignSeal)
}

// Report explains a token to an operator. It holds no secret and no value, and neither the user nor a whole ID.
type Report struct {
	Kind      string `json:"kind"` // "cookie" or "jwt"
	Version   int    `json:"version,omitempty"`
	Algorithm string `json:"algorithm,omitempty"`
	Bytes     int    `json:"bytes"` // of the token
	Key       string `json:"key,omitempty"`
	KeyState  string `json:"key_state,omitempty"`
	// Verified says that a key of the ring made the token, with these settings. What follows is worth nothing without.
	Verified bool `json:"verified"`
	Stale    bool `json:"stale,omitempty"` // to be made anew with the active key
	// Issuer, Audience and Type are a JWT's. They can be read without a key.
	Issuer   string    `json:"issuer,omitempty"`
	Audience string    `json:"audience,omitempty"`
	Type     string    `json:"type,omitempty"`
	ID       string    `json:"id,omitempty"` // 8 characters of it
	LoggedIn bool      `json:"logged_in"`
	Created  time.Time `json:"created,omitzero"`
	Seen     time.Time `json:"seen,omitzero"`
	Expires  time.Time `json:"expires,omitzero"`
	Fields   []Field   `json:"fields,omitempty"`
	// Refused is "" or the cause: "tampered", "foreign", "retired key" "expired" or "not yet valid"; "incomplete" if several cookies are no token.
	Refused string `json:"refused,omitempty"`
	// Why says more about Refused, and what to do.
	Why string `json:"why,omitempty"`
}

// Field is a field without its value.
type Field struct {
	Name  string `json:"name"`
	Bytes int    `json:"bytes"` // of the value
}

// SetKey fills in which key made the token. keys may be nil.
func (r *Report) SetKey(keys *keyring.Ring, id uint32) {
	r.Key = fmt.Sprintf("%08x", id)
	if keys != nil {
		_, state := keys.Find(id)
		r.KeyState = state.String()
	}
}

// SetOpened fills in what a sealer's Open returned.
func (r *Report) SetOpened(o driver.Opened, err error) {
	if err == nil || errors.Is(err, driver.ErrGone) {
		r.Verified, r.Stale, r.ID = true, o.Stale, o.ID.String()
		r.LoggedIn = o.Record.User != ""
		r.Created, r.Seen, r.Expires = o.Record.Created.UTC(), o.Record.Seen.UTC(), o.Record.Expires.UTC()
		for name, value := range o.Record.Fields.All() {
			r.Fields = append(r.Fields, Field{name, len(value)})
		}
	}
	if err == nil {
		return
	}
	r.Why = err.Error()
	switch {
	case errors.Is(err, driver.ErrForeignSeal):
		r.Refused = "foreign"
	case errors.Is(err, driver.ErrRetiredKey):
		r.Refused = "retired key"
	case errors.Is(err, driver.ErrGone):
		r.Refused = "expired"
	case errors.Is(err, driver.ErrNotYetValid):
		r.Refused, r.Verified = "not yet valid", true
	default:
		r.Refused = "tampered"
	}
}
