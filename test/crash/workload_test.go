package crash_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"

	"github.com/extentd/extentd/storage"
)

// A worker does things to a disk at random, and notes them.
type worker struct {
	kind    *kind
	disk    *disk
	history *history
	random  *rand.Rand
	at      func() int // position of the journal
	lo, hi  int64      // what is the worker's alone; its end moves with the size, if it is the only one
	stamp   uint64
	log     []string
}

func (w *worker) note(format string, args ...any) {
	w.log = append(w.log, fmt.Sprintf("%5d ", w.at())+fmt.Sprintf(format, args...))
}

// stamped are sectors that say what they are.
func (w *worker) stamped(off, length int64) []byte {
	w.stamp++
	p := make([]byte, length)
	for at := int64(0); at < length; at += 16 {
		binary.BigEndian.PutUint64(p[at:], uint64(off+at/sector*sector))
		binary.BigEndian.PutUint64(p[at+8:], w.stamp)
	}
	return p
}

// step does one thing. What fails may have been done in part.
func (w *worker) step(ctx context.Context) error {
	total := 0
	for _, n := range w.kind.weights {
		total += n
	}
	pick := w.random.IntN(total)
	for i, do := range []func(context.Context) error{w.write, w.zero, w.trim, w.flush, w.allocate, w.resize} {
		if pick -= w.kind.weights[i]; pick < 0 {
			return do(ctx)
		}
	}
	return nil
}

// somewhere is a range of whole units.
func (w *worker) somewhere(unit, most int64) (off, length int64) {
	off = w.lo + w.random.Int64N((w.hi-w.lo)/unit)*unit
	length = unit * (1 + w.random.Int64N(max(1, most/unit)))
	return off, min(length, w.hi-off)
}

func (w *worker) write(ctx context.Context) error {
	off, length := w.somewhere(sector, w.kind.most)
	if w.random.IntN(3) == 0 {
		off, length = w.somewhere(w.kind.cluster, w.kind.most)
	}
	p := w.stamped(off, length)
	w.note("write %d %d", off, length)
	c := w.history.begin(w.at(), off, length, p)
	if err := w.disk.WriteAt(ctx, p, off); err != nil {
		return err
	}
	w.history.answered(c)
	return nil
}

func (w *worker) zero(ctx context.Context) error {
	off, length := w.somewhere(sector, 3*w.kind.most)
	keep := w.random.IntN(2) == 0
	w.note("zero %d %d keep=%v", off, length, keep)
	c := w.history.begin(w.at(), off, length, nil)
	if err := w.disk.Zero(ctx, off, length, keep); err != nil {
		return err
	}
	w.history.answered(c)
	return nil
}

// trim discards whole clusters, which read as zeros then.
func (w *worker) trim(ctx context.Context) error {
	off, length := w.somewhere(w.kind.cluster, 3*w.kind.most)
	length -= length % w.kind.cluster
	if length == 0 {
		return nil
	}
	w.note("trim %d %d", off, length)
	c := w.history.begin(w.at(), off, length, nil)
	if err := w.disk.Trim(ctx, off, length); err != nil {
		return err
	}
	w.history.answered(c)
	return nil
}

func (w *worker) flush(ctx context.Context) error {
	w.note("flush")
	called := w.history.now()
	if err := w.disk.Flush(ctx); err != nil {
		return err
	}
	w.history.flushed(called, w.at())
	return nil
}

// allocate reserves blocks, fills them and maps a part.
func (w *worker) allocate(ctx context.Context) error {
	off, length := w.somewhere(w.kind.cluster, w.kind.most)
	if length -= length % w.kind.cluster; length == 0 {
		return nil
	}
	w.note("allocate %d", length)
	b, err := w.disk.Alloc(ctx, length, storage.AllocOptions{Contiguous: w.random.IntN(2) == 0})
	if err != nil {
		return err
	}
	p := w.stamped(off, b.Length)
	if err := w.disk.FillBlocks(ctx, b, p, 0); err != nil {
		return errors.Join(err, w.disk.Free(ctx, b))
	}
	use := min(length, b.Length)
	if w.random.IntN(3) == 0 {
		use = w.kind.cluster
	}
	w.note("map %d %d at %d", off, use, b.Offset)
	c := w.history.begin(w.at(), off, use, p[:use])
	if err := w.disk.Update(ctx, off, use, storage.Target{Kind: storage.ToData, Node: b.Node, NodeOffset: b.Offset}); err != nil {
		return errors.Join(err, w.freeEach(ctx, b))
	}
	w.history.answered(c)
	if rest := b.Length - use; rest > 0 {
		b.Offset, b.Length = b.Offset+use, rest
		return w.disk.Free(ctx, b)
	}
	return nil
}

// freeEach gives back what an update that failed has not mapped.
func (w *worker) freeEach(ctx context.Context, b storage.Blocks) error {
	for end := b.Offset + b.Length; b.Offset < end; b.Offset += w.kind.cluster {
		b.Length = w.kind.cluster
		if err := w.disk.Free(ctx, b); err != nil && !errors.Is(err, storage.ErrConflict) {
			return err
		}
	}
	return nil
}

func (w *worker) resize(ctx context.Context) error {
	size := w.kind.size/2 + w.random.Int64N(w.kind.resizes/sector)*sector
	from := w.disk.Size()
	w.note("resize %d to %d", from, size)
	zeroed, sized := w.history.resizing(w.at(), from, size)
	w.hi = min(from, size) // what lies beyond may be gone even if it fails
	if err := w.disk.Resize(ctx, size, true); err != nil {
		return err
	}
	w.hi = size
	w.history.answered(zeroed, sized)
	return nil
}
