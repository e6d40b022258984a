package holdfast_test

import (
	"bytes"
	"context"
	"math/rand/v2"
	"net/http"
	"strings"
	"testing"

	"github.com/holdfast-sessions/holdfast"
	"github.com/holdfast-sessions/holdfast/driver"
)

// testKey returns the key with a number.
func testKey(n byte) []byte {
	r := rand.NewChaCha8([32]byte{n})
	k := make([]byte, 32)
	_, _ = r.Read(k) // never fails
	return k
}

const secret = "the cat's name is Mungojerrie"

// mustStored returns the bytes that are stored for a field.
func mustStored(t testing.TB, store driver.Store, id driver.ID, name string) []byte {
	t.Helper()
	rec, err := store.Load(context.Background(), id)
	must(t, err)
	b, ok := rec.Fields.Get(name)
	if !ok {
		t.Fatalf("field %s is not stored", name)
	}
	return b
}

// mustStore replaces the bytes that are stored for a field.
func mustStore(t testing.TB, store driver.Store, id driver.ID, name string, b []byte) {
	t.Helper()
	ctx := context.Background()
	rec, err := store.Load(ctx, id)
	must(t, err)
	prev := rec.Revision
	rec.Revision = driver.NewRevision(prev)
	rec.Fields = rec.Fields.With(driver.Change{Name: name, Value: b})
	must(t, store.Save(ctx, id, rec, prev))
}

// TestValuesAreEncrypted: no value is in the store in the clear, by whatever path it was stored, and the same value
// twice looks different.
func TestValuesAreEncrypted(t *testing.T) {
	for _, merges := range []bool{false, true} {
		store := mustMemory(t)
		var s driver.Store = store
		if !merges {
			s = tapped{store, func(context.Context, storeCall) error { return nil }}
		}
		m := mustManager(t, s, holdfast.Config{ValueKeys: [][]byte{testKey(1)}})
		v := newVisitor(t, m)
		wantHidden := func(after string) {
			t.Helper()
			for _, rec := range records(t, store) {
				if bytes.Contains(rec.Fields.Bytes(), []byte("Mungo")) {
					t.Errorf("after %s the value is stored in the clear", after)
				}
			}
		}
		v.visit(func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) { must(t, owner.Set(s, secret)) })
		wantHidden("the first Set")
		v.visit(func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) { must(t, owner.Set(s, secret+"!")) })
		wantHidden("Set")
		var first []byte
		v.visit(func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) {
			_, err := owner.Update(r.Context(), s, func(was string) (string, error) { return strings.TrimSuffix(was, "!"), nil })
			must(t, err)
			wantHidden("Update")
			first = mustStored(t, store, s.ID(), owner.Name())
			must(t, s.Login(r.Context(), "ada", holdfast.LoginOptions{Method: "password"}))
			wantHidden("Login")
			must(t, s.Renew(r.Context()))
			wantHidden("Renew")
			if bytes.Equal(first, mustStored(t, store, s.ID(), owner.Name())) {
				t.Error("the same bytes are stored under another ID")
			}
		})
		saves := m.Stats().Saves + m.Stats().Merges
		v.visit(func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) {
			wantField(t, owner, s, secret)
			must(t, owner.Set(s, secret)) // what is there: nothing is written
			if s.Method() != "password" {
				t.Errorf("method %q", s.Method())
			}
		})
		if got := m.Stats(); got.Saves+got.Merges != saves {
			t.Error("setting the value that is there is written")
		}
	}
}

// TestEncryptedValueIsBound: a value that was moved, changed or cut is an error, never another value and never a panic.
func TestEncryptedValueIsBound(t *testing.T) {
	store := mustMemory(t)
	m := mustManager(t, store, holdfast.Config{ValueKeys: [][]byte{testKey(1)}})
	nickname := holdfast.NewField[string]("nickname")
	a, b := newVisitor(t, m), newVisitor(t, m)
	start := func(v *visitor, name string) (id driver.ID) {
		v.visit(func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) {
			must(t, owner.Set(s, name))
			must(t, nickname.Set(s, name))
			must(t, s.Save(r.Context()))
			id = s.ID()
		})
		return id
	}
	idA, idB := start(a, "ada"), start(b, "bob")
	good := mustStored(t, store, idA, owner.Name())
	wantTampered := func(what string, stored []byte) {
		t.Helper()
		mustStore(t, store, idA, owner.Name(), stored)
		a.visit(func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) {
			got, err := owner.Get(s)
			wantErr(t, what, err, holdfast.ErrTampered)
			if got != "" {
				t.Errorf("%s: value %q", what, got)
			}
			if strings.Contains(err.Error(), "ada") {
				t.Errorf("%s: the error shows the value: %v", what, err)
			}
		})
	}
	wantTampered("of another session", mustStored(t, store, idB, owner.Name()))
	wantTampered("of another field", mustStored(t, store, idA, nickname.Name()))
	wantTampered("in the clear", []byte(`"ada"`))
	wantTampered("empty", nil)
	for n := range len(good) {
		wantTampered("cut", good[:n])
		for bit := range 8 {
			flipped := bytes.Clone(good)
			flipped[n] ^= 1 << bit
			wantTampered("flipped", flipped)
		}
	}
	wantTampered("extended", append(bytes.Clone(good), 0))

	// The application can set it anew, and what it cannot read does not stop a login either way.
	a.visit(func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) {
		wantErr(t, "Login", s.Login(r.Context(), "ada"), holdfast.ErrTampered)
		must(t, owner.Set(s, "ada again"))
	})
	a.login("ada")
	a.visit(func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) { wantField(t, owner, s, "ada again") })
}

