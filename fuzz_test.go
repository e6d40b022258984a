package holdfast_test

import (
	"crypto/sha256"
	"encoding/base64"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/holdfast-sessions/holdfast"
)

// FuzzTokenID: a token is the one way to write 32 bytes in base64url, and nothing else is.
func FuzzTokenID(f *testing.F) {
	f.Add(strings.Repeat("A", 43))
	for _, token := range malformed {
		if len(token) < 1000 {
			f.Add(token)
		}
	}
	f.Fuzz(func(t *testing.T, token string) {
		id, ok := holdfast.TokenID(token)
		raw, err := base64.RawURLEncoding.DecodeString(token)
		want := err == nil && len(raw) == 32 && base64.RawURLEncoding.EncodeToString(raw) == token
		if ok != want {
			t.Fatalf("ParseToken(%q) = %v, want %v", token, ok, want)
		}
		if ok && id != sha256.Sum256([]byte(token)) {
			t.Fatalf("the ID of %q is %v", token, id)
		}
	})
}

// FuzzCookieValues: in a well-formed Cookie header this finds what net/http finds, and in any other no token that
// net/http does not find.
func FuzzCookieValues(f *testing.F) {
	for _, line := range []string{
		"", "session=a", "a=b; session=c; session=d", "session", "session=", "=session", ";;session=a;", " session=a ; session =b",
		`session="a"`, "session=a=b", "SESSION=a", "session=a,b", "session=\x00", "session=a\tb", "session=a b", "xsession=a;session=b",
	} {
		f.Add(line, "")
		f.Add("a=b", line)
	}
	f.Fuzz(func(t *testing.T, first, second string) {
		lines := []string{first, second}
		got, err := holdfast.CookieValues(lines, "session")
		if err != nil {
			if len(first)+len(second) <= 32<<10 && strings.Count(first+second, ";")+2 <= 3000 {
				t.Fatalf("refused: %v", err)
			}
			return
		}
		var want []string
		for _, c := range (&http.Request{Header: http.Header{"Cookie": lines}}).CookiesNamed("session") {
			want = append(want, c.Value)
		}
		if wellFormedCookies(first) && wellFormedCookies(second) && !slices.Equal(got, want) {
			t.Fatalf("cookies in %q: found %q, net/http finds %q", lines, got, want)
		}
		for _, v := range got {
			if _, token := holdfast.TokenID(v); token && !slices.Contains(want, v) {
				t.Fatalf("token %q in %q is none to net/http", v, lines)
			}
		}
	})
}

// wellFormedCookies reports whether a line is a list of pairs as RFC 6265, section 4.2.1, has them, without quotes.
func wellFormedCookies(line string) bool {
	for pair := range strings.SplitSeq(line, ";") {
		if pair = strings.Trim(pair, " \t"); pair == "" {
			continue
		}
		name, value, ok := strings.Cut(pair, "=")
		if !ok || name == "" || strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r >= 0x7f || strings.ContainsRune(`()<>@,;:\"/[]?={}`, r) }) ||
			strings.ContainsFunc(value, func(r rune) bool { return r <= ' ' || r >= 0x7f || strings.ContainsRune(`",;\`, r) }) {
			return false
		}
	}
	return true
}
