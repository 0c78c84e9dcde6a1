package auth

import (
	"crypto/sha256"
	"crypto/subtle"
)

// maxSecret is the length in bytes of the longest secret that is looked at.
const maxSecret = 16 << 10

// A digest is the SHA-256 of a secret, as the token file has it.
type digest [sha256.Size]byte

func (d digest) equal(e digest) bool { return subtle.ConstantTimeCompare(d[:], e[:]) == 1 }

// A handle stands for a secret in tables. It is a digest under a key that nobody
// outside the process knows: how long a look-up takes depends on it, and so on
// nothing that who presents a secret can know or choose.
type handle [sha256.Size]byte

// A blind makes handles.
type blind [sha256.Size]byte

func (b *blind) handle(d digest) handle {
	var text [2 * sha256.Size]byte
	copy(text[:], b[:])
	copy(text[sha256.Size:], d[:])
	return sha256.Sum256(text[:])
}

// digestOf does not allocate for secrets of a common length.
func digestOf(secret string) digest {
	var text [2 << 10]byte
	if len(secret) > len(text) {
		return sha256.Sum256([]byte(secret))
	}
	return sha256.Sum256(text[:copy(text[:], secret)])
}
