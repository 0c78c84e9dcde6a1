package api

import (
	"context"
	"fmt"
	"iter"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/block"
)

const (
	// longestPart bounds a part, bytes: parts of data end at its multiples, so that
	// who holds a part in memory can, and whatever the offset they are the same.
	longestPart = 64 << 20
	// walkWindow is how much of a map is walked at a time, bytes: parts come before
	// all of a large map has been read, and what a walk has read does not get old.
	walkWindow = 1 << 30
	// walkSkip is how far apart two changes are between which a map is not walked.
	walkSkip = 32 << 20
)

// A part is one of an answer: a range of the image that holds data, or that reads
// as zeros by now.
type part struct {
	off, n int64
	zero   bool
}

// A changer tells what has changed since a snapshot. Handles are.
type changer interface {
	Changes(ctx context.Context, since string, off, n int64, visit func(off, n int64, changed bool) error) error
}

// A dirtier tells what a bitmap marks.
type dirtier interface {
	Dirty(ctx context.Context, bitmap string, off, n int64, visit func(off, n int64, dirty bool) error) error
}

// walk gives parts to the joiner. What matters is asked of the metadata alone.
func (q *sparseQuery) walk(ctx context.Context, a *dataAnswer, in byteRange, to *partJoiner) error {
	if in.n == 0 {
		return nil
	}
	m := &mapReader{ctx: ctx, d: a.d, end: in.off + in.n}
	defer m.close()
	if q.since == nil && q.dirty == nil {
		return m.read(in.off, in.off+in.n, func(off, end int64, zero bool) error {
			if zero {
				return nil
			}
			return to.add(off, end, false)
		})
	}
	visit := func(off, n int64, changed bool) error {
		if !changed {
			return nil
		}
		return m.read(off, off+n, to.add)
	}
	if q.since != nil {
		if from, ok := a.from.(changer); ok {
			return from.Changes(ctx, *q.since, in.off, in.n, visit)
		}
	} else if from, ok := a.from.(dirtier); ok {
		return from.Dirty(ctx, *q.dirty, in.off, in.n, visit)
	}
	return fmt.Errorf("%w: it does not know what has changed", storage.ErrUnsupported)
}

// A mapReader reads a map upwards, here and there. It belongs to one goroutine.
type mapReader struct {
	ctx  context.Context // that of one answer
	d    *block.Device
	end  int64 // of what may be asked for
	next func() (storage.Mapping, error, bool)
	stop func()          // of the walk under way; nil: there is none
	last storage.Mapping // where that is
	to   int64           // where it ends
}

// read tells where [off, end) reads as zeros and where it may not. Each range begins
// where the last one ended, or after it.
func (m *mapReader) read(off, end int64, visit func(off, end int64, zero bool) error) error {
	for off < end {
		if m.stop == nil || off >= m.to || off-m.last.End() >= walkSkip {
			m.walk(off)
		}
		for m.last.End() <= off {
			var err error
			var more bool
			if m.last, err, more = m.next(); err != nil {
				return err
			}
			if !more {
				return fmt.Errorf("%w: the map ends at %d", storage.ErrCorrupt, off)
			}
		}
		to := min(end, m.last.End())
		if err := visit(off, to, m.last.Status.Has(storage.Zero)); err != nil {
			return err
		}
		off = to
	}
	return nil
}

// walk begins anew at an offset.
func (m *mapReader) walk(off int64) {
	m.close()
	m.to = min(m.end, off-off%walkWindow+walkWindow)
	m.next, m.stop = iter.Pull2(m.d.Walk(m.ctx, off, m.to-off, block.WalkOptions{}))
	m.last = storage.Mapping{Offset: off}
}

func (m *mapReader) close() {
	if m.stop != nil {
		m.stop()
		m.stop = nil
	}
}

// A partJoiner joins neighbours, cuts what is too long, and sees to it that parts
// begin and end at multiples of the minimum: what is around zeros that do not is
// data.
type partJoiner struct {
	minimum int64 // a power of two
	size    int64 // where the range ends, which parts may always
	zeros   part  // that came last, as they came
	pending part
	visit   func(part) error
}

// add adds [off, end), which begins where the last range ended, or after it.
func (j *partJoiner) add(off, end int64, zero bool) error {
	if z := &j.zeros; zero && z.n > 0 && z.off+z.n == off {
		z.n += end - off
		return nil
	}
	if err := j.addZeros(); err != nil {
		return err
	}
	if zero {
		j.zeros = part{off: off, n: end - off}
		return nil
	}
	return j.join(j.down(off), j.up(end), false)
}

func (j *partJoiner) down(off int64) int64 { return off &^ (j.minimum - 1) }

func (j *partJoiner) up(off int64) int64 { return min(j.down(off+j.minimum-1), max(j.size, off)) }

// addZeros adds the zeros that came last.
func (j *partJoiner) addZeros() error {
	off, end := j.zeros.off, j.zeros.off+j.zeros.n
	if off == end {
		return nil
	}
	j.zeros = part{}
	first, last := j.up(off), end
	if end != j.size {
		last = j.down(end)
	}
	if first >= last { // no whole block of them
		return j.join(j.down(off), j.up(end), false)
	}
	if err := j.join(j.down(off), first, false); err != nil {
		return err
	}
	if err := j.join(first, last, true); err != nil {
		return err
	}
	return j.join(last, j.up(end), false)
}

func (j *partJoiner) join(off, end int64, zero bool) error {
	p := &j.pending
	off = max(off, p.off+p.n)
	if off >= end {
		return nil
	}
	if p.n == 0 || p.zero != zero || off > p.off+p.n {
		if err := j.visitPending(); err != nil {
			return err
		}
		*p = part{off: off, zero: zero}
	}
	p.n = end - p.off
	for !zero {
		n := longestPart - p.off%longestPart
		if p.n < n {
			break
		}
		if err := j.visit(part{off: p.off, n: n}); err != nil {
			return err
		}
		p.off, p.n = p.off+n, p.n-n
	}
	return nil
}

// flush gives away all there is.
func (j *partJoiner) flush() error {
	if err := j.addZeros(); err != nil {
		return err
	}
	return j.visitPending()
}

// visitPending gives away what is joined.
func (j *partJoiner) visitPending() error {
	if j.pending.n == 0 {
		return nil
	}
	p := j.pending
	j.pending = part{off: p.off + p.n}
	return j.visit(p)
}
