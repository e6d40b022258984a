package driver_test

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"math"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-sessions/holdfast/driver"
)

// TestFixture holds the encoding to the bytes that releases have written: a change that breaks it logs everybody
// out, and needs a new version.
func TestFixture(t *testing.T) {
	want := mustReadHex(t, "testdata/record-v1.hex")
	rec := driver.Record{
		User:     "ada",
		Created:  time.UnixMilli(1_700_000_000_123),
		Seen:     time.UnixMilli(1_700_000_060_456),
		Expires:  time.UnixMilli(1_700_043_200_789),
		Revision: 0xfedcba9876543210,
		Tag:      7, // not encoded
		Fields: fields(
			set("visits", "3"),
			set("", "no name"),
			set("cart\x00é", ""),
			set("bytes", "\x00\xff\r\n"),
		),
	}
	got, err := driver.Encode(rec)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("Encode wrote\n%swant\n%s", hex.Dump(got), hex.Dump(want))
	}
	if len(got) != rec.EncodedLen() {
		t.Errorf("EncodedLen = %d, Encode wrote %d bytes", rec.EncodedLen(), len(got))
	}
	back, err := driver.Decode(want)
	if err != nil {
		t.Fatal(err)
	}
	rec.Tag = 0
	wantRecord(t, back, rec)
}

func TestDecodeRefuses(t *testing.T) {
	good := mustEncode(t, driver.Record{User: "ada", Revision: 1, Fields: fields(set("a", "1"))})
	at := func(i int, v ...byte) []byte { return append(append(slices.Clone(good[:i]), v...), good[i+len(v):]...) }
	const name = 35 + len("ada") // offset of the first field
	tests := []struct {
		name string
		in   []byte
		want error
	}{
		{"nothing", nil, driver.ErrCorrupt},
		{"empty", []byte{}, driver.ErrCorrupt},
		{"version 0", at(0, 0), driver.ErrVersion},
		{"version 2", at(0, 2), driver.ErrVersion},
		{"only a version", []byte{1}, driver.ErrCorrupt},
		{"only an unknown version", []byte{2}, driver.ErrVersion},
		{"JSON", []byte(`{"user":"ada"}`), driver.ErrVersion},
		{"header cut", good[:34], driver.ErrCorrupt},
		{"user longer than the rest", at(33, 0xff, 0xff), driver.ErrCorrupt},
		{"field name longer than the rest", at(name, 0xff, 0xff), driver.ErrCorrupt},
		{"value longer than the rest", at(name+3, 0, 0, 0, 2), driver.ErrCorrupt},
		{"value of 4 GiB", at(name+3, 0xff, 0xff, 0xff, 0xff), driver.ErrCorrupt},
		{"one byte more", append(slices.Clone(good), 0), driver.ErrCorrupt},
	}
	for n := name + 1; n < len(good); n++ {
		tests = append(tests, struct {
			name string
			in   []byte
			want error
		}{"field cut", good[:n], driver.ErrCorrupt})
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := driver.Decode(tt.in); !errors.Is(err, tt.want) {
				t.Errorf("Decode(% x) = %v, want %v", tt.in, err, tt.want)
			}
		})
	}
}

func TestTimesSurvive(t *testing.T) {
	for _, want := range []time.Time{
		{},
		time.UnixMilli(1),
		time.UnixMilli(-1),
		time.UnixMilli(1_700_000_000_999),
		time.UnixMilli(1_700_000_000_001).In(time.FixedZone("", 3600)),
		time.UnixMilli(math.MaxInt64),
	} {
		got, err := driver.Decode(mustEncode(t, driver.Record{Created: want, Seen: want, Expires: want}))
		if err != nil {
			t.Fatal(err)
		}
		if !got.Created.Equal(want) || !got.Seen.Equal(want) || !got.Expires.Equal(want) || got.Created.IsZero() != want.IsZero() {
			t.Errorf("%v came back as %v, %v, %v", want, got.Created, got.Seen, got.Expires)
		}
	}
}

