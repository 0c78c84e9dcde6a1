package block

import (
	"context"
	"errors"
	"math/bits"

	"github.com/extentd/extentd/storage"
)

const (
	// clearBlocks bounds how many blocks a zero or trim locks at a time.
	clearBlocks = 4096
	// clearMost bounds it in bytes where blocks are bytes.
	clearMost = 1 << 30
	// zeroChunk is how many zeros are written at once where a format cannot
	// say zero: the largest block that there is.
	zeroChunk = 2 << 20
)

// Zero makes [off, off+n) read as zeros: whole blocks on the map alone; of a
// part of a block, what does not read as zeros already is written. With keep,
// blocks that are there stay reserved; without, they are freed. Bounds and
// alignment are those of CheckWrite, and n may be as large as the image: it is
// done piece by piece, so that others get their turn, and on an error a
// beginning may have been done.
func (d *Device) Zero(ctx context.Context, off, n int64, keep bool) error {
	if keep {
		return d.clear(ctx, off, n, storage.ToAnchored)
	}
	return d.clear(ctx, off, n, storage.ToZero)
}

// Trim frees the whole blocks in [off, off+n): they read as zeros afterwards,
// never as the backing's bytes. Parts of blocks are left as they are. Otherwise
// it is as Zero. A format that cannot say so (qcow2 version 2 with a backing)
// fails with storage.ErrUnsupported.
func (d *Device) Trim(ctx context.Context, off, n int64) error {
	return d.clear(ctx, off, n, storage.ToUnmapped)
}

func (d *Device) clear(ctx context.Context, off, n int64, kind storage.TargetKind) error {
	if err := d.CheckWrite(ctx, off, n); err != nil {
		return err
	}
	if err := d.claims.check(off, n); err != nil {
		return err
	}
	step, err := d.clearStep(ctx, kind)
	if err != nil {
		return err
	}
	c := d.cursor(true)
	defer c.put()
	c.loose = true // what was as wanted since this call began may be left out
	for end := off + n; off < end; {
		if off, err = d.skip(ctx, c, off, end, kind); err != nil || off == end {
			return err
		}
		stop := min(end, down(off, step)+step)
		if err := d.clearPiece(ctx, off, stop, kind); err != nil {
			return err
		}
		off = stop
	}
	return ctx.Err()
}

// clearStep is how much is done at a time: a multiple of the block.
func (d *Device) clearStep(ctx context.Context, kind storage.TargetKind) (int64, error) {
	l, err := d.allLimits(ctx)
	if err != nil {
		return 0, err
	}
	most := min(l.bound.MaxZero, clearMost)
	if kind == storage.ToUnmapped {
		most = min(l.bound.MaxTrim, clearMost)
	}
	if d.granule.Alloc > 1 {
		most = min(most, clearBlocks*d.granule.Alloc)
	}
	return max(int64(1)<<(bits.Len64(uint64(most))-1), d.granule.Alloc), nil
}

// skip is the first offset from off that is not as wanted yet, end if there is
// none. No lock is held: what others do meanwhile may come before or after.
func (d *Device) skip(ctx context.Context, c *cursor, off, end int64, kind storage.TargetKind) (int64, error) {
	if d.layers[0].direct != nil {
		return off, nil
	}
	for off < end {
		i, err := c.locate(ctx, 0, off, end)
		if err != nil {
			return off, err
		}
		m := c.lists[0].At(i)
		if !d.asWanted(m, kind) {
			break
		}
		off = min(m.End(), end)
	}
	return off, nil
}

// asWanted reports whether the top layer's m needs no update: it is zeros, and
// has storage only where that is to be kept.
func (d *Device) asWanted(m *storage.Mapping, kind storage.TargetKind) bool {
	zero := m.Status.Has(storage.Local | storage.Zero)
	if !m.Status.Has(storage.Local) && len(d.layers) == 1 {
		zero = true
	}
	return zero && (kind == storage.ToAnchored || !m.Status.Has(storage.Alloc))
}

// clearPiece locks and clears [off, end).
func (d *Device) clearPiece(ctx context.Context, off, end int64, kind storage.TargetKind) error {
	lo, hi := d.blocksOf(off, end)
	lock, err := d.locks.Exclude(ctx, lo, hi)
	if err != nil {
		return err
	}
	defer d.locks.Release(lock)
	if err := d.checkNow(off, end-off); err != nil {
		return err
	}
	w := d.writer()
	defer w.put()
	if lo < off {
		lo += d.granule.Alloc
	}
	if hi = max(down(end, d.granule.Alloc), lo); end == d.Size() && lo < end {
		hi = end // the last block may be cut by the size
	}
	if kind == storage.ToUnmapped {
		return w.clear(ctx, lo, hi, kind)
	}
	if err := w.writeZeros(ctx, off, min(lo, end)); err != nil {
		return err
	}
	if err := w.clear(ctx, lo, hi, kind); err != nil {
		return err
	}
	return w.writeZeros(ctx, hi, end)
}

// clear makes whole blocks what the kind says.
func (w *writer) clear(ctx context.Context, lo, hi int64, kind storage.TargetKind) error {
	if lo >= hi {
		return nil
	}
	if w.d.layers[0].direct != nil {
		return w.remap(ctx, lo, hi-lo, storage.Target{Kind: kind}, false)
	}
	if err := w.look(ctx, lo, hi); err != nil {
		return err
	}
	var from, until int64 // blocks to be cleared
	var packed bool
	for i := w.top.Find(lo); i < w.top.Len() && w.top.At(i).Offset < hi; i++ {
		m := w.top.At(i)
		if w.d.asWanted(m, kind) {
			continue
		}
		first, last := w.d.blocksOf(max(m.Offset, lo), min(m.End(), hi))
		if first > until && from < until {
			if err := w.clearRun(ctx, from, until, kind, packed); err != nil {
				return err
			}
			packed = false
		}
		if first > until || from == until {
			from = first
		}
		until = min(last, hi)
		packed = packed || m.Flags&storage.Compressed != 0
	}
	return w.clearRun(ctx, from, until, kind, packed)
}

// clearRun updates a run of blocks, or writes zeros where the format cannot say
// that they are zeros.
func (w *writer) clearRun(ctx context.Context, lo, hi int64, kind storage.TargetKind, packed bool) error {
	if lo >= hi {
		return nil
	}
	err := w.remap(ctx, lo, hi-lo, storage.Target{Kind: kind}, packed)
	if kind != storage.ToUnmapped && errors.Is(err, storage.ErrUnsupported) {
		plain := w.d.writer() // what w has looked at is still in use
		defer plain.put()
		return plain.writeZeros(ctx, lo, hi)
	}
	return err
}

// writeZeros writes zeros where [lo, hi) does not read as zeros. It asks layers
// for holes that are as cheap to read: what is zero below needs no blocks here.
func (w *writer) writeZeros(ctx context.Context, lo, hi int64) error {
	w.c.wide = true
	defer func() { w.c.wide = false }()
	for lo < hi {
		m, err := w.c.resolve(ctx, lo, min(hi, lo+zeroChunk))
		if err != nil {
			return err
		}
		if !m.Status.Has(storage.Zero) {
			if err := w.write(ctx, zeros[:m.Length], m.Offset); err != nil {
				return err
			}
		}
		lo = m.End()
	}
	return nil
}
