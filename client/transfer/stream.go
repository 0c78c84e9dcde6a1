package transfer

import (
	"context"
	"fmt"
	"io"
)

// A Streamer is a source that hands out what a range consists of together with its
// data, so that there is no map to be asked for beforehand.
type Streamer interface {
	Source
	// Streaming says whether that is so, and of what.
	Streaming() Streaming
	// Parts calls visit for the parts of [off, off+n), in order and disjoint. r has the
	// bytes of one of data, as long as visit has not returned; what visit leaves is
	// skipped.
	Parts(ctx context.Context, off, n int64, visit func(e Extent, r io.Reader) error) error
}

// Streaming is what parts are of.
type Streaming int

const (
	// NotStreaming: Parts must not be called.
	NotStreaming Streaming = iota
	// OfData: what is in no part is zeros.
	OfData
	// OfChanges: what is in no part is on the target already.
	OfChanges
)

// Bounds of a span, bytes: what one request of a streamed source is for.
const (
	leastSpan = 16 << 20
	mostSpan  = 16 << 30
)

// streamed is the source as one that streams; nil if it does not.
func (c *copier) streamed() Streamer {
	if s, ok := c.src.(Streamer); ok && s.Streaming() != NotStreaming {
		return s
	}
	return nil
}

// planSpans cuts the source into spans: the sparser it is, the longer.
func (c *copier) planSpans(from int64, send func(*piece) bool) {
	c.span.Store(leastSpan)
	for at, size := from, c.src.Size(); at < size; {
		n := min(c.span.Load()-at%leastSpan, size-at)
		if !send(&piece{off: at, n: n, span: true}) {
			return
		}
		at += n
	}
}

// learn makes spans longer where they hold little, and shorter where they hold much.
func (c *copier) learn(n, data int64) {
	switch span := c.span.Load(); {
	case data < n/8 && n >= span/2:
		c.span.CompareAndSwap(span, min(2*span, mostSpan))
	case data > leastSpan:
		c.span.CompareAndSwap(span, max(span/2, leastSpan))
	}
}

// stream copies a span, and emits it as pieces when they are written.
func (c *copier) stream(ctx context.Context, span *piece, emit func(*piece) error) error {
	from := c.streamed()
	buffer := c.buffers.Get().(*[]byte)
	defer c.buffers.Put(buffer)
	s := &streamer{c: c, ctx: ctx, buffer: *buffer, off: span.off, end: span.off + span.n, seen: span.off, emit: emit}
	take := s.part
	if from.Streaming() == OfChanges {
		take = s.change
	}
	err := from.Parts(ctx, span.off, span.n, func(e Extent, r io.Reader) error {
		if e.Offset < s.seen || e.Length <= 0 || e.Length > s.end-e.Offset {
			return fmt.Errorf("the source has a part of %d bytes at %d, where %d comes next", e.Length, e.Offset, s.seen)
		}
		s.seen = e.Offset + e.Length
		return take(e, r)
	})
	if err != nil {
		return err
	}
	if from.Streaming() == OfChanges {
		err = s.skip(s.end)
	} else if err = s.zeros(s.end); err == nil {
		err = s.flush()
	}
	c.learn(span.n, s.data)
	return err
}

// A streamer gathers what comes, up to the size of a piece: whole blocks. It belongs
// to one goroutine.
type streamer struct {
	c      *copier
	ctx    context.Context // of one span
	buffer []byte
	off, n int64 // what is gathered, in the image; everything before has been emitted
	end    int64 // of the span
	seen   int64 // where the last part ended
	data   int64 // that came
	emit   func(*piece) error
}

// part takes what comes next: what is before it is zeros.
func (s *streamer) part(e Extent, r io.Reader) error {
	if err := s.zeros(e.Offset); err != nil {
		return err
	}
	if e.Zero {
		return s.zeros(e.Offset + e.Length)
	}
	s.data += e.Length
	for left := e.Length; left > 0; {
		n := min(left, int64(len(s.buffer))-s.n)
		if _, err := io.ReadFull(r, s.buffer[s.n:s.n+n]); err != nil {
			return err
		}
		s.n, left = s.n+n, left-n
		if err := s.full(); err != nil {
			return err
		}
	}
	return nil
}

// zeros takes zeros up to an offset. Whole blocks of them are pieces of their own.
func (s *streamer) zeros(to int64) error {
	for at := s.off + s.n; at < to; at = s.off + s.n {
		if n := (to - at) / Block * Block; at%Block == 0 && n > 0 {
			if err := s.flush(); err != nil {
				return err
			}
			if err := s.zeroPiece(min(n, s.c.mostZeros())); err != nil {
				return err
			}
			continue
		}
		n := min(to, (at+Block)/Block*Block) - at
		clear(s.buffer[s.n : s.n+n])
		s.n += n
		if err := s.full(); err != nil {
			return err
		}
	}
	return nil
}

func (s *streamer) zeroPiece(n int64) error {
	if err := s.c.zero(s.ctx, s.off, n); err != nil {
		return err
	}
	return s.done(&piece{off: s.off, n: n})
}

// full writes what is gathered if there is no room left.
func (s *streamer) full() error {
	if s.n < int64(len(s.buffer)) {
		return nil
	}
	return s.flush()
}

// flush writes what is gathered.
func (s *streamer) flush() error {
	if s.n == 0 {
		return nil
	}
	p := &piece{off: s.off, n: s.n, runs: []run{{s.off, s.n}}}
	data := s.buffer[:s.n]
	if !s.c.opt.NoSum {
		p.digests = digests(data)
	}
	s.n = 0
	if err := s.c.write(s.ctx, p, data, s.buffer); err != nil {
		return err
	}
	return s.done(p)
}

// done passes a piece on that is on the target.
func (s *streamer) done(p *piece) error {
	s.off = p.off + p.n
	p.slot = s.off == s.end
	return s.emit(p)
}

// change takes what has changed: what is before it is on the target already. What is
// not a multiple of the minimum is read anew together with what is around it.
func (s *streamer) change(e Extent, r io.Reader) error {
	mask := s.c.minimum - 1
	from, to := e.Offset&^mask, min((e.Offset+e.Length+mask)&^mask, s.c.src.Size())
	whole := from == e.Offset && to == e.Offset+e.Length
	from, to = max(from, s.off), min(to, s.end) // what is before was read with the last one
	if err := s.skip(from); err != nil {
		return err
	}
	if e.Zero && whole {
		n := e.Length
		if rest := (from + n) & (s.c.written - 1); rest != 0 {
			n += min(s.c.written-rest, s.c.dst.Size()-from-n)
		}
		if err := s.c.dst.Zero(s.ctx, from, n); err != nil {
			return err
		}
		return s.done(&piece{off: from, n: e.Length})
	}
	for s.off < to {
		data := s.buffer[:min(int64(len(s.buffer)), to-s.off)]
		var err error
		if whole {
			_, err = io.ReadFull(r, data)
		} else {
			err = s.c.src.ReadAt(s.ctx, data, s.off)
		}
		if err != nil {
			return err
		}
		s.data, s.n = s.data+int64(len(data)), int64(len(data))
		if err := s.flush(); err != nil {
			return err
		}
	}
	return nil
}

// skip leaves the target as it is up to an offset.
func (s *streamer) skip(to int64) error {
	if to <= s.off {
		return nil
	}
	return s.done(&piece{off: s.off, n: to - s.off})
}
