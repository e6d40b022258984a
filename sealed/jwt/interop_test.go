package jwt_test

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/keyring"
	"github.com/holdfast-sessions/holdfast/sealed/jwt"
)

// service is a program in another language that verifies tokens with a standard library of it. It reads a line of JSON for each token, and
// writes "ok" and the user, or "refused" and the name of the library's error.
type service struct {
	name, debian, program, file, code string
	env                               []string
	available                         []string // arguments with which the program says whether the library is there
	// What the library calls the causes.
	expired, audience, tampered string
}

var services = []service{{
	name: "python", debian: "python3-jwt python3-cryptography", program: "/usr/bin/python3", file: "service.py",
	available: []string{"-c", "import jwt, cryptography"},
	code: `import json, sys, jwt
jwks = jwt.PyJWKClient(sys.argv[1])
for line in sys.stdin:
    q = json.loads(line)
    try:
        key = jwks.get_signing_key_from_jwt(q["token"])
        claims = jwt.decode(q["token"], key.key, algorithms=[sys.argv[2]], audience="shop", issuer="https://shop.example",
            options={"require": ["exp", "nbf", "iat", "iss", "aud", "sub", "jti"]})
        if jwt.get_unverified_header(q["token"])["typ"] != "holdfast-session+jwt":
            raise ValueError("typ")
        print(json.dumps({"ok": True, "user": claims["sub"], "cart": claims.get("fields", {}).get("cart")}))
    except Exception as e:
        print(json.dumps({"ok": False, "why": type(e).__name__}))
`,
	expired: "ExpiredSignatureError", audience: "InvalidAudienceError", tampered: "InvalidSignatureError",
}, {
	name: "node", debian: "nodejs node-jose", program: "node", file: "service.cjs", env: []string{"NODE_PATH=/usr/share/nodejs"},
	available: []string{"-e", "require('jose')"},
	code: `const jose = require('jose')
const jwks = jose.createRemoteJWKSet(new URL(process.argv[2]))
const lines = require('fs').readFileSync(0, 'utf8').trim().split('\n')
;(async () => {
  for (const line of lines) {
    try {
      const { payload } = await jose.jwtVerify(JSON.parse(line).token, jwks, {
        algorithms: [process.argv[3]], audience: 'shop', issuer: 'https://shop.example', typ: 'holdfast-session+jwt' })
      console.log(JSON.stringify({ ok: true, user: payload.sub, cart: (payload.fields || {}).cart ?? null }))
    } catch (e) {
      console.log(JSON.stringify({ ok: false, why: e.code + (e.claim ? ' ' + e.claim : '') }))
    }
  }
})()
`,
	expired: "ERR_JWT_EXPIRED exp", audience: "ERR_JWT_CLAIM_VALIDATION_FAILED aud", tampered: "ERR_JWS_SIGNATURE_VERIFICATION_FAILED",
}}

// answer is what a service says of a token.
type answer struct {
	OK   bool   `json:"ok"`
	User string `json:"user"`
	Cart any    `json:"cart"`
	Why  string `json:"why"`
}

// verify runs the service, or ends the test.
func (s service) verify(t *testing.T, jwks string, algorithm jwt.Algorithm, tokens ...string) []answer {
	t.Helper()
	run := func(args ...string) ([]byte, error) {
		var in, errs bytes.Buffer
		for _, token := range tokens {
			fmt.Fprintf(&in, "{\"token\":%q}\n", token)
		}
		c := exec.CommandContext(t.Context(), s.program, args...)
		c.Env = append(os.Environ(), s.env...)
		c.Stdin, c.Stderr = &in, &errs
		out, err := c.Output()
		if err != nil {
			err = fmt.Errorf("%w\n%s", err, errs.Bytes())
		}
		return out, err
	}
	if _, err := run(s.available...); err != nil {
		message := "NOT RUN: " + t.Name() + " needs " + s.name + " and its JWT library (Debian: apt-get install " + s.debian + ")"
		if os.Getenv("CI") == "true" {
			t.Fatal(message)
		}
		t.Skip(message)
	}
	file := filepath.Join(t.TempDir(), s.file)
	if err := os.WriteFile(file, []byte(s.code), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := run(file, jwks, string(algorithm))
	if err != nil {
		t.Fatal(err)
	}
	var answers []answer
	for line := range bytes.Lines(out) {
		var a answer
		if err := json.Unmarshal(line, &a); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		answers = append(answers, a)
	}
	if len(answers) != len(tokens) {
		t.Fatalf("%d answers to %d tokens:\n%s", len(answers), len(tokens), out)
	}
	return answers
}

// Services in two other languages verify a token with the keys of the JWKS endpoint, also one of the key before the active
// one, and refuse an expired, a wrong-audience and a tampered one.
func TestOtherLanguages(t *testing.T) {
	for _, s := range services {
		for _, algorithm := range []jwt.Algorithm{jwt.EdDSA, jwt.ES256} {
			t.Run(s.name+"/"+string(algorithm), func(t *testing.T) {
				before, next, err := keyring.NewSet().Add()
				if err != nil {
					t.Fatal(err)
				}
				after, err := before.Promote(next.ID())
				if err != nil {
					t.Fatal(err)
				}
				seal := func(set *keyring.Set, audience string, encrypt bool, expires time.Duration) string {
					t.Helper()
					sealer := mustNew(t, keyring.New(set), jwt.Config{Audience: audience, Algorithm: algorithm, Encrypt: encrypt})
					now := time.Now()
					token, err := sealer.Seal("b", driver.ID{1}, driver.Record{
						User: "ada", Created: now, Seen: now, Expires: now.Add(expires), Revision: 1 << 62,
						Fields: driver.Fields{}.With(driver.Change{Name: "cart", Value: []byte("3")}, driver.Change{Name: "\x00own", Value: []byte{0}}),
					})
					if err != nil {
						t.Fatal(err)
					}
					return token
				}
				web := httptest.NewServer(mustNew(t, keyring.New(after), jwt.Config{Algorithm: algorithm}).JWKS())
				defer web.Close()
				good := seal(after, "shop", false, time.Hour)
				middle := len(good) / 2 // in the claims
				changed := good[:middle] + map[bool]string{true: "B", false: "A"}[good[middle] == 'A'] + good[middle+1:]
				cut := good[:len(good)-8] + "AAAAAAAA"
				answers := s.verify(t, web.URL, algorithm, good, seal(before, "shop", false, time.Hour), seal(after, "shop", true, time.Hour),
					seal(after, "shop", false, -time.Hour), seal(after, "bank", false, time.Hour), changed, cut)
				ok := answer{OK: true, User: "ada", Cart: 3.0}
				for i, want := range []answer{ok, ok, {OK: true, User: "ada"}, {Why: s.expired}, {Why: s.audience}, {}, {Why: s.tampered}} {
					got := answers[i]
					if i == 5 { // the library may find broken JSON before the signature
						got.Why = ""
					}
					if got != want {
						t.Errorf("token %d: %s says %+v, want %+v", i, s.name, got, want)
					}
				}
			})
		}
	}
}

func mustNew(t testing.TB, keys *keyring.Ring, c jwt.Config) *jwt.Sealer {
	t.Helper()
	c.Issuer, c.Audience = cmp.Or(c.Issuer, "https://shop.example"), cmp.Or(c.Audience, "shop")
	s, err := jwt.New(keys, c)
	if err != nil {
		t.Fatal(err)
	}
	return s
}
