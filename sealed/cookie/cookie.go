// Package cookie is a Sealer for cookies: the whole session encrypted in its token, so that no server keeps it. Nobody
// without a key of the ring can read or change a token, nor use it for another application, purpose or binding.
//
//	keys, err := keyring.Open(ctx, "file:/etc/app/keys")
//	sealer, err := cookie.New(keys, cookie.Config{Application: "shop"})
//	sessions, err := holdfast.NewSealed(sealer, users, holdfast.Config{})
//
// It does not hide how long the content is, and does not notice an older token that comes again; the Manager does the
// latter with user records. It knows nothing of HTTP: the Manager splits a token over several cookies.
package cookie

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/internal/base64url"
	"github.com/holdfast-sessions/holdfast/keyring"
	"github.com/holdfast-sessions/holdfast/sealed"
)

// A token is the base64url encoding, without padding, of an envelope. Numbers are
// big-endian.
//
//	 0   1  version, 1
//	 1   4  ID of the key
//	 5  24  nonce, random
//	29   p  payload (payload.go; testdata/payload-v1.hex), encrypted with XAES-256-GCM
//	29+p 16 tag
//
// The key is derived from that of the ring for keyPurpose. The associated data is:
//
//	0  1  version, 1
//	1  4  ID of the key
//	5     application, purpose and binding: of each 4 bytes of length, then its bytes
//
// Nothing is compressed: the length of a token follows from the lengths of what is in it alone, so that nobody who
// chooses a part of the content learns another part from the length.
const (
	version    = 1
	headBytes  = 5
	keyPurpose = "sealed/cookie v1"
	overhead   = headBytes + keyring.Overhead
)

// Config configures a Sealer. The zero value is useful.
type Config struct {
	// Application names who uses the tokens. Give each application a name of its own if several share a key ring: a token
	// of one is refused by the others. Default: "".
	Application string
	// Purpose names what the tokens are for, if an application has several kinds. Default: "session".
	Purpose string
	// MaxBytes is the longest token, in characters: 1,024 to 65,536. Default: sealed.DefaultMaxBytes, 14,336, what four cookies
	// hold. Three quarters of it, less 93 bytes or so, are what users, field names and values share; see docs/stores/cookie.md.
	MaxBytes int
}

// Sealer seals records into cookies. Its methods may be called concurrently.
type Sealer struct {
	keys     *keyring.Ring
	maxBytes int
	prefix   []byte // of the associated data, from the application on, up to the binding
}

var _ driver.Sealer = (*Sealer)(nil)

// New returns a Sealer that uses keys, which stay the caller's. It follows the ring as that changes.
func New(keys *keyring.Ring, c Config) (*Sealer, error) {
	if keys == nil {
		return nil, errors.New("sealed cookie: no key ring: open one with keyring.Open")
	}
	maxBytes, err := sealed.MaxBytes(c.MaxBytes)
	if err != nil {
		return nil, fmt.Errorf("sealed cookie: %w", err)
	}
	if c.Purpose == "" {
		c.Purpose = "session"
	}
	return &Sealer{keys, maxBytes, appendPart(appendPart(nil, c.Application), c.Purpose)}, nil
}

// Format prints "[cookie sealer]", whatever the verb: nothing that leads to a key.
func (s *Sealer) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "[cookie sealer]") }

// Describe says what the Sealer is.
func (s *Sealer) Describe() driver.Description {
	return driver.Description{
		Name:      "cookie",
		Shared:    true,
		Durable:   "in the client, until it drops its cookies",
		Immediate: true,
		MaxBytes:  s.maxBytes,
	}
}

