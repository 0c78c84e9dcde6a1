package mem

import (
	"bytes"
	"context"
	"fmt"

	"github.com/extentd/extentd/storage"
)

// change takes the lock for writing, unless the context has ended, no file can
// have the range, or the file is closed: then nothing is locked.
func (f *File) change(ctx context.Context, off, n int64) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if off < 0 || n < 0 || off > storage.MaxSize-n {
		return fmt.Errorf("%w: %d bytes at %d", storage.ErrOutOfRange, n, off)
	}
	f.mu.Lock()
	if f.closed {
		f.mu.Unlock()
		return storage.ErrClosed
	}
	return nil
}

// WriteAt writes p at off. The file grows where it must. Zeros take no memory
// where there is a hole. What would take more than the file may have fails with
// [storage.ErrNoSpace], and nothing of it is written.
func (f *File) WriteAt(ctx context.Context, p []byte, off int64) (int, error) {
	if err := f.change(ctx, off, int64(len(p))); err != nil {
		return 0, err
	}
	defer f.mu.Unlock()
	if len(p) == 0 {
		return 0, nil
	}
	if need := f.missing(p, off); need > f.most-f.tree.count {
		return 0, fmt.Errorf("%w: %d bytes of memory, at most %d", storage.ErrNoSpace, (f.tree.count+need)*PageSize, f.most*PageSize)
	}
	f.put(p, off)
	f.size = max(f.size, off+int64(len(p)))
	return len(p), nil
}

// put copies p to off, for which there is room. f.mu must be held.
func (f *File) put(p []byte, off int64) {
	for len(p) > 0 {
		number, within := place(off)
		from := p[:min(len(p), PageSize-within)]
		page := f.tree.get(number)
		if page == nil && !isZero(from) {
			page = f.tree.add(number)
		}
		if page != nil {
			copy(page[within:], from)
		}
		p, off = p[len(from):], off+int64(len(from))
	}
}

// missing is how many pages a write has to add. f.mu must be held.
func (f *File) missing(p []byte, off int64) (pages int64) {
	if int64(len(p)/PageSize+2) <= f.most-f.tree.count {
		return 0 // there is room for all that it may take
	}
	for len(p) > 0 {
		number, within := place(off)
		from := p[:min(len(p), PageSize-within)]
		if f.tree.get(number) == nil && !isZero(from) {
			pages++
		}
		p, off = p[len(from):], off+int64(len(from))
	}
	return pages
}

var zeros page //nolint:gochecknoglobals // nobody changes it

// isZero: p is no longer than a page.
func isZero(p []byte) bool { return bytes.Equal(p, zeros[:len(p)]) }

// Zero makes [off, off+n) read as zeros. With keep, pages that are there stay;
// none are added. Without, those that lie wholly inside become holes. Past the
// end the file grows.
func (f *File) Zero(ctx context.Context, off, n int64, keep bool) error {
	if err := f.change(ctx, off, n); err != nil {
		return err
	}
	defer f.mu.Unlock()
	f.clear(off, min(off+n, f.size), keep)
	if n > 0 {
		f.size = max(f.size, off+n)
	}
	return nil
}

// Trim does what Zero does without keep, as far as the file goes.
func (f *File) Trim(ctx context.Context, off, n int64) error {
	if err := f.change(ctx, off, n); err != nil {
		return err
	}
	defer f.mu.Unlock()
	f.clear(off, min(off+n, f.size), false)
	return nil
}

// Truncate sets the size. What lies behind it is freed.
func (f *File) Truncate(ctx context.Context, size int64) error {
	if err := f.change(ctx, size, 0); err != nil {
		return err
	}
	defer f.mu.Unlock()
	f.clear(size, f.size, false)
	f.size = size
	return nil
}

// Flush has nothing to do.
func (f *File) Flush(ctx context.Context) error {
	if err := f.read(ctx); err != nil {
		return err
	}
	f.mu.RUnlock()
	return nil
}

// clear zeroes what there is of [off, end), which ends in the file, and unless
// it is kept, removes the pages of which nothing else is in the file. The time it
// takes is that of the pages, however long the range. f.mu must be held.
func (f *File) clear(off, end int64, keep bool) {
	for off < end {
		first, _ := place(off)
		number, ok := f.tree.next(first)
		if !ok || number*PageSize >= end {
			return
		}
		begin := number * PageSize
		from, to := max(off, begin), min(end, begin+PageSize)
		if whole := from == begin && (to == begin+PageSize || to == f.size); whole && !keep {
			f.tree.remove(number)
		} else {
			clear(f.tree.get(number)[from-begin : to-begin])
		}
		off = to
	}
}
