package transfer

import (
	"bytes"
	"context"
	"crypto/sha256"
)

// gap is the most zeros between two runs of data that are rather read than left
// out, where reading costs a request each.
const gap = 64 << 10

// copy copies a piece.
func (c *copier) copy(ctx context.Context, p *piece) error {
	if p.zero() {
		return c.zero(ctx, p.off, p.n)
	}
	buffer := c.buffers.Get().(*[]byte)
	defer c.buffers.Put(buffer)
	data := (*buffer)[:p.n]
	if err := c.read(ctx, p, data); err != nil {
		return err
	}
	if !c.opt.NoSum {
		p.digests = digests(data)
	}
	return c.write(ctx, p, data, *buffer)
}

// read fills data with what the piece is: its runs, and zeros between.
func (c *copier) read(ctx context.Context, p *piece, data []byte) error {
	filled := int64(0)
	for i := 0; i < len(p.runs); {
		from, to := c.outward(p, p.runs[i])
		for i++; i < len(p.runs); i++ {
			next, end := c.outward(p, p.runs[i])
			if next-to > gap {
				break
			}
			to = end
		}
		clear(data[filled:from])
		if err := c.src.ReadAt(ctx, data[from:to], p.off+from); err != nil {
			return err
		}
		filled = to
	}
	clear(data[filled:])
	return nil
}

// outward is a run relative to its piece, at multiples of the source's minimum.
func (c *copier) outward(p *piece, r run) (from, to int64) {
	from, to = r.off-p.off, r.off-p.off+r.n
	return from &^ (c.minimum - 1), min((to+c.minimum-1)&^(c.minimum-1), p.n)
}

// write writes data, but for runs of zeros. The buffer behind data is the piece's.
func (c *copier) write(ctx context.Context, p *piece, data, buffer []byte) error {
	for at := int64(0); at < p.n; {
		zero, end := c.sameFrom(data, at)
		n := end - at
		if zero {
			if err := c.zero(ctx, p.off+at, n); err != nil {
				return err
			}
			at = end
			continue
		}
		p.copied += n
		out := data[at:end]
		if rest := n & (c.written - 1); rest != 0 { // the end of the source
			pad := min(c.written-rest, c.dst.Size()-p.off-end)
			clear(buffer[end : end+pad])
			out = buffer[at : end+pad]
		}
		if err := c.dst.WriteAt(ctx, out, p.off+at); err != nil {
			return err
		}
		at = end
	}
	return nil
}

// sameFrom is where the run of zeros, or of what is none, ends that begins at an
// offset. Both come in multiples of the hole.
func (c *copier) sameFrom(data []byte, at int64) (zero bool, end int64) {
	size := int64(len(data))
	end = min(at+c.hole, size)
	zero = isZero(data[at:end])
	for end < size {
		next := min(end+c.hole, size)
		if isZero(data[end:next]) != zero {
			break
		}
		end = next
	}
	return zero, end
}

// zero makes a range of the target read as zeros, if it may not.
func (c *copier) zero(ctx context.Context, off, n int64) error {
	if c.opt.TargetIsZero {
		return nil
	}
	if rest := (off + n) & (c.written - 1); rest != 0 {
		n += min(c.written-rest, c.dst.Size()-off-n)
	}
	return c.dst.Zero(ctx, off, n)
}

var (
	zeroBlock  = make([]byte, Block)
	zeroDigest = sha256.Sum256(zeroBlock) //nolint:gochecknoglobals // it is a constant
)

// isZero compares with zeros: a first look decides most of what is none.
func isZero(p []byte) bool {
	return len(p) == 0 || p[0] == 0 && bytes.Equal(p, zeroBlock[:len(p)])
}

// digests are those of the blocks of data.
func digests(data []byte) [][32]byte {
	all := make([][32]byte, 0, (len(data)+Block-1)/Block)
	for len(data) > 0 {
		n := min(Block, len(data))
		all = append(all, digest(data[:n]))
		data = data[n:]
	}
	return all
}

func digest(block []byte) [32]byte {
	if len(block) == Block && isZero(block) {
		return zeroDigest
	}
	return sha256.Sum256(block)
}
