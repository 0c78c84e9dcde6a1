// Package delay is the filter that takes its time: operations of a kind wait
// before the node below is asked. It is for tests of what stands above.
//
// Operations wait side by side, each as long as it says: the filter is slow, not
// narrow (see package rate). It changes nothing else.
package delay

import (
	"context"
	"fmt"
	"time"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/filter"
)

// Options configure the filter: how long each kind of operation waits. Each is 0
// or more. Default: 0, which is no wait.
type Options struct {
	Read, Extents, Write, Zero, Trim, Truncate, Flush time.Duration
}

// New returns a filter over next, which it closes.
func New(next *storage.Node, opt Options) (filter.Filter, error) {
	f := waiting{
		filter.Read: opt.Read, filter.Extents: opt.Extents, filter.Write: opt.Write, filter.Zero: opt.Zero,
		filter.Trim: opt.Trim, filter.Truncate: opt.Truncate, filter.Flush: opt.Flush,
	}
	for op, d := range f {
		if d < 0 {
			return nil, &storage.InvalidError{Field: filter.Op(op).String(), Detail: fmt.Sprintf("is %v, must be 0 or more", d)}
		}
	}
	return filter.Interpose(next, &f), nil
}

// waiting is how long each operation waits.
type waiting [filter.Ops]time.Duration

// Interpose waits, and asks the node below unless ctx has ended meanwhile.
func (w *waiting) Interpose(ctx context.Context, r filter.Request) (int, error) {
	if err := filter.Wait(ctx, w[r.Op]); err != nil {
		return 0, err
	}
	return r.Do(ctx)
}
