package mac_test

import (
	"encoding/hex"
	"strings"
	"sync"
	"testing"

	"github.com/holdfast-sessions/holdfast/gateway/internal/mac"
)

// Computed with another implementation:
//
//	import hmac, hashlib
//	k = hmac.new(b"key", b"purpose", hashlib.sha256).digest()
//	hmac.new(k, b"prefix" + b"text", hashlib.sha256).hexdigest()
func TestSum(t *testing.T) {
	got := mac.New([]byte("key"), "purpose").Sum([]byte("prefix"), "text")
	const want = "6e9d13efd87658fe1687d1e5b3a198db574b6f9456a7d31126f3b6e2c0be4eaf"
	if hex.EncodeToString(got[:]) != want {
		t.Errorf("Sum = %x, want %s", got, want)
	}
}

func TestSumConcurrently(t *testing.T) {
	m := mac.New([]byte("key"), "purpose")
	texts := []string{"", "a", strings.Repeat("b", 100), strings.Repeat("c", 10_000)}
	want := make([][32]byte, len(texts))
	for i, s := range texts {
		want[i] = mac.New([]byte("key"), "purpose").Sum(nil, s)
	}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for n := range 1000 {
				i := n % len(texts)
				if got := m.Sum(nil, texts[i]); got != want[i] {
					t.Errorf("Sum of text %d = %x, want %x", i, got, want[i])
					return
				}
			}
		})
	}
	wg.Wait()
}

func BenchmarkSum(b *testing.B) {
	m := mac.New(make([]byte, 32), "purpose")
	prefix := make([]byte, 6)
	b.ReportAllocs()
	for b.Loop() {
		m.Sum(prefix, "upstream-1")
	}
}
