package sealtest

import (
	"cmp"
	crand "crypto/rand"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-sessions/holdfast/driver"
)

// Timing proves that neither how long Open takes nor what it says tells how much of a token is right (attack 26): a token that is
// wrong from the middle on, one with a wrong tag, and one of which the last characters are wrong, are refused alike.
// It is for sealers that open with a secret; how long it takes to verify with a public key, everybody can try at home.
//
// How long a token is, and its version and key, which everybody can read in it, are no secrets: a token of an unknown key is
// refused sooner than the others.
//
// It finds a difference of about 2 %. That a tag is compared in constant time it cannot see: those few nanoseconds are
// for the sealer's AEAD or HMAC to care for.
func Timing(t testing.TB, n New) {
	s, foreign := n.plain(t), n.plain(t)
	kinds := []struct {
		name  string
		s     driver.Sealer // that made the tokens
		wrong int           // how many of the last characters
		like  int           // the kind that it is compared with
	}{
		{"wrong from the middle on", s, -1, 0},
		{"with a wrong tag", s, 22, 0},
		{"with its last characters wrong", s, 2, 0},
		{"of an unknown key, wrong from the middle on", foreign, -1, 3},
		{"of an unknown key", foreign, 0, 3},
	}
	// What is wrong comes from another token, so that it looks like what is right: to decode one text takes longer than another,
	// and longer at one address than at another. So there are several of each kind, and new ones in each round.
	const variants = 32
	mustTokens := func() [][]string {
		tokens := make([][]string, len(kinds))
		for k, kind := range kinds {
			var good []string
			for i := range variants + 1 {
				good = append(good, mustSeal(t, kind.s, driver.ID{byte(i), byte(k)}, record(set("a", `"`+crand.Text()+crand.Text()+`"`))))
			}
			for i := range variants {
				tokens[k] = append(tokens[k], strings.Clone(splice(good[i], good[i+1], kind.wrong)))
			}
		}
		return tokens
	}
	tokens := mustTokens()
	said := make([]string, len(kinds))
	for k, kind := range kinds {
		for _, token := range tokens[k] {
			wantRefused(t, s, binding, token, "a token "+kind.name)
			if _, err := s.Open(binding, token); err != nil {
				said[k] = err.Error()
			}
		}
		if said[k] != said[kind.like] && kind.s == s {
			t.Errorf("a token %s is refused with %q, one %s with %q", kind.name, said[k], kinds[kind.like].name, said[kind.like])
		}
	}
	// Whatever else runs on the machine may make a difference, but not each time, in the same direction, a large one.
	const rounds, calls = 8, 2000
	before := make([]float64, len(kinds))
	for round := range rounds {
		if round > 0 {
			tokens = mustTokens()
		}
		took := make([][]time.Duration, len(kinds))
		for range calls * len(kinds) {
			k := rand.IntN(len(kinds))
			token := tokens[k][rand.IntN(variants)]
			began := time.Now()
			_, _ = s.Open(binding, token) // refused, as above
			took[k] = append(took[k], time.Since(began))
		}
		suspicious := false
		for k, kind := range kinds {
			slower, z := rankSum(took[kind.like], took[k])
			sign := math.Copysign(1, z)
			if math.Abs(z) < 5 || math.Abs(slower-0.5) < 0.05 || round > 0 && before[k] != sign {
				sign = 0
			}
			if before[k] = sign; sign != 0 {
				suspicious = true
				if round == rounds-1 {
					t.Errorf("a token %s takes longer than one %s in %.0f %% of the pairs: %v standard errors from 50 %%, in %d rounds of %d",
						kind.name, kinds[kind.like].name, 100*slower, math.Round(z), rounds, rounds)
				}
			}
		}
		if !suspicious {
			return
		}
	}
}

// splice returns a token whose last characters, or whose second half for -1, are those of another.
func splice(token, other string, wrong int) string {
	if wrong < 0 {
		wrong = len(token) / 2
	}
	from := len(token) - wrong
	for wrong > 0 && from > 0 && token[from:] == other[len(other)-len(token)+from:] {
		from-- // a few characters may be the same by chance
	}
	return token[:from] + other[len(other)-len(token)+from:]
}

// rankSum returns how often a member of b is larger than one of a, and how many standard errors that is from half of the
// time (the test of Mann and Whitney): a few calls that were interrupted have no more weight than others.
func rankSum(a, b []time.Duration) (larger, z float64) {
	type call struct {
		took time.Duration
		ofB  bool
	}
	all := make([]call, 0, len(a)+len(b))
	for _, d := range a {
		all = append(all, call{d, false})
	}
	for _, d := range b {
		all = append(all, call{d, true})
	}
	slices.SortFunc(all, func(x, y call) int { return cmp.Compare(x.took, y.took) })
	sum := 0.0 // of the ranks of b; those that are equal share theirs
	for i := 0; i < len(all); {
		end, ofB := i, 0
		for ; end < len(all) && all[end].took == all[i].took; end++ {
			if all[end].ofB {
				ofB++
			}
		}
		sum += float64(ofB) * float64(i+1+end) / 2
		i = end
	}
	na, nb := float64(len(a)), float64(len(b))
	u := sum - nb*(nb+1)/2
	return u / (na * nb), (u - na*nb/2) / math.Sqrt(na*nb*(na+nb+1)/12)
}
