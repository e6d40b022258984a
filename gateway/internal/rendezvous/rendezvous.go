// Package rendezvous spreads values over nodes by weighted rendezvous hashing (highest random weight; Thaler and
// Ravishankar 1998, weights after Schindelhauer and Schomaker 2005). Everybody with the same key, nodes and weights
// comes to the same node for a value, without a table. When a node goes, only its own values move, each to the node
// that was next for it; when one comes, or its weight grows, values move only to it.
package rendezvous

import (
	"encoding/binary"
	"math"

	"github.com/holdfast-sessions/holdfast/gateway/internal/mac"
)

// Nodes are what values are spread over. They do not change.
type Nodes struct {
	mac   *mac.MAC
	nodes []node
}

type node struct {
	seed   uint64
	weight float64
}

// New returns nodes with these IDs, which must differ, and weights, each above 0. Who does not have the key cannot tell
// which values come to one node, and so cannot choose values that all do.
func New(key []byte, ids []string, weights []int) *Nodes {
	n := &Nodes{mac: mac.New(key, "holdfast rendezvous v1")}
	for i, id := range ids {
		n.nodes = append(n.nodes, node{n.hash('n', id), float64(weights[i])})
	}
	return n
}

// hash returns 64 bits for a string of one kind.
func (n *Nodes) hash(kind byte, s string) uint64 {
	sum := n.mac.Sum([]byte{kind}, s)
	return binary.BigEndian.Uint64(sum[:])
}

// Pick returns the index of the node for a value, of those that ok accepts, or -1 if it accepts none. A node has -ln(u)/w
// for a value, with u even over (0, 1) and w its weight; the smallest wins, which is each node's with a chance in
// proportion to its weight.
func (n *Nodes) Pick(value string, ok func(i int) bool) int {
	h := n.hash('v', value)
	best, least := -1, math.Inf(1)
	for i := range n.nodes {
		u := (float64(mix(h^n.nodes[i].seed)>>11) + 0.5) / (1 << 53)
		if score := -math.Log(u) / n.nodes[i].weight; score < least && ok(i) {
			best, least = i, score
		}
	}
	return best
}

// mix is the finalizer of SplitMix64: every bit of the result depends on every bit of x, and no two x have one result.
func mix(x uint64) uint64 {
	x ^= x >> 30
	x *= 0xbf58476d1ce4e5b9
	x ^= x >> 27
	x *= 0x94d049bb133111eb
	return x ^ x>>31
}
