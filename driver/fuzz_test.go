package driver_test

import (
	"bytes"
	"errors"
	"maps"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-sessions/holdfast/driver"
)

// FuzzDecode: whatever a store holds is a record, ErrVersion or ErrCorrupt, and a record is written back as the
// bytes it was read from.
func FuzzDecode(f *testing.F) {
	f.Add(mustEncode(f, driver.Record{}))
	f.Add(mustEncode(f, driver.Record{
		User: "ada", Created: time.UnixMilli(1), Seen: time.UnixMilli(-1), Expires: time.UnixMilli(2), Revision: 1 << 63,
		Fields: fields(set("a", "1"), set("", "")),
	}))
	f.Fuzz(func(t *testing.T, b []byte) {
		in := bytes.Clone(b)
		rec, err := driver.Decode(b)
		if err != nil {
			if !errors.Is(err, driver.ErrVersion) && !errors.Is(err, driver.ErrCorrupt) {
				t.Fatalf("Decode = %v, want ErrVersion or ErrCorrupt", err)
			}
			return
		}
		out := mustEncode(t, rec)
		// The year 1 is what a zero Time stands for, and has no other encoding.
		if !bytes.Equal(out, in) && !bytes.Contains(in, year1) {
			t.Fatalf("% x was read, and written back as % x", in, out)
		}
		again, err := driver.Decode(out)
		if err != nil {
			t.Fatalf("decode what Encode wrote: %v", err)
		}
		wantRecord(t, again, rec)
		if !again.Fields.Equal(rec.Fields) {
			t.Fatal("Equal is not reflexive")
		}
		n := 0
		for name := range rec.Fields.All() {
			if _, ok := rec.Fields.Get(name); !ok {
				t.Fatalf("All yields %q, Get does not find it", name)
			}
			n++
		}
		if rec.Fields.Len() != n {
			t.Fatalf("Len = %d, All yields %d", rec.Fields.Len(), n)
		}
	})
}

// year1 is the zero Time as milliseconds since 1970.
var year1 = []byte{0xff, 0xff, 0xc7, 0x7c, 0xed, 0xd3, 0x28, 0x00}

// FuzzFieldsWith: With does to fields what assignments do to a map, and leaves what it started from alone.
// Each change is an opcode, a name and a value: an even opcode sets, an odd one removes, and one over 0x7f starts the
// next call of With.
func FuzzFieldsWith(f *testing.F) {
	f.Add([]byte{}, []byte("\x00a1"))
	f.Add(fields(set("a", "1"), set("b", "2")).Bytes(), []byte("\x00a2\x01b0\x80c3\x00a4\x01a0"))
	f.Add(fields(set("a", "1")).Bytes(), bytes.Repeat([]byte("\x00a1\x00b2\x01c3"), 7))
	f.Fuzz(func(t *testing.T, encoded, script []byte) {
		got, err := driver.ParseFields(encoded)
		if err != nil {
			if !errors.Is(err, driver.ErrCorrupt) {
				t.Fatalf("ParseFields = %v, want ErrCorrupt", err)
			}
			return
		}
		model := make(map[string]string)
		for name, v := range got.All() {
			if _, repeated := model[name]; !repeated {
				model[name] = string(v)
			}
		}
		var changes []driver.Change
		lay := func() {
			before, was := got, bytes.Clone(got.Bytes())
			got = got.With(changes...)
			if !bytes.Equal(before.Bytes(), was) {
				t.Fatal("With changed the fields it started from")
			}
			for _, c := range changes {
				if c.Delete {
					delete(model, c.Name)
				} else {
					model[c.Name] = string(c.Value)
				}
			}
			changes = changes[:0]
		}
		for ; len(script) >= 3; script = script[3:] {
			if script[0] > 0x7f {
				lay()
			}
			changes = append(changes, driver.Change{Name: string(script[1:2]), Value: script[2:3], Delete: script[0]%2 == 1})
		}
		lay()
		if _, err := driver.ParseFields(got.Bytes()); err != nil {
			t.Fatalf("With wrote what ParseFields refuses: %v", err)
		}
		for name, want := range model {
			if v, ok := got.Get(name); !ok || string(v) != want {
				t.Fatalf("Get(%q) = %q, %v, want %q", name, v, ok, want)
			}
		}
		names := make(map[string]bool)
		for name := range got.All() {
			names[name] = true
		}
		for name := range maps.Keys(model) {
			delete(names, name)
		}
		if d := cmp.Diff(map[string]bool{}, names); d != "" {
			t.Fatalf("With left names that were removed:\n%s", d)
		}
	})
}
