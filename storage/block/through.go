package block

import (
	"context"
	"fmt"

	"github.com/extentd/extentd/storage"
)

// looks says whether a map looks through a layer to its file.
type looks uint8

const (
	looksUnknown looks = iota
	looksAt
	looksThrough
)

// looksThrough reports whether the map looks through the layer at depth.
func (w *walker) looksThrough(ctx context.Context, depth int16) (bool, error) {
	if w.through[depth] == looksUnknown {
		w.through[depth] = looksAt
		if p := w.d.layers[depth].prealloc; p != nil {
			through, err := p.LooksPreallocated(ctx)
			if err != nil {
				return false, err
			}
			if through {
				w.through[depth] = looksThrough
				if depth == 0 {
					w.d.seen.Store(true)
				}
			}
		}
	}
	return w.through[depth] == looksThrough, nil
}

// see looks through m to its file where that is due, and takes the result.
func (w *walker) see(ctx context.Context, m *storage.Mapping) error {
	m.Flags &= storage.Compressed | storage.Encrypted
	const data = storage.Local | storage.Alloc | storage.OffsetValid
	if m.Status == data {
		through, err := w.looksThrough(ctx, m.Depth)
		if err != nil {
			return err
		}
		if through {
			return w.seeThrough(ctx, m)
		}
	}
	w.take(m)
	return nil
}

// mostParts bounds how long a pin is held for a map.
const mostParts = 256

// seeThrough splits a data mapping by what its file says: where the file has a
// hole, or has ended, the guest reads zeros.
func (w *walker) seeThrough(ctx context.Context, m *storage.Mapping) error {
	for m.Length > 0 && !w.stopped {
		if err := w.split(ctx, m); err != nil {
			return err
		}
		for i := range w.parts { // without a pin: who takes them may be slow
			w.take(&w.parts[i])
		}
	}
	return nil
}

// split moves the beginning of m to parts.
func (w *walker) split(ctx context.Context, m *storage.Mapping) error {
	w.parts = w.parts[:0]
	if p := w.d.layers[m.Depth].pinner; p != nil {
		pin := p.Pin()
		defer p.Unpin(pin)
	}
	end := m.End()
	if m.Depth == 0 && w.d.Writable() {
		w.beneathOf = nil
		same, until, err := w.stands(ctx, m)
		if err != nil {
			return err
		}
		if end = until; !same { // what was true when it was fetched
			w.cut(m, end-m.Offset, 0)
			return nil
		}
	}
	for m.Offset < end && len(w.parts) < mostParts {
		child, err := w.beneathAt(ctx, m)
		if err != nil {
			return err
		}
		w.cut(m, min(end-m.Offset, child.End()-m.NodeOffset), child.Status)
	}
	return nil
}

// stands reports whether the top layer still says what m says, and how far.
func (w *walker) stands(ctx context.Context, m *storage.Mapping) (same bool, end int64, err error) {
	w.again.ResetWindow(m.Offset, m.End())
	if err := w.d.layers[0].Fetch(ctx, m.Offset, m.Length, &w.again); err != nil {
		return false, 0, err
	}
	i := w.again.Find(m.Offset)
	if i < 0 {
		return false, 0, fmt.Errorf("%w: no extent at %d", storage.ErrContract, m.Offset)
	}
	now := *w.again.At(i)
	now.Clip(m.Offset, m.End())
	return now.Status == m.Status && now.Node == m.Node && now.NodeOffset == m.NodeOffset, now.End(), nil
}

// cut moves the first n bytes of m to parts, with what the file says of them.
func (w *walker) cut(m *storage.Mapping, n int64, child storage.Status) {
	part := *m
	part.Length = n
	if child.Has(storage.Zero) {
		part.Status = storage.Local | storage.OffsetValid | child&(storage.Zero|storage.Alloc)
	}
	w.parts = append(w.parts, part)
	m.Offset += n
	m.NodeOffset += n
	m.Length -= n
}

// beneathAt is what the node of m says at its offset. The last answer is kept:
// one hole of a file lies below many clusters, and asking costs a system call.
func (w *walker) beneathAt(ctx context.Context, m *storage.Mapping) (*storage.Mapping, error) {
	lo := m.NodeOffset
	if w.beneathOf == m.Node {
		if i := w.beneath.Find(lo); i >= 0 {
			return w.beneath.At(i), nil
		}
	}
	w.beneathOf = nil
	size, err := m.Node.Size(ctx)
	if err != nil {
		return nil, err
	}
	w.beneath.ResetWindow(lo, lo+1) // the rest of the extent comes along
	if lo >= size {
		err = w.beneath.Add(storage.Mapping{Offset: lo, Length: m.Length, Status: storage.Zero})
	} else {
		err = m.Node.Extents(ctx, lo, min(m.Length, size-lo), &w.beneath)
	}
	if err != nil {
		return nil, err
	}
	i := w.beneath.Find(lo)
	if i < 0 {
		return nil, fmt.Errorf("%s: %w: no extent at %d", m.Node.Name(), storage.ErrContract, lo)
	}
	w.beneathOf = m.Node
	return w.beneath.At(i), nil
}
