package block

import (
	"context"
	"fmt"

	"github.com/extentd/extentd/storage"
)

// Update makes [off, off+n) what the target says, as [storage.WritableMapper]
// does; to those who use the device it is one step. Offset and length are
// multiples of Units.Alloc, or end at the size; else the error is a
// *storage.MisalignedError. What a claim covers fails with storage.ErrConflict,
// and mapping data where guest offsets are node offsets with
// storage.ErrUnsupported.
func (d *Device) Update(ctx context.Context, off, n int64, to storage.Target) error {
	if err := d.checkUpdate(ctx, off, n, &to); err != nil {
		return err
	}
	if n == 0 {
		return nil
	}
	lo, hi := d.blocksOf(off, off+n)
	lock, err := d.locks.Exclude(ctx, lo, hi)
	if err != nil {
		return err
	}
	defer d.locks.Release(lock)
	if err := d.checkNow(off, n); err != nil {
		return err
	}
	w := d.writer()
	defer w.put()
	return w.remap(ctx, off, n, to, true)
}

func (d *Device) checkUpdate(ctx context.Context, off, n int64, to *storage.Target) error {
	if err := d.CheckWrite(ctx, off, n); err != nil {
		return err
	}
	if err := d.checkBlocks(off, n); err != nil {
		return err
	}
	switch to.Kind {
	case storage.ToUnmapped, storage.ToZero, storage.ToAnchored:
		return nil
	case storage.ToData:
	default:
		return fmt.Errorf("block: %w", &storage.InvalidError{Field: "kind", Detail: "is an " + to.Kind.String()})
	}
	if err := d.checkReserving(); err != nil {
		return err
	}
	if to.Node == nil {
		return fmt.Errorf("block: %w: data in no node", storage.ErrContract)
	}
	if err := storage.CheckRange(to.NodeOffset, n, storage.MaxSize); err != nil {
		return err
	}
	if to.NodeOffset&(d.granule.Alloc-1) != 0 {
		return &storage.MisalignedError{Minimum: d.granule.Alloc, Offset: to.NodeOffset, Length: n}
	}
	return nil
}

// checkBlocks reports whether [off, off+n) is whole blocks, the last of which
// the size may cut.
func (d *Device) checkBlocks(off, n int64) error {
	mask := d.granule.Alloc - 1
	if off&mask != 0 || n&mask != 0 && off+n != d.Size() {
		return &storage.MisalignedError{Minimum: d.granule.Alloc, Offset: off, Length: n}
	}
	return nil
}
