package keyring

// XAES returns the AEAD of a key of 32 bytes itself, not of one derived from it.
func XAES(key []byte) AEAD { return newXAES(key) }

// Secret returns what a key must never show.
func Secret(k Key) []byte { return k.m.secret() }

// WithSecret returns a set with one key, which is active and has this secret, whatever it is worth.
func WithSecret(secret []byte) *Set {
	k := newKey(Active)
	k.m = newMaterial(secret)
	return &Set{keys: []Key{k}}
}

// TempPattern is what os.CreateTemp is given.
var TempPattern = tempPattern