func TestUserName(t *testing.T) {
	for _, user := range []string{"", "a\x00b", "\xff\xfe", "*", strings.Repeat("u", driver.MaxName)} {
		got, err := driver.Decode(mustEncode(t, driver.Record{User: user}))
		if err != nil || got.User != user {
			t.Errorf("user %.10q came back as %.10q, %v", user, got.User, err)
		}
	}
	if _, err := driver.Encode(driver.Record{User: strings.Repeat("u", driver.MaxName+1)}); !errors.Is(err, driver.ErrTooLarge) {
		t.Errorf("Encode with a user name of %d bytes: %v, want ErrTooLarge", driver.MaxName+1, err)
	}
}

func TestWith(t *testing.T) {
	base := fields(set("a", "1"), set("b", "2"), set("c", "3"))
	var many []driver.Change // more than are compared one by one
	for i := range 20 {
		many = append(many, set(string(rune('A'+i)), "x"))
	}
	tests := []struct {
		name    string
		changes []driver.Change
		want    map[string]string
	}{
		{"nothing", nil, map[string]string{"a": "1", "b": "2", "c": "3"}},
		{"set a new one", []driver.Change{set("d", "4")}, map[string]string{"a": "1", "b": "2", "c": "3", "d": "4"}},
		{"replace", []driver.Change{set("b", "long")}, map[string]string{"a": "1", "b": "long", "c": "3"}},
		{"empty value", []driver.Change{set("b", "")}, map[string]string{"a": "1", "b": "", "c": "3"}},
		{"empty name", []driver.Change{set("", "e")}, map[string]string{"": "e", "a": "1", "b": "2", "c": "3"}},
		{"remove", []driver.Change{remove("a")}, map[string]string{"b": "2", "c": "3"}},
		{"remove an absent one", []driver.Change{remove("z")}, map[string]string{"a": "1", "b": "2", "c": "3"}},
		{"remove all", []driver.Change{remove("a"), remove("b"), remove("c")}, map[string]string{}},
		{"set twice", []driver.Change{set("a", "x"), set("a", "y")}, map[string]string{"a": "y", "b": "2", "c": "3"}},
		{"set and remove", []driver.Change{set("a", "x"), remove("a")}, map[string]string{"b": "2", "c": "3"}},
		{"remove and set", []driver.Change{remove("a"), set("a", "x")}, map[string]string{"a": "x", "b": "2", "c": "3"}},
		{"a removal's value is not used", []driver.Change{{Name: "a", Value: []byte("x"), Delete: true}}, map[string]string{"b": "2", "c": "3"}},
		{"many, each twice, and one of them removed", slices.Concat(many, many, []driver.Change{remove("a"), remove("A")}), func() map[string]string {
			want := map[string]string{"b": "2", "c": "3"}
			for _, c := range many[1:] {
				want[c.Name] = "x"
			}
			return want
		}()},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			before := bytes.Clone(base.Bytes())
			got := base.With(tt.changes...)
			if d := cmp.Diff(tt.want, values(got)); d != "" {
				t.Errorf("With (-want +got):\n%s", d)
			}
			if got.Len() != len(tt.want) {
				t.Errorf("Len = %d, want %d", got.Len(), len(tt.want))
			}
			for name, want := range tt.want {
				if v, ok := got.Get(name); !ok || string(v) != want {
					t.Errorf("Get(%q) = %q, %v, want %q", name, v, ok, want)
				}
			}
			if !bytes.Equal(base.Bytes(), before) {
				t.Error("With changed the fields it started from")
			}
		})
	}
}

// TestWithSharesNothing appends to one result of With: another, made from the same fields, must not change.
func TestWithSharesNothing(t *testing.T) {
	base := fields(set("a", "1"), set("b", "2")).With(remove("b")) // has room for b
	value := []byte("x")
	one := base.With(driver.Change{Name: "one", Value: value})
	two := base.With(set("two", "2"))
	value[0] = 'y'
	if d := cmp.Diff(map[string]string{"a": "1", "one": "x"}, values(one)); d != "" {
		t.Errorf("the first (-want +got):\n%s", d)
	}
	if d := cmp.Diff(map[string]string{"a": "1", "two": "2"}, values(two)); d != "" {
		t.Errorf("the second (-want +got):\n%s", d)
	}
}

