package memcached

import (
	"cmp"
	"crypto/md5"
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"strconv"
)

// The ways to pick a key's server, each to the bit as libmemcached 1.1 does it (src/libmemcached/hosts.cc and hash.cc),
// so that other languages' clients find the same one. The names in brackets are those of PHP's memcached extension.
const (
	hashKetama        = "ketama"         // OPT_LIBKETAMA_COMPATIBLE: MD5, 160 points a server, weights
	hashConsistent    = "consistent"     // DISTRIBUTION_CONSISTENT: Jenkins' one-at-a-time hash, 100 points a server
	hashConsistentMD5 = "consistent-md5" // the same with HASH_MD5
	hashModula        = "modula"         // DISTRIBUTION_MODULA: the hash modulo the number of servers
)

var hashes = []string{hashKetama, hashConsistent, hashConsistentMD5, hashModula}

const (
	consistentPoints = 100 // MEMCACHED_POINTS_PER_SERVER
	ketamaPoints     = 160 // MEMCACHED_POINTS_PER_SERVER_KETAMA
	pointsPerMD5     = 4
	defaultPort      = "11211"
)

// host is a server as the URL names it. Its name goes into the ring: "localhost" and "127.0.0.1" are two places.
type host struct {
	name, port string
	weight     uint32
}

// ring says which server keeps a key. It is immutable.
type ring struct {
	servers int
	hash    func(key string) uint32
	points  []point // in the order of their values; nil: modula
}

type point struct {
	value  uint32
	server int
}

func newRing(kind string, hosts []host) *ring {
	r := &ring{servers: len(hosts)}
	switch kind {
	case hashKetama:
		r.hash, r.points = md5Hash, ketama(hosts)
	case hashConsistent:
		r.hash = oneAtATime
		r.points = consistent(hosts, r.hash)
	case hashConsistentMD5:
		r.hash = md5Hash
		r.points = consistent(hosts, r.hash)
	case hashModula:
		r.hash = oneAtATime
	default:
		panic("memcached: unknown hash " + kind)
	}
	slices.SortFunc(r.points, func(a, b point) int {
		return cmp.Or(cmp.Compare(a.value, b.value), cmp.Compare(a.server, b.server))
	})
	return r
}

// ketama returns the weighted continuum: four points for each MD5 of "host:port-n". The arithmetic is in 32-bit floats,
// as libmemcached's is; each step is converted, so that no compiler fuses two of them.
func ketama(hosts []host) []point {
	var total uint64
	for _, h := range hosts {
		total += uint64(h.weight)
	}
	var points []point
	for i, h := range hosts {
		share := float32(h.weight) / float32(total)
		n := float32(share * ketamaPoints)
		n = float32(n / pointsPerMD5)
		n = float32(n * float32(len(hosts)))
		n = float32(n + 0.0000000001)
		for j := range int(math.Floor(float64(n))) {
			sum := md5.Sum([]byte(h.point(j)))
			for k := range pointsPerMD5 {
				points = append(points, point{binary.LittleEndian.Uint32(sum[4*k:]), i})
			}
		}
	}
	return points
}

func consistent(hosts []host, hash func(string) uint32) []point {
	var points []point
	for i, h := range hosts {
		for j := range consistentPoints {
			points = append(points, point{hash(h.point(j)), i})
		}
	}
	return points
}

// point returns what is hashed for the n-th place of a server. The default port is left out.
func (h host) point(n int) string {
	if h.port == defaultPort {
		return fmt.Sprintf("%s-%d", h.name, n)
	}
	return h.name + ":" + h.port + "-" + strconv.Itoa(n)
}

// pick returns the number of the key's server.
func (r *ring) pick(key string) int {
	if r.servers == 1 {
		return 0
	}
	h := r.hash(key)
	if r.points == nil {
		return int(h % uint32(r.servers))
	}
	return r.points[r.at(h)].server
}

// second returns the server that the key's copy is on: the one it would move to if its own were taken out of the list.
func (r *ring) second(key string) int {
	h := r.hash(key)
	if r.points == nil {
		return (int(h%uint32(r.servers)) + 1) % r.servers
	}
	at := r.at(h)
	first := r.points[at].server
	for range r.points {
		if at = (at + 1) % len(r.points); r.points[at].server != first {
			break
		}
	}
	return r.points[at].server
}

// at returns the first point at or after h.
func (r *ring) at(h uint32) int {
	i, _ := slices.BinarySearchFunc(r.points, h, func(p point, h uint32) int { return cmp.Compare(p.value, h) })
	if i == len(r.points) {
		return 0
	}
	return i
}

// md5Hash is libhashkit's HASHKIT_HASH_MD5.
func md5Hash(key string) uint32 {
	sum := md5.Sum([]byte(key))
	return binary.LittleEndian.Uint32(sum[:])
}

// oneAtATime is Bob Jenkins' hash of that name, libmemcached's default.
func oneAtATime(key string) uint32 {
	var h uint32
	for i := range len(key) {
		h += uint32(key[i])
		h += h << 10
		h ^= h >> 6
	}
	h += h << 3
	h ^= h >> 11
	return h + h<<15
}
