package jwt_test

import (
	"crypto/ecdsa"
	"crypto/ed25519"
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

// Attack 26. HMAC, and the encrypted fields, are the only things in a token that are opened with a secret.
func TestTiming(t *testing.T) {
	for name, c := range map[string]jwt.Config{"HS256": {Algorithm: jwt.HS256}, "HS256 encrypted": {Algorithm: jwt.HS256, Encrypt: true}} {
		t.Run(name, func(t *testing.T) {
			sealtest.Timing(t, func(keys *keyring.Ring, s sealtest.Settings) (driver.Sealer, error) {
				c := c
				c.Issuer, c.Audience, c.MaxBytes = s.Application, s.Purpose, s.MaxBytes
				return jwt.New(keys, c)
			})
		})
	}
	// What verifies the others is published: whoever wants to know how long that takes need not ask this server. A claim
	// is looked at, and a field decrypted, only after that.
	key := keyring.NewSet().Active()
	for _, algorithm := range []jwt.Algorithm{jwt.EdDSA, jwt.ES256} {
		switch _, public := jwt.Derive(algorithm, key); public.(type) {
		case ed25519.PublicKey, *ecdsa.PublicKey:
		default:
			t.Errorf("%s verifies with a %T, want a public key", algorithm, public)
		}
	}
}
