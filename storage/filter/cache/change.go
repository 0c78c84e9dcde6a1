package cache

import (
	"context"

	"github.com/extentd/extentd/storage"
)

// forget drops what the cache holds of [off, off+n), and what is being fetched of
// it. Every change calls it before and after: what is fetched before the second
// call may be stale, and what after it is not.
func (f *Filter) forget(off, n int64) {
	if off < 0 || n <= 0 || off > storage.MaxSize-n {
		return // the node refuses it
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.index.forget(off>>f.bits, (off+n-1)>>f.bits+1)
}

// WriteAt writes to the node.
func (f *Filter) WriteAt(ctx context.Context, p []byte, off int64) (int, error) {
	f.forget(off, int64(len(p)))
	defer f.forget(off, int64(len(p)))
	return f.next.WriteAt(ctx, p, off)
}

// Zero zeros the node's bytes.
func (f *Filter) Zero(ctx context.Context, off, n int64, keep bool) error {
	f.forget(off, n)
	defer f.forget(off, n)
	return f.next.Zero(ctx, off, n, keep)
}

// Trim trims the node.
func (f *Filter) Trim(ctx context.Context, off, n int64) error {
	f.forget(off, n)
	defer f.forget(off, n)
	return f.next.Trim(ctx, off, n)
}

// Truncate sets the node's size.
func (f *Filter) Truncate(ctx context.Context, size int64) error {
	f.forget(size, storage.MaxSize-size)
	defer f.forget(size, storage.MaxSize-size)
	return f.next.Truncate(ctx, size)
}
