// Package swab is a filter that swaps the bytes of a node in groups of 16, 32 or
// 64 bits: for images of machines of the other byte order.
//
// It guarantees that the caller's buffers are never changed by a write, and that
// nothing but whole groups is read or changed: the size is rounded down to a
// multiple of the group. A node whose size is none is served without what is
// left over, and cannot grow or shrink: the rest would have to become zeros. Where
// the node's minimum is larger than a group, its last, incomplete block is left
// out.
package swab

import (
	"context"
	"fmt"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/filter"
)

// Options configure the filter.
type Options struct {
	// Bits of a group: 16, 32 or 64. There is no default.
	Bits int
}

// A Filter swaps bytes.
type Filter struct {
	filter.Starts
	filter.Flushes
	filter.Closes

	next  *storage.Node
	group int64 // bytes
	swap  func(dst, src []byte)
}

var (
	_ filter.Filter      = (*Filter)(nil)
	_ storage.Advertiser = (*Filter)(nil)
)

// New returns a filter over next, which belongs to it. Other bits fail with a
// [*storage.InvalidError].
func New(next *storage.Node, opt Options) (*Filter, error) {
	f := &Filter{
		Starts: filter.Starts{Next: next}, Flushes: filter.Flushes{Next: next}, Closes: filter.Closes{Next: next},
		next: next, group: int64(opt.Bits / 8),
	}
	switch opt.Bits {
	case 16:
		f.swap = swap16
	case 32:
		f.swap = swap32
	case 64:
		f.swap = swap64
	default:
		return nil, &storage.InvalidError{Field: "bits", Detail: fmt.Sprintf("is %d, must be 16, 32 or 64", opt.Bits)}
	}
	return f, nil
}

// Limit is the next node's, in multiples of the group.
func (f *Filter) Limit(ctx context.Context, which storage.Limit) (int64, error) {
	v, err := f.next.Limit(ctx, which)
	return f.limit(which, v), err
}

// Advertise is what the next node advertises, in multiples of the group.
func (f *Filter) Advertise(ctx context.Context, which storage.Limit) (int64, error) {
	told, err := f.next.Advertised(ctx)
	return f.limit(which, told.Of(which)), err
}

// limit needs no more than rounding: a group is shorter than every preferred size.
func (f *Filter) limit(which storage.Limit, v int64) int64 {
	if which == storage.Minimum {
		return max(v, f.group)
	}
	return v &^ (f.group - 1)
}

// Size is the next node's, without what is no whole group.
func (f *Filter) Size(ctx context.Context) (int64, error) {
	size, _, err := f.size(ctx)
	return size, err
}

// size also reports whether something is left over.
func (f *Filter) size(ctx context.Context) (size int64, odd bool, err error) {
	if size, err = f.next.Size(ctx); err != nil || size%f.group == 0 {
		return size, false, err
	}
	minimum, err := f.next.Limit(ctx, storage.Minimum)
	return size &^ (max(minimum, f.group) - 1), true, err
}

// Allocated is what the next node takes.
func (f *Filter) Allocated(ctx context.Context) (int64, error) { return f.next.Allocated(ctx) }

// Extents are the next node's: zeros stay zeros.
func (f *Filter) Extents(ctx context.Context, off, n int64, into *storage.ExtentList) error {
	size, odd, err := f.size(ctx)
	if err != nil {
		return err
	}
	if !odd {
		return f.next.Extents(ctx, off, n, into)
	}
	if n <= 0 {
		return fmt.Errorf("%w: %d bytes at %d", storage.ErrOutOfRange, n, off)
	}
	if err := storage.CheckRange(off, n, size); err != nil {
		return err
	}
	var list storage.ExtentList // odd sizes are rare
	list.ResetWindow(into.Window())
	if err := f.next.Extents(ctx, off, n, &list); err != nil {
		return err
	}
	for i := range list.Len() {
		m := *list.At(i)
		if m.Offset >= size {
			break
		}
		m.Clip(m.Offset, size)
		if err := into.Add(m); err != nil {
			return err
		}
	}
	return nil
}
