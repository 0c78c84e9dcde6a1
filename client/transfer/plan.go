package transfer

import (
	"context"
	"fmt"
)

// mostZeros bounds a piece of zeros that must be written, bytes.
const mostZeros = 1 << 30

// A piece is a part of the source that one worker copies: whole blocks. One without
// runs is zeros, and may be of any length.
type piece struct {
	off, n int64
	span   bool  // it is to be streamed, as pieces
	slot   bool  // it gives back the slot of what was planned
	runs   []run // data, in order, disjoint

	copied  int64      // what was written as data
	digests [][32]byte // of the blocks of one with runs
	err     error
}

// A run is data; its offset is that in the image.
type run struct{ off, n int64 }

func (p *piece) zero() bool { return len(p.runs) == 0 }

// add extends the piece by what an extent says.
func (p *piece) add(n int64, zero bool) {
	if !zero {
		if last := len(p.runs) - 1; last >= 0 && p.runs[last].off+p.runs[last].n == p.off+p.n {
			p.runs[last].n += n
		} else {
			p.runs = append(p.runs, run{p.off + p.n, n})
		}
	}
	p.n += n
}

// plan cuts the source from an offset on, a multiple of the block, into pieces.
func (c *copier) plan(ctx context.Context, from int64, send func(*piece) bool) error {
	size := c.src.Size()
	if from == size {
		return nil
	}
	if c.streamed() != nil {
		c.planSpans(from, send)
		return nil
	}
	at, p := from, &piece{off: from}
	flush := func() bool {
		if p.n == 0 {
			return true
		}
		full := p
		full.slot = true
		p = &piece{off: at}
		return send(full)
	}
	for e, err := range c.src.Extents(ctx, from, size-from) {
		if err != nil {
			return err
		}
		if e.Offset != at || e.Length <= 0 || e.Length > size-at {
			return fmt.Errorf("the map of the source has %d bytes at %d, where %d comes next", e.Length, e.Offset, at)
		}
		for end := at + e.Length; at < end; {
			n := min(end-at, c.room(p, at, end, e.Zero))
			if n == 0 {
				if !flush() {
					return nil
				}
				continue
			}
			p.add(n, e.Zero)
			at += n
		}
	}
	if at != size {
		return fmt.Errorf("the map of the source ends at %d", at)
	}
	flush()
	return nil
}

// room is how much of what begins at an offset the piece takes; 0: it is full, and
// the offset begins a block.
func (c *copier) room(p *piece, at, end int64, zero bool) int64 {
	if at%Block != 0 {
		return (at+Block)/Block*Block - at
	}
	whole := zero && end-at >= Block // zeros that need no look at their blocks
	switch {
	case p.n == 0 && whole:
		return min((end-at)/Block*Block, c.mostZeros())
	case p.n == 0:
		return Block
	case p.zero():
		if whole && p.n < c.mostZeros() {
			return min((end-at)/Block*Block, c.mostZeros()-p.n)
		}
		return 0
	case whole || p.n >= c.chunk:
		return 0
	}
	return Block
}

func (c *copier) mostZeros() int64 {
	if c.opt.TargetIsZero {
		return 1 << 62
	}
	return mostZeros
}
