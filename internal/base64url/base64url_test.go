package base64url_test

import (
	"bytes"
	"testing"

	"github.com/holdfast-sessions/holdfast/internal/base64url"
)

func TestDecode(t *testing.T) {
	for _, tt := range []struct {
		in, want string
		ok       bool
	}{
		{"", "", true},
		{"AA", "\x00", true},
		{"-_8", "\xfb\xff", true},
		{"AB", "", false},   // bits left over
		{"A", "", false},    // no whole byte
		{"AA==", "", false}, // padding
		{"+/8", "", false},  // the other alphabet
		{"A\nA", "", false}, // line breaks
		{"AAAA\r\n", "", false},
		{"AA\x00", "", false},
		{"ÄÄ", "", false},
	} {
		got, ok := base64url.Decode(tt.in)
		if ok != tt.ok || ok && string(got) != tt.want {
			t.Errorf("Decode(%q) = %q, %v, want %q, %v", tt.in, got, ok, tt.want, tt.ok)
		}
		if ok && base64url.Encode(got) != tt.in {
			t.Errorf("Encode(Decode(%q)) = %q", tt.in, base64url.Encode(got))
		}
	}
}

// Whatever is appended to, both give the same.
func FuzzAppendPublic(f *testing.F) {
	for n := range 40 {
		f.Add([]byte("before"), bytes.Repeat([]byte{0xff, 0x01, 0x7e}, n)[:n])
	}
	f.Fuzz(func(t *testing.T, dst, b []byte) {
		want := base64url.Append(bytes.Clone(dst), b)
		if got := base64url.AppendPublic(bytes.Clone(dst), b); !bytes.Equal(got, want) {
			t.Errorf("AppendPublic(%q, %x) = %q, want %q", dst, b, got, want)
		}
		if got := base64url.AppendPublic(make([]byte, 0, len(want)), b); string(got) != base64url.Encode(b) {
			t.Errorf("AppendPublic to nothing of %x = %q", b, got)
		}
	})
}

func BenchmarkAppend(b *testing.B) {
	src, dst := bytes.Repeat([]byte("\x01\x9b\xc3\x07\xf2"), 740), make([]byte, 0, 5000)
	for name, f := range map[string]func(dst, b []byte) []byte{"any": base64url.Append, "public": base64url.AppendPublic} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(src)))
			for b.Loop() {
				dst = f(dst[:0], src)
			}
		})
	}
}
