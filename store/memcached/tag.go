package memcached

import "time"

// A Tag is what Load tells a later Save, so that the Save needs one round trip: the CAS ID of what was loaded. Used
// blindly a CAS ID is not safe, so a Tag carries what makes it so, in 64 bits:
//
//	20 bits  until when the record surely lives, in steps of 16 s, modulo half a year: a save over a record that expired
//	         meanwhile has to fail, and the server, which keeps expired records for a while, would take it
//	44 bits  the CAS ID, exclusive-or a hash of the record's revision and of the server's life: prev alone decides what a
//	         Save replaces, and a server that restarted counts its CAS IDs from 1 again
//
// A Tag that does not fit the Save at hand opens to a number that is no CAS ID of that server, or, once in some
// thousands, to one that is not this key's: memcached answers EXISTS. Both cost a look at what is stored and nothing else.
const (
	tagStep  = 16             // seconds
	tagLives = 3600 / tagStep // steps for which a Tag is good, at most
	casBits  = 44
	casMask  = 1<<casBits - 1
)

// makeTag returns the Tag of a record with this revision that was loaded with a CAS ID from a server in this life. 0 is
// a Tag that never opens, or nearly.
func makeTag(cas, revision, life uint64, expires, now time.Time) uint64 {
	if life == 0 || cas > casMask {
		return 0
	}
	until := min(expires.Unix()/tagStep, now.Unix()/tagStep+tagLives)
	return uint64(until)<<casBits | (cas^mix(revision, life))&casMask
}

// openTag returns the CAS ID in a Tag, if it is good for replacing this revision on a server in this life, whose CAS
// IDs seen so far are at most highest.
func openTag(tag, revision, life, highest uint64, now time.Time) (cas uint64, ok bool) {
	left := (tag>>casBits - uint64(now.Unix()/tagStep)) & (1<<(64-casBits) - 1)
	cas = (tag ^ mix(revision, life)) & casMask
	return cas, tag != 0 && life != 0 && left > 0 && left <= tagLives && cas > 0 && cas <= highest
}

// mix hashes two numbers (the finalizer of SplitMix64, over both).
func mix(a, b uint64) uint64 {
	x := a ^ (b+0x9e3779b97f4a7c15)*0xbf58476d1ce4e5b9
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
