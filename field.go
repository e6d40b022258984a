package holdfast

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"strconv"
	"unicode/utf8"

	"github.com/holdfast-sessions/holdfast/driver"
)

// Field is a named value of type T in every session. Declare fields once, as package variables. Values are stored
// as JSON, so T is whatever encoding/json can write and read again.
type Field[T any] struct {
	name string
}

// NewField returns the field with a name of 1 to 255 bytes that does not start with a NUL byte; it panics on any
// other. Two fields of one name are one field.
func NewField[T any](name string) Field[T] {
	if name == "" || len(name) > 255 || name[0] == 0 {
		panic(fmt.Sprintf("holdfast: field name %q: want 1 to 255 bytes, the first not NUL", name))
	}
	return Field[T]{name: name}
}

// Name returns the name.
func (f Field[T]) Name() string { return f.name }

// Get returns the value, or the zero value if the session has none. The error says that the session could not be
// loaded, or that what is stored is no T.
func (f Field[T]) Get(s *Session) (T, error) {
	var v T
	b, err := s.value(f.name)
	if err != nil || b == nil {
		return v, err
	}
	return f.Decode(b)
}

// Decode returns the value that a store keeps as b. It and Encode are for programs that work on records without a Session,
// such as one that brings the sessions of another system along.
func (f Field[T]) Decode(b []byte) (T, error) {
	var v T
	if decodePlain(b, &v) {
		return v, nil
	}
	return f.decodeJSON(b) // has a variable of its own, which is on the heap
}

func (f Field[T]) decodeJSON(b []byte) (v T, err error) {
	if err := json.Unmarshal(b, &v); err != nil {
		return v, fmt.Errorf("session field %s: %w", f.name, err)
	}
	return v, nil
}

// Encode returns what a store keeps of v, where values are not encrypted.
func (f Field[T]) Encode(v T) ([]byte, error) {
	if b, ok := encodePlain(v); ok {
		return b, nil
	}
	b, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("session field %s: %w", f.name, err)
	}
	return b, nil
}

// Set sets the value. It is stored before the first byte of the response is sent (or by Session.Save), and nothing
// is written where it is what the session has already. A value changed in place is not noticed: set it again.
//
// The error is ErrTooLarge if the session would be too large, ErrEnded if it was renewed or ended by another
// request, ErrCommitted if it would have to start a session and the response header is sent, ErrFinished after the
// request.
func (f Field[T]) Set(s *Session, v T) error {
	b, err := f.Encode(v)
	if err != nil {
		return err
	}
	return s.change(driver.Change{Name: f.name, Value: b})
}

// Delete removes the value, like Set.
func (f Field[T]) Delete(s *Session) error {
	return s.change(driver.Change{Name: f.name, Delete: true})
}

// Update sets the value to what fn makes of the latest one, and stores it at once together with what was set before:
// no update of another request, on whatever server, is lost. fn runs again when another writer was first; it must not
// use the session. An error of fn ends Update, stores nothing and is returned. Otherwise Update returns the new value.
func (f Field[T]) Update(ctx context.Context, s *Session, fn func(T) (T, error)) (T, error) {
	var result T
	err := s.update(ctx, f.name, func(b []byte) ([]byte, error) {
		var v T
		var err error
		if b != nil {
			if v, err = f.Decode(b); err != nil {
				return nil, err
			}
		}
		if v, err = fn(v); err != nil {
			return nil, err
		}
		result = v
		return f.Encode(v)
	})
	if err != nil {
		var zero T
		return zero, err
	}
	return result, nil
}

// decodePlain decodes the commonest JSON values without encoding/json, which costs five times as much, and reports
// whether it did. What it does not know for certain it leaves alone.
func decodePlain(b []byte, v any) bool {
	switch v := v.(type) {
	case *string:
		n := len(b)
		if n < 2 || b[0] != '"' || b[n-1] != '"' {
			return false
		}
		b = b[1 : n-1]
		if bytes.IndexByte(b, '\\') >= 0 || bytes.IndexByte(b, '"') >= 0 || !utf8.Valid(b) {
			return false
		}
		for _, c := range b {
			if c < ' ' {
				return false
			}
		}
		*v = string(b)
		return true
	case *int:
		i, err := strconv.Atoi(string(b))
		if err != nil || strconv.Itoa(i) != string(b) { // JSON knows no +1 and no 01
			return false
		}
		*v = i
		return true
	case *bool:
		*v = string(b) == "true"
		return *v || string(b) == "false"
	}
	return false
}

