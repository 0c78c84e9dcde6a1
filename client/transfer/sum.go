package transfer

import (
	"crypto/sha256"
	"encoding"
	"encoding/hex"
	"errors"
	"hash"
)

// SumName is what a checksum begins with.
const SumName = "sha256-1MiB:"

// A Sum computes the checksum of content: see the package's comment.
type Sum struct {
	h hash.Hash
}

// NewSum is the sum of nothing.
func NewSum() *Sum { return &Sum{h: sha256.New()} }

// String is the sum of what was added: "sha256-1MiB:" and 64 digits of hex.
func (s *Sum) String() string { return SumName + hex.EncodeToString(s.h.Sum(nil)) }

func (s *Sum) add(digest [32]byte) { _, _ = s.h.Write(digest[:]) }

// zeros adds blocks of zeros, of which the last one may be shorter.
func (s *Sum) zeros(n int64) {
	for ; n >= Block; n -= Block {
		s.add(zeroDigest)
	}
	if n > 0 {
		s.add(sha256.Sum256(zeroBlock[:n]))
	}
}

// state is what restore takes.
func (s *Sum) state() []byte {
	m, ok := s.h.(encoding.BinaryMarshaler)
	if !ok {
		return nil
	}
	state, err := m.MarshalBinary()
	if err != nil {
		return nil
	}
	return state
}

func (s *Sum) restore(state []byte) error {
	u, ok := s.h.(encoding.BinaryUnmarshaler)
	if !ok || u.UnmarshalBinary(state) != nil {
		return errors.New("the checksum of what was copied before is not readable")
	}
	return nil
}
