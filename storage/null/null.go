// Package null is the protocol node of nothing: a file that reads as zeros and
// swallows what is written to it, for benchmarks, tests and scratch images.
//
// It guarantees that it takes no memory, whatever its size, and that nothing of
// it fails but what is outside the file, cancelled, or closed. It does not keep
// what is written: who needs that uses package mem.
package null

import (
	"context"
	"fmt"
	"io"
	"sync/atomic"

	"github.com/extentd/extentd/storage"
)

// A File is a hole of a fixed size. Safe for concurrent use.
type File struct {
	size   int64
	closed atomic.Bool
}

var (
	_ storage.File   = (*File)(nil)
	_ storage.Writer = (*File)(nil)
	_ storage.Sparse = (*File)(nil)
)

// New returns a file of that size in bytes, 0 to [storage.MaxSize]. Another size
// fails with a [storage.InvalidError].
func New(size int64) (*File, error) {
	if size < 0 || size > storage.MaxSize {
		return nil, &storage.InvalidError{Field: "size", Detail: fmt.Sprintf("is %d, must be 0 to %d", size, storage.MaxSize)}
	}
	return &File{size: size}, nil
}

// usable is an error once the context has ended, or the file is closed.
func (f *File) usable(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if f.closed.Load() {
		return storage.ErrClosed
	}
	return nil
}

// Size is the size in bytes, which does not change.
func (f *File) Size(ctx context.Context) (int64, error) { return f.size, f.usable(ctx) }

// Allocated is 0.
func (f *File) Allocated(ctx context.Context) (int64, error) { return 0, f.usable(ctx) }

// Limit leaves every limit to its default.
func (f *File) Limit(context.Context, storage.Limit) (int64, error) { return 0, nil }

// ReadAt fills p with zeros, as far as the file goes.
func (f *File) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if err := f.usable(ctx); err != nil {
		return 0, err
	}
	switch n := int64(len(p)); {
	case off < 0:
		return 0, fmt.Errorf("%w: offset %d", storage.ErrOutOfRange, off)
	case n == 0:
		return 0, nil
	case off >= f.size:
		return 0, io.EOF
	case n > f.size-off:
		clear(p[:f.size-off])
		return int(f.size - off), io.EOF
	}
	clear(p)
	return len(p), nil
}

// Extents appends one extent, which reaches from off to the end of the file:
// zeros without storage, at no offset of anything.
func (f *File) Extents(ctx context.Context, off, n int64, into *storage.ExtentList) error {
	if err := f.usable(ctx); err != nil {
		return err
	}
	if err := storage.CheckRange(off, n, f.size); err != nil {
		return err
	}
	if n == 0 {
		return fmt.Errorf("%w: no extents of an empty range at %d", storage.ErrOutOfRange, off)
	}
	return into.Add(storage.Mapping{Offset: off, Length: f.size - off, Status: storage.Zero})
}

// Close makes every later call fail.
func (f *File) Close() error {
	if f.closed.Swap(true) {
		return storage.ErrClosed
	}
	return nil
}

// WriteAt forgets p. Past the end there is no space: then nothing counts as
// written.
func (f *File) WriteAt(ctx context.Context, p []byte, off int64) (int, error) {
	if err := f.change(ctx, off, int64(len(p))); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Zero changes nothing.
func (f *File) Zero(ctx context.Context, off, n int64, _ bool) error { return f.change(ctx, off, n) }

// change checks a range that is to lie in the file.
func (f *File) change(ctx context.Context, off, n int64) error {
	if err := f.inReach(ctx, off, n); err != nil || n == 0 {
		return err
	}
	if n > f.size-off {
		return fmt.Errorf("%w: %d bytes at %d, and the size is fixed at %d", storage.ErrNoSpace, n, off, f.size)
	}
	return nil
}

// inReach checks a range that a file may have.
func (f *File) inReach(ctx context.Context, off, n int64) error {
	if err := f.usable(ctx); err != nil {
		return err
	}
	if off < 0 || n < 0 || off > storage.MaxSize-n {
		return fmt.Errorf("%w: %d bytes at %d", storage.ErrOutOfRange, n, off)
	}
	return nil
}

// Trim changes nothing.
func (f *File) Trim(ctx context.Context, off, n int64) error { return f.inReach(ctx, off, n) }

// Truncate accepts the size that the file has, and no other.
func (f *File) Truncate(ctx context.Context, size int64) error {
	if err := f.inReach(ctx, size, 0); err != nil {
		return err
	}
	if size != f.size {
		return fmt.Errorf("%w: a size fixed at %d cannot become %d", storage.ErrUnsupported, f.size, size)
	}
	return nil
}

// Flush has nothing to do.
func (f *File) Flush(ctx context.Context) error { return f.usable(ctx) }
