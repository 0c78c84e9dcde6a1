// Package blocksize is a filter with a minimum of 1 above any node. What is no
// multiple of the next node's minimum is read through a buffer, and written by
// reading whole blocks, changing them and writing them back; what is longer than
// the node takes at a time is split.
//
// It guarantees that no write, zero, trim or truncate that has succeeded is
// undone by another that touches the same block and not the same bytes: changes
// of parts of blocks exclude all others of these blocks, in the order in which
// they came, and changes of other blocks go on meanwhile. That holds for what
// goes through this filter: nobody else may change the node below.
//
// It does not make a request that is split, or that changes parts of blocks, one
// step: after a failure or a crash any of its blocks may be old or new. A trim
// gives back whole blocks alone. Above a node whose minimum is 1 and that takes
// the longest requests it does nothing.
package blocksize

import (
	"context"
	"errors"
	"fmt"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/filter"
	"github.com/extentd/extentd/storage/rangelock"
)

// Options configure the filter. There are none.
type Options struct{}

// A Filter takes any request.
type Filter struct {
	filter.Sizes
	filter.Maps // a node answers for any range
	filter.Starts
	filter.Flushes
	filter.Closes

	next *storage.Node
	lock rangelock.Lock // of blocks, while they are changed
}

var _ filter.Filter = (*Filter)(nil)

// New returns a filter over next, which belongs to it. It does not fail.
func New(next *storage.Node, _ Options) (*Filter, error) {
	return &Filter{
		Sizes: filter.Sizes{Next: next}, Maps: filter.Maps{Next: next}, Starts: filter.Starts{Next: next},
		Flushes: filter.Flushes{Next: next}, Closes: filter.Closes{Next: next},
		next: next,
	}, nil
}

// Limit is the default for all but preferred, which is the next node's: a
// minimum of 1, and the largest there is for max_data, max_trim and max_zero.
func (f *Filter) Limit(ctx context.Context, which storage.Limit) (int64, error) {
	if which == storage.Preferred {
		return f.next.Limit(ctx, which)
	}
	return 0, nil
}

// Truncate sets the next node's size, which need be no multiple of its minimum.
func (f *Filter) Truncate(ctx context.Context, size int64) error {
	g, err := f.geometry(ctx)
	if err != nil {
		return err
	}
	if err := storage.CheckRange(0, size, storage.MaxSize); err != nil {
		return err
	}
	h, err := f.hold(ctx, g, g.down(size), rangelock.Everything, true)
	if err != nil {
		return err
	}
	defer f.lock.Release(h)
	return f.next.Truncate(ctx, size)
}

// grow makes the file longer, to a size that is no multiple of its minimum. The
// caller holds all from the block of that size on.
func (f *Filter) grow(ctx context.Context, size int64) error {
	err := f.next.Truncate(ctx, size)
	if errors.Is(err, storage.ErrUnsupported) { // what a write says of it
		return fmt.Errorf("%w: the file cannot grow to %d bytes", storage.ErrNoSpace, size)
	}
	return err
}

// hold locks the blocks of [lo, hi). Where a block is a byte there is nothing to
// lock.
func (f *Filter) hold(ctx context.Context, g geometry, lo, hi int64, exclusive bool) (*rangelock.Hold, error) {
	if g.block == 1 {
		return nil, nil //nolint:nilnil // Release takes it
	}
	if exclusive {
		return f.lock.Exclude(ctx, lo, hi)
	}
	return f.lock.Share(ctx, lo, hi)
}

// checkChange refuses what no file can hold.
func checkChange(off, n int64) error {
	if off < 0 || n < 0 || off > storage.MaxSize-n {
		return fmt.Errorf("%w: %d bytes at %d", storage.ErrOutOfRange, n, off)
	}
	return nil
}
