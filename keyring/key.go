package keyring

import (
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"
)

// State is what a key may be used for.
type State uint8

const (
	Unknown     State = iota // not in the ring
	Waiting                  // opens; seals later, when every server knows it
	Active                   // seals and opens
	DecryptOnly              // opens what it sealed when it was active
	Retired                  // does nothing: the secret is gone
)

var stateNames = [...]string{"unknown", "waiting", "active", "decrypt only", "retired"}

func (s State) String() string {
	if int(s) < len(stateNames) {
		return stateNames[s]
	}
	return stateNames[Unknown]
}

// Usable reports whether a key in this state has its secret, and so can open what was sealed with it.
func (s State) Usable() bool { return s == Waiting || s == Active || s == DecryptOnly }

// secretBytes is the length of a key's secret.
const secretBytes = 32

// Key is one key of a ring, as it was when it was asked for. It prints as its ID, never as its secret. The zero Key, and
// that of a retired one, cannot be used: AEAD and Derive panic.
type Key struct {
	m              *material
	state          State
	created, since time.Time
}

// material is what stays the same of a key while its state changes, and what was derived from it.
type material struct {
	id uint32
	// secret returns the secret; nil if the key is retired. It is a function because package fmt, given a verb that does not
	// fit, prints what unexported fields point to.
	secret func() []byte
	// aeads are those asked for so far. They are few: to look through them takes less time than to hash a purpose.
	aeads atomic.Pointer[[]derivedAEAD]
}

type derivedAEAD struct {
	purpose string
	AEAD
}

// newMaterial keeps secret.
func newMaterial(secret []byte) *material {
	m := &material{secret: func() []byte { return secret }}
	m.id = binary.BigEndian.Uint32(m.derive("id", "", 4))
	return m
}

// ID names the key, in tokens too: it is no secret. It is never 0 in a ring.
func (k Key) ID() uint32 {
	if k.m == nil {
		return 0
	}
	return k.m.id
}

// State is what the key could be used for when it was asked for.
func (k Key) State() State { return k.state }

// Created is when the key was made.
func (k Key) Created() time.Time { return k.created }

// Since is when the key came into its state.
func (k Key) Since() time.Time { return k.since }

// Derive returns n bytes, at most 8,160, that nobody can know who has not got the key, always the same for one purpose.
// More bytes for a purpose begin with the fewer. The caller may keep and change them.
func (k Key) Derive(purpose string, n int) []byte { return k.usable().derive("derive", purpose, n) }

// AEAD returns what seals and opens for one purpose. It is made on first use and kept for as long as a ring has the key,
// so purposes must be few: what differs from visitor to visitor belongs into the associated data. It may be used
// concurrently.
func (k Key) AEAD(purpose string) AEAD {
	m := k.usable()
	for {
		known := m.aeads.Load()
		if known != nil {
			for i := range *known {
				if (*known)[i].purpose == purpose {
					return (*known)[i].AEAD
				}
			}
		}
		m.deriveAEAD(known, purpose)
	}
}

// deriveAEAD adds the AEAD of a purpose to those that are known, unless another goroutine has added one since.
func (m *material) deriveAEAD(known *[]derivedAEAD, purpose string) {
	all := []derivedAEAD{{purpose, newXAES(m.derive("aead", purpose, secretBytes))}}
	if known != nil {
		all = append(all, *known...)
	}
	m.aeads.CompareAndSwap(known, &all)
}

func (k Key) usable() *material {
	if k.m == nil || k.m.secret == nil {
		panic(fmt.Sprintf("keyring: key %s is %s: only waiting, active and decrypt only ones can be used", hexID(k.ID()), k.state))
	}
	return k.m
}

func (m *material) derive(kind, purpose string, n int) []byte {
	b, err := hkdf.Key(sha256.New, m.secret(), nil, "holdfast key ring v1\x00"+kind+"\x00"+purpose, n)
	if err != nil {
		panic("keyring: " + err.Error()) // n is larger than HKDF allows
	}
	return b
}

// hexID writes an ID as files and screens do.
func hexID(id uint32) string { return fmt.Sprintf("%08x", id) }

// String returns "[key 0c7f13d2]".
func (k Key) String() string { return "[key " + hexID(k.ID()) + "]" }

// Format prints String, whatever the verb, so that no verb shows the secret.
func (k Key) Format(s fmt.State, _ rune) { _, _ = fmt.Fprint(s, k.String()) }

// LogValue is String.
func (k Key) LogValue() slog.Value { return slog.StringValue(k.String()) }

// MarshalText returns String, so that no encoder shows the secret.
func (k Key) MarshalText() ([]byte, error) { return []byte(k.String()), nil }
