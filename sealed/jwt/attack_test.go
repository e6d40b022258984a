package jwt_test

import (
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	gojwt "github.com/golang-jwt/jwt/v5"

	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/keyring"
	"github.com/holdfast-sessions/holdfast/sealed/jwt"
)

var b64 = base64.RawURLEncoding

func mustToken(t testing.TB, s *jwt.Sealer) (token, header, claims string) {
	t.Helper()
	now := time.Now()
	token, err := s.Seal("b", driver.ID{1}, driver.Record{User: "ada", Created: now, Seen: now, Expires: now.Add(time.Hour), Revision: 7,
		Fields: driver.Fields{}.With(driver.Change{Name: "cart", Value: []byte("[1]")})})
	if err != nil {
		t.Fatal(err)
	}
	parts := strings.Split(token, ".")
	h, _ := b64.DecodeString(parts[0])
	c, _ := b64.DecodeString(parts[1])
	return token, string(h), string(c)
}

// Attack 13, the header: every one but that which Seal writes is refused, even if the signature over it is right.
func TestHeader(t *testing.T) {
	ring := keyring.New(keyring.NewSet())
	for _, algorithm := range []jwt.Algorithm{jwt.EdDSA, jwt.HS256} {
		s := mustNew(t, ring, jwt.Config{Algorithm: algorithm})
		_, header, claims := mustToken(t, s)
		kid := fmt.Sprintf("%08x", ring.Active().ID())
		private, public := jwt.Derive(algorithm, ring.Active())
		edit := func(old, new string) string {
			if !strings.Contains(header, old) {
				t.Fatalf("%s has no %s", header, old)
			}
			return strings.Replace(header, old, new, 1)
		}
		alg := `"alg":"` + string(algorithm) + `"`
		for _, h := range []string{
			edit(alg, `"alg":"none"`), edit(alg, `"alg":"None"`), edit(alg, `"alg":"RS256"`), edit(alg, `"alg":""`), edit(alg+",", ``),
			edit(`}`, `,"jwk":{"kty":"OKP"}}`), edit(`}`, `,"jku":"https://evil.example/jwks"}`), edit(`}`, `,"x5u":"https://evil.example"}`),
			edit(`}`, `,"crit":["exp"]}`), edit(`}`, `,"b64":false}`), edit(`{`, `{`+alg+`,`), edit(`{`, `{"alg":"none",`),
			edit(kid, "../../../../dev/null"), edit(kid, "' OR 1=1"), edit(kid, strings.ToUpper("abcdef12")), edit(kid, kid[1:]),
			edit(`,`, ` ,`), edit(`holdfast-session+jwt`, `JWT`), edit(`holdfast-session+jwt`, `at+jwt`), strings.ToUpper(header), `{}`, `[]`, `null`, ``,
			strings.Repeat("[", 10000), header + " ",
		} {
			signed := b64.EncodeToString([]byte(h)) + "." + b64.EncodeToString([]byte(claims))
			signature := mustSign(t, algorithm, signed, private)
			for _, token := range []string{signed + "." + b64.EncodeToString(signature), signed + "."} {
				if o, err := s.Open("b", token); !errors.Is(err, driver.ErrTampered) || o.ID != (driver.ID{}) {
					t.Errorf("header %.80s: Open = %v, want ErrTampered", h, err)
				}
			}
		}
		// HS256 with the public key as its secret.
		if key, ok := public.(ed25519.PublicKey); ok {
			h := edit(alg, `"alg":"HS256"`)
			signed := b64.EncodeToString([]byte(h)) + "." + b64.EncodeToString([]byte(claims))
			mac := hmac.New(sha256.New, key)
			mac.Write([]byte(signed))
			if _, err := s.Open("b", signed+"."+b64.EncodeToString(mac.Sum(nil))); !errors.Is(err, driver.ErrTampered) {
				t.Errorf("HS256 with a public key: Open = %v, want ErrTampered", err)
			}
		}
	}
}

func mustSign(t testing.TB, algorithm jwt.Algorithm, signed string, private any) []byte {
	t.Helper()
	signature, err := gojwt.GetSigningMethod(string(algorithm)).Sign(signed, private)
	if err != nil {
		t.Fatal(err)
	}
	return signature
}

