package service

import (
	"context"
	"fmt"
	"slices"

	"github.com/extentd/extentd/storage"
)

// An AllocationWriter fills an allocation, which it keeps from expiring and from
// being given back until it is released. Safe for concurrent use.
type AllocationWriter struct {
	l *ledger
	a *allocation
	h *Handle
}

// OpenAllocation returns a writer into the allocation. The caller releases it.
func (s *Service) OpenAllocation(ctx context.Context, image, id string) (*AllocationWriter, error) {
	h, err := s.writableFor(ctx, image, id)
	if err != nil {
		return nil, err
	}
	l := s.ledger
	l.mu.Lock()
	a, err := l.find(h, id)
	if err == nil {
		a.writers++
		l.renew(a)
	}
	l.mu.Unlock()
	if err != nil {
		h.Release()
		return nil, err
	}
	return &AllocationWriter{l: l, a: a, h: h}, nil
}

// Length is the allocation's length in bytes.
func (w *AllocationWriter) Length() int64 { return w.a.Length }

// WriteAt writes p at off of the allocation. Past its end it fails with
// storage.ErrOutOfRange; where a part is mapped, or is being mapped, with
// storage.ErrConflict. Of an error a part may have been written. Bytes are
// durable once they are mapped and the image is flushed.
func (w *AllocationWriter) WriteAt(ctx context.Context, p []byte, off int64) error {
	n := int64(len(p))
	if err := storage.CheckRange(off, n, w.a.Length); err != nil {
		return fmt.Errorf("allocation %q: %w", w.a.ID, err)
	}
	if n == 0 {
		return nil
	}
	if err := w.begin(span{off, n}); err != nil {
		return err
	}
	defer w.end(span{off, n})
	for len(p) > 0 {
		e := w.extent(off)
		k := min(int64(len(p)), e.Offset+e.Length-off)
		b := storage.Blocks{Node: w.a.node, Offset: e.NodeOffset, Length: e.Length}
		if err := w.h.device.FillBlocks(ctx, b, p[:k], off-e.Offset); err != nil {
			w.h.Report(err)
			return fmt.Errorf("allocation %q: %w", w.a.ID, err)
		}
		p, off = p[k:], off+k
	}
	return nil
}

// extent is the one that off, which is inside, lies in.
func (w *AllocationWriter) extent(off int64) *extent {
	i, _ := slices.BinarySearchFunc(w.a.Extents, off, func(e extent, off int64) int {
		if e.Offset+e.Length <= off {
			return -1
		}
		return 1
	})
	return &w.a.Extents[i]
}

func (w *AllocationWriter) begin(part span) error {
	a := w.a
	w.l.mu.Lock()
	defer w.l.mu.Unlock()
	switch {
	case a.i != w.h.image:
		return fmt.Errorf("allocation %q: %w: the image was closed meanwhile", a.ID, storage.ErrConflict)
	case a.Spent.meet(part) || a.mapping.meet(part):
		return fmt.Errorf("allocation %q: %w: [%d, %d) is mapped, or partly", a.ID, storage.ErrConflict, part.Offset, part.end())
	}
	a.filling = append(a.filling, part)
	return nil
}

func (w *AllocationWriter) end(part span) {
	w.l.mu.Lock()
	defer w.l.mu.Unlock()
	i := slices.Index(w.a.filling, part)
	w.a.filling = slices.Delete(w.a.filling, i, i+1)
	w.l.renew(w.a)
}

// Release ends the writing.
func (w *AllocationWriter) Release() {
	w.l.mu.Lock()
	w.a.writers--
	w.l.mu.Unlock()
	w.h.Release()
}
