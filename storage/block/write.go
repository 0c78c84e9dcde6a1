package block

import (
	"context"

	"github.com/extentd/extentd/storage"
)

// chunkSize bounds how much of the guest one write locks at a time, bytes.
const chunkSize = 4 << 20

// WriteAt writes p at off. Bounds and alignment are those of CheckWrite, and p
// is not changed or kept. Plain data is overwritten in place; elsewhere blocks
// are reserved, filled with p and with what lies around it, and then mapped: so
// readers see each of those blocks wholly old or wholly new. On an error a
// beginning of p may have been written, in place up to any byte, else up to a
// block; nothing after it, and nothing stays reserved. What a claim covers fails
// with storage.ErrConflict.
func (d *Device) WriteAt(ctx context.Context, p []byte, off int64) error {
	if err := d.CheckWrite(ctx, off, int64(len(p))); err != nil {
		return err
	}
	if err := d.claims.check(off, int64(len(p))); err != nil {
		return err
	}
	step := max(chunkSize, d.granule.Alloc)
	for len(p) > 0 {
		n := min(int64(len(p)), step-off&(step-1))
		if err := d.writeChunk(ctx, p[:n], off); err != nil {
			return err
		}
		p, off = p[n:], off+n
	}
	return nil
}

func (d *Device) writeChunk(ctx context.Context, p []byte, off int64) error {
	done, err := d.overwrite(ctx, p, off)
	if done || err != nil {
		return err
	}
	end := off + int64(len(p))
	lo, hi := d.blocksOf(off, end)
	lock, err := d.locks.Exclude(ctx, lo, hi)
	if err != nil {
		return err
	}
	defer d.locks.Release(lock)
	if err := d.checkNow(off, int64(len(p))); err != nil {
		return err
	}
	w := d.writer()
	defer w.put()
	return w.write(ctx, p, off)
}

// overwrite writes p in place if all of the range can be written so. Where the
// map is the file's own, the file may gain storage by it.
func (d *Device) overwrite(ctx context.Context, p []byte, off int64) (done bool, err error) {
	end := off + int64(len(p))
	lock, err := d.locks.Share(ctx, off, end)
	if err != nil {
		return false, err
	}
	defer d.locks.Release(lock)
	if err := d.checkNow(off, int64(len(p))); err != nil {
		return false, err
	}
	if direct := d.layers[0].direct; direct != nil {
		if node, at, ok := direct.Direct(off, end-off); ok {
			if err := d.record(ctx, off, end-off); err != nil {
				return true, err
			}
			d.change(true)
			defer d.change(true)
			return true, d.writeNode(ctx, node, p, at)
		}
	}
	c := d.cursor(false)
	defer c.put()
	first, err := c.locate(ctx, 0, off, end)
	if err != nil {
		return false, err
	}
	list := &c.lists[0]
	for i := first; i < list.Len() && list.At(i).Offset < end; i++ {
		if !overwritable(list.At(i)) {
			return false, nil
		}
	}
	if err := d.record(ctx, off, end-off); err != nil {
		return true, err
	}
	d.change(d.seen.Load())
	defer func() { d.change(d.seen.Load()) }()
	for i := first; len(p) > 0; {
		m := *list.At(i)
		m.Clip(off, end)
		for i++; i < list.Len() && m.End() < end && follows(&m, list.At(i)); i++ {
			m.Length = min(list.At(i).End(), end) - m.Offset
		}
		if err := d.writeNode(ctx, m.Node, p[:m.Length], m.NodeOffset); err != nil {
			return true, err
		}
		p, off = p[m.Length:], m.End()
	}
	return true, nil
}

// overwritable reports whether data can be written where the top layer's m says.
func overwritable(m *storage.Mapping) bool {
	return m.Status == plain && m.Flags&(storage.Writable|storage.Compressed|storage.Encrypted) == storage.Writable
}

// follows reports whether next's bytes lie right after m's.
func follows(m, next *storage.Mapping) bool {
	return m.Node == next.Node && m.NodeOffset+m.Length == next.NodeOffset
}

// fillable reports whether m has blocks of its own that it does not show.
func fillable(m *storage.Mapping) bool {
	return m.Status.Has(storage.Alloc|storage.OffsetValid) && m.Status != plain &&
		m.Flags&(storage.Writable|storage.Compressed|storage.Encrypted) == storage.Writable
}
