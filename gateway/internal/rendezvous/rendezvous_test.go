package rendezvous_test

import (
	"fmt"
	"math"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/holdfast-sessions/holdfast/gateway/internal/rendezvous"
)

func all(int) bool { return true }

// nodes are IDs that differ, with weights.
type nodes struct {
	ids     []string
	weights []int
}

func drawNodes(t *rapid.T) nodes {
	ids := rapid.SliceOfNDistinct(rapid.StringMatching(`[a-z0-9.-]{1,12}`), 1, 12, rapid.ID).Draw(t, "ids")
	return nodes{ids, rapid.SliceOfN(rapid.IntRange(1, 100), len(ids), len(ids)).Draw(t, "weights")}
}

// pick returns the ID of the node for a value, of those that are not left out.
func (n nodes) pick(key []byte, value string, left ...string) string {
	i := rendezvous.New(key, n.ids, n.weights).Pick(value, func(i int) bool { return !slices.Contains(left, n.ids[i]) })
	if i < 0 {
		return ""
	}
	return n.ids[i]
}

func (n nodes) without(i int) nodes {
	return nodes{slices.Delete(slices.Clone(n.ids), i, i+1), slices.Delete(slices.Clone(n.weights), i, i+1)}
}

// When a node goes, or cannot be had, only its values move, and both ways they move to the same nodes.
func TestMinimalMovement(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := drawNodes(t)
		key := rapid.SliceOfN(rapid.Byte(), 0, 32).Draw(t, "key")
		gone := rapid.IntRange(0, len(n.ids)-1).Draw(t, "gone")
		for _, v := range rapid.SliceOfN(rapid.String(), 1, 20).Draw(t, "values") {
			before, after := n.pick(key, v), n.without(gone).pick(key, v)
			if before != n.ids[gone] && after != before {
				t.Errorf("%q moved from %q to %q although only %q went", v, before, after, n.ids[gone])
			}
			if got := n.pick(key, v, n.ids[gone]); got != after {
				t.Errorf("%q goes to %q when %q is left out, and to %q when it is gone", v, got, n.ids[gone], after)
			}
		}
	})
}

// A weight that grows takes values only to its node.
func TestWeightGrows(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := drawNodes(t)
		which := rapid.IntRange(0, len(n.ids)-1).Draw(t, "which")
		grown := nodes{n.ids, slices.Clone(n.weights)}
		grown.weights[which] += rapid.IntRange(1, 100).Draw(t, "more")
		for _, v := range rapid.SliceOfN(rapid.String(), 1, 20).Draw(t, "values") {
			if before, after := n.pick(nil, v), grown.pick(nil, v); after != before && after != n.ids[which] {
				t.Errorf("%q moved from %q to %q although only %q grew", v, before, after, n.ids[which])
			}
		}
	})
}

// The order of the nodes does not matter.
func TestOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := drawNodes(t)
		order := rapid.Permutation(indexes(len(n.ids))).Draw(t, "order")
		var other nodes
		for _, i := range order {
			other.ids, other.weights = append(other.ids, n.ids[i]), append(other.weights, n.weights[i])
		}
		v := rapid.String().Draw(t, "value")
		if a, b := n.pick(nil, v), other.pick(nil, v); a != b {
			t.Errorf("%q goes to %q or %q, by the order of the nodes", v, a, b)
		}
	})
}

func indexes(n int) []int {
	all := make([]int, n)
	for i := range all {
		all[i] = i
	}
	return all
}

// Shares are in proportion to the weights, within five standard deviations of what chance would give. The values are
// such as a counter makes.
func TestShares(t *testing.T) {
	const values = 20_000
	for _, weights := range [][]int{{1}, {1, 1, 1}, {1, 2, 3, 4}, {100, 1}, {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 91}} {
		total := 0
		var ids []string
		for i, w := range weights {
			ids, total = append(ids, fmt.Sprint(i)), total+w
		}
		n := rendezvous.New([]byte("key"), ids, weights)
		got := make([]int, len(weights))
		for v := range values {
			got[n.Pick(fmt.Sprint("user-", v), all)]++
		}
		for i, w := range weights {
			p := float64(w) / float64(total)
			want, sigma := p*values, math.Sqrt(p*(1-p)*values)
			if d := math.Abs(float64(got[i]) - want); d > 5*sigma {
				t.Errorf("weights %v: node %d has %d of %d values, want %.0f ± %.0f", weights, i, got[i], values, want, 5*sigma)
			}
		}
	}
}

// Where values go must never change, or a new release moves every client. Computed with another implementation.
func TestFixture(t *testing.T) {
	n := rendezvous.New([]byte("0123456789abcdef0123456789abcdef"), []string{"a", "b", "c"}, []int{1, 2, 3})
	var got []int
	for _, v := range []string{"", "alice", "bob", "carol", "dave", "erin", "frank", "grace"} {
		got = append(got, n.Pick(v, all))
	}
	if d := cmp.Diff([]int{0, 2, 2, 2, 2, 1, 1, 0}, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

func TestNoneAcceptable(t *testing.T) {
	n := rendezvous.New(nil, []string{"a", "b"}, []int{1, 1})
	if got := n.Pick("x", func(int) bool { return false }); got != -1 {
		t.Errorf("Pick = %d, want -1", got)
	}
}

func BenchmarkPick(b *testing.B) {
	for _, count := range []int{3, 30} {
		ids, weights := make([]string, count), make([]int, count)
		for i := range ids {
			ids[i], weights[i] = fmt.Sprint(i), 1
		}
		n := rendezvous.New(make([]byte, 32), ids, weights)
		b.Run(fmt.Sprint(count), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				n.Pick("0123456789abcdef0123456789abcdef", all)
			}
		})
	}
}
