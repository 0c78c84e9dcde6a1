package block

import (
	"context"
	"errors"
	"fmt"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/rangelock"
)

// Resize sets the size in bytes, which a format may round up. What the image
// grows by reads as zeros, whatever the backing has there. Shrinking must be
// asked for (else the error wraps storage.ErrInvalid), and fails with
// storage.ErrConflict where it would cut a claim. Readers see the new size once
// it has succeeded; who reads beyond a smaller one gets an error. It waits for
// all writing, and holds it up. On an error the size is what it was.
func (d *Device) Resize(ctx context.Context, size int64, shrink bool) error {
	if err := d.CheckWrite(ctx, 0, 0); err != nil {
		return err
	}
	if d.resizer == nil {
		return fmt.Errorf("block: %w: this format's images cannot be resized", storage.ErrUnsupported)
	}
	if size < 0 || size > storage.MaxSize {
		return fmt.Errorf("block: %w", &storage.InvalidError{Field: "size", Detail: fmt.Sprintf("is %d, must be from 0 to %d", size, storage.MaxSize)})
	}
	lock, err := d.locks.Exclude(ctx, 0, rangelock.Everything)
	if err != nil {
		return err
	}
	defer d.locks.Release(lock)
	old := d.Size()
	switch {
	case size == old:
		return nil
	case size < old && !shrink:
		return fmt.Errorf("block: %w", &storage.InvalidError{Field: "size", Detail: fmt.Sprintf("is %d, less than %d, and shrink is not set", size, old)})
	case size < old:
		if err := d.claims.check(size, old-size); err != nil {
			return err
		}
	}
	d.change(true)
	defer d.change(true)
	if err := d.resize(ctx, old, size, shrink); err != nil {
		return err
	}
	size = d.layers[0].Size() // a format may round it
	d.size.Store(size)
	if unpacker := d.layers[0].unpacker; unpacker != nil && size < old {
		d.units.drop(size, old-size, unpacker.PackedUnit())
	}
	return nil
}

func (d *Device) resize(ctx context.Context, old, size int64, shrink bool) error {
	opt := storage.ResizeOptions{Shrink: shrink}
	if len(d.layers) > 1 {
		opt.Backing = d.layers[1].size
	}
	if size > old {
		if err := d.sealTail(ctx, old); err != nil {
			return err
		}
	}
	if err := d.resizer.Resize(ctx, size, opt); err != nil || size < old {
		return err
	}
	err := d.clearTail(ctx, old, d.layers[0].Size())
	if err != nil {
		back := storage.ResizeOptions{Shrink: true, Backing: opt.Backing}
		err = errors.Join(err, d.resizer.Resize(context.WithoutCancel(ctx), old, back))
	}
	return err
}

// sealTail sees to it that the rest of the last block reads as zeros once the
// image is longer, and durably so: a crash right after the size has changed must
// not show what was there before the image shrank, or what a longer backing has.
func (d *Device) sealTail(ctx context.Context, old int64) error {
	lo, hi := d.blocksOf(old, old)
	if lo == hi || d.granule.Fixed {
		return nil
	}
	w := d.writer()
	defer w.put()
	if err := w.look(ctx, lo, old); err != nil {
		return err
	}
	switch m := *w.at(old - 1); {
	case m.Status.Has(storage.Local | storage.Zero):
		return nil
	case overwritable(&m):
		if err := w.zeroNode(ctx, &m, old, hi); err != nil {
			return err
		}
	case !m.Status.Has(storage.Local) && (len(d.layers) == 1 || d.layers[1].size <= old):
		return nil
	default: // a block of its own, which is filled up with zeros
		l, err := d.allLimits(ctx)
		if err != nil {
			return err
		}
		last := make([]byte, old-max(down(old-1, l.bound.Minimum), lo))
		if _, err := w.around(ctx, last, old-int64(len(last))); err != nil {
			return err
		}
		if err := w.write(ctx, last, old-int64(len(last))); err != nil {
			return err
		}
	}
	return d.mapper.Flush(ctx)
}

// zeroNode writes zeros to what belongs to m's block behind its end at the size.
func (w *writer) zeroNode(ctx context.Context, m *storage.Mapping, from, to int64) error {
	l, err := m.Node.Limits(ctx)
	if err != nil {
		return err
	}
	at := m.NodeOffset - m.Offset
	for from = up(from, l.Minimum); from < to; {
		n := min(to-from, zeroChunk)
		if err := w.d.writeNode(ctx, m.Node, zeros[:n], at+from); err != nil {
			return err
		}
		from += n
	}
	return nil
}

// clearTail zeros what was the rest of the last block, up to the new size: with
// subclusters, those behind the one that the size was in may still show a longer
// backing.
func (d *Device) clearTail(ctx context.Context, old, size int64) error {
	end := min(up(old, d.granule.Alloc), size)
	if old == end {
		return nil
	}
	w := d.writer()
	defer w.put()
	w.c.size = size
	return w.writeZeros(ctx, old, end)
}
