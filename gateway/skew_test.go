package gateway_test

import (
	"fmt"
	"math"
	"net/http/httptest"
	"testing"

	"github.com/holdfast-sessions/holdfast/gateway"
)

// 10,000 users behind one address, over servers of weights 1, 1 and 2: how far each affinity is from the shares that the
// weights give, as docs/gateway.md states it. What a client is bound by, it carries, so nobody else has a part in it.
func TestSkewBehindOneAddress(t *testing.T) {
	const users = 10_000
	for _, c := range []struct {
		name   string
		config gateway.Config
		bound  float64 // of the difference from a share, as a part of it
	}{
		{"none", gateway.Config{Affinity: gateway.AffinityNone}, 0.001},
		{"cookie", gateway.Config{Affinity: gateway.AffinityCookie, Key: testKey}, 0.001},
		{"session", gateway.Config{Affinity: gateway.AffinitySession, Key: testKey, SessionCookies: []string{"id"}}, 0.001},
		{"route", gateway.Config{Affinity: gateway.AffinityRoute, SessionCookies: []string{"id"}}, 0.001},
		// Of 10,000 fair draws a quarter is off by more than a tenth of itself once in 10^8 times.
		{"hash", gateway.Config{Affinity: gateway.AffinityHash, Hash: gateway.HashOf{Cookie: "user"}, Key: testKey}, 0.1},
		{"random", gateway.Config{Affinity: gateway.AffinityCookie, Key: testKey, Balance: gateway.BalanceTwoChoices}, 0.1},
		// Without a bound: all are on one server, with three times or once more than its share.
		{"ip", gateway.Config{Affinity: gateway.AffinityIP}, math.Inf(1)},
		{"by address", gateway.Config{Affinity: gateway.AffinitySession, Key: testKey, SessionCookies: []string{"id"}, SessionByAddress: true}, math.Inf(1)},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.config.Upstreams = weighted(1, 1, 2)
			g := mustNew(t, c.config)
			got := make(map[string]int)
			for i := range users {
				r := httptest.NewRequest("GET", "/", nil)
				r.RemoteAddr = "192.0.2.1:1234"
				r.Header.Set("Cookie", fmt.Sprint("user=u", i))
				got[g.Pick(r)]++
			}
			skew := 0.0
			for id, share := range map[string]float64{"a": 0.25, "b": 0.25, "c": 0.5} {
				skew = max(skew, math.Abs(float64(got[id])/users/share-1))
			}
			t.Logf("%v: off by %.1f %%", got, skew*100)
			if skew > c.bound {
				t.Errorf("%v: off by %.1f %%, want at most %.1f %%", got, skew*100, c.bound*100)
			}
			if math.IsInf(c.bound, 1) && len(got) != 1 {
				t.Errorf("%v: docs/gateway.md says that all are on one server", got)
			}
		})
	}
}
