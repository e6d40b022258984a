// Package jwt is a Sealer for JSON Web Tokens: the session, signed, in its token, so that no server keeps it, and so that services in other
// languages can verify who a request is from, with the keys that [Sealer.JWKS] publishes.
//
//	keys, err := keyring.Open(ctx, "file:/etc/app/keys")
//	sealer, err := jwt.New(keys, jwt.Config{Issuer: "https://shop.example", Audience: "shop"})
//	sessions, err := holdfast.NewSealed(sealer, users, holdfast.Config{})
//	mux.Handle("GET /.well-known/jwks.json", sealer.JWKS())
//
// A JWT is signed, not encrypted: whoever has it can read the user, the times and, without Config.Encrypt, every field.
// What other services verify is good until it expires, whatever happened to the session since; only the Manager asks the user records.
package jwt

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strings"
	"sync/atomic"
	"time"

	gojwt "github.com/golang-jwt/jwt/v5"

	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/internal/base64url"
	"github.com/holdfast-sessions/holdfast/keyring"
	"github.com/holdfast-sessions/holdfast/sealed"
)

// DefaultType is the header parameter typ of a token, unless it is configured.
const DefaultType = "holdfast-session+jwt"

const (
	defaultLeeway = 30 * time.Second
	maxLeeway     = 5 * time.Minute
)

// Algorithm is how tokens are signed.
type Algorithm string

const (
	EdDSA Algorithm = "EdDSA" // Ed25519: small, fast, the same signature each time
	ES256 Algorithm = "ES256" // ECDSA over P-256, for services that have no Ed25519
	HS256 Algorithm = "HS256" // HMAC: only who has the key ring can verify, and who can verify can sign
)

// Config configures a Sealer.
type Config struct {
	// Issuer is the claim iss, required: who makes the tokens, usually a URL.
	Issuer string
	// Audience is the claim aud, required: whom they are for.
	Audience string
	// Algorithm is the only one that is accepted. Another than before refuses every token made before. Default: EdDSA.
	Algorithm Algorithm
	// Type is the header parameter typ, so that no other kind of token passes for a session (RFC 8725, section 3.11): letters, digits and
	// "+-._". Default: DefaultType.
	Type string
	// Leeway is how far ahead the clock of the server that made a token may be: at most 5 minutes. It does not extend the
	// expiry. Default: 30 seconds.
	Leeway time.Duration
	// Encrypt hides the fields from everybody without the key ring. The user and the times stay readable.
	Encrypt bool
	// MaxBytes is the longest token, in characters: 1,024 to 65,536. Default: sealed.DefaultMaxBytes, 14,336, what four
	// cookies hold. Many servers accept no header line beyond 8,192.
	MaxBytes int
}

var validType = regexp.MustCompile(`^[A-Za-z0-9+._-]{1,64}$`)

func (c Config) withDefaults() Config {
	if c.Algorithm == "" {
		c.Algorithm = EdDSA
	}
	if c.Type == "" {
		c.Type = DefaultType
	}
	if c.Leeway == 0 {
		c.Leeway = defaultLeeway
	}
	return c
}

// Validate reports every setting that New refuses.
func (c Config) Validate() error {
	c = c.withDefaults()
	var errs []error
	bad := func(format string, a ...any) { errs = append(errs, fmt.Errorf("sealed jwt: "+format, a...)) }
	for _, part := range []struct{ name, value, example string }{
		{"Issuer", c.Issuer, "https://shop.example"}, {"Audience", c.Audience, "shop"},
	} {
		if part.value == "" || len(part.value) > 256 || !textual(part.value) {
			bad("%s is %.20q: want 1 to 256 bytes of text without control characters, such as %q", part.name, part.value, part.example)
		}
	}
	if _, ok := methods[c.Algorithm]; !ok {
		bad("Algorithm is %.20q: want EdDSA, ES256 or HS256", string(c.Algorithm))
	}
	if !validType.MatchString(c.Type) {
		bad("Type is %.20q: want 1 to 64 letters, digits or +-._", c.Type)
	}
	if c.Leeway < 0 || c.Leeway > maxLeeway {
		bad("Leeway is %v: want 0 to %v", c.Leeway, maxLeeway)
	}
	if _, err := sealed.MaxBytes(c.MaxBytes); err != nil {
		bad("%w", err)
	}
	return errors.Join(errs...)
}

