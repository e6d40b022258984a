package main

import (
	"bytes"
	"fmt"
	"testing"
	"time"
)

// TestSealed makes the tables of sealed sessions, in which each contender reads what it wrote. With -short it leaves out what
// depends on the machine.
func TestSealed(t *testing.T) {
	e := effort{rounds: 9, sample: 20 * time.Millisecond}
	if testing.Short() {
		e = quick
	}
	var out bytes.Buffer
	bars, err := printSealed(&out, e)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s", &out)
	if len(bars) != 3*5*2 {
		t.Errorf("%d bars, want 3 of each of 5 contenders and 2 sizes", len(bars))
	}
	for _, b := range bars {
		if (b.exact || !testing.Short()) && !b.met(margin) {
			t.Errorf("bar missed: %v", b)
		}
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

func BenchmarkSealedRequest(b *testing.B) {
	for _, size := range []int{1 << 10, 3584} {
		for _, o := range []operation{opRead, opWrite} {
			for _, lib := range sealedLibraries {
				b.Run(fmt.Sprintf("%s/%s/%s", kilobytes(size), o, lib.name), func(b *testing.B) {
					benchmark(b, lib, o, shape{size - sealedFields*len("field0"), sealedFields}, server{})
				})
			}
		}
	}
}
