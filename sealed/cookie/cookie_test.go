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
