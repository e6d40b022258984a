package signed_test

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/gateway/signed"
)

// testRequest is a request to be falsified.
type testRequest struct{ *http.Request }

func (r *testRequest) edit(from, to string) {
	h := r.Header["X-Session-Signature"]
	h[0] = strings.Replace(h[0], from, to, 1)
}

var (
	key   = []byte("0123456789abcdef0123456789abcdef")
	other = []byte("fedcba9876543210fedcba9876543210")
	id    = driver.ID(sha256.Sum256([]byte("token")))
)

// The format is for applications in any language, so it must never change. Computed with:
//
//	printf 'holdfast session signature v1\n1000000000\n3c46...53e0\nPOST\nshop.example:8080' | openssl dgst -sha256 -hmac KEY -binary | basenc --base64url
func TestFormat(t *testing.T) {
	r := httptest.NewRequest("POST", "http://Shop.example:8080/cart", nil)
	signed.Sign(r.Header, key, id, r.Method, r.Host, time.Unix(1e9, 999))
	const want = "v1.1000000000.7cK1TyXP061VDV-xC6rlXAPt9X-m7Gu81bPbPCx9cLk"
	if got := r.Header.Get("X-Session-Signature"); got != want || r.Header.Get("X-Session-Id") != id.Hex() {
		t.Errorf("signature %s of ID %s, want %s", got, r.Header.Get("X-Session-Id"), want)
	}
}

func TestVerify(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sign := func() *testRequest {
			r := httptest.NewRequest("GET", "http://shop.example/", nil)
			signed.Sign(r.Header, key, id, "GET", "shop.example", time.Now())
			return &testRequest{r}
		}
		for _, c := range []struct {
			name   string
			change func(*testRequest)
			after  time.Duration
			keys   [][]byte
			want   error
		}{
			{"valid", func(*testRequest) {}, 0, [][]byte{key}, nil},
			{"after a new key was added", func(*testRequest) {}, 0, [][]byte{other, key}, nil},
			{"host in capitals", func(r *testRequest) { r.Host = "SHOP.example" }, 0, [][]byte{key}, nil},
			{"at the limit", func(*testRequest) {}, 30 * time.Second, [][]byte{key}, nil},
			{"too old", func(*testRequest) {}, 31 * time.Second, [][]byte{key}, signed.ErrTime},
			{"clock behind", func(*testRequest) {}, -30 * time.Second, [][]byte{key}, nil},
			{"clock far behind", func(*testRequest) {}, -31 * time.Second, [][]byte{key}, signed.ErrTime},
			{"none", func(r *testRequest) { clear(r.Header) }, 0, [][]byte{key}, signed.ErrNone},
			{"ID alone", func(r *testRequest) { r.Header.Del("X-Session-Signature") }, 0, [][]byte{key}, signed.ErrInvalid},
			{"signature alone", func(r *testRequest) { r.Header.Del("X-Session-Id") }, 0, [][]byte{key}, signed.ErrInvalid},
			{"other ID", func(r *testRequest) { r.Header.Set("X-Session-Id", strings.Repeat("ab", 32)) }, 0, [][]byte{key}, signed.ErrInvalid},
			{"ID in capitals", func(r *testRequest) { r.Header.Set("X-Session-Id", strings.ToUpper(id.Hex())) }, 0, [][]byte{key}, signed.ErrInvalid},
			{"longer ID", func(r *testRequest) { r.Header.Set("X-Session-Id", id.Hex()+"00") }, 0, [][]byte{key}, signed.ErrInvalid},
			{"two IDs", func(r *testRequest) { r.Header.Add("X-Session-Id", id.Hex()) }, 0, [][]byte{key}, signed.ErrInvalid},
			{"other method", func(r *testRequest) { r.Method = "POST" }, 0, [][]byte{key}, signed.ErrInvalid},
			{"other host", func(r *testRequest) { r.Host = "admin.example" }, 0, [][]byte{key}, signed.ErrInvalid},
			{"other time", func(r *testRequest) { r.edit("v1.", "v1.1") }, 0, [][]byte{key}, signed.ErrInvalid},
			{"other version", func(r *testRequest) { r.edit("v1.", "v2.") }, 0, [][]byte{key}, signed.ErrInvalid},
			{"cut", func(r *testRequest) { h := r.Header["X-Session-Signature"]; h[0] = h[0][:len(h[0])-1] }, 0, [][]byte{key}, signed.ErrInvalid},
			{"other key", func(*testRequest) {}, 0, [][]byte{other}, signed.ErrInvalid},
			{"no key", func(*testRequest) {}, 0, nil, signed.ErrInvalid},
			{"short key", func(*testRequest) {}, 0, [][]byte{nil, key[:31]}, signed.ErrInvalid},
		} {
			r := sign()
			if c.after > 0 {
				time.Sleep(c.after)
			} else if c.after < 0 {
				signed.Sign(r.Header, key, id, "GET", "shop.example", time.Now().Add(-c.after))
			}
			c.change(r)
			got, err := signed.Verify(r.Request, 30*time.Second, c.keys...)
			if !errors.Is(err, c.want) || (err == nil) != (got == id) || err != nil && got != (driver.ID{}) {
				t.Errorf("%s: %v, %v, want %v", c.name, got, err, c.want)
			}
		}
	})
}

func ExampleVerify() {
	r := httptest.NewRequest("GET", "http://shop.example/", nil)
	_, err := signed.Verify(r, 30*time.Second, key)
	fmt.Println(err)
	// Output: signed: no session ID in the request
}

func BenchmarkSign(b *testing.B) {
	r := httptest.NewRequest("GET", "http://shop.example/", nil)
	now := time.Now()
	b.ReportAllocs()
	for b.Loop() {
		signed.Sign(r.Header, key, id, "GET", "shop.example", now)
	}
}
