package service

import (
	"bytes"
	"context"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/block"
)

// plan cuts the range into batches. What is zeros by the map is not read, if that
// is a whole block.
func (s *summer) plan(ctx context.Context, ordered, todo chan<- *blocks) error {
	p := &planner{s: s, ctx: ctx, ordered: ordered, todo: todo, at: s.what.Offset}
	p.from = p.at
	end := s.what.Offset + s.what.Length
	for off := s.what.Offset; off < end; {
		to := min(end, off-off%sumWindow+sumWindow)
		for m, err := range s.d.Walk(ctx, off, to-off, block.WalkOptions{}) {
			if err != nil {
				return err
			}
			if m.Status.Has(storage.Zero) {
				continue
			}
			if err := p.data(m.Offset, m.End()); err != nil {
				return err
			}
		}
		off = to
	}
	return p.finish(end)
}

// A planner has planned everything before from; [from, at) is to be read.
type planner struct {
	s             *summer
	ctx           context.Context // that of one computation
	ordered, todo chan<- *blocks
	from, at      int64
}

// data has the blocks of [off, end) read.
func (p *planner) data(off, end int64) error {
	size := p.s.what.Block
	first := off - (off-p.s.what.Offset)%size
	last := min(end+(size-(end-p.s.what.Offset)%size)%size, p.s.what.Offset+p.s.what.Length)
	if first > p.at { // zeros before it
		if err := p.flush(); err != nil {
			return err
		}
		if err := p.send(&blocks{off: p.at, end: first, zero: true}); err != nil {
			return err
		}
		p.from, p.at = first, first
	}
	p.at = max(p.at, last)
	for most := max(size, sumBatch); p.at-p.from >= most; p.from += most {
		if err := p.send(p.s.batch(p.from, p.from+most)); err != nil {
			return err
		}
	}
	return nil
}

// flush has what is left read.
func (p *planner) flush() error {
	if p.from == p.at {
		return nil
	}
	b := p.s.batch(p.from, p.at)
	p.from = p.at
	return p.send(b)
}

// finish plans the end of the range.
func (p *planner) finish(end int64) error {
	if err := p.flush(); err != nil || p.at == end {
		return err
	}
	return p.send(&blocks{off: p.at, end: end, zero: true})
}

func (s *summer) batch(off, end int64) *blocks {
	return &blocks{off: off, end: end, done: make(chan struct{})}
}

// send passes a batch on: to who collects, and to who reads.
func (p *planner) send(b *blocks) error {
	select {
	case p.ordered <- b:
	case <-p.ctx.Done():
		return p.ctx.Err()
	}
	if b.zero {
		return nil
	}
	select {
	case p.todo <- b:
		return nil
	case <-p.ctx.Done():
		b.err = p.ctx.Err()
		close(b.done)
		return b.err
	}
}

// collect takes the digests in order.
func (s *summer) collect(ctx context.Context, ordered <-chan *blocks) error {
	size := s.what.Block
	for b := range ordered {
		if b.zero {
			if err := s.addZeros(ctx, b.off, b.end); err != nil {
				return err
			}
			continue
		}
		<-b.done
		if b.err != nil {
			return b.err
		}
		n := len(s.zeros)
		for i, zero := range b.zeros {
			off := b.off + int64(i)*size
			if err := s.add(ctx, BlockRun{Offset: off, Length: min(size, b.end-off), Digest: b.digests[i*n : (i+1)*n], Zero: zero}); err != nil {
				return err
			}
		}
	}
	return s.flush(ctx)
}

// addZeros adds what reads as zeros by the map.
func (s *summer) addZeros(ctx context.Context, off, end int64) error {
	whole := (end - off) / s.what.Block * s.what.Block
	if whole > 0 {
		if err := s.add(ctx, BlockRun{Offset: off, Length: whole, Digest: s.zeros, Zero: true}); err != nil {
			return err
		}
	}
	rest := end - off - whole
	if rest == 0 {
		return nil
	}
	digest, err := s.zeroDigest(ctx, rest)
	if err != nil {
		return err
	}
	return s.add(ctx, BlockRun{Offset: off + whole, Length: rest, Digest: digest, Zero: true})
}

// add adds a block, or a run of zeros.
func (s *summer) add(ctx context.Context, r BlockRun) error {
	size := s.what.Block
	if s.last.Zero && r.Zero && s.last.Length%size == 0 && r.Length%size == 0 && s.last.Length > 0 {
		s.last.Length += r.Length
		return nil
	}
	if err := s.flush(ctx); err != nil {
		return err
	}
	s.last = r
	return nil
}

// flush digests the digests of the last run, and tells it.
func (s *summer) flush(ctx context.Context) error {
	if s.last.Length == 0 {
		return nil
	}
	if err := s.digest(ctx, (s.last.Length+s.what.Block-1)/s.what.Block); err != nil {
		return err
	}
	if s.what.Each == nil {
		return nil
	}
	return s.what.Each(s.last)
}

// digest digests the digest of the last run as often as it has blocks.
func (s *summer) digest(ctx context.Context, many int64) error {
	if many == 1 {
		_, _ = s.outer.Write(s.last.Digest) // never fails
		return nil
	}
	if s.repeated == nil {
		s.repeated = bytes.Repeat(s.zeros, sumZeros)
	}
	for n := many; n > 0; n -= min(n, sumZeros) {
		if err := s.c.begin(ctx); err != nil {
			return err
		}
		_, _ = s.outer.Write(s.repeated[:min(n, sumZeros)*int64(len(s.zeros))])
		s.c.end()
	}
	return nil
}
