package driver

import (
	"errors"
	"fmt"
)

// The errors that a Sealer's Open answers with, besides ErrGone for a record that has expired. A token that cannot be
// opened is an anonymous visit, counted by its cause, never an error page.
var (
	// ErrTampered says that the token is not what a holder of the keys made for this binding: changed, truncated, moved
	// from another cookie, or never a token at all.
	ErrTampered = errors.New("cannot be decrypted: changed, moved, or under another key")
	// ErrForeignSeal says that the token was sealed with a key, or in a version, that this process does not know. Another
	// server may know it, in a roll-out: the client's token must be left as it is. Nothing of it has been authenticated.
	ErrForeignSeal = errors.New("sealed with a key or in a version not known here")
	// ErrRetiredKey says that the token was sealed with a key that has been retired. It matches ErrTampered: such a token
	// is worth no more than a forged one.
	ErrRetiredKey = fmt.Errorf("sealed with a retired key: %w", ErrTampered)
	// ErrNotYetValid says that the token is genuine, and from the future: the clock of the server that made it is ahead of
	// this one's by more than is allowed. Like a foreign one it must be left as it is.
	ErrNotYetValid = errors.New("made in the future by this server's clock")
)

// Sealer puts whole records into tokens, so that no server keeps them. Its methods may be called concurrently, and do
// no I/O.
type Sealer interface {
	// Seal returns the token that holds rec under id: characters that a cookie value may have (RFC 6265, cookie-octet,
	// without the comma and the dot at either end). binding is what the token is bound to besides the Sealer's own settings: Open with
	// another binding refuses it. It returns ErrTooLarge if the token would be longer than Description.MaxBytes, never a
	// part of one. A Sealer may drop rec.Tag, and whatever Open can restore.
	Seal(binding string, id ID, rec Record) (string, error)
	// Open returns what Seal put into a token. The errors are those above, ErrGone for a record past its Expires, and no
	// others; a record comes back with an error only where it is ErrGone. It never panics and allocates no more than a
	// small multiple of the token's length.
	Open(binding, token string) (Opened, error)
	// Describe says what the Sealer is. MaxBytes is the longest token, not the largest record; Shared is true.
	Describe() Description
}

// Opened is what a token held.
type Opened struct {
	ID     ID
	Record Record
	// Stale says that the token should be made anew when there is an occasion: its key is no longer the active one.
	Stale bool
}
