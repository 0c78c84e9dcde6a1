package block

import (
	"context"
	"iter"

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
	through []looks         // what a layer's LooksPreallocated said, by depth

	again     storage.ExtentList // what the top layer says now, when looked through
	parts     []storage.Mapping  // of a mapping that is looked through
	beneath   storage.ExtentList // what a node said last, when looked through to
	beneathOf *storage.Node      // which one, nil for none
}

func (w *walker) walk(ctx context.Context, off, end int64) error {
	c := w.d.cursor(true)
	defer c.put()
	c.loose = true
	w.through = make([]looks, len(w.d.layers))
	if w.opt.Volunteer {
		from, err := w.volunteered(ctx, c, off)
		if err != nil {
			return err
		}
		off = from
	}
	for off < end && !w.stopped {
		var err error
		if off, err = w.list(ctx, c, off, end); err != nil {
			return err
		}
	}
	if w.opt.Volunteer {
		return w.volunteerAfter(ctx, c, off)
	}
	return nil
}

// list goes through the top layer's list from off, and returns where that or
// the range ends. What the top layer says for itself is taken as it stands:
// resolving each mapping anew costs more than all the rest of a walk.
func (w *walker) list(ctx context.Context, c *cursor, off, end int64) (int64, error) {
	i, err := c.locate(ctx, 0, off, end)
	if err != nil {
		return off, err
	}
	for list := &c.lists[0]; i < list.Len() && off < end && !w.stopped; i++ {
		m := list.At(i)
		stop := min(m.End(), end)
		if w.free(m) {
			err = w.top(ctx, m, off, stop)
		} else {
			c.at[0] = i
			err = w.below(ctx, c, off, stop)
		}
		if err != nil {
			return off, err
		}
		off = stop
	}
	return off, nil
}

// top takes what a mapping of the top layer says of [off, end).
func (w *walker) top(ctx context.Context, m *storage.Mapping, off, end int64) error {
	part := *m
	part.Clip(off, end)
	if !w.opt.TopOnly && !part.Status.Has(storage.Local) {
		part.Status |= storage.Zero // there is no layer below
	}
	return w.see(ctx, &part)
}

// below takes what the layers below the top say of [off, end), which it defers.
func (w *walker) below(ctx context.Context, c *cursor, off, end int64) error {
	for off < end && !w.stopped {
		m, err := c.resolve(ctx, off, end)
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

// free reports whether a mapping of the top layer says all there is to say.
func (w *walker) free(m *storage.Mapping) bool {
	return w.opt.TopOnly || len(w.d.layers) == 1 || m.Status.Has(storage.Local)
}

// volunteered fetches at off and returns where the volunteered range begins.
func (w *walker) volunteered(ctx context.Context, c *cursor, off int64) (int64, error) {
	i, err := c.locate(ctx, 0, off, w.d.Size())
	if err != nil {
		return off, err
	}
	for list := &c.lists[0]; i >= 0 && w.free(list.At(i)); i-- {
		off = min(off, list.At(i).Offset)
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
		if err := w.top(ctx, list.At(i), off, list.At(i).End()); err != nil {
			return err
		}
		off = list.At(i).End()
	}
	return nil
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
