package qcow2

import (
	"context"
	"errors"
	"fmt"

	"github.com/extentd/extentd/storage"
)

var _ storage.Resizer = (*Image)(nil)

// Resize sets the virtual size, rounded up to a multiple of 512. What it fails
// with is as in QEMU: a size that no L1 table can map, or a smaller one without
// Shrink, with a *[storage.InvalidError]; version 2 images with snapshots, which
// do not say how large the disk was then, and a size for which its bitmaps would be
// too large, or nothing, with [storage.ErrUnsupported]. An external data file gets
// the same size.
//
// The size is changed by one write of the header: a crash leaves the old one or
// the new one, with all that it covers.
//
//   - Growing: a larger L1 table is complete and durable before the header
//     points to it, and so are the zeros over a backing before the size is there
//     to show them.
//   - Shrinking: the size is durable before what lies beyond it is given back.
//     Where that is cut off, or fails, the clusters stay in use until the image
//     grows over them or shrinks again: what is left beyond the size is freed
//     before the size grows. The size has changed all the same, so that only
//     what takes the image out of service is an error by then.
func (i *Image) Resize(ctx context.Context, size int64, opt storage.ResizeOptions) error {
	if size < 0 || size > storage.MaxSize {
		return fmt.Errorf("qcow2: resize: %w", invalid("size", "is %d, must be 0 to %d", size, storage.MaxSize))
	}
	size = ceilDiv(size, sectorSize) * sectorSize
	if most := int64(maxL1Table / l1EntrySize); ceilDiv(size, 1<<i.tableSpanBits) > most {
		return fmt.Errorf("qcow2: resize: %w",
			invalid("size", "is %d, may be %d with clusters of %d bytes", size, most<<i.tableSpanBits, i.clusterSize()))
	}
	return i.quiesced(ctx, func(w *writer) error {
		r := &resizing{writer: w, old: guestOffset(w.Size()), size: guestOffset(size)}
		if r.old == r.size {
			return nil
		}
		if err := r.check(opt); err != nil {
			return fmt.Errorf("qcow2: resize: %w", err)
		}
		s, err := w.beginSizing(ctx, size)
		if err != nil {
			return fmt.Errorf("qcow2: resize: %w", err)
		}
		if r.size > r.old {
			err = r.grow(ctx, guestOffset(min(opt.Backing, size)))
		} else {
			err = r.shrink(ctx)
		}
		return s.finish(ctx, int64(r.old), err)
	})
}

// A resizing is a resize on its way. The writer's commit and mu are held, and
// nothing is dirty when it begins.
type resizing struct {
	*writer
	old, size guestOffset
}

func (r *resizing) check(opt storage.ResizeOptions) error {
	s := r.state.Load()
	up := guestOffset(r.clusterSize() - 1)
	switch {
	case r.size < r.old && !opt.Shrink:
		return invalid("shrink", "is not set, and the size %d is smaller than %d", r.size, r.old)
	case r.info.Version < 3 && s.header.snapshots > 0:
		return fmt.Errorf("%w: a version 2 image with snapshots", storage.ErrUnsupported)
	case r.info.Version < 3 && r.size > r.old && (r.old+up)&^up < guestOffset(opt.Backing):
		return fmt.Errorf("%w: version 2 has no zero clusters to grow over a backing of %d bytes with", storage.ErrUnsupported, opt.Backing)
	}
	return nil
}

// whole is the first cluster boundary at or after an offset.
func (r *resizing) whole(at guestOffset) guestOffset {
	up := guestOffset(r.clusterSize() - 1)
	return (at + up) &^ up
}

// grow makes the image larger, with zeros up to backed, where the backing ends.
func (r *resizing) grow(ctx context.Context, backed guestOffset) error {
	h := &r.state.Load().header
	mapped := guestOffset(h.l1Size) << r.tableSpanBits // at most 2^61
	from := r.whole(r.old)
	discard := &change{kind: storage.ToUnmapped, at: from, end: min(r.whole(r.size), mapped)}
	if err := r.update(ctx, discard); err != nil {
		return err
	}
	if err := r.growData(ctx); err != nil {
		return err
	}
	if err := r.growL1(ctx); err != nil {
		return err
	}
	if r.info.DataFileRaw { // its map says what the file does, everywhere
		link := &change{kind: storage.ToData, at: from, end: r.whole(r.size)}
		if err := r.update(ctx, link); err != nil {
			return err
		}
	} else if from < backed {
		zero := &change{kind: storage.ToZero, at: from, end: min(r.whole(backed), r.whole(r.size))}
		if err := r.update(ctx, zero); err != nil {
			return err
		}
	}
	return r.setSize(ctx)
}