// Sealer seals records into JWTs. Its methods may be called concurrently.
type Sealer struct {
	config    Config
	maxBytes  int
	keys      *keyring.Ring
	method    method
	signers   atomic.Pointer[signers]
	validator *gojwt.Validator
	fixed     string // the claims that all tokens begin with
	// before and after are what stands around the key's ID in the header, in JSON.
	before, after string
}

var _ driver.Sealer = (*Sealer)(nil)

// New returns a Sealer that uses keys, which stay the caller's. It follows the ring as that changes.
func New(keys *keyring.Ring, c Config) (*Sealer, error) {
	if keys == nil {
		return nil, errors.New("sealed jwt: no key ring: open one with keyring.Open")
	}
	if err := c.Validate(); err != nil {
		return nil, err
	}
	c = c.withDefaults()
	maxBytes, _ := sealed.MaxBytes(c.MaxBytes) // valid
	return &Sealer{
		config:   c,
		maxBytes: maxBytes,
		keys:     keys,
		method:   methods[c.Algorithm],
		validator: gojwt.NewValidator(gojwt.WithIssuer(c.Issuer), gojwt.WithAudience(c.Audience), gojwt.WithLeeway(c.Leeway),
			gojwt.WithIssuedAt(), gojwt.WithNotBeforeRequired()),
		fixed:  `{"iss":` + quote(c.Issuer) + `,"aud":` + quote(c.Audience),
		before: `{"alg":"` + string(c.Algorithm) + `","kid":"`,
		after:  `","typ":"` + c.Type + `"}`,
	}, nil
}

// Format prints "[jwt sealer]", whatever the verb: nothing that leads to a key.
func (s *Sealer) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "[jwt sealer]") }

// Describe says what the Sealer is.
func (s *Sealer) Describe() driver.Description {
	return driver.Description{
		Name:      "jwt",
		Shared:    true,
		Durable:   "in the client, until it drops its token",
		Immediate: true,
		MaxBytes:  s.maxBytes,
	}
}

// Seal returns the token that holds rec under id, or ErrTooLarge. The claims iat and nbf are the time of the call.
func (s *Sealer) Seal(binding string, id driver.ID, rec driver.Record) (string, error) {
	if len(rec.User) > driver.MaxName {
		return "", fmt.Errorf("sealed jwt: %w: user name of %d bytes, at most %d", driver.ErrTooLarge, len(rec.User), driver.MaxName)
	}
	key := s.signer(s.keys.Active())
	claims := s.appendClaims(make([]byte, 0, 512+2*rec.EncodedLen()), key, binding, id, rec, time.Now())
	if n := len(key.header) + 1 + base64url.Len(len(claims)) + 1 + base64url.Len(s.method.signatureBytes); n > s.maxBytes {
		return "", fmt.Errorf("sealed jwt: %w: %d characters, at most %d", driver.ErrTooLarge, n, s.maxBytes)
	}
	token := key.header + "." + base64url.Encode(claims)
	signature, err := s.method.Sign(token, key.private)
	if err != nil {
		return "", fmt.Errorf("sealed jwt: sign: %w", err) // the system's randomness, which never fails
	}
	return token + "." + base64url.Encode(signature), nil
}

