package jwt

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	gojwt "github.com/golang-jwt/jwt/v5"

	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/internal/base64url"
	"github.com/holdfast-sessions/holdfast/internal/jsonobject"
)

// The claims, version 1. All are required but the last three.
//
//	iss, aud   as configured, one text each
//	sub        the user; "" before login. Bytes that are not UTF-8 become U+FFFD, and the user stands in holdfast.user
//	jti        the ID, base64url
//	iat, nbf   when the token was made, in seconds
//	exp        when the session expires, in seconds, rounded down
//	auth_time  when it was created, which login does, in seconds, rounded down
//	holdfast   what other services do not need:
//	    v        1
//	    bind     base64url of the first 16 bytes of the SHA-256 of the binding
//	    rev      the revision, in decimal, as a text: numbers in JSON lose bits
//	    created, seen, expires   milliseconds since 1970; 0 is the zero Time
//	    user     only where sub is not the user: base64url of it
//	fields     an object: field name -> value, for each field whose name is UTF-8 and does not begin with NUL, and whose
//	           value is JSON in UTF-8, not nested more than maxDepth deep, without white space around it
//	raw        an object, base64url of the name -> base64url of the value: all other fields
//	enc        with Config.Encrypt in place of fields and raw: base64url of the object {"fields":...,"raw":...}, encrypted with
//	           XAES-256-GCM and the key for fieldsPurpose. The associated data is the ID and then, of each 4 bytes of length and
//	           its bytes, issuer, audience and binding
const (
	version       = 1
	maxDepth      = 32
	fieldsPurpose = "sealed/jwt fields v1"
)

// claims are the claims of a token. They say of themselves what a gojwt.Validator asks, but the expiry: that is checked to
// the millisecond.
type claims struct {
	issuer, audience, subject         string
	issued, notBefore, expiry, authed int64
	id                                driver.ID
	state                             state
	fields, raw                       json.RawMessage
	encrypted                         string
}

// state is the claim holdfast.
type state struct {
	Version  int    `json:"v"`
	Binding  string `json:"bind"`
	Revision string `json:"rev"`
	Created  int64  `json:"created"`
	Seen     int64  `json:"seen"`
	Expires  int64  `json:"expires"`
	User     string `json:"user,omitempty"`
}

func (c *claims) GetIssuer() (string, error)  { return c.issuer, nil }
func (c *claims) GetSubject() (string, error) { return c.subject, nil }
func (c *claims) GetAudience() (gojwt.ClaimStrings, error) {
	return gojwt.ClaimStrings{c.audience}, nil
}
func (c *claims) GetExpirationTime() (*gojwt.NumericDate, error) { return nil, nil }
func (c *claims) GetIssuedAt() (*gojwt.NumericDate, error)       { return numericDate(c.issued), nil }
func (c *claims) GetNotBefore() (*gojwt.NumericDate, error)      { return numericDate(c.notBefore), nil }
func numericDate(seconds int64) *gojwt.NumericDate {
	return &gojwt.NumericDate{Time: time.Unix(seconds, 0)}
}

// appendClaims appends the claims of a token that is made now. Nothing of it is left to encoding/json but texts, so that values keep their
// bytes.
func (s *Sealer) appendClaims(b []byte, key *signer, binding string, id driver.ID, rec driver.Record, now time.Time) []byte {
	created, seen, expires := driver.Millis(rec.Created), driver.Millis(rec.Seen), driver.Millis(rec.Expires)
	number := func(name string, n int64) { b = strconv.AppendInt(append(b, name...), n, 10) }
	text := func(name, text string) { b = append(append(b, name...), text...) }

	b = append(b, s.fixed...)
	text(`,"sub":`, quote(strings.ToValidUTF8(rec.User, "\ufffd")))
	text(`,"jti":"`, base64url.Encode(id[:]))
	number(`","iat":`, now.Unix())
	number(`,"nbf":`, now.Unix())
	number(`,"exp":`, seconds(expires))
	number(`,"auth_time":`, seconds(created))
	text(`,"holdfast":{"v":1,"bind":"`, bindingHash(binding))
	text(`","rev":"`, strconv.FormatUint(rec.Revision, 10))
	number(`","created":`, created)
	number(`,"seen":`, seen)
	number(`,"expires":`, expires)
	if !utf8.ValidString(rec.User) {
		text(`,"user":"`, base64url.Encode([]byte(rec.User)))
		b = append(b, '"')
	}
	b = append(b, '}')
	switch {
	case !s.config.Encrypt:
		b = appendFields(b, rec.Fields)
	case rec.Fields.Len() > 0:
		plain := appendFields(nil, rec.Fields)
		plain[0] = '{' // instead of the comma
		sealed := key.key.AEAD(fieldsPurpose).Seal(nil, append(plain, '}'), s.associated(id, binding))
		b = append(base64url.AppendPublic(append(b, `,"enc":"`...), sealed), '"')
	}
	return append(b, '}')
}

