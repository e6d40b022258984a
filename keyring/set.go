package keyring

import (
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"time"
)

// maxKeys is how many keys a set may have, retired ones included.
const maxKeys = 64

// remember is for how long a retired key is remembered: no browser keeps a cookie for longer than 400 days (RFC 6265bis).
const remember = 400 * 24 * time.Hour

// Set is the keys of a ring at one moment, of which exactly one is active. It does not change: what changes it returns a
// new one. It may be used concurrently.
type Set struct {
	keys   []Key
	active int
	byID   map[uint32]int
}

// NewSet returns a set with one key, which is new and active.
func NewSet() *Set {
	s, err := newSet([]Key{newKey(Active)})
	if err != nil {
		panic("keyring: " + err.Error())
	}
	return s
}

// newKey returns a key made of new random bytes, or ends the program if there are none.
func newKey(state State) Key {
	for {
		secret := make([]byte, secretBytes)
		_, _ = rand.Read(secret) // never fails
		if m := newMaterial(secret); m.id != 0 && weak(secret) == "" {
			now := time.Now().UTC().Truncate(time.Second)
			return Key{m: m, state: state, created: now, since: now}
		}
	}
}

// newSet checks that keys, which it keeps, are a set.
func newSet(keys []Key) (*Set, error) {
	if len(keys) > maxKeys {
		return nil, fmt.Errorf("it has %d keys: want at most %d", len(keys), maxKeys)
	}
	s := &Set{keys: keys, active: -1, byID: make(map[uint32]int, len(keys))}
	for i, k := range keys {
		if _, ok := s.byID[k.ID()]; ok {
			return nil, fmt.Errorf("it has two keys %s: remove one", hexID(k.ID()))
		}
		s.byID[k.ID()] = i
		if k.state != Active {
			continue
		}
		if s.active >= 0 {
			return nil, fmt.Errorf("two keys are active, %s and %s: make the older one \"decrypt only\"", hexID(keys[s.active].ID()), hexID(k.ID()))
		}
		s.active = i
	}
	if s.active < 0 {
		return nil, errors.New("no key is active: make one with holdfast key new FILE, or take the file from a backup")
	}
	return s, nil
}

// Keys returns all keys, retired ones too, in the order in which they were made. The caller may change the slice.
func (s *Set) Keys() []Key { return slices.Clone(s.keys) }

// Find returns the key with an ID, and its state; Unknown if there is none.
func (s *Set) Find(id uint32) (Key, State) {
	i, ok := s.byID[id]
	if !ok {
		return Key{}, Unknown
	}
	return s.keys[i], s.keys[i].state
}

// Active returns the key that seals.
func (s *Set) Active() Key { return s.keys[s.active] }

// Add returns a set with one more key, which is new and waiting, and forgets keys that were retired more than 400 days
// ago. It fails if there are 64 keys.
func (s *Set) Add() (*Set, Key, error) {
	keys := slices.DeleteFunc(s.Keys(), func(k Key) bool { return k.state == Retired && time.Since(k.since) > remember })
	if len(keys) >= maxKeys {
		return nil, Key{}, fmt.Errorf("there are %d keys, more than fit: retired ones are forgotten after 400 days", len(keys))
	}
	k := newKey(Waiting)
	for {
		if _, state := s.Find(k.ID()); state == Unknown {
			break
		}
		k = newKey(Waiting)
	}
	set, err := newSet(append(keys, k))
	return set, k, err
}

// Promote returns a set in which the waiting key with this ID is active, and the one that was is decrypt only.
func (s *Set) Promote(id uint32) (*Set, error) {
	if _, state := s.Find(id); state != Waiting {
		return nil, fmt.Errorf("key %s is %s: only a waiting one becomes active", hexID(id), state)
	}
	keys := s.Keys()
	keys[s.active] = keys[s.active].in(DecryptOnly)
	keys[s.byID[id]] = keys[s.byID[id]].in(Active)
	return newSet(keys)
}

// Retire returns a set in which the key with this ID is retired: what it sealed is worth no more than a forgery. The
// active key cannot be retired, nor one that is retired or unknown.
func (s *Set) Retire(id uint32) (*Set, error) {
	switch _, state := s.Find(id); state {
	case Active:
		return nil, fmt.Errorf("key %s is active: make another one active first, with holdfast key rotate", hexID(id))
	case Retired, Unknown:
		return nil, fmt.Errorf("key %s is %s: nothing to retire", hexID(id), state)
	}
	keys := s.Keys()
	i := s.byID[id]
	keys[i] = keys[i].in(Retired)
	keys[i].m = &material{id: id}
	return newSet(keys)
}

// in returns the key in another state, from now on.
func (k Key) in(state State) Key {
	k.state, k.since = state, time.Now().UTC().Truncate(time.Second)
	return k
}

// String says how many keys there are, and nothing of them.
func (s *Set) String() string { return fmt.Sprintf("[%d keys]", len(s.keys)) }

// Format prints String, whatever the verb.
func (s *Set) Format(f fmt.State, _ rune) { _, _ = fmt.Fprint(f, s.String()) }
