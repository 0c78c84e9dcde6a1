// Package offset is a filter that shows a window of a node: a partition, or what
// follows a header.
//
// It guarantees that nothing outside the window is read or changed. A window
// with a length keeps its size. One without goes to the end of the next node,
// and grows and shrinks with it.
package offset

import (
	"context"
	"fmt"
	"sync"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/filter"
)

// Options configure the filter. The zero value shows everything.
type Options struct {
	// Offset is where the window begins in the next node, bytes; a multiple of
	// its minimum, at most its size. Default: 0.
	Offset int64
	// Length of the window, bytes; a multiple of the minimum. The window must
	// lie inside the next node. Default: 0, to the end, wherever that is.
	Length int64
}

// A Filter is a window.
type Filter struct {
	filter.Limits
	filter.Starts
	filter.Flushes
	filter.Closes

	next   *storage.Node
	offset int64
	length int64     // 0: to the end
	lists  sync.Pool // of *storage.ExtentList
}

var _ filter.Filter = (*Filter)(nil)

// New returns a filter over next, which belongs to it. A window that does not lie
// in next, as long as it is now, or at multiples of its minimum, fails with a
// [*storage.InvalidError].
func New(ctx context.Context, next *storage.Node, opt Options) (*Filter, error) {
	minimum, err := next.Limit(ctx, storage.Minimum)
	if err != nil {
		return nil, err
	}
	size, err := next.Size(ctx)
	if err != nil {
		return nil, err
	}
	if err := opt.check(minimum, size); err != nil {
		return nil, err
	}
	f := &Filter{
		Limits: filter.Limits{Next: next}, Starts: filter.Starts{Next: next},
		Flushes: filter.Flushes{Next: next}, Closes: filter.Closes{Next: next},
		next: next, offset: opt.Offset, length: opt.Length,
	}
	f.lists.New = func() any { return new(storage.ExtentList) }
	return f, nil
}

func (o Options) check(minimum, size int64) error {
	for _, v := range []struct {
		field string
		value int64
		most  int64
	}{
		{"offset", o.Offset, size},
		{"length", o.Length, size - o.Offset},
	} {
		switch {
		case v.value < 0:
			return invalid(v.field, "is %d, must not be negative", v.value)
		case v.value%minimum != 0:
			return invalid(v.field, "is %d, must be a multiple of the node's minimum, %d", v.value, minimum)
		case v.value > v.most:
			return invalid(v.field, "is %d, must be at most %d: the node ends at %d", v.value, v.most, size)
		}
	}
	return nil
}

func invalid(field, format string, args ...any) error {
	return &storage.InvalidError{Field: field, Detail: fmt.Sprintf(format, args...)}
}

// Size is the window's, less what the next node has lost.
func (f *Filter) Size(ctx context.Context) (int64, error) {
	size, err := f.next.Size(ctx)
	if err != nil {
		return 0, err
	}
	return f.inside(0, max(0, size-f.offset)), nil
}

// Allocated is at most what the next node takes, which does not say where.
func (f *Filter) Allocated(ctx context.Context) (int64, error) {
	size, err := f.Size(ctx)
	if err != nil {
		return 0, err
	}
	allocated, err := f.next.Allocated(ctx)
	return min(allocated, size), err
}

// inside is how much of n bytes from off lies before the window's end.
func (f *Filter) inside(off, n int64) int64 {
	if f.length == 0 {
		return n
	}
	return min(n, max(0, f.length-off))
}
