package transfer

import (
	"context"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"slices"
)

// A Point is how far a copy is: everything before the offset is on the target, and
// flushed. Its size does not grow with the image.
type Point struct {
	Offset  int64 `json:"offset"`
	Copied  int64 `json:"copied"`
	Skipped int64 `json:"skipped"`
	// Sum is the state of the checksum; nil if there is none.
	Sum []byte `json:"sum,omitempty"`
	// Samples are some of the blocks before the offset.
	Samples Samples `json:"samples"`
}

// How many blocks are kept.
const (
	mostSamples = 48 // at random
	lastSamples = 8  // the last ones
)

// Samples are blocks of data that were copied, to recognise a target by, or a source
// that cannot tell whether it has changed.
type Samples struct {
	Seen int64    `json:"seen"` // how many blocks they were taken from
	Some []Sample `json:"some,omitempty"`
	Last []Sample `json:"last,omitempty"`
}

// A Sample is a block that was copied.
type Sample struct {
	Offset int64  `json:"offset"`
	Length int64  `json:"length"`
	Digest Digest `json:"digest"`
}

// A Digest is of SHA-256. In JSON it is hex.
type Digest [32]byte

// MarshalText implements encoding.TextMarshaler.
func (d Digest) MarshalText() ([]byte, error) { return []byte(hex.EncodeToString(d[:])), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Digest) UnmarshalText(text []byte) error {
	if len(text) == hex.EncodedLen(len(d)) {
		if _, err := hex.Decode(d[:], text); err == nil {
			return nil
		}
	}
	return fmt.Errorf("not a digest: %q", text)
}

func (s Samples) clone() Samples {
	return Samples{Seen: s.Seen, Some: slices.Clone(s.Some), Last: slices.Clone(s.Last)}
}

// see takes a block that has been copied, or not.
func (s *Samples) see(block Sample) {
	s.Seen++
	if len(s.Some) < mostSamples {
		s.Some = append(s.Some, block)
	} else if i := rand.Int64N(s.Seen); i < mostSamples {
		s.Some[i] = block
	}
	if len(s.Last) == lastSamples {
		s.Last = append(s.Last[:0], s.Last[1:]...)
	}
	s.Last = append(s.Last, block)
}

// Match reads the blocks from what should hold them. The error wraps ErrOtherTarget
// where it does not; a source's it is for the caller to say.
func (s Samples) Match(ctx context.Context, from interface {
	ReadAt(ctx context.Context, p []byte, off int64) error
},
) error {
	buffer := make([]byte, Block)
	for _, sample := range slices.Concat(s.Some, s.Last) {
		if sample.Length < 1 || sample.Length > Block {
			return fmt.Errorf("a sample of %d bytes", sample.Length)
		}
		block := buffer[:sample.Length]
		if err := from.ReadAt(ctx, block, sample.Offset); err != nil {
			return err
		}
		if digest(block) != sample.Digest {
			return fmt.Errorf("%w: %d bytes at %d are not what was copied there", ErrOtherTarget, sample.Length, sample.Offset)
		}
	}
	return nil
}
