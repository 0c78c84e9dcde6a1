package offset

import (
	"context"
	"fmt"
	"io"

	"github.com/extentd/extentd/storage"
)

// ReadAt reads len(p) bytes from off.
func (f *Filter) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("%w: offset %d", storage.ErrOutOfRange, off)
	}
	n, at := int64(len(p)), off
	if off > storage.MaxSize { // the next node ends before that, and the sum does not overflow
		n, at = 0, 0
	}
	if n = f.inside(off, n); n == 0 {
		at = 0
	}
	got, err := f.next.ReadAt(ctx, p[:n], f.offset+at)
	if err == nil && int64(got) == n && got < len(p) {
		err = io.EOF
	}
	return got, err
}

// WriteAt writes p at off. Past the end of a window with a length it fails with
// [storage.ErrNoSpace], and nothing is written.
func (f *Filter) WriteAt(ctx context.Context, p []byte, off int64) (int, error) {
	if err := f.checkChange(ctx, off, int64(len(p))); err != nil {
		return 0, err
	}
	return f.next.WriteAt(ctx, p, f.offset+off)
}

// Zero makes [off, off+n) read as zeros. Past the end it is as WriteAt.
func (f *Filter) Zero(ctx context.Context, off, n int64, keep bool) error {
	if err := f.checkChange(ctx, off, n); err != nil {
		return err
	}
	return f.next.Zero(ctx, f.offset+off, n, keep)
}

// Trim gives the storage of [off, off+n) back, as far as it lies in the window.
func (f *Filter) Trim(ctx context.Context, off, n int64) error {
	if err := checkRange(off, n); err != nil {
		return err
	}
	if n = f.inside(off, n); n == 0 {
		off = 0
	}
	return f.next.Trim(ctx, f.offset+off, n)
}

// Truncate sets the next node's size, so that the window has this one. A window
// with a length has no other: [storage.ErrUnsupported].
func (f *Filter) Truncate(ctx context.Context, size int64) error {
	if err := storage.CheckRange(0, size, storage.MaxSize-f.offset); err != nil {
		return err
	}
	if f.length == 0 {
		return f.next.Truncate(ctx, f.offset+size)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	now, err := f.Size(ctx)
	if err == nil && size != now {
		err = fmt.Errorf("%w: a window of %d bytes has no other size", storage.ErrUnsupported, now)
	}
	return err
}

// checkChange refuses what no file can hold, and what the window does not.
func (f *Filter) checkChange(ctx context.Context, off, n int64) error {
	if err := checkRange(off, n); err != nil {
		return err
	}
	if n <= f.inside(off, n) {
		return nil
	}
	if err := f.usable(ctx); err != nil {
		return err
	}
	return fmt.Errorf("%w: the window ends at %d", storage.ErrNoSpace, f.length)
}

// usable is an error where the next node would have one, that is not asked.
func (f *Filter) usable(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	_, err := f.next.Size(ctx)
	return err
}

// checkRange refuses what no file can hold: the sum with the window's offset does
// not overflow then.
func checkRange(off, n int64) error {
	if off < 0 || n < 0 || off > storage.MaxSize-n {
		return fmt.Errorf("%w: %d bytes at %d", storage.ErrOutOfRange, n, off)
	}
	return nil
}

// Extents are the next node's, as far as they lie in the window.
func (f *Filter) Extents(ctx context.Context, off, n int64, into *storage.ExtentList) error {
	size, err := f.Size(ctx)
	if err != nil {
		return err
	}
	if n <= 0 {
		return fmt.Errorf("%w: %d bytes at %d", storage.ErrOutOfRange, n, off)
	}
	if err := storage.CheckRange(off, n, size); err != nil {
		return err
	}
	list := f.lists.Get().(*storage.ExtentList)
	defer f.lists.Put(list)
	lo, hi := into.Window()
	list.ResetWindow(f.offset+min(lo, storage.MaxSize), f.offset+min(hi, storage.MaxSize))
	if err := f.next.Extents(ctx, f.offset+off, n, list); err != nil {
		return err
	}
	for i := range list.Len() {
		m := *list.At(i)
		if m.Offset -= f.offset; m.Status.Has(storage.OffsetValid) {
			m.NodeOffset -= f.offset
		}
		if m.Length = f.inside(m.Offset, m.Length); m.Length == 0 {
			break
		}
		if err := into.Add(m); err != nil {
			return err
		}
	}
	return nil
}
