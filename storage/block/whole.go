package block

import (
	"context"
	"fmt"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/rangelock"
)

// Exclusively calls change, which changes the top layer as a whole and perhaps its
// size, such as going back to a snapshot of it. Nobody writes meanwhile, not even in
// place. It waits for all writing, and holds it up; readers go on, and each sees
// what was before or what is after. It fails with storage.ErrConflict while anything
// is claimed.
func (d *Device) Exclusively(ctx context.Context, change func(ctx context.Context) error) error {
	return d.Still(ctx, func(ctx context.Context) error {
		if err := d.Unclaimed(); err != nil {
			return err
		}
		d.change(true)
		defer d.change(true)
		old := d.Size()
		err := change(ctx)
		d.size.Store(d.layers[0].Size())
		if unpacker := d.layers[0].unpacker; unpacker != nil {
			d.units.drop(0, max(old, d.Size()), unpacker.PackedUnit())
		}
		return err
	})
}

// Still calls fn while nobody writes, not even in place. fn changes neither the map
// nor the data nor the size; who is told of changes is not told of it. It waits for
// all writing, and holds it up.
func (d *Device) Still(ctx context.Context, fn func(ctx context.Context) error) error {
	if err := d.CheckWrite(ctx, 0, 0); err != nil {
		return err
	}
	lock, err := d.locks.Exclude(ctx, 0, rangelock.Everything)
	if err != nil {
		return err
	}
	defer d.locks.Release(lock)
	return fn(ctx)
}

// Unclaimed fails with storage.ErrConflict while anything is claimed. Inside Still,
// what it says holds until that returns.
func (d *Device) Unclaimed() error {
	if d.claims.live.Load() != nil {
		return fmt.Errorf("block: %w: a part of the image is claimed", storage.ErrConflict)
	}
	return nil
}
