package jwt

import "github.com/holdfast-sessions/holdfast/keyring"

// Derive returns the keys for an algorithm.
func Derive(a Algorithm, k keyring.Key) (private, public any) { return methods[a].derive(k) }

// Parse reads claims and their fields.
func Parse(b []byte) error {
	c, err := parse(b)
	if err == nil && c.encrypted == "" {
		_, err = (&Sealer{}).record(c, nil, "")
	}
	return err
}