// encodePlain is the inverse of decodePlain. What it returns is what json.Marshal does.
func encodePlain(v any) ([]byte, bool) {
	switch v := v.(type) {
	case string:
		for i := range len(v) {
			if c := v[i]; c < ' ' || c > '~' || c == '"' || c == '\\' || c == '<' || c == '>' || c == '&' {
				return nil, false
			}
		}
		b := make([]byte, 0, len(v)+2)
		b = append(b, '"')
		b = append(b, v...)
		return append(b, '"'), true
	case int:
		return strconv.AppendInt(nil, int64(v), 10), true
	case bool:
		return strconv.AppendBool(nil, v), true
	}
	return nil, false
}

// An encrypted value, version 1: one byte 1, four bytes that name the key, 12 bytes of nonce, and the AES-256-GCM
// ciphertext with its 16-byte tag. The key is derived from the configured one for each session ID, so that random
// nonces never come near their limit of 2^32 under one key (NIST SP 800-38D, section 8.3); the field name is
// associated data. JSON never starts with byte 1, so that a plain value is told apart.
const (
	sealedVersion = 1
	keyNameBytes  = 4
	valueKeyBytes = 32
	sealedHeader  = 1 + keyNameBytes + 12
)

type valueKey struct {
	name   [keyNameBytes]byte
	secret []byte
}

func newValueKey(secret []byte) valueKey {
	k := valueKey{secret: bytes.Clone(secret)}
	sum := sha256.Sum256(append([]byte("holdfast value key name v1\x00"), secret...))
	copy(k.name[:], sum[:])
	return k
}

func (k valueKey) aead(id driver.ID) cipher.AEAD {
	key, err := hkdf.Key(sha256.New, k.secret, nil, "holdfast value v1\x00"+string(id[:]), valueKeyBytes)
	if err != nil {
		panic(err) // only for an output length beyond what HKDF has
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		panic(err) // only for a wrong key length
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		panic(err) // only for a wrong block size
	}
	return aead
}

// seal returns changes with their values as they are stored under id.
func (m *Manager) seal(id driver.ID, changes []driver.Change) []driver.Change {
	if len(m.keys) == 0 || len(changes) == 0 {
		return changes
	}
	k := m.keys[0]
	aead := k.aead(id)
	sealed := make([]driver.Change, len(changes))
	for i, c := range changes {
		if sealed[i] = c; c.Delete || isOwn(c.Name) {
			continue
		}
		b := make([]byte, sealedHeader, sealedHeader+len(c.Value)+aead.Overhead())
		b[0] = sealedVersion
		copy(b[1:], k.name[:])
		_, _ = rand.Read(b[1+keyNameBytes:]) // never fails (crypto/rand)
		sealed[i].Value = aead.Seal(b, b[1+keyNameBytes:], c.Value, []byte(c.Name))
	}
	return sealed
}

// unseal returns the value that is stored as b in a field of session id.
func (m *Manager) unseal(id driver.ID, name string, b []byte) ([]byte, error) {
	isSealed := len(b) > 0 && b[0] == sealedVersion
	switch {
	case isOwn(name), !isSealed && (len(m.keys) == 0 || m.config.AcceptPlainValues):
		return b, nil
	case !isSealed:
		return nil, fmt.Errorf("session field %s: %w: it is not encrypted (Config.AcceptPlainValues reads values from before ValueKeys was set)", name, ErrTampered)
	case len(b) < sealedHeader:
		return nil, fmt.Errorf("session field %s: %w: too short", name, ErrTampered)
	}
	for _, k := range m.keys {
		if string(k.name[:]) != string(b[1:1+keyNameBytes]) {
			continue
		}
		plain, err := k.aead(id).Open([]byte{}, b[1+keyNameBytes:sealedHeader], b[sealedHeader:], []byte(name))
		if err != nil {
			return nil, fmt.Errorf("session field %s: %w", name, ErrTampered)
		}
		return plain, nil
	}
	return nil, fmt.Errorf("session field %s: %w: its key is not in Config.ValueKeys", name, ErrTampered)
}

// reseal returns the fields of session from as they are stored under id.
func (m *Manager) reseal(from, id driver.ID, fields driver.Fields) (driver.Fields, error) {
	if len(m.keys) == 0 {
		return fields, nil
	}
	var all []driver.Change
	for name, b := range fields.All() {
		plain, err := m.unseal(from, name, b)
		if err != nil {
			return driver.Fields{}, err
		}
		all = append(all, driver.Change{Name: name, Value: plain})
	}
	return driver.Fields{}.With(m.seal(id, all)...), nil
}
