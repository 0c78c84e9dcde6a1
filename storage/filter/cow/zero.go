package cow

import (
	"context"
	"fmt"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/rangelock"
)

// Zero makes [off, off+n) read as zeros. Whole blocks are only noted as zeros,
// and the overlay gives theirs back; with keep, the overlay zeros those that it
// has and keeps them. Of other blocks zeros are written. Past the end the file
// grows. On an error a beginning may have been done.
func (f *Filter) Zero(ctx context.Context, off, n int64, keep bool) error {
	if err := f.begin(ctx, off, n); err != nil || n == 0 {
		return err
	}
	end := off + n
	h, err := f.lock.Exclude(ctx, off>>blockBits, ceil(end))
	if err != nil {
		return err
	}
	defer f.lock.Release(h)
	for off < end {
		if off, err = f.zeroSome(ctx, off, end, keep); err != nil {
			return err
		}
		f.grow(off)
	}
	return nil
}

// zeroSome is Zero for a beginning of [off, end), and returns where that ends.
// The blocks are locked exclusively.
func (f *Filter) zeroSome(ctx context.Context, off, end int64, keep bool) (int64, error) {
	if err := ctx.Err(); err != nil {
		return off, err
	}
	block, last := off>>blockBits, f.wholeEnd(end)
	if block<<blockBits != off || last <= block {
		return f.zeroPart(ctx, off, min(end, (block+1)<<blockBits))
	}
	s, stop := f.run(off, last<<blockBits)
	if keep && s == overlay {
		stop = min(stop, end)
		return stop, f.zeroOverlay(ctx, off, stop, true)
	}
	f.blank(block, ceil(stop))
	if s == overlay {
		f.giveBack(ctx, off, stop)
	}
	return min(ceil(stop)<<blockBits, end), nil
}

// wholeEnd is where the whole blocks before end end, with one that the file ends
// in.
func (f *Filter) wholeEnd(end int64) int64 {
	if end >= f.length() {
		return ceil(end)
	}
	return end >> blockBits
}

// zeroPart is zeroSome inside a block.
func (f *Filter) zeroPart(ctx context.Context, off, end int64) (int64, error) {
	s, stop := f.run(off, end)
	switch s {
	case overlay:
		return end, f.zeroOverlay(ctx, off, end, true)
	case zero:
		return stop, nil
	}
	if end > storage.MaxSize-Base {
		return off, fmt.Errorf("%w: the overlay ends at %d", storage.ErrNoSpace, storage.MaxSize-Base)
	}
	buf := f.blocks.Get().(*[BlockSize]byte)
	defer f.blocks.Put(buf)
	clear(buf[:end-off])
	block := off >> blockBits
	return end, f.copyUp(ctx, block, buf[:end-off], off-block<<blockBits)
}

// zeroOverlay zeros [off, end), which the overlay has.
func (f *Filter) zeroOverlay(ctx context.Context, off, end int64, keep bool) error {
	most, err := f.file.Limit(ctx, storage.MaxZero)
	if err != nil {
		return err
	}
	for off < end {
		n := min(end-off, most)
		if err := f.file.Zero(ctx, off+Base, n, keep); err != nil {
			return err
		}
		off += n
	}
	return nil
}

// giveBack gives the overlay's storage of [off, end) back, which nobody looks at
// any more, but for reads that have begun: for those it is zeroed, not trimmed.
// Where that fails it is kept, and written anew before it is seen again.
func (f *Filter) giveBack(ctx context.Context, off, end int64) {
	_ = f.zeroOverlay(ctx, off, end, false)
}

// Trim makes the whole blocks in [off, off+n) read as zeros, and the overlay
// gives theirs back. Parts of blocks stay as they are.
func (f *Filter) Trim(ctx context.Context, off, n int64) error {
	if err := f.begin(ctx, off, n); err != nil || n == 0 {
		return err
	}
	h, err := f.lock.Exclude(ctx, off>>blockBits, ceil(off+n))
	if err != nil {
		return err
	}
	defer f.lock.Release(h)
	size := f.length()
	end := min(off+n, size)
	for at, last := ceil(off), f.wholeEnd(end); at < last; {
		stop, err := f.zeroSome(ctx, at<<blockBits, min(last<<blockBits, end), false)
		if err != nil {
			return err
		}
		at = ceil(stop)
	}
	return nil
}

// Truncate sets the filter's own size. What is cut off is forgotten, and reads
// as zeros when the file grows again. After an error the size is what it was,
// and the rest of the block that the new one lies in may read as zeros.
func (f *Filter) Truncate(ctx context.Context, size int64) error {
	if err := f.begin(ctx, size, 0); err != nil {
		return err
	}
	h, err := f.lock.Exclude(ctx, size>>blockBits, rangelock.Everything)
	if err != nil {
		return err
	}
	defer f.lock.Release(h)
	old := f.length()
	if within := size & (BlockSize - 1); within != 0 && size < old {
		end := size - within + BlockSize
		if s, _ := f.run(size, end); s == overlay {
			if err := f.zeroOverlay(ctx, size, end, true); err != nil {
				return err
			}
		}
	}
	f.mu.Lock()
	f.size, f.end = size, min(f.end, size)
	f.mu.Unlock()
	f.drop(ctx, ceil(size), ceil(old))
	return nil
}

// drop forgets the blocks [lo, hi), which lie past the end and are locked
// exclusively.
func (f *Filter) drop(ctx context.Context, lo, hi int64) {
	for lo < hi {
		s, end := f.run(lo<<blockBits, hi<<blockBits)
		f.set(lo, end>>blockBits, below)
		if s == overlay {
			f.giveBack(ctx, lo<<blockBits, end)
		}
		lo = end >> blockBits
	}
}