// Seal returns the token that holds rec under id, or ErrTooLarge.
func (s *Sealer) Seal(binding string, id driver.ID, rec driver.Record) (string, error) {
	if len(rec.User) > driver.MaxName {
		return "", fmt.Errorf("sealed cookie: %w: user name of %d bytes, at most %d", driver.ErrTooLarge, len(rec.User), driver.MaxName)
	}
	if len(rec.Fields.Bytes()) > 3*sealed.LimitBytes { // of which encoding leaves a third at least
		return "", fmt.Errorf("sealed cookie: %w: %d bytes of fields", driver.ErrTooLarge, len(rec.Fields.Bytes()))
	}
	// Two thirds of the time went into memory for what is needed for a moment only.
	m := scratch.Get().(*buffers)
	defer scratch.Put(m)
	m.plain = appendPayload(m.plain[:0], id, rec)
	plain := m.plain
	defer clear(plain)
	if n := base64url.Len(overhead + len(plain)); n > s.maxBytes {
		return "", fmt.Errorf("sealed cookie: %w: %d characters, at most %d", driver.ErrTooLarge, n, s.maxBytes)
	}
	key := s.keys.Active()
	head := binary.BigEndian.AppendUint32(append(m.envelope[:0], version), key.ID())
	box := key.AEAD(keyPurpose).Seal(nil, plain, s.associated(m, head, binding))
	// The head and one byte more are six, and so whole characters: what follows need not be put behind them before.
	m.envelope = append(head, box[0])
	m.text = base64url.AppendPublic(base64url.AppendPublic(m.text[:0], m.envelope), box[1:])
	return string(m.text), nil
}

// buffers are what Seal and Open need for a moment. They stay below some LimitBytes each, as nothing longer is sealed, but for a plain text
// that was too large.
type buffers struct{ plain, envelope, text, associated []byte }

var scratch = sync.Pool{New: func() any { return new(buffers) }}

// Open returns what Seal put into token. See driver.Sealer for its errors.
func (s *Sealer) Open(binding, token string) (driver.Opened, error) {
	m := scratch.Get().(*buffers)
	defer scratch.Put(m)
	envelope, err := m.unwrap(token)
	if err != nil {
		return driver.Opened{}, err
	}
	key, stale, err := sealed.Find(s.keys, binary.BigEndian.Uint32(envelope[1:]))
	if err != nil {
		return driver.Opened{}, fmt.Errorf("sealed cookie: %w", err)
	}
	if len(envelope) < overhead {
		return driver.Opened{}, tampered("cut off")
	}
	plain, err := key.AEAD(keyPurpose).Open(m.plain[:0], envelope[headBytes:], s.associated(m, envelope[:headBytes], binding))
	if err != nil {
		return driver.Opened{}, tampered("changed, or made for another application, purpose or binding")
	}
	m.plain = plain
	defer clear(plain)
	o := driver.Opened{Stale: stale}
	if o.ID, o.Record, err = decode(plain); err != nil {
		return driver.Opened{}, err
	}
	if o.Record.Expired(time.Now()) {
		return o, fmt.Errorf("sealed cookie: %w", driver.ErrGone)
	}
	return o, nil
}

// unwrap returns the envelope in token: of a known version, and long enough to name a key.
func (m *buffers) unwrap(token string) ([]byte, error) {
	if len(token) > sealed.LimitBytes {
		return nil, tampered(fmt.Sprintf("%d characters, at most %d", len(token), sealed.LimitBytes))
	}
	m.text = append(m.text[:0], token...)
	envelope, ok := base64url.DecodeAppend(m.envelope[:0], m.text)
	m.envelope = envelope
	switch {
	case !ok:
		return nil, tampered("not base64url without padding")
	case len(envelope) < headBytes:
		return nil, tampered("cut off")
	case envelope[0] != version:
		return nil, fmt.Errorf("sealed cookie: version %d, this release reads %d: %w", envelope[0], version, driver.ErrForeignSeal)
	}
	return envelope, nil
}

// associated returns the associated data of an envelope that begins with head.
func (s *Sealer) associated(m *buffers, head []byte, binding string) []byte {
	b := append(m.associated[:0], head...)
	b = append(b, s.prefix...)
	m.associated = appendPart(b, binding)
	return m.associated
}

func appendPart(b []byte, part string) []byte {
	return append(binary.BigEndian.AppendUint32(b, uint32(len(part))), part...)
}

func tampered(how string) error {
	return fmt.Errorf("sealed cookie: %w: %s", driver.ErrTampered, how)
}
