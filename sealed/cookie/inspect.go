package cookie

import (
	"encoding/binary"

	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/keyring"
	"github.com/holdfast-sessions/holdfast/sealed"
)

// Inspect explains a token for an operator. Without keys it says only what everybody can read. It returns an error for
// a Config that New refuses, never for a token.
func Inspect(keys *keyring.Ring, c Config, binding, token string) (sealed.Report, error) {
	r := sealed.Report{Kind: "cookie", Bytes: len(token)}
	envelope, err := new(buffers).unwrap(token)
	if len(envelope) > 0 {
		r.Version = int(envelope[0])
		r.SetKey(keys, binary.BigEndian.Uint32(envelope[1:]))
	}
	switch {
	case err != nil:
		r.SetOpened(driver.Opened{}, err)
		return r, nil
	case keys == nil:
		return r, nil
	}
	s, err := New(keys, c)
	if err != nil {
		return sealed.Report{}, err
	}
	o, err := s.Open(binding, token)
	r.SetOpened(o, err)
	return r, nil
}
