package transfer

import (
	"context"
	"fmt"
	"math/bits"
	"sync"
	"sync/atomic"
	"time"
)

// A copier is a copy. Its planner cuts the source into pieces, its workers copy
// them, and who runs it collects what is done, in order.
type copier struct {
	src      Source
	dst      Target
	opt      Options
	minimum  int64 // of the source, and the target's
	written  int64 // the target's minimum
	hole     int64
	chunk    int64 // the most data in a piece
	buffers  sync.Pool
	progress Progress
	saved    Point // the last one that was flushed
	sum      *Sum  // of what is collected
	samples  Samples
	span     atomic.Int64 // how long the next span is, bytes
}

func newCopier(src Source, dst Target, opt Options) (*copier, error) {
	if opt.Workers <= 0 {
		opt.Workers = defaultWorkers
	}
	if opt.Interval <= 0 {
		opt.Interval = defaultInterval
	}
	c := &copier{src: src, dst: dst, opt: opt}
	from, to := src.Limits(), dst.Limits()
	for _, l := range []*Limits{&from, &to} {
		l.Minimum = max(1, l.Minimum)
		if l.Minimum > maxMinimum || bits.OnesCount64(uint64(l.Minimum)) != 1 {
			return nil, fmt.Errorf("a minimum of %d bytes is not a power of two up to %d", l.Minimum, maxMinimum)
		}
	}
	c.minimum, c.written = max(from.Minimum, to.Minimum), to.Minimum
	c.hole = max(defaultHole, to.Hole, c.written)
	if c.hole > Block || bits.OnesCount64(uint64(c.hole)) != 1 {
		return nil, fmt.Errorf("a hole of %d bytes is not a power of two up to %d", c.hole, Block)
	}
	c.chunk = min(max(from.Preferred, to.Preferred, Block), maxPiece) / Block * Block
	c.buffers.New = func() any { p := make([]byte, c.chunk); return &p }
	if opt.From != nil {
		c.saved = *opt.From
		c.opt.TargetIsZero = false
		if c.saved.Offset < 0 || c.saved.Offset > src.Size() || c.saved.Offset%Block != 0 && c.saved.Offset != src.Size() {
			return nil, fmt.Errorf("a copy of %d bytes cannot go on at %d", src.Size(), c.saved.Offset)
		}
	}
	return c, nil
}

func (c *copier) result() Result {
	r := Result{Progress: c.progress}
	if c.sum != nil {
		r.Sum = c.sum.String()
	}
	return r
}

// rewind goes back to the point that was flushed last.
func (c *copier) rewind() error {
	c.progress = Progress{Size: c.src.Size(), Done: c.saved.Offset, Copied: c.saved.Copied, Skipped: c.saved.Skipped}
	c.samples = c.saved.Samples.clone()
	c.sum = nil
	if c.opt.NoSum {
		return nil
	}
	c.sum = NewSum()
	if c.saved.Offset == 0 {
		return nil
	}
	return c.sum.restore(c.saved.Sum)
}

// run copies from the point that was flushed last to the end, and flushes.
func (c *copier) run(ctx context.Context) error {
	if err := c.rewind(); err != nil {
		return err
	}
	c.report()
	if err := c.move(ctx); err != nil {
		return err
	}
	return c.finish(ctx)
}

// move copies all pieces. Nothing that it began is under way when it returns.
func (c *copier) move(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	f := newFlow(c)
	f.start(ctx, cancel)
	err := c.collect(ctx, f)
	cancel(err)
	f.stop()
	return err
}

// finish makes sure of everything.
func (c *copier) finish(ctx context.Context) error {
	if c.progress.Done != c.src.Size() {
		return fmt.Errorf("the map of the source ends at %d", c.progress.Done)
	}
	return c.keep(ctx, c.point())
}

// keep flushes the target, and then has the point kept.
func (c *copier) keep(ctx context.Context, p Point) error {
	if err := c.src.Unchanged(ctx); err != nil {
		return err
	}
	if err := c.dst.Flush(ctx); err != nil {
		return err
	}
	if c.opt.Save != nil {
		if err := c.opt.Save(p); err != nil {
			return fmt.Errorf("keep how far the copy is: %w", err)
		}
	}
	c.saved = p
	return nil
}

// point is how far what is collected goes.
func (c *copier) point() Point {
	p := Point{Offset: c.progress.Done, Copied: c.progress.Copied, Skipped: c.progress.Skipped, Samples: c.samples.clone()}
	if c.sum != nil {
		p.Sum = c.sum.state()
	}
	return p
}

func (c *copier) report() {
	if c.opt.Progress != nil {
		c.opt.Progress(c.progress)
	}
}

// collect takes pieces in whatever order they are finished, and counts them in that
// of the source. The target is flushed meanwhile, at intervals.
func (c *copier) collect(ctx context.Context, f *flow) error {
	due := time.NewTicker(c.opt.Interval)
	defer due.Stop()
	var flushing chan error // nil: it is not
	defer func() {
		if flushing != nil {
			f.abort()
			<-flushing //nolint:errcheck // the copy has failed, whatever it says
		}
	}()
	waiting := map[int64]*piece{}
	done := f.done
	for {
		select {
		case p, ok := <-done:
			if !ok {
				if ctx.Err() != nil {
					return context.Cause(ctx)
				}
				if flushing == nil {
					return f.failure()
				}
				done = nil
				continue
			}
			if p.err != nil {
				return p.err
			}
			waiting[p.off] = p
			for next := waiting[c.progress.Done]; next != nil; next = waiting[c.progress.Done] {
				delete(waiting, c.progress.Done)
				c.count(next)
				if next.slot {
					f.release()
				}
			}
			c.report()
		case <-due.C:
			if flushing == nil && c.progress.Done > c.saved.Offset {
				point, result := c.point(), make(chan error, 1)
				go func() { result <- c.keep(ctx, point) }()
				flushing = result
			}
		case err := <-flushing:
			flushing = nil
			if err != nil {
				return err
			}
			if done == nil {
				return f.failure()
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// count takes a piece into the sums.
func (c *copier) count(p *piece) {
	c.progress.Done += p.n
	c.progress.Copied += p.copied
	c.progress.Skipped += p.n - p.copied
	if c.sum == nil {
		return
	}
	if p.zero() {
		c.sum.zeros(p.n)
		return
	}
	for i, d := range p.digests {
		c.sum.add(d)
		off := p.off + int64(i)*Block
		c.samples.see(Sample{Offset: off, Length: min(Block, p.off+p.n-off), Digest: d})
	}
}
