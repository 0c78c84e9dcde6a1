package service

import (
	"bytes"
	"context"
	"fmt"
	"hash"
	"runtime/debug"
	"sync"

	"github.com/extentd/extentd/storage/block"
)

const (
	// sumBatch is how much one goroutine sums up at a time, bytes, unless a block is
	// larger.
	sumBatch = 1 << 20
	// sumBuffer is what it reads at a time where there is plenty of memory.
	sumBuffer = 256 << 10
	// sumWindow is how much of the map is walked at a time, bytes.
	sumWindow = 1 << 30
	// sumZeros is how many digests of zeros are digested between two looks at the
	// context.
	sumZeros = 4096
)

// A summer computes one checksum of blocks: one goroutine reads the map and plans
// batches, others read and digest them, and who runs it collects the digests in
// order.
type summer struct {
	c      *Checksums
	d      *block.Device
	what   *Checksum
	buffer int // bytes, of each goroutine
	many   int // goroutines that read

	outer    hash.Hash
	zeros    []byte   // the digest of a block of zeros
	repeated []byte   // that, sumZeros times; nil until it is needed
	last     BlockRun // the last one, which may go on; empty: there is none
}

// Blocks are a batch of whole ones, of which the last of the range may be shorter.
type blocks struct {
	off, end int64
	zero     bool   // by the map: nothing is read
	digests  []byte // of its blocks
	zeros    []bool // which of them are zeros
	err      error
	done     chan struct{} // closed when what is above stands; nil: it always did
}

func newSummer(c *Checksums, d *block.Device, what *Checksum) *summer {
	return &summer{c: c, d: d, what: what, buffer: ChecksumLeast, many: 1, outer: newHash(what.Hash)}
}

func (s *summer) run(ctx context.Context) ([]byte, error) {
	if many := cap(s.c.slots); s.what.Memory == nil {
		s.many, s.buffer = many, sumBuffer
	} else if taken := int64(many) * sumBuffer; s.what.Memory.Spare(taken) {
		s.many, s.buffer = many, sumBuffer
		defer s.what.Memory.Put(taken)
	}
	var err error
	if s.zeros, err = s.zeroDigest(ctx, s.what.Block); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	ordered, todo := make(chan *blocks, 2*s.many), make(chan *blocks)
	var planErr error
	var all sync.WaitGroup
	all.Go(func() {
		defer close(ordered)
		defer close(todo)
		planErr = guarded(func() error { return s.plan(ctx, ordered, todo) })
	})
	for range s.many {
		all.Go(func() { s.work(ctx, todo) })
	}
	err = s.collect(ctx, ordered)
	cancel()
	for range ordered {
	}
	all.Wait()
	if err == nil {
		err = planErr
	}
	if err != nil {
		return nil, err
	}
	return s.outer.Sum(nil), nil
}

// guarded returns a panic as an error, as net/http does for its own goroutines.
func guarded(do func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	return do()
}

// zeroDigest is that of n zeros, a block at most.
func (s *summer) zeroDigest(ctx context.Context, n int64) ([]byte, error) {
	if err := s.c.begin(ctx); err != nil {
		return nil, err
	}
	defer s.c.end()
	h, some := newHash(s.what.Hash), make([]byte, min(n, ChecksumLeast))
	for ; n > 0; n -= min(n, ChecksumLeast) {
		_, _ = h.Write(some[:min(n, ChecksumLeast)]) // never fails
	}
	return h.Sum(nil), nil
}

// work reads and digests batches.
func (s *summer) work(ctx context.Context, todo <-chan *blocks) {
	buffer := make([]byte, s.buffer)
	h := newHash(s.what.Hash)
	for b := range todo {
		b.err = guarded(func() error { return s.sum(ctx, b, h, buffer) })
		close(b.done)
	}
}

// sum digests the blocks of a batch.
func (s *summer) sum(ctx context.Context, b *blocks, h hash.Hash, buffer []byte) error {
	if err := s.c.begin(ctx); err != nil {
		return err
	}
	defer s.c.end()
	for off := b.off; off < b.end; {
		end := min(off+s.what.Block, b.end)
		zero := true
		h.Reset()
		for off < end {
			p := buffer[:min(int64(len(buffer)), end-off)]
			if err := s.d.ReadAt(ctx, p, off); err != nil {
				return err
			}
			zero = zero && allZero(p)
			_, _ = h.Write(p) // never fails
			off += int64(len(p))
		}
		b.digests = h.Sum(b.digests)
		b.zeros = append(b.zeros, zero)
	}
	return nil
}

// allZero looks at the first byte, and then compares each with the one before it.
func allZero(p []byte) bool {
	return len(p) == 0 || p[0] == 0 && bytes.Equal(p[1:], p[:len(p)-1])
}
