package main

import (
	"bytes"
	"strings"
	"testing"
	"time"
)

// The table of sealed sessions can be made, and each contender reads what it wrote.
func TestSealed(t *testing.T) {
	var out bytes.Buffer
	if err := printSealed(&out, effort{rounds: 1, sample: time.Microsecond}); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(out.String(), "| holdfast cookie "); n != 2 {
		t.Errorf("%d rows, want 2:\n%s", n, &out)
	}
}

func BenchmarkSealed(b *testing.B) {
	for _, size := range []int{1 << 10, 3584} {
		all, err := sealers(size)
		if err != nil {
			b.Fatal(err)
		}
		for _, s := range all {
			want := sealedValue(size, 3)
			token, err := s.write(want)
			if err != nil {
				b.Fatal(err)
			}
			b.Run(shape{size, sealedFields}.String()+"/read/"+s.name, func(b *testing.B) {
				for b.Loop() {
					_, _ = s.read(token)
				}
			})
			b.Run(shape{size, sealedFields}.String()+"/write/"+s.name, func(b *testing.B) {
				for b.Loop() {
					_, _ = s.write(want)
				}
			})
		}
	}
}
