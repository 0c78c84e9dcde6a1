package nbd

import (
	"cmp"
	"context"
	"errors"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/block"
	"github.com/extentd/extentd/storage/nbd/wire"
)

// trim gives storage back. It is a hint: a format that cannot does nothing.
func (s *session) trim(r *request, d *block.Device) error {
	err := d.Trim(r.ctx, int64(r.Offset), int64(r.Length))
	if errors.Is(err, storage.ErrUnsupported) {
		return nil
	}
	return err
}

// zero writes zeros. Storage is kept where the client wants no hole.
func (s *session) zero(r *request, d *block.Device) error {
	ctx, off, n := r.ctx, int64(r.Offset), int64(r.Length)
	keep := r.Flags&wire.FlagNoHole != 0
	if r.Flags&wire.FlagFastZero != 0 {
		done, err := isZero(ctx, d, off, n, keep)
		if done || err != nil {
			return err
		}
		if quick, err := s.quick(ctx, d, off, n, keep); !quick || err != nil {
			return cmp.Or(err, errSlow)
		}
	}
	if err := d.Zero(ctx, off, n, keep); err != nil || !keep {
		return err
	}
	return provide(ctx, d, off, off+n)
}

// provide gives storage to what has none in [off, end), which reads as zeros: a
// client that wants no hole there is not to meet a full disk later.
func provide(ctx context.Context, d *block.Device, off, end int64) error {
	for off < end {
		lo, hi, err := bare(ctx, d, off, end)
		if err != nil {
			return err
		}
		for lo < hi {
			n := min(hi-lo, int64(len(zeros)))
			if err := d.WriteAt(ctx, zeros[:n], lo); err != nil {
				return err
			}
			lo += n
		}
		off = hi
	}
	return nil
}

// bare is the first run in [off, end) that has no storage; lo is end where all
// has some.
func bare(ctx context.Context, d *block.Device, off, end int64) (lo, hi int64, err error) {
	for m, err := range d.Walk(ctx, off, end-off, block.WalkOptions{}) {
		if err != nil {
			return 0, 0, err
		}
		if !m.Status.Has(storage.Alloc) {
			return m.Offset, m.End(), nil
		}
	}
	return end, end, nil
}

// quick reports whether zeroing is a matter of the map: the format can say that
// blocks are zeros, the range has no part of one, and if they are to have storage,
// they have it.
func (s *session) quick(ctx context.Context, d *block.Device, off, n int64, keep bool) (bool, error) {
	unit := d.Units().Alloc
	if unit <= 1 || off&(unit-1) != 0 || n&(unit-1) != 0 && off+n != d.Size() || !s.export.quickly() {
		return false, nil
	}
	if !keep {
		return true, nil
	}
	lo, _, err := bare(ctx, d, off, off+n)
	return lo == off+n, err
}

// glances is how many extents are looked at for whether there is nothing to do.
const glances = 64

// isZero reports whether the range is known to read as zeros already, and where
// keep is wanted, to have storage.
func isZero(ctx context.Context, d *block.Device, off, n int64, keep bool) (bool, error) {
	seen := 0
	for m, err := range d.Walk(ctx, off, n, block.WalkOptions{}) {
		if err != nil {
			return false, err
		}
		if seen++; seen > glances || !m.Status.Has(storage.Zero) || keep && !m.Status.Has(storage.Alloc) {
			return false, nil
		}
	}
	return true, nil
}
