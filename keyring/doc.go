// Package keyring keeps the keys that seal sessions into cookies and tokens, and changes them while servers run.
//
// A key goes through four states, so that every server of a fleet knows a key before any of them uses it:
//
//	waiting -> active -> decrypt only -> retired
//
// A waiting key opens what was sealed with it, and seals nothing yet. The active key, of which there is exactly one,
// seals. A key that is decrypt only was active before. Of a retired key only the ID is left, to tell what it sealed from
// what was sealed with a key that this server does not know yet.
//
//	ring, err := keyring.Open(ctx, "file:/etc/shop/keys.json")
//	defer ring.Close()
//	token := ring.Active().AEAD("cookie").Seal(nil, record, associated)
//	key, state := ring.Find(id)
//
// # Keys for purposes
//
// A key of the ring is never used itself. [Key.AEAD] and [Key.Derive] derive one for each purpose with HKDF-SHA256 (RFC
// 5869): the secret is the input, there is no salt, and the info is
//
//	"holdfast key ring v1\x00" + kind + "\x00" + purpose       kind: "aead", "derive", or "id" with no purpose
//
// so that what was made for one purpose is worth nothing for another. The AEAD is XAES-256-GCM (C2SP), whose 24-byte
// nonces may be random for 2^80 messages: 12 bytes of it choose a key of their own for the message.
//
//	sealed = nonce[24] || AES-256-GCM ciphertext || tag[16]
//
// # The file
//
// A key ring is JSON, in a file, an environment variable or an answer over HTTPS; "holdfast key new" makes one:
//
//	{
//	  "version": 1,
//	  "keys": [
//	    {"id": "0c7f13d2", "state": "active", "created": "2026-11-26T10:00:00Z", "since": "2026-11-26T10:00:00Z", "secret": "…"}
//	  ]
//	}
//
//	version   1. A release that does not know a version refuses it.
//	keys      at most 64, of which exactly one is active.
//	id        8 lower-case hexadecimal characters, big-endian: the first 4 bytes derived from the secret as above, with the
//	          kind "id". So a damaged secret is found, and no ID is 0.
//	state     "waiting", "active", "decrypt only" or "retired".
//	created   when the key was made, RFC 3339.
//	since     when it came into its state, RFC 3339.
//	secret    32 random bytes in base64 (RFC 4648 section 4, padded). A retired key has none.
//
// Every member must be there, once, spelled so, in any order; there are no others. Whoever reads the file can read and
// forge every session: it belongs to the user that runs the server, with mode 0600. testdata/ring-v1.json is an example,
// which Open refuses, as everybody knows it.
package keyring
