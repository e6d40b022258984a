// Package iphash chooses a server by the client's address exactly as nginx's ip_hash does, so that clients keep their
// servers when nginx is replaced, or stands beside.
//
// Of an IPv4 address the first three bytes count, so that a /24 stays together; of an IPv6 address all sixteen. The
// hash begins at 89 and takes in each byte b as (hash*113 + b) mod 6271. The server is the one in which hash modulo the
// sum of all weights falls, when the weights are laid end to end in the order of the configuration. If that one cannot
// be had, the same bytes are hashed on from where the hash was, and after 20 such steps nginx goes over to round robin.
// Weights of servers that are down stay in the sum: their clients spread, nobody else moves.
//
// There are only 6271 hashes. With a sum of weights that does not divide it, the shares are off by up to one in
// 6271/sum; and many clients behind one address are one client.
package iphash

import "net/netip"

const (
	start   = 89
	factor  = 113
	modulus = 6271
	// steps is how often nginx hashes on when a server cannot be had.
	steps = 20
)

// Servers are the weights of the servers, in the order of the configuration.
type Servers struct {
	weights []int
	total   int
}

// New returns Servers with these weights, each at least 1.
func New(weights []int) Servers {
	s := Servers{weights: weights}
	for _, w := range weights {
		s.total += w
	}
	return s
}

// Pick returns the index of the server for a client, of those that ok accepts, or -1 where nginx would take round
// robin: if the hash comes to no acceptable one in 20 further steps, or there are fewer than two servers. The zero Addr
// is a client without an address, as over a Unix socket.
func (s Servers) Pick(client netip.Addr, ok func(i int) bool) int {
	if len(s.weights) < 2 {
		return -1
	}
	var b [16]byte
	n := 3
	switch {
	case client.Is4():
		a := client.As4()
		copy(b[:], a[:])
	case client.Is6():
		b, n = client.As16(), 16
	}
	hash := start
	for range steps + 1 {
		for _, v := range b[:n] {
			hash = (hash*factor + int(v)) % modulus
		}
		if i := s.at(hash % s.total); ok(i) {
			return i
		}
	}
	return -1
}

// at returns the server in whose part of the sum of weights w falls.
func (s Servers) at(w int) int {
	i := 0
	for w >= s.weights[i] {
		w -= s.weights[i]
		i++
	}
	return i
}
