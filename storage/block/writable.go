package block

import (
	"context"
	"fmt"

	"github.com/extentd/extentd/storage"
)

// StartWriting makes the device writable: from here on nothing is handed out as
// a range of a file, and what readers have found is good only as long as they
// hold a pin. The top layer, and the files below it, must have been made
// writable before. It fails with storage.ErrReadOnly where the top layer is no
// storage.WritableMapper. It may be called again.
func (d *Device) StartWriting(ctx context.Context) error {
	d.startMu.Lock()
	defer d.startMu.Unlock()
	if d.Writable() {
		return nil
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if d.mapper == nil {
		return fmt.Errorf("block: %w: the top layer's format cannot be written", storage.ErrReadOnly)
	}
	u := d.mapper.Units()
	if u.Alloc < 1 || u.Data < 1 || u.Alloc&(u.Alloc-1) != 0 || u.Data&(u.Data-1) != 0 || u.Data > u.Alloc || u.Alloc > storage.MaxSize {
		return fmt.Errorf("block: %w: units of %d and %d bytes", storage.ErrContract, u.Alloc, u.Data)
	}
	d.granule = u
	d.writable.Store(true)
	return nil
}

// Writable reports whether the device has been made writable.
func (d *Device) Writable() bool { return d.writable.Load() }

// moves reports whether what was found without a pin may be something else by now.
func (d *Device) moves() bool { return d.moving || d.Writable() }

// Units are the granularities of the top layer's map; zero where it cannot be
// written to.
func (d *Device) Units() storage.Units {
	if d.mapper == nil {
		return storage.Units{}
	}
	return d.mapper.Units()
}

// CheckWrite reports whether [off, off+n) may be written: of a device that is
// writable (else the error wraps storage.ErrReadOnly), inside the size, a
// multiple of the minimum but for the image's end, and of an image that is not
// encrypted. Nothing below is asked.
func (d *Device) CheckWrite(ctx context.Context, off, n int64) error {
	if !d.Writable() {
		return fmt.Errorf("block: %w", storage.ErrReadOnly)
	}
	return d.check(ctx, "writing", off, n)
}

// Flush makes everything that was written before it durable. Where nothing can
// have been written, there is nothing to do.
func (d *Device) Flush(ctx context.Context) error {
	if !d.Writable() {
		return ctx.Err()
	}
	return d.mapper.Flush(ctx)
}

// checkReserving reports whether blocks can be reserved and mapped by hand.
func (d *Device) checkReserving() error {
	switch {
	case !d.Writable():
		return fmt.Errorf("block: %w", storage.ErrReadOnly)
	case d.cipher != "":
		return fmt.Errorf("block: %w: writing an image that is encrypted (%s)", storage.ErrUnsupported, d.cipher)
	case d.granule.Fixed:
		return fmt.Errorf("block: %w: blocks of this image have their place, and cannot be reserved or mapped elsewhere", storage.ErrUnsupported)
	}
	return nil
}

// Alloc reserves blocks of the top layer, as [storage.WritableMapper] does, to
// be filled with FillBlocks, and mapped with Update or given back with Free. It
// fails with storage.ErrUnsupported where guest offsets are node offsets.
func (d *Device) Alloc(ctx context.Context, n int64, opt storage.AllocOptions) (storage.Blocks, error) {
	if err := d.checkReserving(); err != nil {
		return storage.Blocks{}, err
	}
	if n <= 0 || n > storage.MaxSize {
		return storage.Blocks{}, fmt.Errorf("block: %w: a reservation of %d bytes", storage.ErrOutOfRange, n)
	}
	return d.mapper.Alloc(ctx, n, opt)
}

// Free gives back blocks that Alloc reserved and Update has not mapped.
func (d *Device) Free(ctx context.Context, b storage.Blocks) error {
	if err := d.checkReserving(); err != nil {
		return err
	}
	return d.mapper.Free(ctx, b)
}

// FillBlocks writes p into reserved blocks, at bytes from their beginning. The
// caller sees to it that they stay reserved until it returns.
func (d *Device) FillBlocks(ctx context.Context, b storage.Blocks, p []byte, at int64) error {
	if err := d.checkReserving(); err != nil {
		return err
	}
	if err := storage.CheckRange(at, int64(len(p)), b.Length); err != nil {
		return fmt.Errorf("block: reserved blocks: %w", err)
	}
	l, err := d.allLimits(ctx)
	if err != nil {
		return err
	}
	if err := l.bound.CheckAlignment(at, int64(len(p)), -1); err != nil {
		return err
	}
	return d.writeNode(ctx, b.Node, p, b.Offset+at)
}

// writeNode writes p into a node, in place or into reserved blocks, after the
// top layer has agreed.
func (d *Device) writeNode(ctx context.Context, node *storage.Node, p []byte, at int64) error {
	if len(p) == 0 {
		return nil
	}
	l, err := node.Limits(ctx)
	if err != nil {
		return err
	}
	if short := int64(len(p)) & (l.Minimum - 1); short != 0 && d.layers[0].direct == nil {
		// The image ends here, and its last block does not: what lies beyond
		// is the block's, and zeros.
		p = append(make([]byte, 0, int64(len(p))+l.Minimum-short), p...)
		p = p[:cap(p)]
	}
	if err := d.mapper.CheckWrite(ctx, node, at, int64(len(p))); err != nil {
		return err
	}
	for len(p) > 0 {
		n := min(int64(len(p)), l.MaxData)
		if _, err := node.WriteAt(ctx, p[:n], at); err != nil {
			return err
		}
		p, at = p[n:], at+n
	}
	return nil
}

// record tells the top layer that [off, off+n) is about to read otherwise. It is
// called with the range locked, before anything of it is written.
func (d *Device) record(ctx context.Context, off, n int64) error {
	if d.recorder == nil {
		return nil
	}
	return d.recorder.Record(ctx, off, n)
}

// change tells that something is about to change, or has changed.
func (d *Device) change(mapping bool) {
	if d.changing != nil {
		d.changing(mapping)
	}
}

// checkNow is asked once a range is locked: meanwhile the image may have shrunk,
// or the range been claimed.
func (d *Device) checkNow(off, n int64) error {
	if err := storage.CheckRange(off, n, d.Size()); err != nil {
		return err
	}
	return d.claims.check(off, n)
}

// blocksOf is the range of whole blocks around [off, end).
func (d *Device) blocksOf(off, end int64) (lo, hi int64) {
	return down(off, d.granule.Alloc), up(end, d.granule.Alloc)
}

// down and up round to a multiple of unit, a power of two.
func down(off, unit int64) int64 { return off &^ (unit - 1) }

func up(off, unit int64) int64 { return (off + unit - 1) &^ (unit - 1) }