func TestWithPanicsOnALongName(t *testing.T) {
	if f := fields(set(strings.Repeat("n", driver.MaxName), "v")); f.Len() != 1 {
		t.Errorf("a name of %d bytes: %d fields, want 1", driver.MaxName, f.Len())
	}
	defer func() {
		if recover() == nil {
			t.Errorf("With took a name of %d bytes", driver.MaxName+1)
		}
	}()
	fields(set(strings.Repeat("n", driver.MaxName+1), "v"))
}

func TestEqual(t *testing.T) {
	raw := func(pairs ...string) driver.Fields { // keeps repetitions, which With does not write
		var b []byte
		for i := 0; i < len(pairs); i += 2 {
			b = append(b, fields(set(pairs[i], pairs[i+1])).Bytes()...)
		}
		f, err := driver.ParseFields(b)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	tests := []struct {
		name string
		a, b driver.Fields
		want bool
	}{
		{"none", driver.Fields{}, raw(), true},
		{"other order", raw("a", "1", "b", "2"), raw("b", "2", "a", "1"), true},
		{"other value", raw("a", "1"), raw("a", "2"), false},
		{"other name", raw("a", "1"), raw("b", "1"), false},
		{"fewer", raw("a", "1", "b", "2"), raw("a", "1"), false},
		{"empty and absent", raw("a", ""), raw(), false},
		{"of a repeated name the first value counts", raw("a", "1", "a", "2"), raw("a", "1"), true},
		{"not the last", raw("a", "1", "a", "2"), raw("a", "2"), false},
		{"a repetition makes up for nothing", raw("a", "1", "a", "1"), raw("a", "1", "b", "2"), false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := tt.a.Equal(tt.b); got != tt.want {
				t.Errorf("a.Equal(b) = %v, want %v", got, tt.want)
			}
			if got := tt.b.Equal(tt.a); got != tt.want {
				t.Errorf("b.Equal(a) = %v, want %v", got, tt.want)
			}
		})
	}
}

// TestMillionFields is attack 24: every operation on a record of a million fields stays linear.
func TestMillionFields(t *testing.T) {
	const n = 1_000_000
	b := mustEncode(t, driver.Record{User: "ada"})
	for i := range uint32(n) {
		b = append(b, 0, 4)
		b = binary.BigEndian.AppendUint32(b, i)
		b = append(b, 0, 0, 0, 1, 'v')
	}
	start := time.Now()
	rec, err := driver.Decode(b)
	if err != nil {
		t.Fatal(err)
	}
	var changes []driver.Change
	for i := range uint32(1000) {
		changes = append(changes, set(string(binary.BigEndian.AppendUint32(nil, i*999)), "w"))
	}
	f := rec.Fields.With(changes...)
	if f.Len() != n || rec.Fields.Equal(f) {
		t.Errorf("With 1,000 changes: %d fields, want %d; Equal to those before: %v", f.Len(), n, rec.Fields.Equal(f))
	}
	if v, ok := f.Get("absent"); ok {
		t.Errorf("Get(absent) = %q", v)
	}
	// About 0.5 s. Anything quadratic would take hours.
	if took := time.Since(start); took > 30*time.Second {
		t.Errorf("took %v", took)
	}
}

func mustReadHex(t *testing.T, file string) []byte {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	b, err := hex.DecodeString(strings.Join(strings.Fields(string(text)), ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func mustEncode(t testing.TB, rec driver.Record) []byte {
	t.Helper()
	b, err := driver.Encode(rec)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func wantRecord(t *testing.T, got, want driver.Record) {
	t.Helper()
	if d := cmp.Diff(want, got, cmp.Comparer(driver.Fields.Equal), cmp.Comparer(time.Time.Equal)); d != "" {
		t.Errorf("record (-want +got):\n%s", d)
	}
}

func set(name, value string) driver.Change {
	return driver.Change{Name: name, Value: []byte(value)}
}

func remove(name string) driver.Change { return driver.Change{Name: name, Delete: true} }

func fields(changes ...driver.Change) driver.Fields { return driver.Fields{}.With(changes...) }

func values(f driver.Fields) map[string]string {
	m := make(map[string]string)
	for name, v := range f.All() {
		m[name] = string(v)
	}
	return m
}
