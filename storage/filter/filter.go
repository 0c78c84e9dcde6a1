package filter

import (
	"context"

	"github.com/extentd/extentd/storage"
)

// A Filter is a node over a node.
type Filter interface {
	storage.File
	storage.Writer
	storage.Starter
	storage.Sparse
}

// A Counter counts what a filter has done since it was made.
type Counter struct {
	Name  string // snake_case: "hits"
	Value int64
}

// A Counting filter counts what it does.
type Counting interface {
	// Counters are in an order of the filter's own. Safe for concurrent use.
	Counters() []Counter
}

// Sizes passes on how large the file is, and how much of a disk it takes.
type Sizes struct{ Next *storage.Node }

// Size is the next node's.
func (s Sizes) Size(ctx context.Context) (int64, error) { return s.Next.Size(ctx) }

// Allocated is the next node's.
func (s Sizes) Allocated(ctx context.Context) (int64, error) { return s.Next.Allocated(ctx) }

// Reads passes on reads.
type Reads struct{ Next *storage.Node }

// ReadAt reads from the next node.
func (r Reads) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	return r.Next.ReadAt(ctx, p, off)
}

// Maps passes on the map.
type Maps struct{ Next *storage.Node }

// Extents are the next node's.
func (m Maps) Extents(ctx context.Context, off, n int64, into *storage.ExtentList) error {
	return m.Next.Extents(ctx, off, n, into)
}

// Limits passes on the limits.
type Limits struct{ Next *storage.Node }

// Limit is the next node's.
func (l Limits) Limit(ctx context.Context, which storage.Limit) (int64, error) {
	return l.Next.Limit(ctx, which)
}

// Advertise is what the next node advertises.
func (l Limits) Advertise(ctx context.Context, which storage.Limit) (int64, error) {
	told, err := l.Next.Advertised(ctx)
	return told.Of(which), err
}

// Changes passes on what changes bytes and size.
type Changes struct{ Next *storage.Node }

// WriteAt writes to the next node.
func (c Changes) WriteAt(ctx context.Context, p []byte, off int64) (int, error) {
	return c.Next.WriteAt(ctx, p, off)
}

// Zero zeroes the next node's bytes.
func (c Changes) Zero(ctx context.Context, off, n int64, keep bool) error {
	return c.Next.Zero(ctx, off, n, keep)
}

// Trim trims the next node.
func (c Changes) Trim(ctx context.Context, off, n int64) error { return c.Next.Trim(ctx, off, n) }

// Truncate sets the next node's size.
func (c Changes) Truncate(ctx context.Context, size int64) error { return c.Next.Truncate(ctx, size) }

// Forgets passes on what changes bytes and size, for filters that keep some of
// them.
type Forgets struct {
	Next *storage.Node
	// Forget is called before and after each change of [off, off+n): what was
	// read before the second call may be stale, and what is read after it is
	// not.
	Forget func(off, n int64)
}

// WriteAt writes to the next node.
func (f Forgets) WriteAt(ctx context.Context, p []byte, off int64) (int, error) {
	f.forget(off, int64(len(p)))
	defer f.forget(off, int64(len(p)))
	return f.Next.WriteAt(ctx, p, off)
}

// Zero zeroes the next node's bytes.
func (f Forgets) Zero(ctx context.Context, off, n int64, keep bool) error {
	f.forget(off, n)
	defer f.forget(off, n)
	return f.Next.Zero(ctx, off, n, keep)
}

// Trim trims the next node.
func (f Forgets) Trim(ctx context.Context, off, n int64) error {
	f.forget(off, n)
	defer f.forget(off, n)
	return f.Next.Trim(ctx, off, n)
}

// Truncate sets the next node's size.
func (f Forgets) Truncate(ctx context.Context, size int64) error {
	f.forget(size, storage.MaxSize-size)
	defer f.forget(size, storage.MaxSize-size)
	return f.Next.Truncate(ctx, size)
}

func (f Forgets) forget(off, n int64) {
	if off < 0 || n <= 0 || off > storage.MaxSize-n {
		return // the node refuses it
	}
	f.Forget(off, n)
}

// Starts passes on that writing begins.
type Starts struct{ Next *storage.Node }

// StartWriting makes the next node ready for being written to.
func (s Starts) StartWriting(ctx context.Context) error { return s.Next.StartWriting(ctx) }

// Flushes passes on flushes.
type Flushes struct{ Next *storage.Node }

// Flush flushes the next node.
func (f Flushes) Flush(ctx context.Context) error { return f.Next.Flush(ctx) }

// Closes closes the next node, for filters that hold nothing else.
type Closes struct{ Next *storage.Node }

// Close closes the next node.
func (c Closes) Close() error { return c.Next.Close() }
