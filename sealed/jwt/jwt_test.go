package jwt_test

import (
	"testing"

	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/keyring"
	"github.com/holdfast-sessions/holdfast/sealed/jwt"
	"github.com/holdfast-sessions/holdfast/sealed/sealtest"
)

func TestSealer(t *testing.T) {
	for _, algorithm := range []jwt.Algorithm{jwt.EdDSA, jwt.ES256, jwt.HS256} {
		for name, encrypt := range map[string]bool{"": false, " encrypted": true} {
			t.Run(string(algorithm)+name, func(t *testing.T) {
				sealtest.Run(t, func(keys *keyring.Ring, s sealtest.Settings) (driver.Sealer, error) {
					return jwt.New(keys, jwt.Config{
						Issuer: s.Application, Audience: s.Purpose, Algorithm: algorithm, Encrypt: encrypt, MaxBytes: s.MaxBytes,
					})
				})
			})
		}
	}
}
