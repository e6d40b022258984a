package keyring

import (
	"github.com/tink-crypto/tink-go/v2/aead"
	"github.com/tink-crypto/tink-go/v2/aead/xaesgcm"
	"github.com/tink-crypto/tink-go/v2/insecuresecretdataaccess"
	"github.com/tink-crypto/tink-go/v2/keyset"
	"github.com/tink-crypto/tink-go/v2/secretdata"
	"github.com/tink-crypto/tink-go/v2/tink"

	"github.com/holdfast-sessions/holdfast/driver"
)

// Overhead is how many bytes longer than the plaintext an AEAD's result is: a nonce of 24, and a tag of 16.
const Overhead = 24 + 16

// AEAD encrypts and authenticates. Its methods may be called concurrently.
type AEAD interface {
	// Seal appends a random nonce of 24 bytes and the sealed plain, Overhead bytes longer in all, to dst and returns it.
	// Open needs the same associated data ad. dst must not overlap with plain.
	Seal(dst, plain, ad []byte) []byte
	// Open appends what was sealed to dst and returns it, or driver.ErrTampered, and nothing else, if sealed was not made
	// with this key, for this purpose and with this ad, or was changed. dst must not overlap with sealed.
	Open(dst, sealed, ad []byte) ([]byte, error)
}

// xaes is Tink's XAES-256-GCM in the layout of C2SP: with a salt of 12 bytes, and without a prefix, Tink writes the same
// bytes.
//
// It has functions, not Tink's value, because package fmt follows pointers to the keys in there.
type xaes struct {
	encrypt, decrypt func(text, ad []byte) ([]byte, error)
}

func newXAES(key []byte) AEAD {
	a, err := tinkXAES(key)
	if err != nil {
		panic("keyring: " + err.Error()) // no key of 32 bytes is refused
	}
	return &xaes{a.Encrypt, a.Decrypt}
}

func tinkXAES(key []byte) (tink.AEAD, error) {
	p, err := xaesgcm.NewParameters(xaesgcm.VariantNoPrefix, 12)
	if err != nil {
		return nil, err
	}
	k, err := xaesgcm.NewKey(secretdata.NewBytesFromData(key, insecuresecretdataaccess.Token{}), 0, p)
	if err != nil {
		return nil, err
	}
	m := keyset.NewManager()
	id, err := m.AddKey(k)
	if err != nil {
		return nil, err
	}
	if err := m.SetPrimary(id); err != nil {
		return nil, err
	}
	h, err := m.Handle()
	if err != nil {
		return nil, err
	}
	return aead.New(h)
}

func (x *xaes) Seal(dst, plain, ad []byte) []byte {
	sealed, err := x.encrypt(plain, ad)
	if err != nil {
		panic("keyring: " + err.Error()) // plain is 64 GiB
	}
	if dst == nil {
		return sealed
	}
	return append(dst, sealed...)
}

func (x *xaes) Open(dst, sealed, ad []byte) ([]byte, error) {
	plain, err := x.decrypt(sealed, ad)
	switch {
	case err != nil:
		return nil, driver.ErrTampered
	case dst == nil:
		return plain, nil
	}
	return append(dst, plain...), nil
}
