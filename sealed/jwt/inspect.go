package jwt

import (
	"encoding/json"
	"time"

	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/keyring"
	"github.com/holdfast-sessions/holdfast/sealed"
)

// Inspect explains a token for an operator. keys may be nil: then the report has what everybody can read, none of it
// verified. Issuer, Audience, Algorithm and Type that c leaves out are taken from the token, so that one made for somebody else is explained too;
// then only the key, the signature and the times are verified. It returns an error for a Config that New refuses, never for
// a token.
func Inspect(keys *keyring.Ring, c Config, binding, token string) (sealed.Report, error) {
	r := sealed.Report{Kind: "jwt", Bytes: len(token)}
	p, err := split(token)
	if err != nil {
		r.SetOpened(driver.Opened{}, err)
		return r, nil
	}
	if h, err := parseHeader(p.header); err == nil {
		r.Algorithm, r.Type = shown(h.Algorithm), shown(h.Type)
		if id, ok := parseKeyID(h.KeyID); ok {
			r.SetKey(keys, id)
		}
	}
	var open struct {
		Issuer   string      `json:"iss"`
		Audience string      `json:"aud"`
		Subject  string      `json:"sub"`
		Expiry   json.Number `json:"exp"`
		Created  json.Number `json:"auth_time"`
		State    state       `json:"holdfast"`
	}
	if json.Unmarshal(p.claims, &open) == nil {
		r.Version, r.Issuer, r.Audience, r.LoggedIn = open.State.Version, shown(open.Issuer), shown(open.Audience), open.Subject != ""
		r.Created, r.Seen, r.Expires = at(open.State.Created), at(open.State.Seen), at(open.State.Expires)
	}
	if keys == nil {
		return r, nil
	}
	if c.Issuer == "" && textual(open.Issuer) {
		c.Issuer = open.Issuer
	}
	if c.Audience == "" && textual(open.Audience) {
		c.Audience = open.Audience
	}
	if _, known := methods[Algorithm(r.Algorithm)]; c.Algorithm == "" && known {
		c.Algorithm = Algorithm(r.Algorithm)
	}
	if c.Type == "" && validType.MatchString(r.Type) {
		c.Type = r.Type
	}
	if c.Issuer == "" || c.Audience == "" {
		r.SetOpened(driver.Opened{}, tampered("claims iss and aud are missing, or no texts"))
		return r, nil
	}
	s, err := New(keys, c)
	if err != nil {
		return sealed.Report{}, err
	}
	r.SetOpened(s.Open(binding, token))
	return r, nil
}

// shown returns a text from a token that nobody has verified, for a screen.
func shown(s string) string {
	if len(s) > 256 || !textual(s) {
		return "(unreadable)"
	}
	return s
}

func at(ms int64) time.Time { return driver.FromMillis(ms).UTC() }
