package readahead

import (
	"context"
	"fmt"
	"sync"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/filter"
)

const (
	// MaxWindows is how many windows a filter has in memory.
	MaxWindows = 8

	// maxStreams is how many sequential readers are told apart.
	maxStreams = 16

	defaultSize = 1 << 20
	minSize     = 64 << 10 // also the first window of a stream
	maxSize     = 64 << 20
)

// Options configure a filter. The zero value reads a MiB ahead.
type Options struct {
	// Size is the largest window, bytes: a multiple of 64 KiB, up to 64 MiB. A
	// filter takes up to [MaxWindows] times as much memory. A node that takes
	// less at once is asked for less. Default: 1 MiB.
	Size int64
}

// A Filter reads ahead.
type Filter struct {
	filter.Sizes
	filter.Maps
	filter.Limits
	filter.Forgets
	filter.Starts
	filter.Flushes
	next *storage.Node
	size int64 // of the largest window

	ctx    context.Context // of reads ahead, ended by Close
	cancel context.CancelFunc
	reads  sync.WaitGroup // ahead

	mu      sync.Mutex // protects all below; never held during I/O
	closed  bool
	streams [maxStreams]stream
	windows [MaxWindows]window
	clock   int64 // of both: when one was used last

	prefetched, used, wasted int64 // bytes
}

var (
	_ filter.Filter   = (*Filter)(nil)
	_ filter.Counting = (*Filter)(nil)
)

// New returns a filter over next, which it owns. After an error the caller does.
func New(next *storage.Node, opt Options) (*Filter, error) {
	if opt.Size == 0 {
		opt.Size = defaultSize
	}
	if opt.Size < minSize || opt.Size > maxSize || opt.Size%minSize != 0 {
		return nil, &storage.InvalidError{Field: "size", Detail: fmt.Sprintf("is %d, must be a multiple of %d, at most %d", opt.Size, minSize, maxSize)}
	}
	f := &Filter{
		Sizes: filter.Sizes{Next: next}, Maps: filter.Maps{Next: next}, Limits: filter.Limits{Next: next},
		Starts: filter.Starts{Next: next}, Flushes: filter.Flushes{Next: next},
		next: next, size: opt.Size,
	}
	f.Forgets = filter.Forgets{Next: next, Forget: f.forget}
	f.ctx, f.cancel = context.WithCancel(context.Background())
	return f, nil
}

// Counters are how many bytes were read ahead, how many of them somebody wanted,
// and how many were dropped before anybody did.
func (f *Filter) Counters() []filter.Counter {
	f.mu.Lock()
	defer f.mu.Unlock()
	return []filter.Counter{
		{Name: "prefetched", Value: f.prefetched},
		{Name: "used", Value: f.used},
		{Name: "wasted", Value: f.wasted},
	}
}

// Close ends what is being read ahead, waits for it, and closes the node below.
func (f *Filter) Close() error {
	f.mu.Lock()
	f.closed = true
	f.mu.Unlock()
	f.cancel()
	f.reads.Wait()
	return f.next.Close()
}
