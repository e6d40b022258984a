package keyring_test

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/keyring"
)

// The test vectors of C2SP's XAES-256-GCM: both nonces are ABCDEFGHIJKLMNOPQRSTUVWX.
func TestXAESVectors(t *testing.T) {
	for _, test := range []struct {
		key         byte
		ad, ciphers string
	}{
		{1, "", "ce546ef63c9cc60765923609b33a9a1974e96e52daf2fcf7075e2271"},
		{3, "c2sp.org/XAES-256-GCM", "986ec1832593df5443a179437fd083bf3fdb41abd740a21f71eb769d"},
	} {
		sealed, err := hex.DecodeString(test.ciphers)
		must(t, err)
		sealed = append([]byte("ABCDEFGHIJKLMNOPQRSTUVWX"), sealed...)
		plain, err := keyring.XAES(bytes.Repeat([]byte{test.key}, 32)).Open(nil, sealed, []byte(test.ad))
		if err != nil || string(plain) != "XAES-256-GCM" {
			t.Errorf("key %d: opened %q, %v", test.key, plain, err)
		}
	}
}

func TestAEAD(t *testing.T) {
	key := keyring.NewSet().Active()
	a := key.AEAD("cookie")
	for _, n := range []int{0, 1, 1000} {
		plain, ad := bytes.Repeat([]byte("p"), n), []byte("app")
		sealed := a.Seal([]byte("head"), plain, ad)
		if !bytes.HasPrefix(sealed, []byte("head")) || len(sealed) != 4+n+keyring.Overhead {
			t.Fatalf("Seal of %d bytes: %d bytes, want head and %d more", n, len(sealed), n+keyring.Overhead)
		}
		sealed = sealed[4:]
		got, err := a.Open([]byte("head"), sealed, ad)
		if err != nil || string(got) != "head"+string(plain) {
			t.Fatalf("Open = %q, %v", got, err)
		}
		if bytes.Equal(sealed, a.Seal(nil, plain, ad)) {
			t.Error("sealed twice, the same bytes")
		}
		refused := func(what string, a keyring.AEAD, sealed []byte, ad string) {
			t.Helper()
			if got, err := a.Open(nil, sealed, []byte(ad)); !errors.Is(err, driver.ErrTampered) || got != nil {
				t.Errorf("%s: %q, %v, want ErrTampered", what, got, err)
			}
		}
		// Attacks 8, 9 and 10, below the encoding.
		for i := range sealed {
			changed := bytes.Clone(sealed)
			changed[i] ^= 1 << (i % 8)
			refused("a bit changed", a, changed, "app")
			refused("cut", a, sealed[:i], "app")
		}
		refused("longer", a, append(bytes.Clone(sealed), 0), "app")
		refused("other associated data", a, sealed, "App")
		refused("other purpose", key.AEAD("jwt"), sealed, "app")
		refused("other key", keyring.NewSet().Active().AEAD("cookie"), sealed, "app")
	}
}

// What a purpose is given does not change from release to release, and differs from what every other is given.
func TestDerive(t *testing.T) {
	set := keyring.WithSecret([]byte("\x00holdfast test secret, 32 bytes."))
	key := set.Keys()[0]
	if got, want := fmt.Sprintf("%08x %x", key.ID(), key.Derive("p", 16)), "ac1879bc 0c906ad7b2e5de93e5c4155d06e0f36d"; got != want {
		t.Errorf("ID and Derive = %s, want %s", got, want)
	}
	sealed, err := hex.DecodeString("ef2162570e443fe52931fd0d486fbda80a1388018e7806f98ce1049f9b1a287641025f6f84f49a786802f3d33f")
	must(t, err)
	if plain, err := key.AEAD("p").Open(nil, sealed, []byte("ad")); err != nil || string(plain) != "plain" {
		t.Errorf("what the first release sealed: %q, %v", plain, err)
	}
	if !bytes.HasPrefix(key.Derive("p", 64), key.Derive("p", 16)) {
		t.Error("more bytes do not begin with the fewer")
	}
	seen := map[string]string{}
	for _, purpose := range []string{"", "p", "p\x00", "q", "id", "aead", "derive"} {
		got := string(key.Derive(purpose, 32))
		if was, ok := seen[got]; ok {
			t.Errorf("purposes %q and %q are given the same", purpose, was)
		}
		seen[got] = purpose
	}
}

