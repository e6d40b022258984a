package cookie_test

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/holdfast-sessions/holdfast/keyring"
	"github.com/holdfast-sessions/holdfast/sealed/cookie"
)

const (
	ringFile  = "../../keyring/testdata/ring-v1.json"
	tokenFile = "testdata/token-v1.txt" // sealed by the release that first had the format
	binding   = "__Host-Http-session"
)

func mustRead(t testing.TB, file string) string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

// A roll-out and a roll-back log nobody out: this release opens what the first one sealed, and seals, but for the nonce, the
// same bytes. Those are made here once more, from the description of the format and the standard library alone.
func TestRollBack(t *testing.T) {
	ring := mustRead(t, ringFile)
	set, err := keyring.Parse([]byte(ring))
	if err != nil {
		t.Fatal(err)
	}
	secret, err := base64.StdEncoding.DecodeString(regexp.MustCompile(`"active".*"secret": "([^"]*)"`).FindStringSubmatch(ring)[1])
	if err != nil {
		t.Fatal(err)
	}
	payload, err := hex.DecodeString(mustRead(t, "testdata/payload-v1.hex"))
	if err != nil {
		t.Fatal(err)
	}
	s, err := cookie.New(keyring.New(set), cookie.Config{Application: "shop"})
	if err != nil {
		t.Fatal(err)
	}
	id, rec := fixture()
	synctest.Test(t, func(t *testing.T) { // where the record has not expired
		golden := mustRead(t, tokenFile)
		o, err := s.Open(binding, golden)
		if err != nil || o.Stale || o.ID != id || o.Record.User != rec.User || o.Record.Revision != rec.Revision ||
			!o.Record.Created.Equal(rec.Created) || !o.Record.Seen.Equal(rec.Seen) || !o.Record.Expires.Equal(rec.Expires) || !o.Record.Fields.Equal(rec.Fields) {
			t.Errorf("what the first release sealed: %+v, %v", o, err)
		}
		token, err := s.Seal(binding, id, rec)
		if err != nil {
			t.Fatal(err)
		}
		for name, token := range map[string]string{"the first release": golden, "this release": token} {
			if want := describedToken(t, secret, set.Active().ID(), nonceOf(t, token), payload); token != want {
				t.Errorf("%s sealed %s, the format is %s", name, token, want)
			}
		}
	})
}

func nonceOf(t testing.TB, token string) []byte {
	t.Helper()
	b, err := base64.RawURLEncoding.DecodeString(token)
	if err != nil || len(b) < 29 {
		t.Fatalf("%d bytes, %v", len(b), err)
	}
	return b[5:29]
}

// describedToken is the token of a payload for application shop and purpose session, as cookie.go, package keyring and C2SP's
// XAES-256-GCM describe it.
func describedToken(t testing.TB, secret []byte, id uint32, nonce, payload []byte) string {
	t.Helper()
	block := func(key []byte) cipher.Block {
		b, err := aes.NewCipher(key)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	key, err := hkdf.Key(sha256.New, secret, nil, "holdfast key ring v1\x00aead\x00sealed/cookie v1", 32)
	if err != nil {
		t.Fatal(err)
	}
	// CMAC of one whole block: its bits, shifted, of the encrypted zero block go over the message.
	var shifted [16]byte
	block(key).Encrypt(shifted[:], shifted[:])
	carry := shifted[0] >> 7
	for i := range shifted {
		shifted[i] <<= 1
		if i < 15 {
			shifted[i] |= shifted[i+1] >> 7
		}
	}
	shifted[15] ^= carry * 0x87
	var messageKey []byte
	for n := range byte(2) {
		m := slices.Concat([]byte{0, n + 1, 'X', 0}, nonce[:12])
		for i := range m {
			m[i] ^= shifted[i]
		}
		block(key).Encrypt(m, m)
		messageKey = append(messageKey, m...)
	}
	gcm, err := cipher.NewGCM(block(messageKey))
	if err != nil {
		t.Fatal(err)
	}
	head := binary.BigEndian.AppendUint32([]byte{1}, id)
	associated := slices.Clone(head)
	for _, part := range []string{"shop", "session", binding} {
		associated = append(binary.BigEndian.AppendUint32(associated, uint32(len(part))), part...)
	}
	return base64.RawURLEncoding.EncodeToString(gcm.Seal(slices.Concat(head, nonce), nonce[12:], payload, associated))
}
