package base64url_test

import (
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