// update makes a change where there may be no size yet, and durable.
func (r *resizing) update(ctx context.Context, c *change) error {
	e := &r.edit
	for c.at < c.end {
		if err := ctx.Err(); err != nil {
			return errors.Join(err, r.writeBack(ctx))
		}
		e.slices, e.linked, e.freed, e.avail = e.slices[:0], e.linked[:0], e.freed[:0], run{}
		at, err := r.compute(ctx, c, e)
		for _, s := range e.slices {
			if err != nil {
				break
			}
			base := guestOffset(s.key) << r.sliceSpanBits
			var table hostOffset
			table, err = r.writableTable(ctx, base)
			s.at = table + r.sliceInTable(base)
		}
		if err != nil {
			return err
		}
		r.publish(e)
		c.at = at
		if r.full() {
			if err := r.writeBack(ctx); err != nil {
				return err
			}
		}
	}
	return r.writeBack(ctx)
}

// growL1 moves the L1 table to where it has room for the size.
func (r *resizing) growL1(ctx context.Context) error {
	h := r.state.Load().header
	entries := ceilDiv(int64(r.size), 1<<r.tableSpanBits)
	if entries <= int64(h.l1Size) {
		return nil
	}
	clusters := ceilDiv(entries*l1EntrySize, r.clusterSize())
	at, err := r.allocMetadata(ctx, clusters, metaL1)
	if err != nil {
		return err
	}
	from := r.active()
	if err = from.copyL1(ctx, at, clusters, metaL1, 0); err == nil {
		err = r.writeBack(ctx) // its refcounts, and a sync
	}
	if err == nil {
		err = r.sync(ctx)
	}
	if err != nil {
		return errors.Join(err, r.dropMetadata(ctx, at, clusters, metaL1))
	}
	err = r.writeHeaderFields(ctx, func(h *header) {
		h.l1Offset, h.l1Size = uint64(at), uint32(entries)
	})
	if err != nil { // the header does not refer to it, or nothing is written any more
		return errors.Join(err, r.dropMetadata(ctx, at, clusters, metaL1))
	}
	if err := r.sync(ctx); err != nil {
		return err
	}
	r.l1Page.clear() // what follows the old table is in its last page
	if old := ceilDiv(int64(h.l1Size)*l1EntrySize, r.clusterSize()); old > 0 {
		r.freeMetadata(hostOffset(h.l1Offset), old, metaL1)
	}
	return nil
}

// growData makes an external data file larger. What it may have had beyond the
// old size reads as zeros afterwards.
func (r *resizing) growData(ctx context.Context) error {
	if !r.info.HasDataFile {
		return nil
	}
	size, err := r.data.Size(ctx)
	if err == nil && size > int64(r.old) {
		err = r.data.Truncate(ctx, int64(r.old))
	}
	if err == nil {
		err = r.data.Truncate(ctx, int64(r.size))
	}
	if err == nil {
		err = r.data.Flush(context.WithoutCancel(ctx))
	}
	if err != nil {
		return fmt.Errorf("qcow2: external data file: %w", err)
	}
	return nil
}

// setSize changes the size, on disk and for everyone here.
func (r *resizing) setSize(ctx context.Context) error {
	if err := r.writeHeaderFields(ctx, func(h *header) { h.size = uint64(r.size) }); err != nil {
		return err
	}
	return r.sync(ctx)
}

// shrink makes the image smaller, and gives back what lay beyond the new size.
// What of that fails is left behind, unless it took the image out of service: a
// caller told of an error would go on with the old size.
func (r *resizing) shrink(ctx context.Context) error {
	if err := r.setSize(ctx); err != nil {
		return err
	}
	ctx = context.WithoutCancel(ctx)
	if err := r.discard(ctx); err != nil && r.failure.Load() != nil {
		return err
	}
	if r.info.HasDataFile {
		_ = r.data.Truncate(ctx, int64(r.size)) // growData cuts off what is left
	}
	return nil
}

// discard gives back what lies beyond the size, L2 tables too: everything that
// the L1 table has there, since an earlier resize may have left something beyond
// the old size as well.
func (r *resizing) discard(ctx context.Context) error {
	tables := int64(r.state.Load().header.l1Size)
	end := guestOffset(tables) << r.tableSpanBits // at most 2^61
	beyond := &change{kind: storage.ToUnmapped, at: r.whole(r.size), end: end}
	if err := r.update(ctx, beyond); err != nil {
		return err
	}
	span := guestOffset(1) << r.tableSpanBits
	for at := guestOffset(ceilDiv(int64(r.size), int64(span))) * span; at < end; {
		page, err := r.l1At(ctx, at)
		if err != nil {
			return err
		}
		table, err := r.l2Table(page, at)
		if err != nil {
			return r.corrupted(ctx, err)
		}
		if table != 0 {
			if err := r.setL1(ctx, int64(at/span), 0); err != nil {
				return err
			}
			r.free(run{int64(table) >> r.clusterBits, 1}, metaL2)
		}
		if at, err = r.skipTables(ctx, at, end); err != nil {
			return err
		}
	}
	r.l2.clear() // slices of tables that are gone, none of them dirty since update
	return r.writeBack(ctx)
}
