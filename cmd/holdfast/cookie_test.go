package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/keyring"
	"github.com/holdfast-sessions/holdfast/sealed"
	"github.com/holdfast-sessions/holdfast/sealed/cookie"
	"github.com/holdfast-sessions/holdfast/sealed/jwt"
)

// TestCookieInspect: a sealed session is explained, and nothing of what is in it is shown.
func TestCookieInspect(t *testing.T) {
	t.Parallel()
	set := keyring.NewSet()
	file := filepath.Join(t.TempDir(), "keys")
	if err := os.WriteFile(file, set.Encode(), 0o600); err != nil {
		t.Fatal(err)
	}
	ring := keyring.New(set)
	asCookie, err := cookie.New(ring, cookie.Config{Application: "shop"})
	if err != nil {
		t.Fatal(err)
	}
	asJWT, err := jwt.New(ring, jwt.Config{Issuer: "https://shop.example", Audience: "shop"})
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	rec := driver.Record{User: "mallory", Created: now, Seen: now, Expires: now.Add(time.Hour), Revision: 1,
		Fields: driver.Fields{}.With(driver.Change{Name: "cart", Value: []byte(`"hunter2"`)})}
	old := rec
	old.Expires = now.Add(-time.Minute)
	seal := func(s driver.Sealer, binding string, rec driver.Record) string {
		token, err := s.Seal(binding, driver.ID{0xab, 0xcd, 4: 0xee}, rec)
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	good := seal(asCookie, "__Host-Http-session", rec)
	for _, tt := range []struct {
		name, token string
		args        []string
		status      int
		refused     string
		verified    bool
		fields      int
	}{
		{"cookie", good, []string{"--keys", "file:" + file, "--application", "shop"}, 0, "", true, 1},
		{"cookie of a tenant", seal(asCookie, "s\x00t", rec), []string{"--keys", "file:" + file, "--application", "shop", "--name", "s", "--tenant", "t"}, 0, "", true, 1},
		{"another application", good, []string{"--keys", "file:" + file, "--application", "bank"}, 1, "tampered", false, 0},
		{"expired", seal(asCookie, "__Host-Http-session", old), []string{"--keys", "file:" + file, "--application", "shop"}, 1, "expired", true, 1},
		{"no keys", good, nil, 0, "", false, 0},
		{"none", "hello", nil, 1, "tampered", false, 0},
		{"jwt", seal(asJWT, "\x00header", rec), []string{"--keys", "file:" + file, "--header"}, 0, "", true, 1},
		{"jwt for another audience", seal(asJWT, "\x00header", rec), []string{"--keys", "file:" + file, "--header", "--audience", "bank"}, 1, "tampered", false, 0},
		{"jwt, no keys", seal(asJWT, "\x00header", rec), nil, 0, "", false, 0},
	} {
		status, out, errs := holdfast(t, nil, append([]string{"cookie", "inspect", tt.token, "-o", "json"}, tt.args...)...)
		if status != tt.status {
			t.Errorf("%s: exit status %d, want %d: %s", tt.name, status, tt.status, errs)
			continue
		}
		var r sealed.Report
		mustUnmarshal(t, out, &r)
		if r.Refused != tt.refused || r.Verified != tt.verified || len(r.Fields) != tt.fields {
			t.Errorf("%s: %s", tt.name, out)
		}
		_, text, _ := holdfast(t, nil, append([]string{"cookie", "inspect", tt.token}, tt.args...)...)
		for _, secret := range []string{"hunter2", "mallory", "abcd0000ee", tt.token} {
			if len(secret) > 6 && strings.Contains(out+errs+text, secret) {
				t.Errorf("%s: shows a secret:\n%s%s%s", tt.name, out, errs, text)
			}
		}
	}
	if status, _, errs := holdfast(t, nil, "cookie", "inspect", ""); status != 2 || !strings.Contains(errs, "empty") {
		t.Errorf("empty: exit status %d, %s", status, errs)
	}
}
