package main

import (
	"bytes"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	sessions "github.com/holdfast-sessions/holdfast"
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

// TestCookieInspectParts: a session in several cookies, as values and as header lines, from the command line and from
// standard input; and what of it does not make a token.
func TestCookieInspectParts(t *testing.T) {
	set := keyring.NewSet()
	file := filepath.Join(t.TempDir(), "keys")
	if err := os.WriteFile(file, set.Encode(), 0o600); err != nil {
		t.Fatal(err)
	}
	sealer, err := cookie.New(keyring.New(set), cookie.Config{Application: "shop"})
	if err != nil {
		t.Fatal(err)
	}
	manager, err := sessions.NewSealed(sealer, nil, sessions.Config{Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	cart := sessions.NewField[string]("cart")
	visit := func() (setCookies, pairs, values []string) {
		w := httptest.NewRecorder()
		manager.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			s, err := manager.Get(r)
			if err == nil {
				err = cart.Set(s, strings.Repeat("hunter2", 1000))
			}
			if err != nil {
				t.Error(err)
			}
		})).ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
		for _, c := range w.Result().Cookies() {
			pairs, values = append(pairs, c.Name+"="+c.Value), append(values, c.Value)
		}
		return w.Header()["Set-Cookie"], pairs, values
	}
	lines, pairs, values := visit()
	_, otherPairs, otherValues := visit()
	if len(values) != 3 {
		t.Fatalf("%d cookies, want 3", len(values))
	}
	drop := "Set-Cookie: __Host-Http-session.2=; Path=/; Max-Age=0"
	for _, tt := range []struct {
		name    string
		args    []string
		stdin   string
		status  int
		refused string
		says    string
	}{
		{name: "values", args: values},
		{name: "values on standard input", args: []string{"-"}, stdin: strings.Join(values, "\n") + "\n"},
		{name: "the first part last", args: []string{values[1], values[2], values[0]}},
		{name: "a Cookie header", args: []string{"Cookie: a=b; " + strings.Join(pairs, "; ")}},
		{name: "its value alone, on standard input", args: []string{"-"}, stdin: strings.Join(pairs, "; ") + "; z=1"},
		{name: "two Cookie headers", args: []string{"cookie: " + pairs[2], "cookie: " + pairs[0] + "; " + pairs[1]}},
		{name: "Set-Cookie headers", args: []string{"-"}, stdin: "Set-Cookie: " + strings.Join(lines, "\r\nSet-Cookie: ") + "\r\n"},
		{name: "a part missing", args: values[:2], status: 1, refused: "incomplete", says: "cookie __Host-Http-session.2 is missing"},
		{name: "a part dropped", args: []string{"Set-Cookie: " + lines[0], "Set-Cookie: " + lines[1], "Set-Cookie: " + lines[2], drop}, status: 1, refused: "incomplete", says: "session.2 is missing"},
		{name: "the first part missing", args: values[1:], status: 1, refused: "incomplete", says: "first part of a token in several cookies is missing"},
		{name: "a further part alone", args: values[1:2], status: 1, refused: "incomplete", says: "first part of a token in several cookies is missing"},
		{name: "a part of another token", args: []string{values[0], otherValues[1], values[2]}, status: 1, refused: "incomplete", says: "session.1 is part of another token"},
		{name: "a part twice", args: []string{strings.Join(pairs, "; ") + "; " + otherPairs[1]}, status: 1, refused: "incomplete", says: "session.1 is there more than once"},
		{name: "a session twice", args: []string{"Cookie: " + pairs[0], "Cookie: " + otherPairs[0]}, status: 1, refused: "incomplete", says: "session is there more than once"},
		{name: "the first part cut off", args: []string{values[0][:9], values[1], values[2]}, status: 1, refused: "incomplete", says: "cut off"},
		{name: "another cookie", args: []string{"Cookie: a=b"}, status: 2, says: "no cookie __Host-Http-session among those given: say with --name"},
		{name: "another header", args: []string{"Authorization: Bearer x"}, status: 2, says: "another header"},
		{name: "too much", args: []string{"-"}, stdin: strings.Repeat("x", 200<<10), status: 2, says: "more than"},
	} {
		cmd := command(t, append([]string{"cookie", "inspect", "-o", "json", "--keys", "file:" + file, "--application", "shop"}, tt.args...)...)
		cmd.Stdin = strings.NewReader(tt.stdin)
		var out, errs bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &errs
		_ = cmd.Run() // the status tells
		if status := cmd.ProcessState.ExitCode(); status != tt.status || !strings.Contains(errs.String(), tt.says) {
			t.Errorf("%s: exit status %d, %s, want %d and %q", tt.name, status, &errs, tt.status, tt.says)
			continue
		}
		if strings.Contains(out.String()+errs.String(), "hunter2") || strings.Contains(errs.String(), values[1][9:]) {
			t.Errorf("%s: shows a secret:\n%s%s", tt.name, &out, &errs)
		}
		if tt.status == 2 {
			continue
		}
		var r sealed.Report
		mustUnmarshal(t, out.String(), &r)
		if r.Refused != tt.refused || r.Verified != (tt.refused == "") || r.Verified && (len(r.Fields) != 1 || r.Bytes < 9000) {
			t.Errorf("%s: %s", tt.name, &out)
		}
	}
}