func TestAEADIsKept(t *testing.T) {
	key := keyring.NewSet().Active()
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			if key.AEAD("a") != key.AEAD("a") {
				t.Error("made again for the same purpose")
			}
		})
	}
	all.Wait()
	if n := testing.AllocsPerRun(100, func() { key.AEAD("a") }); n > 0 {
		t.Errorf("AEAD allocates %v times, want 0", n)
	}
}

func TestUnusable(t *testing.T) {
	first := keyring.NewSet()
	set, err := mustRotate(t, first).Retire(first.Active().ID())
	must(t, err)
	retired, _ := set.Find(first.Active().ID())
	for name, f := range map[string]func(){
		"zero Key":        func() { keyring.Key{}.AEAD("x") },
		"retired: AEAD":   func() { retired.AEAD("x") },
		"retired: Derive": func() { retired.Derive("x", 1) },
	} {
		func() {
			defer func() {
				if r := recover(); r == nil || !strings.Contains(fmt.Sprint(r), "can be used") {
					t.Errorf("%s: recovered %v, want a panic that says why", name, r)
				}
			}()
			f()
		}()
	}
}

// Attack 27: nothing prints a secret, whatever prints it.
func TestNothingPrintsSecrets(t *testing.T) {
	set := keyring.NewSet()
	key := set.Active()
	path := filepath.Join(t.TempDir(), "keys")
	must(t, keyring.Create(path, set))
	ring, err := keyring.Open(t.Context(), "file:"+path)
	must(t, err)
	defer ring.Close()
	secret := keyring.Secret(key)
	want := fmt.Sprintf("[key %08x]", key.ID())
	derived := key.Derive("x", 32)
	aead := struct{ a keyring.AEAD }{keyring.XAES(derived)}
	var out strings.Builder
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%t", "%p"} {
		if got := fmt.Sprintf(verb, key); got != want && verb != "%p" {
			t.Errorf("%s prints %s, want %s", verb, got, want)
		}
		fmt.Fprintf(&out, strings.Repeat(verb+"\n", 8), key, &key, key.AEAD("x"), aead, set, ring, []keyring.Key{key}, struct {
			K keyring.Key
			s *keyring.Set
			k keyring.Key
		}{key, set, key})
	}
	slog.New(slog.NewTextHandler(&out, nil)).Info("x", "key", key, "set", set, "ring", ring)
	slog.New(slog.NewJSONHandler(&out, nil)).Info("x", "key", key, "set", set, "ring", ring)
	for _, v := range []any{key, set, ring, set.Keys()} {
		b, err := json.Marshal(v)
		must(t, err)
		out.Write(b)
	}
	for _, b := range [][]byte{secret, derived} {
		for _, shown := range []string{string(b), fmt.Sprintf("%x", b), fmt.Sprintf("%X", b), base64.StdEncoding.EncodeToString(b),
			strings.Trim(fmt.Sprint(b), "[]"), strings.Trim(fmt.Sprintf("%#v", b), "[]byte{}")} {
			if strings.Contains(out.String(), shown) {
				t.Errorf("shown: %s", out.String())
			}
		}
	}
}

func BenchmarkSeal(b *testing.B) {
	a, plain, ad := keyring.NewSet().Active().AEAD("cookie"), make([]byte, 700), make([]byte, 40)
	b.ReportAllocs()
	buf := make([]byte, 0, 1000)
	for b.Loop() {
		a.Seal(buf, plain, ad)
	}
}

func BenchmarkOpen(b *testing.B) {
	a, plain, ad := keyring.NewSet().Active().AEAD("cookie"), make([]byte, 700), make([]byte, 40)
	sealed := a.Seal(nil, plain, ad)
	buf := make([]byte, 0, 1000)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := a.Open(buf, sealed, ad); err != nil {
			b.Fatal(err)
		}
	}
}
