// Package rate is the filter that bounds how many bytes are read and written a
// second. In any t seconds no more than burst + t * rate bytes of a kind are let
// through, and as long as somebody asks for more, no less than that once the
// burst is used up. Who came first goes first, whatever it asks for.
//
// Only reads and writes count, by the bytes that are asked for; what has no bytes
// to carry (extents, zeroes, trims, truncates, flushes) is free. A request that
// is larger than the burst waits until its bytes have been saved up. Reads and
// writes do not wait for each other.
package rate

import (
	"context"
	"fmt"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/filter"
)

// Options configure the filter. The zero value bounds nothing.
type Options struct {
	// Read and Write are bytes a second. Default: 0, no bound.
	Read, Write int64
	// Burst is how many bytes of each kind may go through at once after a
	// pause, and at the beginning. Default: 0, what Read and Write let through
	// in a second.
	Burst int64
}

// New returns a filter over next, which it closes.
func New(next *storage.Node, opt Options) (filter.Filter, error) {
	for _, o := range []struct {
		field string
		value int64
	}{{"read", opt.Read}, {"write", opt.Write}, {"burst", opt.Burst}} {
		if o.value < 0 {
			return nil, &storage.InvalidError{Field: o.field, Detail: fmt.Sprintf("is %d, must be 0 or more", o.value)}
		}
	}
	return filter.Interpose(next, &bounds{read: newBucket(opt.Read, opt.Burst), write: newBucket(opt.Write, opt.Burst)}), nil
}

// bounds are the buckets of a filter, nil where there is no bound.
type bounds struct{ read, write *bucket }

// Interpose waits until the request may go through.
func (b *bounds) Interpose(ctx context.Context, r filter.Request) (int, error) {
	var from *bucket
	switch r.Op {
	case filter.Read:
		from = b.read
	case filter.Write:
		from = b.write
	default: // is free
	}
	if from != nil {
		if err := from.take(ctx, r.Length); err != nil {
			return 0, err
		}
	}
	return r.Do(ctx)
}
