// Package raw is the format driver for raw images: guest offset = file offset,
// and the map is the file's own.
package raw

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/extentd/extentd/storage"
)

// An Image is a raw image on a node. Its size is the file's at the time it was
// opened, until it is resized: what the file grows by otherwise is not part of
// it, and where the file has shrunk, reads and fetches fail with
// [storage.ErrOutOfRange]. Safe for concurrent use.
type Image struct {
	node   *storage.Node
	size   atomic.Int64
	closed atomic.Bool
	lists  sync.Pool // of *storage.ExtentList, for the node's answers

	writing atomic.Bool
	failed  atomic.Bool // a sync failed: nothing more is written
	mu      sync.Mutex  // held by Resize
}

var _ storage.Mapper = (*Image)(nil)

// New returns the image on node, which stays the caller's to close. It fails
// with [storage.ErrUnsupported] where the file is larger than
// [storage.MaxSize].
func New(ctx context.Context, node *storage.Node) (*Image, error) {
	size, err := node.Size(ctx)
	if err != nil {
		return nil, fmt.Errorf("raw: %w", err)
	}
	if size < 0 || size > storage.MaxSize {
		return nil, fmt.Errorf("raw: %s: %w: size %d, at most %d", node.Name(), storage.ErrUnsupported, size, storage.MaxSize)
	}
	i := &Image{node: node}
	i.size.Store(size)
	i.lists.New = func() any { return new(storage.ExtentList) }
	return i, nil
}

// Size is the size in bytes: exactly that of the file when it was opened or
// resized, whatever it is a multiple of.
func (i *Image) Size() int64 { return i.size.Load() }

// Direct says where the guest's [off, off+n) lies, for callers that read and
// need no map: at the same offset of the node, in one piece. ok is false where
// the range does not lie in the image.
func (i *Image) Direct(off, n int64) (node *storage.Node, nodeOffset int64, ok bool) {
	if i.closed.Load() || storage.CheckRange(off, n, i.Size()) != nil {
		return nil, 0, false
	}
	return i.node, off, true
}

// Fetch appends what the file says, with Local set: this layer supplies every
// byte, and with Writable where there is a place for it, once writing has
// started. The node's last extent is volunteered as far as it goes.
func (i *Image) Fetch(ctx context.Context, off, n int64, into *storage.ExtentList) error {
	if i.closed.Load() {
		return fmt.Errorf("raw: %s: %w", i.node.Name(), storage.ErrClosed)
	}
	size := i.Size() // one for the whole answer
	err := storage.CheckRange(off, n, size)
	if err == nil && n == 0 {
		err = fmt.Errorf("%w: fetch of nothing at %d", storage.ErrOutOfRange, off)
	}
	if err != nil {
		return fmt.Errorf("raw: %s: %w", i.node.Name(), err)
	}
	list := i.lists.Get().(*storage.ExtentList)
	defer i.lists.Put(list)
	_, hi := into.Window()
	for end := min(off+n, hi); off < end; off = list.End() {
		list.Reset()
		if err := i.node.Extents(ctx, off, end-off, list); err != nil {
			if errors.Is(err, storage.ErrOutOfRange) {
				return fmt.Errorf("raw: the file has shrunk below %d: %w", size, err)
			}
			return fmt.Errorf("raw: %w", err)
		}
		if list.Find(off) < 0 {
			return fmt.Errorf("raw: %s: %w: no extent at %d", i.node.Name(), storage.ErrContract, off)
		}
		if err := i.add(list, off, end, size, into); err != nil {
			return fmt.Errorf("raw: %s: %w", i.node.Name(), err)
		}
	}
	return nil
}

// add appends the node's extents from off to the end of the image. Of what lies
// past end, nothing that goes wrong matters.
func (i *Image) add(list *storage.ExtentList, off, end, size int64, into *storage.ExtentList) error {
	for at := list.Find(off); at < list.Len(); at++ {
		m := *list.At(at)
		if m.Offset >= size {
			return nil
		}
		if m.Status == 0 {
			if m.Offset >= end {
				return nil
			}
			return fmt.Errorf("%w: %d bytes at %d cannot be accessed", storage.ErrRefused, m.Length, m.Offset)
		}
		m.Clip(off, size)
		m.Status |= storage.Local
		if !m.Status.Has(storage.OffsetValid) {
			m.Node, m.NodeOffset = nil, 0
		} else if i.writing.Load() {
			m.Flags |= storage.Writable
		}
		if err := into.Add(m); err != nil {
			return err
		}
	}
	return nil
}

// Close makes every later call fail. An image that may have been written to is
// flushed first. The node stays open.
func (i *Image) Close() error {
	if i.closed.Swap(true) || !i.writing.Load() {
		return nil
	}
	if err := i.flush(context.Background()); err != nil {
		return fmt.Errorf("raw: close: %w", err)
	}
	return nil
}
