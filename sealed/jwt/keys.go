package jwt

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"time"

	gojwt "github.com/golang-jwt/jwt/v5"

	"github.com/holdfast-sessions/holdfast/internal/base64url"
	"github.com/holdfast-sessions/holdfast/keyring"
)

// method is one way to sign. How its keys come from a key of the ring is a part of the format: another way would refuse
// every token.
//
//	EdDSA  the seed (RFC 8032) is the first 32 bytes derived for "sealed/jwt EdDSA v1"
//	ES256  the private key is the first 32 of the bytes derived for "sealed/jwt ES256 v1" that are, big-endian, from 1 to the
//	       order of P-256 less 1; else the next 32, and so on: 1 in 2^32 are not
//	HS256  32 bytes derived for "sealed/jwt HS256 v1"
type method struct {
	gojwt.SigningMethod
	signatureBytes int
	derive         func(keyring.Key) (private, public any)
}

var methods = map[Algorithm]method{
	EdDSA: {gojwt.SigningMethodEdDSA, ed25519.SignatureSize, func(k keyring.Key) (any, any) {
		private := ed25519.NewKeyFromSeed(k.Derive("sealed/jwt EdDSA v1", ed25519.SeedSize))
		return private, private.Public()
	}},
	ES256: {gojwt.SigningMethodES256, 64, func(k keyring.Key) (any, any) {
		private := p256(k.Derive("sealed/jwt ES256 v1", 8*32))
		return private, &private.PublicKey
	}},
	HS256: {gojwt.SigningMethodHS256, sha256.Size, func(k keyring.Key) (any, any) {
		secret := k.Derive("sealed/jwt HS256 v1", 32)
		return secret, secret
	}},
}

// p256 returns the private key that candidates has first.
func p256(candidates []byte) *ecdsa.PrivateKey {
	for ; len(candidates) >= 32; candidates = candidates[32:] {
		if k, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), candidates[:32]); err == nil {
			return k
		}
	}
	panic("sealed jwt: no private key for P-256 in 8 tries") // 1 in 2^256
}

// A signer is a key of the ring, ready to use.
type signer struct {
	key             keyring.Key
	header          string // of its tokens, encoded
	private, public any
}

// signers are all usable keys of a ring, by ID. They are replaced when a key is missing, so that a retired key's secret
// does not stay for ever.
type signers map[uint32]*signer

func (s *Sealer) signer(k keyring.Key) *signer {
	if all := s.signers.Load(); all != nil {
		if known := (*all)[k.ID()]; known != nil {
			return known
		}
	}
	all := make(signers)
	for _, k := range append(s.keys.Keys(), k) {
		if k.State().Usable() && all[k.ID()] == nil {
			private, public := s.method.derive(k)
			header := s.before + fmt.Sprintf("%08x", k.ID()) + s.after
			all[k.ID()] = &signer{k, base64url.Encode([]byte(header)), private, public}
		}
	}
	s.signers.Store(&all)
	return all[k.ID()]
}

// parseKeyID reads what is written with %08x.
func parseKeyID(s string) (uint32, bool) {
	for _, c := range []byte(s) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return 0, false
		}
	}
	id, err := strconv.ParseUint(s, 16, 32)
	return uint32(id), err == nil && len(s) == 8
}

// jwk is a public key (RFC 7517, RFC 8037).
type jwk struct {
	KeyType   string `json:"kty"`
	Curve     string `json:"crv"`
	KeyID     string `json:"kid"`
	Algorithm string `json:"alg"`
	Use       string `json:"use"`
	X         string `json:"x"`
	Y         string `json:"y,omitempty"`
}

func (s *Sealer) serveJWKS(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, "only GET and HEAD", http.StatusMethodNotAllowed)
		return
	}
	if s.config.Algorithm == HS256 {
		http.Error(w, "tokens are signed with HS256, whose key is secret: there are no public keys", http.StatusNotFound)
		return
	}
	body := s.keySet()
	sum := sha256.Sum256(body)
	h := w.Header()
	h.Set("Content-Type", "application/jwk-set+json")
	h.Set("Cache-Control", "public, max-age=300")
	h.Set("ETag", `"`+base64url.Encode(sum[:16])+`"`)
	h.Set("X-Content-Type-Options", "nosniff")
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(body))
}

// keySet returns the key set: of usable keys, so that a token verifies from the moment its key is active on any server to the
// moment it is retired.
func (s *Sealer) keySet() []byte {
	set := struct {
		Keys []jwk `json:"keys"`
	}{[]jwk{}}
	for _, k := range s.keys.Keys() {
		if !k.State().Usable() {
			continue
		}
		j := jwk{KeyID: fmt.Sprintf("%08x", k.ID()), Algorithm: string(s.config.Algorithm), Use: "sig"}
		switch public := s.signer(k).public.(type) {
		case ed25519.PublicKey:
			j.KeyType, j.Curve, j.X = "OKP", "Ed25519", base64url.Encode(public)
		case *ecdsa.PublicKey:
			point, err := public.Bytes() // 4, x, y
			if err != nil {
				panic("sealed jwt: " + err.Error()) // it is on the curve
			}
			j.KeyType, j.Curve, j.X, j.Y = "EC", "P-256", base64url.Encode(point[1:33]), base64url.Encode(point[33:])
		}
		set.Keys = append(set.Keys, j)
	}
	b, err := json.Marshal(set)
	if err != nil {
		panic("sealed jwt: " + err.Error()) // it is texts
	}
	return b
}