// Open returns what Seal put into token. See driver.Sealer for its errors.
func (s *Sealer) Open(binding, token string) (driver.Opened, error) {
	p, err := split(token)
	if err != nil {
		return driver.Opened{}, err
	}
	id, ok := s.cutHeader(p.header)
	if !ok {
		return driver.Opened{}, tampered("the header is not one that this sealer writes: " + p.describe())
	}
	key, stale, err := sealed.Find(s.keys, id)
	if err != nil {
		return driver.Opened{}, fmt.Errorf("sealed jwt: %w", err)
	}
	signer := s.signer(key)
	if s.method.Verify(p.signed, p.signature, signer.public) != nil {
		return driver.Opened{}, tampered("the signature is wrong")
	}
	c, err := parse(p.claims)
	if err != nil {
		return driver.Opened{}, err
	}
	if c.state.Binding != bindingHash(binding) {
		return driver.Opened{}, tampered("made for another binding")
	}
	if err := s.validator.Validate(c); errors.Is(err, gojwt.ErrTokenInvalidIssuer) || errors.Is(err, gojwt.ErrTokenInvalidAudience) {
		return driver.Opened{}, tampered(err.Error())
	} else if errors.Is(err, gojwt.ErrTokenNotValidYet) || errors.Is(err, gojwt.ErrTokenUsedBeforeIssued) {
		ahead := time.Until(time.Unix(max(c.issued, c.notBefore), 0)).Round(time.Second)
		return driver.Opened{}, fmt.Errorf("sealed jwt: %w: %v ahead, Leeway is %v; set the clocks of all servers", driver.ErrNotYetValid, ahead, s.config.Leeway)
	} else if err != nil {
		return driver.Opened{}, tampered(err.Error())
	}
	o := driver.Opened{ID: c.id, Stale: stale}
	if o.Record, err = s.record(c, signer, binding); err != nil {
		return driver.Opened{}, err
	}
	if o.Record.Expired(time.Now()) {
		return o, fmt.Errorf("sealed jwt: %w", driver.ErrGone)
	}
	return o, nil
}

// parts are the decoded parts of a token.
type parts struct {
	signed                    string // what the signature is over
	header, claims, signature []byte
}

// split takes a token apart. What is inside is not looked at.
func split(token string) (parts, error) {
	if len(token) > sealed.LimitBytes {
		return parts{}, tampered(fmt.Sprintf("%d characters, at most %d", len(token), sealed.LimitBytes))
	}
	header, rest, ok := strings.Cut(token, ".")
	claims, signature, ok2 := strings.Cut(rest, ".")
	if !ok || !ok2 || strings.Contains(signature, ".") {
		return parts{}, tampered("not three parts with a dot between")
	}
	p := parts{signed: token[:len(token)-len(signature)-1]}
	var oks [3]bool
	p.header, oks[0] = base64url.Decode(header)
	p.claims, oks[1] = base64url.Decode(claims)
	p.signature, oks[2] = base64url.Decode(signature)
	if oks != [3]bool{true, true, true} {
		return parts{}, tampered("not base64url without padding")
	}
	return p, nil
}

// cutHeader returns the ID of the key from a header. Only the very bytes that Seal writes are a header: so there is no
// other algorithm, no key or address of one that the token brings along, nothing critical and nothing twice.
func (s *Sealer) cutHeader(header []byte) (uint32, bool) {
	h := string(header)
	if len(h) != len(s.before)+8+len(s.after) || !strings.HasPrefix(h, s.before) || !strings.HasSuffix(h, s.after) {
		return 0, false
	}
	return parseKeyID(h[len(s.before) : len(s.before)+8])
}

// describe says what is wrong about a header, for people.
func (p parts) describe() string {
	h, err := parseHeader(p.header)
	if err != nil {
		return "it is not a JSON object of texts"
	}
	return fmt.Sprintf("alg %.20q, typ %.64q", h.Algorithm, h.Type)
}

// header is what Inspect reads of one. It is trusted by nobody.
type header struct {
	Algorithm string `json:"alg"`
	Type      string `json:"typ"`
	KeyID     string `json:"kid"`
}

func parseHeader(b []byte) (h header, err error) {
	if len(b) > 1<<10 {
		return h, errors.New("too long")
	}
	err = json.Unmarshal(b, &h)
	return h, err
}

func tampered(how string) error {
	return fmt.Errorf("sealed jwt: %w: %s", driver.ErrTampered, how)
}

// JWKS serves the public keys of all usable keys as a JSON Web Key Set (RFC 7517), for five minutes of caching: keep a new
// key waiting for longer than that. With HS256 there is none, and the answer is 404.
func (s *Sealer) JWKS() http.Handler { return http.HandlerFunc(s.serveJWKS) }
