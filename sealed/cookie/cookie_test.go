package cookie_test

import (
	"testing"

	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/keyring"
	"github.com/holdfast-sessions/holdfast/sealed/cookie"
	"github.com/holdfast-sessions/holdfast/sealed/sealtest"
)

func TestSealer(t *testing.T) {
	sealtest.Run(t, func(keys *keyring.Ring, s sealtest.Settings) (driver.Sealer, error) {
		return cookie.New(keys, cookie.Config{Application: s.Application, Purpose: s.Purpose, MaxBytes: s.MaxBytes})
	})
}

// Attack 26. Whatever a token says of itself is looked at after the AEAD has opened all of it, which compares tags in constant time.
func TestTiming(t *testing.T) {
	sealtest.Timing(t, func(keys *keyring.Ring, s sealtest.Settings) (driver.Sealer, error) {
		return cookie.New(keys, cookie.Config{Application: s.Application, Purpose: s.Purpose, MaxBytes: s.MaxBytes})
	})
}
