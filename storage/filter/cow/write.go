package cow

import (
	"context"
	"fmt"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/rangelock"
)

// begin is what every change begins with: n bytes from off on.
func (f *Filter) begin(ctx context.Context, off, n int64) error {
	if err := f.usable(ctx); err != nil {
		return err
	}
	if off < 0 || n < 0 || off > storage.MaxSize-n {
		return fmt.Errorf("%w: %d bytes at %d", storage.ErrOutOfRange, n, off)
	}
	return nil
}

// WriteAt writes p at off, to the overlay. Blocks that it does not have yet, and
// that p does not fill, are copied up first. After an error the rest of p may
// have been written in part.
func (f *Filter) WriteAt(ctx context.Context, p []byte, off int64) (n int, err error) {
	if err := f.begin(ctx, off, int64(len(p))); err != nil || len(p) == 0 {
		return 0, err
	}
	end := off + int64(len(p))
	if end > storage.MaxSize-Base {
		return 0, fmt.Errorf("%w: the overlay ends at %d", storage.ErrNoSpace, storage.MaxSize-Base)
	}
	h, err := f.lockWrite(ctx, off, end)
	if err != nil {
		return 0, err
	}
	defer f.lock.Release(h)
	for n < len(p) {
		k, err := f.writeSome(ctx, p[n:], off+int64(n))
		if n += k; k > 0 {
			f.grow(off + int64(n))
		}
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// lockWrite locks what is to be written: shared if the overlay has all of it.
func (f *Filter) lockWrite(ctx context.Context, off, end int64) (*rangelock.Hold, error) {
	lo, hi := off>>blockBits, ceil(end)
	if f.has(off, end) {
		h, err := f.lock.Share(ctx, lo, hi)
		if err != nil || f.has(off, end) {
			return h, err
		}
		f.lock.Release(h) // it was trimmed while we waited
	}
	return f.lock.Exclude(ctx, lo, hi)
}

// has reports whether the overlay has all of [off, end).
func (f *Filter) has(off, end int64) bool {
	s, stop := f.run(off, end)
	return s == overlay && stop == end
}

// writeSome writes a beginning of p, and returns how much of it is seen. The
// blocks are locked: exclusively, unless all of p goes where the overlay has
// blocks.
func (f *Filter) writeSome(ctx context.Context, p []byte, off int64) (int, error) {
	end := off + int64(len(p))
	if s, stop := f.run(off, end); s == overlay {
		return writeAll(ctx, f.file, p[:stop-off], off+Base)
	}
	first, block := off>>blockBits<<blockBits, off>>blockBits
	if whole := end>>blockBits - block; first == off && whole > 0 {
		n, err := writeAll(ctx, f.file, p[:whole<<blockBits], off+Base)
		written := int64(n) >> blockBits
		f.set(block, block+written, overlay)
		return int(written << blockBits), err
	}
	p = p[:min(end, first+BlockSize)-off]
	return len(p), f.copyUp(ctx, block, p, off-first)
}

// copyUp makes a block one of the overlay's, with p at within and else with what
// it reads as now. The block is locked exclusively, and not the overlay's.
func (f *Filter) copyUp(ctx context.Context, block int64, p []byte, within int64) error {
	buf := f.blocks.Get().(*[BlockSize]byte)
	defer f.blocks.Put(buf)
	first, after := block<<blockBits, within+int64(len(p))
	if err := f.readOld(ctx, buf[:within], first); err != nil {
		return err
	}
	if err := f.readOld(ctx, buf[after:], first+after); err != nil {
		return err
	}
	copy(buf[within:], p)
	if _, err := writeAll(ctx, f.file, buf[:], first+Base); err != nil {
		return err
	}
	f.set(block, block+1, overlay)
	return nil
}

// readOld reads what is not the overlay's, inside a block. Past the size there
// are zeros.
func (f *Filter) readOld(ctx context.Context, p []byte, off int64) error {
	for len(p) > 0 {
		s, end := f.run(off, off+int64(len(p)))
		part := p[:end-off]
		if err := f.read(ctx, s, part, off); err != nil {
			return err
		}
		p, off = p[len(part):], end
	}
	return nil
}

// writeAll writes p, in pieces that the node takes, and returns how much.
func writeAll(ctx context.Context, node *storage.Node, p []byte, off int64) (n int, err error) {
	most, err := node.Limit(ctx, storage.MaxData)
	if err != nil {
		return 0, err
	}
	for n < len(p) {
		k, err := node.WriteAt(ctx, p[n:n+int(min(int64(len(p)-n), most))], off+int64(n))
		if n += k; err != nil {
			return n, err
		}
	}
	return n, nil
}
