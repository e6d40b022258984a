package jwt_test

import (
	"testing"

	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/keyring"
	"github.com/holdfast-sessions/holdfast/sealed/jwt"
	"github.com/holdfast-sessions/holdfast/sealed/sealtest"
)

func TestSealer(t *testing.T) {
	for _, c := range []jwt.Config{{Algorithm: jwt.EdDSA}, {Algorithm: jwt.EdDSA, Encrypt: true}, {Algorithm: jwt.ES256}, {Algorithm: jwt.HS256}} {
		name := string(c.Algorithm)
		if c.Encrypt {
			name += " encrypted"
		}
		t.Run(name, func(t *testing.T) {
			sealtest.Run(t, func(keys *keyring.Ring, s sealtest.Settings) (driver.Sealer, error) {
				c := c
				c.Issuer, c.Audience, c.MaxBytes = s.Application, s.Purpose, s.MaxBytes
				return jwt.New(keys, c)
			})
		})
	}
}
