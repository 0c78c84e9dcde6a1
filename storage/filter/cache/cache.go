package cache

import (
	"context"
	"errors"
	"fmt"
	"math/bits"
	"sync"
	"sync/atomic"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/filter"
)

const (
	// Base is where the first block is in the file; what lies before it belongs
	// to whoever made the scratch file.
	Base = 64 << 10

	defaultBlock = 64 << 10
	minBlock     = 4 << 10
	maxBlock     = 16 << 20
)

// Options configure a filter.
type Options struct {
	// File is where the blocks are kept: a scratch file without content from
	// [Base] on, open for writing, whose minimum is 1. The filter closes it.
	// Required.
	File *storage.Node
	// Size is the most that is kept, bytes: at least one block, at most
	// [storage.MaxSize] less [Base]. About 100 bytes of memory go with each
	// block that is kept. Required.
	Size int64
	// BlockSize is what is fetched and kept as one, bytes: a power of two, 4 KiB
	// to 16 MiB, not less than the minimum of the node below. Default: 64 KiB.
	BlockSize int64
}

// complete puts in the defaults, and refuses what cannot be.
func (o *Options) complete() error {
	if o.BlockSize == 0 {
		o.BlockSize = defaultBlock
	}
	if o.File == nil {
		return &storage.InvalidError{Field: "path", Detail: "is missing: cache needs a scratch file"}
	}
	if b := o.BlockSize; b < minBlock || b > maxBlock || b&(b-1) != 0 {
		return &storage.InvalidError{Field: "block_size", Detail: fmt.Sprintf("is %d, must be a power of two from %d to %d", b, minBlock, maxBlock)}
	}
	if o.Size < o.BlockSize || o.Size > storage.MaxSize-Base {
		return &storage.InvalidError{Field: "size", Detail: fmt.Sprintf("is %d, must be from one block, %d, to %d", o.Size, o.BlockSize, storage.MaxSize-Base)}
	}
	return nil
}

// A Filter reads a node through a cache.
type Filter struct {
	filter.Sizes
	filter.Maps
	filter.Limits
	filter.Forgets
	filter.Starts
	filter.Flushes
	next, file *storage.Node
	block      int64 // bytes, a power of two
	bits       int   // its logarithm
	buffers    sync.Pool

	hits, misses, errors atomic.Int64

	mu    sync.Mutex // protects index; never held during I/O
	index index
}

var (
	_ filter.Filter   = (*Filter)(nil)
	_ filter.Counting = (*Filter)(nil)
)

// New returns a filter over next. It owns next and the file of the options; after
// an error the caller does.
func New(ctx context.Context, next *storage.Node, opt Options) (*Filter, error) {
	if err := opt.complete(); err != nil {
		return nil, err
	}
	fileMinimum, err := opt.File.Limit(ctx, storage.Minimum)
	if err != nil {
		return nil, err
	}
	if fileMinimum != 1 {
		return nil, &storage.InvalidError{Field: "path", Detail: fmt.Sprintf("has a minimum of %d, must be 1", fileMinimum)}
	}
	minimum, err := next.Limit(ctx, storage.Minimum)
	if err != nil {
		return nil, err
	}
	if opt.BlockSize < minimum {
		return nil, &storage.InvalidError{Field: "block_size", Detail: fmt.Sprintf("is %d, must be at least the minimum of %s, %d", opt.BlockSize, next.Name(), minimum)}
	}
	f := &Filter{
		Sizes: filter.Sizes{Next: next}, Maps: filter.Maps{Next: next}, Limits: filter.Limits{Next: next},
		Starts: filter.Starts{Next: next}, Flushes: filter.Flushes{Next: next},
		next: next, file: opt.File, block: opt.BlockSize, bits: bits.TrailingZeros64(uint64(opt.BlockSize)),
	}
	f.Forgets = filter.Forgets{Next: next, Forget: f.forget}
	f.index = newIndex(opt.Size >> f.bits)
	f.buffers.New = func() any { return new([]byte) }
	return f, nil
}

// forget drops what the cache holds of [off, off+n), and what is being fetched of
// it.
func (f *Filter) forget(off, n int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.index.forget(off>>f.bits, (off+n-1)>>f.bits+1)
}

// Counters are how many blocks were read from the cache and from the node, how
// many made room for others, how often the cache's file failed, and how many
// bytes it holds now.
func (f *Filter) Counters() []filter.Counter {
	f.mu.Lock()
	evictions, cached := f.index.evictions, f.index.cached
	f.mu.Unlock()
	return []filter.Counter{
		{Name: "hits", Value: f.hits.Load()},
		{Name: "misses", Value: f.misses.Load()},
		{Name: "evictions", Value: evictions},
		{Name: "errors", Value: f.errors.Load()},
		{Name: "cached_bytes", Value: cached},
	}
}

// Close closes the cache's file and the node below.
func (f *Filter) Close() error { return errors.Join(f.file.Close(), f.next.Close()) }
