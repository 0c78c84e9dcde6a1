package block

import (
	"context"
	"fmt"
	"iter"
	"math"

	"github.com/extentd/extentd/storage"
)

// WalkOptions choose which map a walk yields. The zero value is the resolved
// map of the range.
type WalkOptions struct {
	// TopOnly yields what the top layer says, its backing not asked: what it
	// defers has no Local.
	TopOnly bool
	// Volunteer also yields what the fetches of the top layer brought along,
	// before and after the range, as far as no other metadata must be read.
	Volunteer bool
}

// Walk yields the map of [off, off+n), in order, without gaps, neighbours that
// say the same as one. Compressed neighbours are one too: on the map they are
// at no offset. The range must lie inside the size. An error is yielded last,
// with an empty mapping. Memory does not grow with the map.
func (d *Device) Walk(ctx context.Context, off, n int64, opt WalkOptions) iter.Seq2[storage.Mapping, error] {
	return func(yield func(storage.Mapping, error) bool) {
		if err := storage.CheckRange(off, n, d.Size()); err != nil {
			yield(storage.Mapping{}, err)
			return
		}
		w := &walker{d: d, opt: opt, yield: yield}
		if n == 0 {
			return
		}
		if err := w.walk(ctx, off, off+n); err != nil {
			w.flush()
			if !w.stopped {
				yield(storage.Mapping{}, err)
			}
			return
		}
		w.flush()
	}
}

// A walker merges resolved mappings before it yields them.
type walker struct {
	d       *Device
	opt     WalkOptions
	yield   func(storage.Mapping, error) bool
	pending storage.Mapping // Length 0: none
	stopped bool            // the consumer has had enough
	beneath storage.ExtentList
}

func (w *walker) walk(ctx context.Context, off, end int64) error {
	c := w.d.cursor(true)
	defer c.put()
	if w.opt.Volunteer {
		from, err := w.volunteered(ctx, c, off)
		if err != nil {
			return err
		}
		off = from
	}
	for off < end && !w.stopped {
		m, err := w.next(ctx, c, off, end)
		if err != nil {
			return err
		}
		off = m.End()
		if err := w.see(ctx, &m); err != nil {
			return err
		}
	}
	if w.opt.Volunteer {
		return w.volunteerAfter(ctx, c, off)
	}
	return nil
}

func (w *walker) next(ctx context.Context, c *cursor, off, end int64) (storage.Mapping, error) {
	if c.find(0, off) < 0 { // a fetch comes: not asked for every mapping
		if err := ctx.Err(); err != nil {
			return storage.Mapping{}, err
		}
	}
	if w.opt.TopOnly {
		return c.layerAt(ctx, 0, off, end)
	}
	return c.resolve(ctx, off, end)
}

// free reports whether a mapping of the top layer says all there is to say.
func (w *walker) free(m *storage.Mapping) bool {
	return w.opt.TopOnly || len(w.d.layers) == 1 || m.Status.Has(storage.Local)
}

// volunteered fetches at off and returns where the volunteered range begins.
func (w *walker) volunteered(ctx context.Context, c *cursor, off int64) (int64, error) {
	if _, err := c.layerAt(ctx, 0, off, w.d.Size()); err != nil {
		return off, err
	}
	list := &c.lists[0]
	for i := list.Find(off); i >= 0; i-- {
		m := list.At(i)
		if !w.free(m) {
			break
		}
		off = min(off, m.Offset)
	}
	return off, nil
}

// volunteerAfter goes on through what the last list holds beyond the range.
func (w *walker) volunteerAfter(ctx context.Context, c *cursor, off int64) error {
	list := &c.lists[0]
	for off < list.End() && !w.stopped {
		i := list.Find(off)
		if i < 0 || !w.free(list.At(i)) {
			break
		}
		m, err := w.next(ctx, c, off, list.At(i).End())
		if err != nil {
			return err
		}
		off = m.End()
		if err := w.see(ctx, &m); err != nil {
			return err
		}
	}
	return nil
}

// see looks through m to its file where that is due, and takes the result.
func (w *walker) see(ctx context.Context, m *storage.Mapping) error {
	m.Flags &= storage.Compressed | storage.Encrypted
	const data = storage.Local | storage.Alloc | storage.OffsetValid
	if p := w.d.layers[m.Depth].prealloc; p != nil && m.Status == data {
		through, err := p.LooksPreallocated(ctx)
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

// seeThrough splits a data mapping by what its file says: where the file has a
// hole the guest reads zeros.
func (w *walker) seeThrough(ctx context.Context, m *storage.Mapping) error {
	size, err := m.Node.Size(ctx)
	if err != nil {
		return err
	}
	for m.Length > 0 && !w.stopped {
		part := *m
		if m.NodeOffset >= size {
			part.Status = storage.Local | storage.Zero | storage.OffsetValid
		} else if part.Length, part.Status, err = w.beneathAt(ctx, m, size); err != nil {
			return err
		}
		w.take(&part)
		m.Offset += part.Length
		m.NodeOffset += part.Length
		m.Length -= part.Length
	}
	return nil
}

// beneathAt asks the node of m for its first extent there.
func (w *walker) beneathAt(ctx context.Context, m *storage.Mapping, size int64) (int64, storage.Status, error) {
	lo := m.NodeOffset
	w.beneath.ResetWindow(lo, lo+1)
	if err := m.Node.Extents(ctx, lo, min(m.Length, size-lo), &w.beneath); err != nil {
		return 0, 0, err
	}
	i := w.beneath.Find(lo)
	if i < 0 {
		return 0, 0, fmt.Errorf("%s: %w: no extent at %d", m.Node.Name(), storage.ErrContract, lo)
	}
	child := *w.beneath.At(i)
	child.Clip(lo, math.MaxInt64)
	status := m.Status
	if child.Status.Has(storage.Zero) {
		status = storage.Local | storage.OffsetValid | child.Status&(storage.Zero|storage.Alloc)
	}
	return min(child.Length, m.Length), status, nil
}

// take merges m into what is pending, or yields that and keeps m.
func (w *walker) take(m *storage.Mapping) {
	if m.Flags&storage.Compressed != 0 {
		m.Node, m.NodeOffset, m.PackedLength = nil, 0, 0
	}
	p := &w.pending
	if p.Length > 0 && sameOnMap(p, m) {
		p.Length += m.Length
		return
	}
	w.flush()
	w.pending = *m
}

// sameOnMap is Continues for mappings of which the packed place is gone.
func sameOnMap(p, m *storage.Mapping) bool {
	if p.Status != m.Status || p.Flags != m.Flags || p.Depth != m.Depth || p.Node != m.Node {
		return false
	}
	return !m.Status.Has(storage.OffsetValid) || p.NodeOffset+p.Length == m.NodeOffset
}

func (w *walker) flush() {
	if w.pending.Length > 0 && !w.stopped {
		w.stopped = !w.yield(w.pending, nil)
	}
	w.pending.Length = 0
}