// appendFields appends the claims fields and raw, each with a comma before it and only if it is not empty.
func appendFields(b []byte, fields driver.Fields) []byte {
	readable := func(name string, value []byte) bool {
		return utf8.ValidString(name) && !strings.HasPrefix(name, "\x00") && plainJSON(value)
	}
	var raw []byte
	var seen map[string]bool // of many fields; a few are looked for
	if fields.Len() > 1 {
		seen = make(map[string]bool)
	}
	open := false
	for name, value := range fields.All() {
		if seen != nil {
			if seen[name] {
				continue // the first counts, and JSON has each name once
			}
			seen[name] = true
		}
		if !readable(name, value) {
			raw = append(raw, `,"`...)
			raw = base64url.Append(raw, []byte(name))
			raw = append(raw, `":"`...)
			raw = base64url.Append(raw, value)
			raw = append(raw, '"')
			continue
		}
		if open {
			b = append(b, ',')
		} else {
			b = append(b, `,"fields":{`...)
			open = true
		}
		b = append(append(b, quote(name)...), ':')
		b = append(b, value...)
	}
	if open {
		b = append(b, '}')
	}
	if raw != nil {
		b = append(b, `,"raw":{`...)
		b = append(append(b, raw[1:]...), '}')
	}
	return b
}

// plainJSON reports whether a value can stand in JSON and is read back byte for byte, by others too.
func plainJSON(v []byte) bool {
	if len(v) == 0 || len(bytes.TrimSpace(v)) != len(v) || !utf8.Valid(v) || !json.Valid(v) {
		return false
	}
	depth, inText := 0, false
	for i := 0; i < len(v); i++ {
		switch c := v[i]; {
		case inText && c == '\\':
			i++
		case c == '"':
			inText = !inText
		case inText:
		case c == '{' || c == '[':
			if depth++; depth > maxDepth {
				return false
			}
		case c == '}' || c == ']':
			depth--
		}
	}
	return true
}

var errClaims = errors.New("claims")

// parse reads claims whose signature has been verified. It returns ErrForeignSeal for those of an unknown version, and
// ErrTampered for whatever else Seal does not write.
func parse(b []byte) (*claims, error) {
	var c claims
	var jti string
	into := map[string]any{
		"iss": &c.issuer, "aud": &c.audience, "sub": &c.subject, "jti": &jti, "iat": &c.issued, "nbf": &c.notBefore,
		"exp": &c.expiry, "auth_time": &c.authed, "holdfast": &c.state,
	}
	required := len(into)
	into["fields"], into["raw"], into["enc"] = &c.fields, &c.raw, &c.encrypted
	if !utf8.Valid(b) {
		return nil, tampered("the claims are not UTF-8")
	}
	var names []string
	bad := ""
	err := jsonobject.Members(b, func(name string, value json.RawMessage) error {
		names = append(names, name)
		switch target, ok := into[name]; {
		case !ok:
			bad = "an unknown claim"
		case bytes.Equal(value, []byte("null")) || json.Unmarshal(value, target) != nil:
			bad = "claim " + name + " has a wrong type"
		}
		return nil
	})
	if err != nil {
		return nil, tampered("the claims are not a JSON object with each name once")
	}
	if c.state.Version > version {
		return nil, fmt.Errorf("sealed jwt: version %d, this release reads %d: %w", c.state.Version, version, driver.ErrForeignSeal)
	}
	for _, optional := range []string{"fields", "raw", "enc"} {
		if slices.Contains(names, optional) {
			required++
		}
	}
	switch id, ok := base64url.Decode(jti); {
	case bad != "":
		return nil, tampered(bad)
	case len(names) != required: // they are known, and different
		return nil, tampered("a claim is missing")
	case !ok || len(id) != len(c.id):
		return nil, tampered("claim jti is not an ID")
	case c.state.Version != version:
		return nil, tampered("claim holdfast has no version")
	case c.expiry != seconds(c.state.Expires) || c.authed != seconds(c.state.Created):
		return nil, tampered("claims exp or auth_time contradict claim holdfast")
	default:
		copy(c.id[:], id)
	}
	return &c, nil
}

