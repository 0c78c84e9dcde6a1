package raw

import (
	"context"
	"errors"
	"fmt"

	"github.com/extentd/extentd/storage"
)

var (
	_ storage.WritableMapper = (*Image)(nil)
	_ storage.Resizer        = (*Image)(nil)
)

// StartWriting makes the image writable, and its node. One that cannot be written
// to fails with [storage.ErrReadOnly].
func (i *Image) StartWriting(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if i.closed.Load() {
		return fmt.Errorf("raw: %s: %w", i.node.Name(), storage.ErrClosed)
	}
	if err := i.node.StartWriting(ctx); err != nil {
		return fmt.Errorf("raw: %w", err)
	}
	i.writing.Store(true)
	return nil
}

// Units are single bytes, where they are.
func (i *Image) Units() storage.Units { return storage.Units{Alloc: 1, Data: 1, Fixed: true} }

// Alloc says where the guest's bytes are, as far as the image goes: there is
// nothing to reserve, and nobody is kept from having the same ones.
func (i *Image) Alloc(ctx context.Context, n int64, opt storage.AllocOptions) (storage.Blocks, error) {
	err := i.begin(ctx, opt.Guest, 1)
	left := i.Size() - opt.Guest
	switch {
	case err != nil:
	case n <= 0:
		err = fmt.Errorf("%w: %d bytes", storage.ErrOutOfRange, n)
	case n > left && opt.Contiguous:
		err = fmt.Errorf("%w: %d bytes at %d", storage.ErrNoSpace, n, opt.Guest)
	}
	if err != nil {
		return storage.Blocks{}, fmt.Errorf("raw: alloc: %w", err)
	}
	return storage.Blocks{Node: i.node, Offset: opt.Guest, Length: min(n, left)}, nil
}

// Free does nothing to blocks of the image. Others fail with
// [storage.ErrConflict].
func (i *Image) Free(ctx context.Context, b storage.Blocks) error {
	if err := i.begin(ctx, 0, 0); err != nil {
		return fmt.Errorf("raw: free: %w", err)
	}
	if b.Node != i.node || storage.CheckRange(b.Offset, b.Length, i.Size()) != nil {
		return fmt.Errorf("raw: free: %w: %d bytes at %d are none of the image", storage.ErrConflict, b.Length, b.Offset)
	}
	return nil
}

// Update zeroes: with anchored the storage is kept, and else given back, as far
// as the file can. Data is where it belongs already.
func (i *Image) Update(ctx context.Context, off, n int64, to storage.Target) error {
	err := i.begin(ctx, off, n)
	if err == nil {
		err = i.update(ctx, off, n, to)
	}
	if err != nil {
		return fmt.Errorf("raw: update to %v: %w", to.Kind, err)
	}
	return nil
}

func (i *Image) update(ctx context.Context, off, n int64, to storage.Target) error {
	switch to.Kind {
	case storage.ToData:
		if to.Node != i.node || to.NodeOffset != off {
			return fmt.Errorf("%w: the guest's bytes at %d cannot be elsewhere", storage.ErrConflict, off)
		}
		return nil
	case storage.ToZero, storage.ToUnmapped:
		return i.zero(ctx, off, n, false)
	case storage.ToAnchored:
		return i.zero(ctx, off, n, true)
	}
	return &storage.InvalidError{Field: "target", Detail: fmt.Sprintf("cannot be %v", to.Kind)}
}

// zero zeroes the node in pieces that it can take.
func (i *Image) zero(ctx context.Context, off, n int64, keep bool) error {
	l, err := i.node.Limits(ctx)
	if err != nil {
		return err
	}
	for n > 0 {
		k := min(n, l.MaxZero)
		if err := i.node.Zero(ctx, off, k, keep); err != nil {
			return err
		}
		off, n = off+k, n-k
	}
	return nil
}

// CheckWrite allows what lies in the image: there is no metadata.
func (i *Image) CheckWrite(ctx context.Context, node *storage.Node, off, n int64) error {
	err := i.begin(ctx, off, n)
	if err == nil && node != i.node {
		err = fmt.Errorf("%w: a write to another node", storage.ErrConflict)
	}
	if err != nil {
		return fmt.Errorf("raw: write: %w", err)
	}
	return nil
}

// Flush makes everything written before it durable. Once it has failed, nothing
// more can be written.
func (i *Image) Flush(ctx context.Context) error {
	err := i.begin(ctx, 0, 0)
	if err == nil {
		err = i.flush(ctx)
	}
	if err != nil {
		return fmt.Errorf("raw: %w", err)
	}
	return nil
}

func (i *Image) flush(ctx context.Context) error {
	if i.failed.Load() {
		return storage.ErrOutOfService
	}
	err := i.node.Flush(ctx)
	if err == nil || ctx.Err() != nil && errors.Is(err, ctx.Err()) || errors.Is(err, storage.ErrReadOnly) {
		return err
	}
	i.failed.Store(true)
	return fmt.Errorf("%w: %w", storage.ErrOutOfService, err)
}

// Failed reports whether a failed sync has taken the image out of service.
func (i *Image) Failed() bool { return i.failed.Load() }

// Resize sets the size of the file. It has no backing, whatever the options say.
func (i *Image) Resize(ctx context.Context, size int64, opt storage.ResizeOptions) error {
	err := i.begin(ctx, 0, 0)
	if err == nil {
		err = i.resize(ctx, size, opt.Shrink)
	}
	if err != nil {
		return fmt.Errorf("raw: resize to %d bytes: %w", size, err)
	}
	return nil
}

func (i *Image) resize(ctx context.Context, size int64, shrink bool) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	before := i.Size()
	switch {
	case size < 0 || size > storage.MaxSize:
		return &storage.InvalidError{Field: "size", Detail: fmt.Sprintf("is %d, must be from 0 to %d", size, storage.MaxSize)}
	case size < before && !shrink:
		return &storage.InvalidError{Field: "shrink", Detail: fmt.Sprintf("is false, and the size would fall from %d to %d", before, size)}
	case size <= before:
		return i.shrink(ctx, before, size)
	}
	return i.grow(ctx, before, size)
}

// shrink first takes from the readers what the file is to lose.
func (i *Image) shrink(ctx context.Context, before, size int64) error {
	i.size.Store(size)
	err := i.node.Truncate(ctx, size)
	if err != nil {
		i.size.Store(before)
	}
	return err
}

// grow first zeroes what the file, or the device, has behind the image already.
func (i *Image) grow(ctx context.Context, before, size int64) error {
	has, err := i.node.Size(ctx)
	if err != nil {
		return err
	}
	if has > before {
		if err := i.zero(ctx, before, min(has, size)-before, false); err != nil {
			return err
		}
	}
	if err := i.node.Truncate(ctx, size); err != nil {
		return err
	}
	i.size.Store(size)
	return nil
}

// begin is what every change begins with: of [off, off+n), which may be empty.
func (i *Image) begin(ctx context.Context, off, n int64) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	switch {
	case i.closed.Load():
		return fmt.Errorf("%s: %w", i.node.Name(), storage.ErrClosed)
	case !i.writing.Load():
		return fmt.Errorf("%s: %w", i.node.Name(), storage.ErrReadOnly)
	case i.failed.Load():
		return fmt.Errorf("%s: %w", i.node.Name(), storage.ErrOutOfService)
	}
	if err := storage.CheckRange(off, n, i.Size()); err != nil {
		return fmt.Errorf("%s: %w", i.node.Name(), err)
	}
	return nil
}
