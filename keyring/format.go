package keyring

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/holdfast-sessions/holdfast/internal/jsonobject"
)

// version is the only version of the format.
const version = 1

// maxBytes is how long an encoded set may be: 64 keys take 14 KB.
const maxBytes = 64 << 10

// newSecret says how to get a key that is one.
const newSecret = "make a key with holdfast key new or holdfast key rotate"

// Parse reads what Encode wrote, strictly. Its error says what is wrong and how to put it right, and quotes no secret.
func Parse(b []byte) (*Set, error) {
	switch {
	case len(b) > maxBytes:
		return nil, fmt.Errorf("it is not a key ring: longer than %d bytes", maxBytes)
	case len(bytes.TrimSpace(b)) == 0:
		return nil, errors.New("it is empty: " + newSecret)
	}
	top, err := members(b, "version", "keys")
	if err != nil {
		return nil, fmt.Errorf("it is not a key ring: %w; %s", err, newSecret)
	}
	if v := string(top["version"]); v != strconv.Itoa(version) {
		if _, err := strconv.ParseUint(v, 10, 32); err != nil {
			return nil, errors.New("version is not a number: want 1")
		}
		return nil, fmt.Errorf("version %s is not known to this release, which knows 1: update it first", v)
	}
	var raw []json.RawMessage
	if err := json.Unmarshal(top["keys"], &raw); err != nil || raw == nil {
		return nil, errors.New("keys is not a list")
	}
	if len(raw) > maxKeys {
		return nil, fmt.Errorf("it has %d keys: want at most %d", len(raw), maxKeys)
	}
	keys := make([]Key, len(raw))
	for i, r := range raw {
		if keys[i], err = parseKey(r); err != nil {
			return nil, fmt.Errorf("key %d of %d: %w", i+1, len(raw), err)
		}
	}
	return newSet(keys)
}

func parseKey(raw json.RawMessage) (Key, error) {
	want := []string{"id", "state", "created", "since", "secret"}
	if retired(raw) {
		want = want[:4]
	}
	m, err := members(raw, want...)
	if err != nil {
		return Key{}, err
	}
	values := make(map[string]string, len(m))
	for name, v := range m {
		var s *string
		if err := json.Unmarshal(v, &s); err != nil || s == nil {
			return Key{}, fmt.Errorf("%s is not a string", name)
		}
		values[name] = *s
	}
	id, err := parseID(values["id"])
	if err != nil {
		return Key{}, err
	}
	wrong := func(format string, args ...any) (Key, error) {
		return Key{}, fmt.Errorf("%s: "+format, append([]any{hexID(id)}, args...)...)
	}
	state := State(max(0, slices.Index(stateNames[:], values["state"])))
	if state == Unknown {
		return wrong(`state is not one of "waiting", "active", "decrypt only", "retired"`)
	}
	k := Key{m: &material{id: id}, state: state}
	if k.created, err = parseTime(values["created"]); err != nil {
		return wrong("created %w", err)
	}
	if k.since, err = parseTime(values["since"]); err != nil {
		return wrong("since %w", err)
	}
	if state == Retired {
		return k, nil
	}
	secret, err := base64.StdEncoding.Strict().DecodeString(values["secret"])
	switch {
	case err != nil || strings.ContainsAny(values["secret"], "\r\n"): // which package base64 passes over
		return wrong("the secret is not base64; %s", newSecret)
	case len(secret) != secretBytes:
		return wrong("the secret has %d bytes, want %d random ones; %s", len(secret), secretBytes, newSecret)
	}
	if why := weak(secret); why != "" {
		return wrong("the secret %s, want %d random bytes; %s", why, secretBytes, newSecret)
	}
	if k.m = newMaterial(secret); k.m.id != id {
		return wrong("the secret is not the one of this ID: one of them was changed; take the file from a backup, or %s", newSecret)
	}
	return k, nil
}

// retired reports whether raw seems to be a retired key, which has no secret.
func retired(raw json.RawMessage) bool {
	var k struct{ State string }
	return json.Unmarshal(raw, &k) == nil && k.State == stateNames[Retired]
}

func parseID(s string) (uint32, error) {
	id, err := strconv.ParseUint(s, 16, 32)
	if err != nil || id == 0 || s != hexID(uint32(id)) {
		return 0, errors.New("id is not 8 lower-case hexadecimal characters, other than 00000000")
	}
	return uint32(id), nil
}

func parseTime(s string) (time.Time, error) {
	t, err := time.Parse(time.RFC3339, s)
	t = t.UTC()
	if err != nil || t.Year() < 1 || t.Year() > 9999 {
		return time.Time{}, errors.New("is not a time such as 2026-11-26T10:00:00Z")
	}
	return t.Truncate(time.Second), nil
}

// members reads a JSON object that has all of the members in want and no others.
func members(raw []byte, want ...string) (map[string]json.RawMessage, error) {
	m := make(map[string]json.RawMessage, len(want))
	err := jsonobject.Members(raw, func(name string, value json.RawMessage) error {
		if !slices.Contains(want, name) {
			return fmt.Errorf("a member is not known: want %s", strings.Join(want, ", "))
		}
		m[name] = value
		return nil
	})
	if err != nil {
		return nil, err
	}
	for _, name := range want {
		if _, ok := m[name]; !ok {
			return nil, fmt.Errorf("%s is missing", name)
		}
	}
	return m, nil
}

// weak says what shows that secret was not made at random, or returns "". Of 32 random bytes 30 are different: fewer than
// 16 come once in 10^15 times, text once in 10^13.
func weak(secret []byte) string {
	var seen [256]bool
	distinct, text, steady := 0, true, true
	for i, c := range secret {
		if !seen[c] {
			seen[c] = true
			distinct++
		}
		text = text && c >= ' ' && c <= '~'
		steady = steady && (i == 0 || c-secret[i-1] == secret[1]-secret[0])
	}
	switch {
	case distinct == 1:
		return "is one byte repeated"
	case steady:
		return "is a sequence"
	case text:
		return "is text"
	case distinct < 16:
		return "is a few bytes repeated"
	}
	return ""
}

// Encode returns the set as a key ring file: with its secrets. The same set gives the same bytes.
func (s *Set) Encode() []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "{\n  \"version\": %d,\n  \"keys\": [", version)
	for i, k := range s.keys {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, "\n    {\"id\": %q, \"state\": %q, \"created\": %q, \"since\": %q", hexID(k.ID()), k.state,
			k.created.Format(time.RFC3339), k.since.Format(time.RFC3339))
		if k.state.Usable() {
			fmt.Fprintf(&b, ", \"secret\": %q", base64.StdEncoding.EncodeToString(k.m.secret()))
		}
		b.WriteByte('}')
	}
	b.WriteString("\n  ]\n}\n")
	return b.Bytes()
}
