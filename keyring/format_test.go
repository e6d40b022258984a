package keyring_test

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-sessions/holdfast/keyring"
)

// fixture is a ring as the first release wrote it: keys that are retired, decrypt only, active and waiting.
const fixture = "testdata/ring-v1.json"

func mustRead(t testing.TB, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	must(t, err)
	return string(b)
}

func TestFormat(t *testing.T) {
	file := mustRead(t, fixture)
	set, err := keyring.Parse([]byte(file))
	must(t, err)
	var got []string
	for _, k := range set.Keys() {
		got = append(got, fmt.Sprintf("%08x %v %v", k.ID(), k.State(), k.Created().Format("15:04")))
	}
	want := []string{"d86aa95f retired 10:00", "00474106 decrypt only 10:00", "d3ba5f81 active 10:00", "95966335 waiting 10:00"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("keys (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(file, string(set.Encode())); diff != "" {
		t.Errorf("encoded again (-want +got):\n%s", diff)
	}
	// As other programs write the same JSON.
	other := strings.NewReplacer("\n", "\r\n", `"id"`, `"\u0069d"`, "10:00:00Z", "11:00:00+01:00").Replace(file)
	set, err = keyring.Parse([]byte(other))
	must(t, err)
	if diff := cmp.Diff(file, string(set.Encode())); diff != "" {
		t.Errorf("as others write it (-want +got):\n%s", diff)
	}
}

// badRings are what is no key ring, with what is said about it.
func badRings(t testing.TB) map[string][2]string {
	file := mustRead(t, fixture)
	change := func(old, new string) string {
		t.Helper()
		if !strings.Contains(file, old) {
			t.Fatalf("no %s in the fixture", old)
		}
		return strings.Replace(file, old, new, 1)
	}
	const secret = "UYQLC2wa7a34Lnx/i6rB7+Rjm84yFl+DlzyFgqp7VTA="
	swap := func(b []byte) string { return change(secret, base64.StdEncoding.EncodeToString(b)) }
	lines := strings.SplitAfter(file, "\n")
	sequence := make([]byte, 32)
	for i := range sequence {
		sequence[i] = byte(250 + i)
	}
	return map[string][2]string{
		"empty":              {"", "it is empty: make a key"},
		"white space":        {" \n", "it is empty"},
		"too long":           {file + strings.Repeat(" ", 64<<10), "longer than 65536 bytes"},
		"a bare key":         {strings.Repeat("0123456789abcdef", 4), "not a key ring"},
		"PEM":                {"-----BEGIN PRIVATE KEY-----\n", "not a key ring.*make a key"},
		"a list":             {"[]", "does not begin with {"},
		"null":               {"null", "does not begin with {"},
		"cut":                {file[:len(file)-4], "malformed"},
		"cut in a secret":    {file[:strings.Index(file, secret)+9], "malformed"},
		"twice":              {file + file, "follows after the last }"},
		"trailing":           {file + "x", "follows after the last }"},
		"deep":               {`{"version":1,"keys":` + strings.Repeat("[", 30_000) + strings.Repeat("]", 30_000) + "}", "malformed"},
		"no version":         {change(`"version": 1,`, ""), "version is missing"},
		"version 2":          {change(`"version": 1`, `"version": 2`), "version 2 is not known.*update"},
		"version 1.0":        {change(`"version": 1`, `"version": 1.0`), "version is not a number"},
		"version of text":    {change(`"version": 1`, `"version": "1"`), "version is not a number"},
		"version twice":      {change(`"version": 1`, `"version": 1, "version": 1`), "version is there twice"},
		"other case":         {change(`"version"`, `"Version"`), "member is not known: want version, keys"},
		"other member":       {change(`"version"`, `"comment": "", "version"`), "member is not known"},
		"no keys":            {`{"version":1}`, "keys is missing"},
		"keys null":          {`{"version":1,"keys":null}`, "keys is not a list"},
		"keys an object":     {`{"version":1,"keys":{}}`, "keys is not a list"},
		"no key":             {`{"version":1,"keys":[]}`, "no key is active: make one"},
		"65 keys":            {change(lines[3], strings.Repeat(lines[3], 65)), "68 keys: want at most 64"},
		"key null":           {change(lines[3], "null,"), "key 1 of 4: it does not begin with {"},
		"none active":        {change(`"active"`, `"waiting"`), "no key is active"},
		"two active":         {change(`"waiting"`, `"active"`), "two keys are active, d3ba5f81 and 95966335: make the older one"},
		"two of an ID":       {change(lines[3], lines[5]), "two keys d3ba5f81|two keys are active"},
		"two, one retired":   {change("d86aa95f", "d3ba5f81"), "two keys d3ba5f81: remove one"},
		"ID twice":           {change(`"id": "d3ba5f81"`, `"id": "d3ba5f81", "id": "d3ba5f81"`), "key 3 of 4: id is there twice"},
		"no ID":              {change(`"id": "d3ba5f81", `, ""), "id is missing"},
		"ID a number":        {change(`"d3ba5f81"`, `3551158145`), "id is not a string"},
		"ID null":            {change(`"d3ba5f81"`, `null`), "id is not a string"},
		"upper-case ID":      {change(`"d3ba5f81"`, `"D3BA5F81"`), "8 lower-case hexadecimal"},
		"short ID":           {change(`"d86aa95f"`, `"86aa95f"`), "8 lower-case hexadecimal"},
		"ID 0":               {change(`"d86aa95f"`, `"00000000"`), "other than 00000000"},
		"ID with a sign":     {change(`"d86aa95f"`, `"+86aa95f"`), "8 lower-case hexadecimal"},
		"other ID":           {change("d3ba5f81", "d3ba5f82"), "not the one of this ID"},
		"state":              {change(`"waiting"`, `"Waiting"`), `state is not one of "waiting", "active"`},
		"state unknown":      {change(`"waiting"`, `"unknown"`), "state is not one of"},
		"state twice":        {change(`"state": "active"`, `"state": "active", "state": "retired"`), "state is there twice|secret"},
		"time":               {change("2026-11-26T10:00:00Z", "yesterday"), "created is not a time such as"},
		"since":              {change(`"since": "2026-11-26T10:00:00Z"`, `"since": "2026-11-26"`), "since is not a time such as"},
		"year -1":            {change("2026-11-26T10:00:00Z", "0001-01-01T00:00:00+23:59"), "created is not a time"},
		"no secret":          {change(`, "secret": "`+secret+`"`, ""), "key 3 of 4: secret is missing"},
		"retired, secret":    {change("10:00:00Z\"}", "10:00:00Z\", \"secret\": \""+secret+"\"}"), "member is not known: want id, state, created, since"},
		"not base64":         {change(secret, "***"), "not base64; make a key"},
		"base64url":          {change(secret, strings.ReplaceAll(secret, "/", "_")), "not base64"},
		"unpadded":           {change(secret, strings.TrimRight(secret, "=")), "not base64"},
		"trailing bits":      {change(secret, strings.TrimRight(secret, "A=")+"B="), "not base64"},
		"line in base64":     {change(secret, secret[:9]+`\n`+secret[9:]), "not base64"},
		"short":              {swap([]byte("\x00\x01\xfe")), "has 3 bytes, want 32 random ones; make a key"},
		"31 bytes":           {swap(sequence[:31]), "has 31 bytes"},
		"33 bytes":           {swap(append(sequence, 1)), "has 33 bytes"},
		"no bytes":           {change(secret, ""), "has 0 bytes"},
		"zeroes":             {swap(make([]byte, 32)), "is one byte repeated, want 32 random"},
		"repeated":           {swap(bytes.Repeat([]byte{0xa5}, 32)), "is one byte repeated"},
		"sequence":           {swap(sequence), "is a sequence"},
		"password":           {swap([]byte("correct horse battery staple 123")), "is text"},
		"hex":                {swap([]byte("0123456789abcdef0123456789abcdef")), "is text"},
		"pattern":            {swap(bytes.Repeat([]byte("\x00\x01\xfe\xa9"), 8)), "is a few bytes repeated"},
		"one bit":            {change(secret, "V"+secret[1:]), "not the one of this ID: one of them was changed"},
		"invalid UTF-8":      {change(`"waiting"`, "\"wait\xff\""), "state is not one of"},
		"invalid UTF-8 name": {change(`"version"`, "\"version\xff\""), "member is not known"},
		"NUL":                {change(`"version"`, "\x00\"version\""), "malformed"},
	}
}

// What is no key ring is refused, with what is wrong and without showing a secret; also when a server starts.
func TestBadRings(t *testing.T) {
	file := mustRead(t, fixture)
	secrets := regexp.MustCompile(`"secret": "([^"]*)"`).FindAllStringSubmatch(file, -1)
	path := filepath.Join(t.TempDir(), "keys")
	for name, bad := range badRings(t) {
		t.Run(name, func(t *testing.T) {
			_, err := keyring.Parse([]byte(bad[0]))
			if err == nil || !regexp.MustCompile(bad[1]).MatchString(err.Error()) {
				t.Fatalf("Parse: %v, want %s", err, bad[1])
			}
			for _, s := range slices.Concat(secrets, [][]string{{"", "correct horse"}}) {
				if strings.Contains(err.Error(), s[1][:8]) {
					t.Errorf("the error shows a secret: %v", err)
				}
			}
			must(t, os.WriteFile(path, []byte(bad[0]), 0o600))
			if _, opened := keyring.Open(t.Context(), "file:"+path); opened == nil || opened.Error() != "key ring file:"+path+": "+err.Error() {
				t.Errorf("Open: %v, want the same", opened)
			}
		})
	}
}

// The keys in this repository are known to everybody.
func TestPublishedKeys(t *testing.T) {
	file := mustRead(t, fixture)
	path := filepath.Join(t.TempDir(), "keys")
	must(t, os.WriteFile(path, []byte(file), 0o600))
	if _, err := keyring.Open(t.Context(), "file:"+path); err == nil || !strings.Contains(err.Error(), "everybody knows it; make a key") {
		t.Errorf("Open: %v, want that everybody knows the key", err)
	}
	set, err := keyring.Parse([]byte(file))
	must(t, err)
	for _, k := range set.Keys() {
		if k.State() == keyring.Waiting || k.State() == keyring.DecryptOnly {
			set, err = set.Retire(k.ID())
			must(t, err)
		}
	}
	retired, err := mustRotate(t, set).Retire(set.Active().ID())
	must(t, err)
	must(t, os.WriteFile(path, retired.Encode(), 0o600))
	ring, err := keyring.Open(t.Context(), "file:"+path)
	must(t, err) // once they are retired
	must(t, ring.Close())
	if err := keyring.Create(path, set); !errors.Is(err, fs.ErrExist) {
		t.Errorf("Create over a file: %v, want ErrExist", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(mustRead(f, fixture)))
	f.Fuzz(func(t *testing.T, b []byte) {
		set, err := keyring.Parse(b)
		if err != nil {
			if strings.Contains(err.Error(), "UYQLC2wa") {
				t.Errorf("the error shows a secret: %v", err)
			}
			return
		}
		active := 0
		for _, k := range set.Keys() {
			if found, state := set.Find(k.ID()); state != k.State() || found != k || k.ID() == 0 || state == keyring.Unknown {
				t.Errorf("key %v is found as %v, %v", k, found, state)
			}
			if k.State() == keyring.Active {
				active++
			}
			if k.State().Usable() {
				k.Derive("x", 1)
			}
		}
		if active != 1 || set.Active().State() != keyring.Active {
			t.Errorf("%d keys are active", active)
		}
		again, err := keyring.Parse(set.Encode())
		if err != nil || !bytes.Equal(again.Encode(), set.Encode()) {
			t.Errorf("not read as it was written: %v", err)
		}
	})
}
