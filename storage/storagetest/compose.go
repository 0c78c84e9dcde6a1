package storagetest

import (
	"context"
	"fmt"

	"github.com/extentd/extentd/storage"
)

// A WritableImage is one whose map can be changed once StartWriting has
// succeeded.
type WritableImage interface {
	storage.WritableMapper
	StartWriting(ctx context.Context) error
}

// finest is the smallest step in which Write goes on, where the map has no
// blocks.
const finest = 4096

// Write writes to an image without a backing in the slow and obvious way, block
// by block: in place where the mapping allows it, and else into new blocks. It
// is the model of what is built for speed. Nothing else may change the same
// blocks meanwhile.
func Write(ctx context.Context, m storage.WritableMapper, p []byte, off int64) error {
	if err := storage.CheckRange(off, int64(len(p)), m.Size()); err != nil {
		return err
	}
	if pinner, ok := m.(storage.Pinner); ok {
		pin := pinner.Pin()
		defer pinner.Unpin(pin)
	}
	step := max(m.Units().Alloc, finest)
	for len(p) > 0 {
		block := off - off%step
		n := min(int64(len(p)), block+step-off)
		if err := writeBlock(ctx, m, block, min(block+step, m.Size()), p[:n], off); err != nil {
			return err
		}
		p, off = p[n:], off+n
	}
	return nil
}

// writeBlock writes p to the block [begin, end).
func writeBlock(ctx context.Context, m storage.WritableMapper, begin, end int64, p []byte, off int64) error {
	var l storage.ExtentList
	l.ResetWindow(begin, end)
	if err := m.Fetch(ctx, begin, end-begin, &l); err != nil {
		return err
	}
	place, shown := inPlace(&l, begin, end)
	if place != nil && shown {
		return writeNode(ctx, m, place.Node, p, place.NodeOffset+off-begin)
	}
	content := make([]byte, end-begin)
	if err := readList(ctx, m, &l, content, begin); err != nil {
		return err
	}
	copy(content[off-begin:], p)
	if place != nil {
		if err := writeNode(ctx, m, place.Node, content, place.NodeOffset); err != nil {
			return err
		}
		return m.Update(ctx, begin, end-begin, storage.Target{Kind: storage.ToData, Node: place.Node, NodeOffset: place.NodeOffset})
	}
	return writeNew(ctx, m, content, begin)
}

// inPlace is the mapping at begin if all of the block may be overwritten where it
// is, or nil, and whether it shows the bytes that are there.
func inPlace(l *storage.ExtentList, begin, end int64) (place *storage.Mapping, shown bool) {
	shown = true
	for at := l.Find(begin); at < l.Len() && l.At(at).Offset < end; at++ {
		m := *l.At(at)
		m.Clip(begin, end)
		if m.Flags&(storage.Writable|storage.Compressed|storage.Encrypted) != storage.Writable || !m.Status.Has(storage.OffsetValid) {
			return nil, false
		}
		if place == nil {
			place = &m
		}
		if m.Node != place.Node || m.NodeOffset-place.NodeOffset != m.Offset-begin {
			return nil, false
		}
		shown = shown && m.Status == storage.Local|storage.Alloc|storage.OffsetValid
	}
	return place, shown
}

// writeNew puts the content of a block into a new one.
func writeNew(ctx context.Context, m storage.WritableMapper, content []byte, off int64) error {
	n := int64(len(content))
	b, err := m.Alloc(ctx, n, storage.AllocOptions{Guest: off, Contiguous: true})
	if err != nil {
		return err
	}
	if b.Length < n {
		return fmt.Errorf("%w: %d bytes reserved, less than %d", storage.ErrContract, b.Length, n)
	}
	if err := writeNode(ctx, m, b.Node, content, b.Offset); err != nil {
		return err
	}
	return m.Update(ctx, off, n, storage.Target{Kind: storage.ToData, Node: b.Node, NodeOffset: b.Offset})
}

func writeNode(ctx context.Context, m storage.WritableMapper, node *storage.Node, p []byte, off int64) error {
	if err := m.CheckWrite(ctx, node, off, int64(len(p))); err != nil {
		return err
	}
	_, err := node.WriteAt(ctx, p, off)
	return err
}

// ReadPinned is Read from an image whose map may change meanwhile.
func ReadPinned(ctx context.Context, m storage.Mapper, p []byte, off int64) error {
	if pinner, ok := m.(storage.Pinner); ok {
		pin := pinner.Pin()
		defer pinner.Unpin(pin)
	}
	return Read(ctx, m, p, off)
}
