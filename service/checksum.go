package service

import (
	"context"
	"crypto/sha256"
	"fmt"
	"hash"
	"io"
	"runtime"

	"lukechampine.com/blake3"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/block"
)

// Bounds of a block of a checksum, bytes, and its size if nobody says.
const (
	LeastChecksumBlock   = 64 << 10
	MostChecksumBlock    = 64 << 20
	DefaultChecksumBlock = 1 << 20
)

// Checksums computes checksums of images, together with a bounded number of
// processors. It is safe for concurrent use.
type Checksums struct{ slots chan struct{} }

// NewChecksums returns one that uses as many processors as given, or all if that is
// 0.
func NewChecksums(processors int) *Checksums {
	if processors <= 0 {
		processors = runtime.GOMAXPROCS(0)
	}
	return &Checksums{slots: make(chan struct{}, processors)}
}

// begin waits for a processor; who got one calls end.
func (c *Checksums) begin(ctx context.Context) error {
	select {
	case c.slots <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (c *Checksums) end() { <-c.slots }

// A Checksum says what is to be computed.
type Checksum struct {
	// Hash is "sha256" or "blake3".
	Hash string
	// Block is the size of the blocks whose digests are digested, a power of two in
	// the bounds. Default: 0, the digest of all bytes.
	Block int64
	// Offset and Length are the range. Blocks begin at the offset.
	Offset, Length int64
	// Memory bounds the buffers. The caller has taken ChecksumLeast of it. Default:
	// nothing does.
	Memory block.Memory
	// Each is told the digests of the blocks, in order. Its error ends the
	// computation. Default: nobody is. The run is good until it returns.
	Each func(BlockRun) error
}

// A BlockRun is a block with its digest, or a run of blocks of zeros that have the
// same.
type BlockRun struct {
	Offset, Length int64
	Digest         []byte
	Zero           bool
}

// ChecksumLeast is what a computation takes of memory at least, bytes.
const ChecksumLeast = 64 << 10

// newHash returns nil for an unknown name.
func newHash(name string) hash.Hash {
	switch name {
	case "sha256":
		return sha256.New()
	case "blake3":
		return blake3.New(32, nil)
	}
	return nil
}

// Compute returns the checksum of what a device reads as. It does not hold up who
// writes meanwhile, which may be in it or not. Ranges in bounds and alignment are
// those of Device.ReadAt.
func (c *Checksums) Compute(ctx context.Context, d *block.Device, what Checksum) ([]byte, error) {
	if newHash(what.Hash) == nil {
		return nil, &storage.InvalidError{Field: "algorithm", Detail: "there is no such algorithm"}
	}
	if b := what.Block; b != 0 && (b < LeastChecksumBlock || b > MostChecksumBlock || b&(b-1) != 0) {
		return nil, &storage.InvalidError{Field: "block_size", Detail: fmt.Sprintf("must be a power of two from %d to %d", LeastChecksumBlock, MostChecksumBlock)}
	}
	if err := d.Check(ctx, what.Offset, what.Length); err != nil {
		return nil, err
	}
	if what.Block == 0 {
		return c.plain(ctx, d, &what)
	}
	return newSummer(c, d, &what).run(ctx)
}

// plain digests all bytes, one after the other.
func (c *Checksums) plain(ctx context.Context, d *block.Device, what *Checksum) ([]byte, error) {
	stream, err := d.StreamWithin(ctx, what.Offset, what.Length, what.Memory)
	if err != nil {
		return nil, err
	}
	defer stream.Close() //nolint:errcheck // of reading, there is nothing left to fail
	h := &slotted{Hash: newHash(what.Hash), c: c, ctx: ctx}
	n, err := stream.WriteTo(h)
	if err == nil && n != what.Length {
		err = fmt.Errorf("%w: %d of %d bytes at %d", io.ErrUnexpectedEOF, n, what.Length, what.Offset)
	}
	if err != nil {
		return nil, err
	}
	return h.Sum(nil), nil
}

// A slotted hash takes a processor while it computes.
type slotted struct {
	hash.Hash
	c   *Checksums
	ctx context.Context // io.Writer has no room for one
}

func (s *slotted) Write(p []byte) (int, error) {
	if err := s.c.begin(s.ctx); err != nil {
		return 0, err
	}
	defer s.c.end()
	return s.Hash.Write(p)
}
