package cow

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/filter"
	"github.com/extentd/extentd/storage/rangelock"
)

const (
	// BlockSize is what comes into the overlay at once, bytes.
	BlockSize = 1 << blockBits
	// Base is where the overlay has the file's first byte; what lies before it
	// belongs to whoever made the scratch file.
	Base = 64 << 10
)

// Options configure a filter.
type Options struct {
	// File is the overlay: a scratch file without content from [Base] on, open
	// for writing, whose minimum is 1. It grows to Base more than what is
	// written to the filter, and is sparse. The filter closes it. Required.
	File *storage.Node
}

// A Filter shows a node with changes that it keeps in an overlay. Its size is
// the node's at first, and then its own.
type Filter struct {
	filter.Limits
	next, file *storage.Node
	closed     atomic.Bool
	blocks     sync.Pool // of *[BlockSize]byte
	lists      sync.Pool // of *storage.ExtentList

	// lock orders changes, by blocks: shared for who writes where the overlay
	// has the blocks already, exclusive for who changes their states.
	lock rangelock.Lock

	mu     sync.RWMutex // protects all below; never held during I/O
	size   int64
	end    int64 // of what is seen of the node below: at most its size then, and size
	states table // past size: all below
}

var _ filter.Filter = (*Filter)(nil)

// New returns a filter over next, whose size is asked for, with the overlay of
// the options. It owns both; after an error the caller does.
func New(ctx context.Context, next *storage.Node, opt Options) (*Filter, error) {
	if opt.File == nil {
		return nil, &storage.InvalidError{Field: "path", Detail: "is missing: cow needs a scratch file"}
	}
	minimum, err := opt.File.Limit(ctx, storage.Minimum)
	if err != nil {
		return nil, err
	}
	if minimum != 1 {
		return nil, &storage.InvalidError{Field: "path", Detail: fmt.Sprintf("has a minimum of %d, must be 1", minimum)}
	}
	size, err := next.Size(ctx)
	if err != nil {
		return nil, err
	}
	f := &Filter{Limits: filter.Limits{Next: next}, next: next, file: opt.File, size: size, end: size}
	f.blocks.New = func() any { return new([BlockSize]byte) }
	f.lists.New = func() any { return new(storage.ExtentList) }
	return f, nil
}

// Size is the filter's own size in bytes.
func (f *Filter) Size(ctx context.Context) (int64, error) {
	if err := f.usable(ctx); err != nil {
		return 0, err
	}
	return f.length(), nil
}

// Allocated is how many bytes the overlay takes.
func (f *Filter) Allocated(ctx context.Context) (int64, error) { return f.file.Allocated(ctx) }

// StartWriting makes the overlay ready for being written to. The node below is
// not asked.
func (f *Filter) StartWriting(ctx context.Context) error {
	if err := f.usable(ctx); err != nil {
		return err
	}
	return f.file.StartWriting(ctx)
}

// Flush does nothing: what is written is to be discarded.
func (f *Filter) Flush(ctx context.Context) error { return f.usable(ctx) }

// Close closes the overlay and the node below.
func (f *Filter) Close() error {
	if f.closed.Swap(true) {
		return storage.ErrClosed
	}
	return errors.Join(f.file.Close(), f.next.Close())
}

// usable is an error once the filter is closed, or ctx has ended.
func (f *Filter) usable(ctx context.Context) error {
	if f.closed.Load() {
		return storage.ErrClosed
	}
	return ctx.Err()
}

// length is the size.
func (f *Filter) length() int64 {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.size
}

// run is the state at off, and the end of the bytes from there that have the
// same: at a block's end, or at hi. Those that are below end where the node
// below is no longer seen, and are zero from there on.
func (f *Filter) run(off, hi int64) (s state, end int64) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	s, last := f.states.run(off>>blockBits, ceil(hi))
	end = min(last<<blockBits, hi)
	switch {
	case s == below && off >= f.end:
		return zero, end
	case s == below:
		return below, min(end, f.end)
	}
	return s, end
}

// set changes the state of the blocks [lo, hi).
func (f *Filter) set(lo, hi int64, s state) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.states.set(lo, hi, s)
}

// blank makes the blocks [lo, hi) read as zeros. Past the end of the node below
// they do so without being remembered.
func (f *Filter) blank(lo, hi int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	end := min(max(ceil(f.end), lo), hi)
	f.states.set(lo, end, zero)
	f.states.set(end, hi, below)
}

// grow makes the file end at end at least.
func (f *Filter) grow(end int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.size = max(f.size, end)
}

// ceil is the first block from off on.
func ceil(off int64) int64 { return (off + BlockSize - 1) >> blockBits }
