// Package stats is the filter that counts what goes through it: operations, bytes,
// errors, and how long operations take. It changes nothing, allocates nothing per
// operation, and takes no lock.
//
// An operation counts when it is done. Counters that are read while operations
// are under way belong to slightly different moments.
package stats

import (
	"context"
	"io"
	"math/rand/v2"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/filter"
)

// Options configure the filter. There are none.
type Options struct{}

// Bounds are the upper ends of the histogram's buckets, in microseconds. What
// takes longer than the last is in no bucket.
func Bounds() []int64 { return append([]int64(nil), bounds[:]...) }

var bounds = [...]int64{1, 3, 10, 30, 100, 300, 1e3, 3e3, 10e3, 30e3, 100e3, 300e3, 1e6, 3e6, 10e6}

// New returns a filter over next, which it closes. It counts, for every operation
// NAME, in this order: NAME_operations; NAME_bytes, which were read or written,
// or were in the range of extents, zeroes and trims that succeeded; NAME_errors,
// of which the end of the file is none; and for each N of [Bounds] NAME_us_le_N,
// the operations that took N microseconds or less.
func New(next *storage.Node, _ Options) (filter.Filter, error) {
	return filter.Interpose(next, &counts{since: time.Now()}), nil
}

// shards are as many as cores can count at once without getting into each
// other's way: a counter that all of them share costs hundreds of nanoseconds. A
// power of two.
const shards = 8

type counts struct {
	since  time.Time // only differences count: reading the clock by [time.Since] is cheaper than by [time.Now]
	shards [shards][filter.Ops]op
}

var _ filter.Counting = (*counts)(nil)

// An op is what is counted of an operation: 18 words and padding to whole cache
// lines.
type op struct {
	bytes, errors atomic.Int64
	took          [len(bounds) + 1]atomic.Int64 // by bucket; the last has no bound
	_             [6]int64
}

// Interpose has the node below asked, and counts.
func (c *counts) Interpose(ctx context.Context, r filter.Request) (int, error) {
	begun := time.Since(c.since)
	n, err := r.Do(ctx)
	took := time.Since(c.since) - begun
	o := &c.shards[rand.Uint32()%shards][r.Op]
	o.took[bucket(took)].Add(1)
	switch r.Op {
	case filter.Read, filter.Write:
		o.bytes.Add(int64(n))
	default:
		if err == nil {
			o.bytes.Add(r.Length)
		}
	}
	if err != nil && err != io.EOF { //nolint:errorlint // the end of a file is a bare io.EOF
		o.errors.Add(1)
	}
	return n, err
}

// bucket is the index of the first bound that is not exceeded.
func bucket(took time.Duration) int {
	for i, us := range bounds {
		if took <= time.Duration(us)*time.Microsecond {
			return i
		}
	}
	return len(bounds)
}

// Counters are all counters of all operations, in the same order always.
func (c *counts) Counters() []filter.Counter {
	all := make([]filter.Counter, 0, int(filter.Ops)*(3+len(bounds)))
	for which := range filter.Ops {
		name := which.String() + "_"
		var bytes, errors, operations int64
		var upTo [len(bounds)]int64
		for i := range c.shards {
			o := &c.shards[i][which]
			bytes += o.bytes.Load()
			errors += o.errors.Load()
			for k := range o.took {
				n := o.took[k].Load()
				operations += n
				for j := k; j < len(upTo); j++ {
					upTo[j] += n
				}
			}
		}
		all = append(all, filter.Counter{Name: name + "operations", Value: operations},
			filter.Counter{Name: name + "bytes", Value: bytes}, filter.Counter{Name: name + "errors", Value: errors})
		for i, us := range bounds {
			all = append(all, filter.Counter{Name: name + "us_le_" + strconv.FormatInt(us, 10), Value: upTo[i]})
		}
	}
	return all
}
