package cow

import (
	"context"
	"fmt"
	"io"

	"github.com/extentd/extentd/storage"
)

// ReadAt reads len(p) bytes from off: from the overlay what is there, else from
// the node below.
func (f *Filter) ReadAt(ctx context.Context, p []byte, off int64) (n int, err error) {
	if err := f.usable(ctx); err != nil {
		return 0, err
	}
	if off < 0 {
		return 0, fmt.Errorf("%w: offset %d", storage.ErrOutOfRange, off)
	}
	size := f.length()
	if left := max(0, size-off); int64(len(p)) > left {
		p, err = p[:left], io.EOF
	}
	for n < len(p) {
		at := off + int64(n)
		s, end := f.run(at, off+int64(len(p)))
		part := p[n : n+int(end-at)]
		if err := f.read(ctx, s, part, at); err != nil {
			return n, err
		}
		n += len(part)
	}
	return n, err
}

// read reads what is all in one state.
func (f *Filter) read(ctx context.Context, s state, p []byte, off int64) error {
	switch s {
	case below:
		return f.readBelow(ctx, p, off)
	case overlay:
		return readAll(ctx, f.file, p, off+Base)
	default:
		clear(p)
		return nil
	}
}

// readBelow reads from the node below, which is seen as far as that. The end
// need not be a multiple of its minimum: it may be where this file was cut off.
func (f *Filter) readBelow(ctx context.Context, p []byte, off int64) error {
	minimum, err := f.next.Limit(ctx, storage.Minimum)
	if err != nil {
		return err
	}
	tail := int64(len(p)) & (minimum - 1)
	whole := int64(len(p)) - tail
	if err := readAll(ctx, f.next, p[:whole], off); err != nil || tail == 0 {
		return err
	}
	buf := f.blocks.Get().(*[BlockSize]byte)
	defer f.blocks.Put(buf)
	n, err := f.next.ReadAt(ctx, buf[:minimum], off+whole)
	if int64(n) < tail {
		return short(f.next, off+whole+int64(n), off+int64(len(p)), err)
	}
	copy(p[whole:], buf[:])
	return nil
}

// readAll fills p, in pieces that the node takes.
func readAll(ctx context.Context, node *storage.Node, p []byte, off int64) error {
	most, err := node.Limit(ctx, storage.MaxData)
	if err != nil {
		return err
	}
	for len(p) > 0 {
		part := p[:min(int64(len(p)), most)]
		if n, err := node.ReadAt(ctx, part, off); n < len(part) {
			return short(node, off+int64(n), off+int64(len(p)), err)
		}
		p, off = p[len(part):], off+int64(len(part))
	}
	return nil
}

// short is the error of a read that met err at off instead of reaching end.
func short(node *storage.Node, off, end int64, err error) error {
	if err != nil && err != io.EOF { //nolint:errorlint // File's contract is a bare io.EOF, as io.ReaderAt's
		return err
	}
	return fmt.Errorf("%s: ends at %d, short of %d: %w", node.Name(), off, end, io.ErrUnexpectedEOF)
}

const (
	data = storage.Alloc | storage.OffsetValid
	hole = storage.Zero | storage.OffsetValid
	// batch is the most runs that one call adds, so that whoever collects the
	// extents needs little memory.
	batch = 1024
)

// Extents appends data where the overlay has blocks, holes where they were
// zeroed or trimmed, and else what the node below says. It stops after a batch.
func (f *Filter) Extents(ctx context.Context, off, n int64, into *storage.ExtentList) error {
	if err := f.usable(ctx); err != nil {
		return err
	}
	size := f.length()
	if n == 0 {
		return fmt.Errorf("%w: no extents of an empty range at %d", storage.ErrOutOfRange, off)
	}
	if err := storage.CheckRange(off, n, size); err != nil {
		return err
	}
	_, wanted := into.Window()
	for wanted, at := min(wanted, off+n), off; ; {
		end, err := f.addRun(ctx, at, size, wanted, into)
		if err != nil || end >= wanted || into.Len() >= batch {
			return err
		}
		at = end
	}
}

// addRun appends the run from off, and returns where what it added ends. Of the
// node below it asks as far as wanted.
func (f *Filter) addRun(ctx context.Context, off, size, wanted int64, into *storage.ExtentList) (int64, error) {
	m := storage.Mapping{Offset: off, NodeOffset: off, Status: data}
	s, end := f.run(off, size)
	switch m.Length = end - off; s {
	case below:
		return f.addBelow(ctx, off, end, max(off+1, min(end, wanted)), into)
	case zero:
		m.Status = hole
	}
	return end, into.Add(m)
}

// addBelow appends what the node below says of [off, wanted), and no more than
// of [off, end).
func (f *Filter) addBelow(ctx context.Context, off, end, wanted int64, into *storage.ExtentList) (int64, error) {
	list := f.lists.Get().(*storage.ExtentList)
	defer f.lists.Put(list)
	list.ResetWindow(off, wanted)
	if err := f.next.Extents(ctx, off, wanted-off, list); err != nil {
		return off, err
	}
	i := list.Find(off)
	if i < 0 {
		return off, fmt.Errorf("%s: %w: no extent at %d", f.next.Name(), storage.ErrContract, off)
	}
	end = min(end, list.End())
	for ; i < list.Len() && list.At(i).Offset < end; i++ {
		m := *list.At(i)
		m.Clip(off, end)
		m.Node = nil
		if err := into.Add(m); err != nil {
			return off, err
		}
	}
	return end, nil
}
