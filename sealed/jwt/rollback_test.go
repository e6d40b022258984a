package jwt_test

import (
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/keyring"
	"github.com/holdfast-sessions/holdfast/sealed/jwt"
)

// A roll-out and a roll-back log nobody out: this release opens what the first one sealed, with the key ring in
// keyring/testdata, and seals the same bytes. The signatures of ES256 and the encrypted fields have something random in
// them: of those what comes before is the same.
func TestRollBack(t *testing.T) {
	b, err := os.ReadFile("../../keyring/testdata/ring-v1.json")
	if err != nil {
		t.Fatal(err)
	}
	set, err := keyring.Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	const binding = "__Host-Http-session"
	id, rec := driver.ID{1, 2, 31: 255}, driver.Record{
		User: "ada", Created: time.UnixMilli(1_795_000_000_000), Seen: time.UnixMilli(1_795_000_060_000), Expires: time.UnixMilli(1_795_001_860_000),
		Revision: 1<<62 | 5,
		Fields:   driver.Fields{}.With(driver.Change{Name: "cart", Value: []byte("[1,2]")}, driver.Change{Name: "\x00own", Value: []byte{0xff}}),
	}
	for file, c := range map[string]jwt.Config{
		"EdDSA": {}, "ES256": {Algorithm: jwt.ES256}, "HS256": {Algorithm: jwt.HS256}, "EdDSA-encrypted": {Encrypt: true},
	} {
		t.Run(file, func(t *testing.T) {
			b, err := os.ReadFile("testdata/token-v1-" + file + ".txt")
			if err != nil {
				t.Fatal(err)
			}
			golden := strings.TrimSpace(string(b))
			c.Issuer, c.Audience = "https://shop.example", "shop"
			s, err := jwt.New(keyring.New(set), c)
			if err != nil {
				t.Fatal(err)
			}
			synctest.Test(t, func(t *testing.T) { // the moment at which the first release sealed it
				o, err := s.Open(binding, golden)
				if err != nil || o.Stale || o.ID != id || o.Record.User != rec.User || o.Record.Revision != rec.Revision ||
					!o.Record.Created.Equal(rec.Created) || !o.Record.Seen.Equal(rec.Seen) || !o.Record.Expires.Equal(rec.Expires) || !o.Record.Fields.Equal(rec.Fields) {
					t.Errorf("what the first release sealed: %+v, %v", o, err)
				}
				token, err := s.Seal(binding, id, rec)
				if err != nil {
					t.Fatal(err)
				}
				got, want := token, golden
				switch file {
				case "ES256":
					got, want = got[:strings.LastIndex(got, ".")], want[:strings.LastIndex(want, ".")]
				case "EdDSA-encrypted":
					got, want = beforeEnc(t, got), beforeEnc(t, want)
				}
				if got != want {
					t.Errorf("this release sealed %s, the first %s", got, want)
				}
			})
		})
	}
}

// beforeEnc returns the header and the claims up to enc.
func beforeEnc(t testing.TB, token string) string {
	t.Helper()
	parts := strings.Split(token, ".")
	claims, err := b64.DecodeString(parts[1])
	before, _, ok := strings.Cut(string(claims), `"enc":"`)
	if err != nil || !ok {
		t.Fatalf("no claim enc in %s, %v", claims, err)
	}
	return parts[0] + "." + before
}
