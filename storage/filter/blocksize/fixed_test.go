package blocksize_test

import (
	"context"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/storagetest"
)

// A fixed file has one size, as a device.
type fixed struct {
	*storagetest.MemFile
	size int64
}

func (f *fixed) WriteAt(ctx context.Context, p []byte, off int64) (int, error) {
	if err := f.check(ctx, off, int64(len(p))); err != nil {
		return 0, err
	}
	return f.MemFile.WriteAt(ctx, p, off)
}

func (f *fixed) Zero(ctx context.Context, off, n int64, keep bool) error {
	if err := f.check(ctx, off, n); err != nil {
		return err
	}
	return f.MemFile.Zero(ctx, off, n, keep)
}

func (f *fixed) check(ctx context.Context, off, n int64) error {
	_, err := f.Size(ctx) // fails if it is closed
	if err == nil && off+n > f.size {
		err = storage.ErrNoSpace
	}
	return err
}

func (f *fixed) Truncate(ctx context.Context, size int64) error {
	now, err := f.Size(ctx)
	if err == nil && size != now {
		err = storage.ErrUnsupported
	}
	return err
}
