package holdfast

import (
	"crypto/rand"

	"github.com/holdfast-sessions/holdfast/driver"
)

// MustTokenID returns the ID of a well-formed token.
func MustTokenID(token string) driver.ID {
	id, ok := TokenID(token)
	if !ok {
		panic("not a token")
	}
	return id
}

var (
	EncodePlain = encodePlain
	NewToken    = newToken

	// DefaultRand is what Config.Rand is by default.
	DefaultRand = rand.Reader

	// EpochID is where RevokeAll leaves its mark.
	EpochID = epochID
)

// CookieValues returns the values of all cookies of a name.
func CookieValues(lines []string, name string) ([]string, error) {
	return cookieValues(nil, lines, name)
}