// Attack 13, the claims: what a holder of the key would have to sign, as a bug or another release might.
func TestClaims(t *testing.T) {
	ring := keyring.New(keyring.NewSet())
	s := mustNew(t, ring, jwt.Config{})
	_, header, claims := mustToken(t, s)
	private, _ := jwt.Derive(jwt.EdDSA, ring.Active())
	open := func(claims string) error {
		signed := b64.EncodeToString([]byte(header)) + "." + b64.EncodeToString([]byte(claims))
		_, err := s.Open("b", signed+"."+b64.EncodeToString(mustSign(t, jwt.EdDSA, signed, private)))
		return err
	}
	if err := open(claims); err != nil {
		t.Fatal(err)
	}
	var members map[string]json.RawMessage
	if err := json.Unmarshal([]byte(claims), &members); err != nil {
		t.Fatal(err)
	}
	for name, value := range members {
		member := `"` + name + `":` + string(value)
		bad := []string{`null`, `1e400`, `[]`, `{}`, `1.5`, `true`}
		if value[0] != '"' {
			bad = append(bad, `"`+strings.ReplaceAll(string(value), `"`, ``)+`"`)
		} else {
			bad = append(bad, `"else"`, `[`+string(value)+`]`)
		}
		for _, b := range bad {
			if name == "sub" && b == `"else"` || name == "fields" && b == `{}` {
				continue
			}
			if err := open(strings.Replace(claims, member, `"`+name+`":`+b, 1)); !errors.Is(err, driver.ErrTampered) {
				t.Errorf("%s is %s: Open = %v, want ErrTampered", name, b, err)
			}
		}
		if err := open(strings.Replace(claims, member, member+","+member, 1)); !errors.Is(err, driver.ErrTampered) {
			t.Errorf("%s twice: Open = %v, want ErrTampered", name, err)
		}
		if name != "fields" {
			left := strings.Replace(strings.Replace(claims, member+",", "", 1), ","+member, "", 1)
			if err := open(left); !errors.Is(err, driver.ErrTampered) {
				t.Errorf("without %s: Open = %v, want ErrTampered", name, err)
			}
		}
	}
	for name, edit := range map[string][2]string{
		"an unknown claim": {`{`, `{"admin":true,`}, "EXP": {`{`, `{"EXP":1,`}, "a field twice": {`"cart":`, `"cart":1,"cart":`},
		"invalid UTF-8": {`"ada"`, "\"\xff\""}, "deep": {`[1]`, strings.Repeat("[", 40000)},
	} {
		if err := open(strings.Replace(claims, edit[0], edit[1], 1)); !errors.Is(err, driver.ErrTampered) {
			t.Errorf("%s: Open = %v, want ErrTampered", name, err)
		}
	}
	if err := open(claims + " {}"); !errors.Is(err, driver.ErrTampered) {
		t.Errorf("more after the claims: Open = %v, want ErrTampered", err)
	}
	if err := open(strings.Replace(claims, `"v":1`, `"v":2`, 1)); !errors.Is(err, driver.ErrForeignSeal) {
		t.Errorf("version 2: Open = %v, want ErrForeignSeal", err)
	}
}

// A server's clock may be ahead by the leeway, and no more.
func TestLeeway(t *testing.T) {
	ring := keyring.New(keyring.NewSet())
	s := mustNew(t, ring, jwt.Config{Leeway: time.Minute})
	_, header, claims := mustToken(t, s)
	private, _ := jwt.Derive(jwt.EdDSA, ring.Active())
	for _, name := range []string{"iat", "nbf"} {
		for ahead, want := range map[time.Duration]error{50 * time.Second: nil, 2 * time.Minute: driver.ErrNotYetValid} {
			var members map[string]json.RawMessage
			_ = json.Unmarshal([]byte(claims), &members) // it is ours
			c := strings.Replace(claims, `"`+name+`":`+string(members[name]), fmt.Sprintf("%q:%d", name, time.Now().Add(ahead).Unix()), 1)
			signed := b64.EncodeToString([]byte(header)) + "." + b64.EncodeToString([]byte(c))
			token := signed + "." + b64.EncodeToString(mustSign(t, jwt.EdDSA, signed, private))
			if _, err := s.Open("b", token); !errors.Is(err, want) {
				t.Errorf("%s %v ahead: Open = %v, want %v", name, ahead, err, want)
			}
			r, err := jwt.Inspect(ring, jwt.Config{Leeway: time.Minute}, "b", token)
			if err != nil || !r.Verified || r.Refused != map[bool]string{true: "not yet valid"}[want != nil] {
				t.Errorf("%s %v ahead: Inspect says verified %v, refused %q, %v", name, ahead, r.Verified, r.Refused, err)
			}
			if _, err := s.Open("c", token); !errors.Is(err, driver.ErrTampered) {
				t.Errorf("%s %v ahead, with another binding: Open = %v, want ErrTampered", name, ahead, err)
			}
		}
	}
}

