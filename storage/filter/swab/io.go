package swab

import (
	"context"
	"fmt"
	"io"
	"sync"

	"github.com/extentd/extentd/storage"
)

// A buffer holds what is written at a time: a multiple of every minimum.
type buffer [256 << 10]byte

var buffers = sync.Pool{New: func() any { return new(buffer) }}

// ReadAt reads len(p) bytes from off, and swaps them.
func (f *Filter) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if err := f.aligned(off, int64(len(p))); err != nil {
		return 0, err
	}
	got, err := f.next.ReadAt(ctx, p, off)
	if rest := int64(got) % f.group; rest != 0 {
		if got -= int(rest); err == nil || err == io.EOF { //nolint:errorlint // bare by contract
			got, err = f.end(ctx, got, err)
		}
	}
	f.swap(p[:got], p[:got])
	return got, err
}

// end is what is left of a read of whole groups up to the end of a file of an odd
// size: less, where the file ends earlier for [Filter.Size].
func (f *Filter) end(ctx context.Context, got int, err error) (int, error) {
	minimum, e := f.next.Limit(ctx, storage.Minimum)
	if e != nil {
		return 0, e
	}
	return got &^ (int(max(minimum, f.group)) - 1), err
}

// WriteAt writes p, swapped, at off. The buffer stays as it is.
func (f *Filter) WriteAt(ctx context.Context, p []byte, off int64) (int, error) {
	if err := f.checkChange(ctx, off, int64(len(p))); err != nil {
		return 0, err
	}
	b := buffers.Get().(*buffer)
	defer buffers.Put(b)
	for done := 0; ; {
		part := b[:min(len(p)-done, len(b))]
		f.swap(part, p[done:done+len(part)])
		n, err := f.next.WriteAt(ctx, part, off+int64(done))
		if done += n &^ int(f.group-1); err != nil || done >= len(p) {
			return done, err
		}
	}
}

// Zero makes [off, off+n) read as zeros.
func (f *Filter) Zero(ctx context.Context, off, n int64, keep bool) error {
	if err := f.checkChange(ctx, off, n); err != nil {
		return err
	}
	return f.next.Zero(ctx, off, n, keep)
}

// Trim gives the storage of [off, off+n) back, but not what is left over behind
// the last group.
func (f *Filter) Trim(ctx context.Context, off, n int64) error {
	if err := f.check(off, n); err != nil {
		return err
	}
	size, odd, err := f.size(ctx)
	if err != nil {
		return err
	}
	if odd {
		off = min(off, size)
		n = min(n, size-off)
	}
	return f.next.Trim(ctx, off, n)
}

// Truncate sets the size, a multiple of the group.
func (f *Filter) Truncate(ctx context.Context, size int64) error {
	if err := storage.CheckRange(0, size, storage.MaxSize); err != nil {
		return err
	}
	if err := f.aligned(size, 0); err != nil {
		return err
	}
	now, odd, err := f.size(ctx)
	switch {
	case err != nil:
		return err
	case !odd:
		return f.next.Truncate(ctx, size)
	case ctx.Err() != nil || size == now:
		return ctx.Err()
	}
	return fmt.Errorf("%w: the size below is no multiple of %d and cannot be changed", storage.ErrUnsupported, f.group)
}

// check refuses what no file can hold, and what is no whole group.
func (f *Filter) check(off, n int64) error {
	if off < 0 || n < 0 || off > storage.MaxSize-n {
		return fmt.Errorf("%w: %d bytes at %d", storage.ErrOutOfRange, n, off)
	}
	return f.aligned(off, n)
}

// checkChange also refuses what would make a file longer that cannot become so.
func (f *Filter) checkChange(ctx context.Context, off, n int64) error {
	if err := f.check(off, n); err != nil {
		return err
	}
	size, odd, err := f.size(ctx)
	if err == nil && odd && n > 0 && off+n > size {
		if err = ctx.Err(); err == nil {
			err = fmt.Errorf("%w: the file ends at %d", storage.ErrNoSpace, size)
		}
	}
	return err
}

// aligned refuses what does not begin and end with a group.
func (f *Filter) aligned(off, n int64) error {
	if (off|n)&(f.group-1) != 0 {
		return &storage.MisalignedError{Minimum: f.group, Offset: off, Length: n}
	}
	return nil
}