// record returns what the claims say. Their signature, and that they are for this binding, has been verified.
func (s *Sealer) record(c *claims, key *signer, binding string) (driver.Record, error) {
	revision, err := strconv.ParseUint(c.state.Revision, 10, 64)
	if err != nil {
		return driver.Record{}, tampered("claim holdfast has no revision")
	}
	rec := driver.Record{
		User:     c.subject,
		Created:  driver.FromMillis(c.state.Created),
		Seen:     driver.FromMillis(c.state.Seen),
		Expires:  driver.FromMillis(c.state.Expires),
		Revision: revision,
	}
	if c.state.User != "" {
		user, ok := base64url.Decode(c.state.User)
		if !ok {
			return driver.Record{}, tampered("claim holdfast has a bad user")
		}
		rec.User = string(user)
	}
	fields, raw := c.fields, c.raw
	if c.encrypted != "" {
		if fields != nil || raw != nil {
			return driver.Record{}, tampered("fields both in the clear and encrypted")
		}
		box, ok := base64url.Decode(c.encrypted)
		if !ok {
			return driver.Record{}, tampered("claim enc is not base64url")
		}
		plain, err := key.key.AEAD(fieldsPurpose).Open(nil, box, s.associated(c.id, binding))
		if err != nil {
			return driver.Record{}, tampered("claim enc cannot be decrypted")
		}
		err = jsonobject.Members(plain, func(name string, value json.RawMessage) error {
			switch name {
			case "fields":
				fields = value
			case "raw":
				raw = value
			default:
				return errClaims
			}
			return nil
		})
		if err != nil {
			return driver.Record{}, tampered("claim enc holds something else")
		}
	}
	if rec.Fields, err = parseFields(fields, raw); err != nil {
		return driver.Record{}, tampered("the fields are none")
	}
	return rec, nil
}

// parseFields reads the claims fields and raw. Each may be nil.
func parseFields(fields, raw json.RawMessage) (driver.Fields, error) {
	var changes []driver.Change
	if fields != nil {
		err := jsonobject.Members(fields, func(name string, value json.RawMessage) error {
			changes = append(changes, driver.Change{Name: name, Value: value})
			return nil
		})
		if err != nil {
			return driver.Fields{}, err
		}
	}
	if raw != nil {
		err := jsonobject.Members(raw, func(name string, value json.RawMessage) error {
			var text string
			if err := json.Unmarshal(value, &text); err != nil {
				return err
			}
			n, ok := base64url.Decode(name)
			v, ok2 := base64url.Decode(text)
			if !ok || !ok2 {
				return errClaims
			}
			changes = append(changes, driver.Change{Name: string(n), Value: v})
			return nil
		})
		if err != nil {
			return driver.Fields{}, err
		}
	}
	for _, c := range changes {
		if len(c.Name) > driver.MaxName {
			return driver.Fields{}, errClaims
		}
	}
	return driver.Fields{}.With(changes...), nil
}

// associated returns the associated data of the claim enc.
func (s *Sealer) associated(id driver.ID, binding string) []byte {
	b := append([]byte(nil), id[:]...)
	for _, part := range []string{s.config.Issuer, s.config.Audience, binding} {
		b = append(binary.BigEndian.AppendUint32(b, uint32(len(part))), part...)
	}
	return b
}

func bindingHash(binding string) string {
	sum := sha256.Sum256([]byte(binding))
	return base64url.Encode(sum[:16])
}

// quote returns text, which is UTF-8, as JSON.
func quote(text string) string {
	b, err := json.Marshal(text)
	if err != nil {
		panic("sealed jwt: " + err.Error()) // it is a text
	}
	return string(b)
}

// textual reports whether s is UTF-8 without control characters.
func textual(s string) bool {
	return utf8.ValidString(s) && strings.IndexFunc(s, unicode.IsControl) < 0
}

// seconds rounds milliseconds down.
func seconds(ms int64) int64 {
	s := ms / 1000
	if ms%1000 < 0 {
		s--
	}
	return s
}