// TestKeyRotation: a new key is put in front, the old one still decrypts, and Renew encrypts anew.
func TestKeyRotation(t *testing.T) {
	store := mustMemory(t)
	with := func(keys ...[]byte) *holdfast.Manager {
		return mustManager(t, store, holdfast.Config{ValueKeys: keys})
	}
	v := newVisitor(t, with(testKey(1)))
	v.visit(func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) { must(t, owner.Set(s, secret)) })
	read := func(want error, keys ...[]byte) {
		t.Helper()
		v.m = with(keys...)
		v.visit(func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) {
			got, err := owner.Get(s)
			if want == nil && (err != nil || got != secret) || want != nil {
				wantErr(t, "Get", err, want)
			}
		})
	}
	read(nil, testKey(2), testKey(1))
	read(holdfast.ErrTampered, testKey(2))
	read(nil, testKey(1), testKey(2))
	v.m = with(testKey(2), testKey(1))
	v.visit(func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) { must(t, s.Renew(r.Context())) })
	read(nil, testKey(2))
	read(holdfast.ErrTampered, testKey(1))

	// A server without keys does not take ciphertext for a value.
	read(holdfast.ErrTampered)
}

// TestAcceptPlainValues: values from before ValueKeys was set are read if asked for, and then encrypted.
func TestAcceptPlainValues(t *testing.T) {
	store := mustMemory(t)
	v := newVisitor(t, mustManager(t, store, holdfast.Config{}))
	v.visit(func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) { must(t, owner.Set(s, secret)) })
	v.m = mustManager(t, store, holdfast.Config{ValueKeys: [][]byte{testKey(1)}})
	v.visit(func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) {
		_, err := owner.Get(s)
		wantErr(t, "a plain value", err, holdfast.ErrTampered)
		if err == nil || !strings.Contains(err.Error(), "AcceptPlainValues") {
			t.Errorf("the error does not say the fix: %v", err)
		}
	})
	v.m = mustManager(t, store, holdfast.Config{ValueKeys: [][]byte{testKey(1)}, AcceptPlainValues: true})
	v.visit(func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) { wantField(t, owner, s, secret) })
	v.login("ada")
	v.visit(func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) {
		wantField(t, owner, s, secret)
		if bytes.Contains(mustStored(t, store, s.ID(), owner.Name()), []byte("Mungo")) {
			t.Error("still in the clear after Login")
		}
	})
}

// TestBadStoredBytes is part of attack 24: whatever a field holds, reading it is bounded and ends in an error.
func TestBadStoredBytes(t *testing.T) {
	anything := holdfast.NewField[any]("anything")
	store := mustMemory(t)
	m := mustManager(t, store, holdfast.Config{})
	v := newVisitor(t, m)
	var id driver.ID
	v.visit(func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) {
		must(t, anything.Set(s, 1))
		must(t, s.Save(r.Context()))
		id = s.ID()
	})
	for name, b := range map[string]string{
		"100,000 arrays deep":  strings.Repeat("[", 100_000) + strings.Repeat("]", 100_000),
		"100,000 objects deep": strings.Repeat(`{"a":`, 100_000) + "1" + strings.Repeat("}", 100_000),
		"empty":                "",
		"NUL":                  "\x00",
		"cut":                  `{"a":`,
		"two values":           "1 2",
		"number too large":     "1e400",
		"sealed":               "\x01key!" + strings.Repeat("x", 40),
	} {
		mustStore(t, store, id, anything.Name(), []byte(b))
		v.visit(func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) {
			if got, err := anything.Get(s); err == nil {
				t.Errorf("%s: read as %.20v", name, got)
			} else if len(err.Error()) > 200 {
				t.Errorf("%s: error of %d bytes", name, len(err.Error()))
			}
		})
	}
	mustStore(t, store, id, owner.Name(), []byte("\"\xff\xfe\""))
	mustStore(t, store, id, anything.Name(), []byte("1"))
	v.visit(func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) {
		wantField(t, owner, s, "\ufffd\ufffd") // invalid UTF-8 becomes what encoding/json makes of it
	})
}

// TestAMillionFields is part of attack 24: a record that large is read, and cannot grow further.
func TestAMillionFields(t *testing.T) {
	ctx := context.Background()
	store := mustMemory(t)
	m := mustManager(t, store, holdfast.Config{})
	v := newVisitor(t, m)
	v.set(1)
	id := holdfast.MustTokenID(v.token())
	rec, err := store.Load(ctx, id)
	must(t, err)
	prev := rec.Revision
	field := []byte{0, 1, 'a', 0, 0, 0, 1, '1'}
	rec.Fields, err = driver.ParseFields(append(bytes.Clone(rec.Fields.Bytes()), bytes.Repeat(field, 1_000_000)...))
	must(t, err)
	rec.Revision = driver.NewRevision(prev)
	must(t, store.Save(ctx, id, rec, prev))
	v.visit(func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) {
		wantField(t, visits, s, 1)
		wantField(t, owner, s, "")
		wantErr(t, "Set", visits.Set(s, 2), holdfast.ErrTooLarge)
	})
}