// Without encryption fields can be read; with it they cannot, and the user can.
func TestEncrypt(t *testing.T) {
	ring := keyring.New(keyring.NewSet())
	for _, encrypt := range []bool{false, true} {
		token, _, claims := mustToken(t, mustNew(t, ring, jwt.Config{Encrypt: encrypt}))
		if strings.Contains(claims, "cart") == encrypt || !strings.Contains(claims, `"sub":"ada"`) {
			t.Errorf("encrypt %v: claims are %s", encrypt, claims)
		}
		// A change of the setting logs nobody out.
		if _, err := mustNew(t, ring, jwt.Config{Encrypt: !encrypt}).Open("b", token); err != nil {
			t.Errorf("with encrypt %v opened by one with %v: %v", encrypt, !encrypt, err)
		}
	}
}

func TestJWKS(t *testing.T) {
	set, next, err := keyring.NewSet().Add()
	if err != nil {
		t.Fatal(err)
	}
	for algorithm, status := range map[jwt.Algorithm]int{jwt.EdDSA: 200, jwt.ES256: 200, jwt.HS256: 404} {
		h := mustNew(t, keyring.New(set), jwt.Config{Algorithm: algorithm}).JWKS()
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
		if w.Code != status {
			t.Errorf("%s: status %d, want %d", algorithm, w.Code, status)
		}
		if status != 200 {
			continue
		}
		if body := w.Body.String(); !strings.Contains(body, fmt.Sprintf("%08x", next.ID())) || strings.Contains(body, `"d"`) || w.Header().Get("Cache-Control") == "" {
			t.Errorf("%s: %v %s", algorithm, w.Header(), body)
		}
		r := httptest.NewRequest("GET", "/", nil)
		r.Header.Set("If-None-Match", w.Header().Get("ETag"))
		again := httptest.NewRecorder()
		h.ServeHTTP(again, r)
		if again.Code != 304 || again.Body.Len() > 0 {
			t.Errorf("%s: with the ETag: status %d", algorithm, again.Code)
		}
		post := httptest.NewRecorder()
		h.ServeHTTP(post, httptest.NewRequest("POST", "/", nil))
		if post.Code != 405 {
			t.Errorf("%s: POST: status %d", algorithm, post.Code)
		}
	}
}

func TestValidate(t *testing.T) {
	_, err := jwt.New(keyring.New(keyring.NewSet()), jwt.Config{Algorithm: "none", Type: "a b", Leeway: time.Hour, MaxBytes: 1})
	for _, want := range []string{"Issuer", "Audience", "Algorithm", "Type", "Leeway", "MaxBytes"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("New = %v, want it to name %s", err, want)
		}
	}
}

// FuzzToken: nothing that a client sends panics, and nothing opens but what was sealed.
func FuzzToken(f *testing.F) {
	s := mustNew(f, keyring.New(keyring.NewSet()), jwt.Config{})
	token, _, _ := mustToken(f, s)
	f.Add(token)
	f.Add("e30.e30.")
	f.Add("..")
	f.Fuzz(func(t *testing.T, in string) {
		if _, err := s.Open("b", in); err == nil && in != token {
			t.Fatal("a token opened that was not sealed")
		} else if err != nil && !errors.Is(err, driver.ErrTampered) && !errors.Is(err, driver.ErrForeignSeal) && !errors.Is(err, driver.ErrGone) {
			t.Fatalf("Open = %v", err)
		}
		if _, err := jwt.Inspect(nil, jwt.Config{}, "b", in); err != nil {
			t.Fatal(err)
		}
	})
}

// FuzzClaims: whatever was signed is a record, or ErrTampered or ErrForeignSeal.
func FuzzClaims(f *testing.F) {
	_, _, claims := mustToken(f, mustNew(f, keyring.New(keyring.NewSet()), jwt.Config{}))
	f.Add([]byte(claims))
	f.Add([]byte(`{"holdfast":{"v":2}}`))
	f.Add([]byte(`{}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if err := jwt.Parse(b); err != nil && !errors.Is(err, driver.ErrTampered) && !errors.Is(err, driver.ErrForeignSeal) {
			t.Fatalf("parse = %v", err)
		}
	})
}
