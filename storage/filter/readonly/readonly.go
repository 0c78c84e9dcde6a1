// Package readonly is the filter that lets nothing be written: whatever the node
// below can do, writes, zeroes, trims, truncates, flushes, and that writing
// begins, fail with [storage.ErrReadOnly], and the node below hears nothing of
// them. Reads, the map, the size and the limits are passed on as they are.
//
// It does not keep others from changing the file.
package readonly

import (
	"context"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/filter"
)

// Options configure the filter. There are none.
type Options struct{}

// A Filter is read-only. Safe for concurrent use.
type Filter struct {
	filter.Sizes
	filter.Reads
	filter.Maps
	filter.Limits
	filter.Closes
}

var _ filter.Filter = (*Filter)(nil)

// New returns a filter over next, which it closes.
func New(next *storage.Node, _ Options) (*Filter, error) {
	return &Filter{
		Sizes:  filter.Sizes{Next: next},
		Reads:  filter.Reads{Next: next},
		Maps:   filter.Maps{Next: next},
		Limits: filter.Limits{Next: next},
		Closes: filter.Closes{Next: next},
	}, nil
}

// WriteAt fails.
func (f *Filter) WriteAt(context.Context, []byte, int64) (int, error) { return 0, storage.ErrReadOnly }

// Zero fails.
func (f *Filter) Zero(context.Context, int64, int64, bool) error { return storage.ErrReadOnly }

// Trim fails.
func (f *Filter) Trim(context.Context, int64, int64) error { return storage.ErrReadOnly }

// Truncate fails.
func (f *Filter) Truncate(context.Context, int64) error { return storage.ErrReadOnly }

// StartWriting fails.
func (f *Filter) StartWriting(context.Context) error { return storage.ErrReadOnly }

// Flush fails, as that of a file that was opened for reading does: there is
// nothing to make durable.
func (f *Filter) Flush(context.Context) error { return storage.ErrReadOnly }
