package block

import (
	"context"
	"errors"
	"fmt"

	"github.com/extentd/extentd/storage"
)

// A writer changes the map of blocks that its goroutine has locked. Every
// mapping of the top layer that it uses is pinned until put.
type writer struct {
	d     *Device
	c     *cursor            // finds what lies around what is written
	top   storage.ExtentList // what the top layer says of the blocks; see look
	buf   []byte             // of fill
	begun bool               // the first effect has been announced
}

func (d *Device) writer() *writer {
	w := d.writers.Get().(*writer)
	w.c = d.cursor(false)
	return w
}

// put announces the last effect, returns the pins, and gives the writer back.
func (w *writer) put() {
	if w.begun {
		w.d.change(true)
	}
	w.c.put()
	w.top.Reset()
	w.c, w.begun = nil, false
	w.d.writers.Put(w)
}

// change is called before every effect.
func (w *writer) change() {
	if !w.begun {
		w.begun = true
		w.d.change(true)
	}
}

// look asks the top layer for [lo, hi), which ends at the size at most.
func (w *writer) look(ctx context.Context, lo, hi int64) error {
	w.c.hold(0)
	w.top.ResetWindow(lo, hi)
	if err := w.d.layers[0].Fetch(ctx, lo, hi-lo, &w.top); err != nil {
		return err
	}
	if !w.top.Covers(lo, hi-lo) {
		return storage.CheckFetch(&w.top, lo, hi-lo, w.c.sizeOf(0))
	}
	return nil
}

// at is the mapping that holds off, of what look has found.
func (w *writer) at(off int64) *storage.Mapping { return w.top.At(w.top.Find(off)) }

// write writes p at off.
func (w *writer) write(ctx context.Context, p []byte, off int64) error {
	end := off + int64(len(p))
	lo, hi := w.d.blocksOf(off, end)
	if err := w.look(ctx, lo, min(hi, w.c.sizeOf(0))); err != nil {
		return err
	}
	if err := w.d.record(ctx, off, end-off); err != nil {
		return err
	}
	for off < end {
		next, err := w.step(ctx, p, off, end)
		if err != nil {
			return err
		}
		p, off = p[next-off:], next
	}
	return nil
}

// step writes the beginning of p, and returns how far it came.
func (w *writer) step(ctx context.Context, p []byte, off, end int64) (int64, error) {
	m := w.at(off)
	switch {
	case overwritable(m):
		in := *m
		in.Clip(off, end)
		w.change()
		return in.End(), w.d.writeNode(ctx, in.Node, p[:in.Length], in.NodeOffset)
	case fillable(m):
		return w.writeReserved(ctx, m, p, off, end)
	}
	return w.writeNew(ctx, p, off, end)
}

// writeReserved fills the blocks that m has and does not show, and shows them:
// whole units of data around what is written.
func (w *writer) writeReserved(ctx context.Context, m *storage.Mapping, p []byte, off, end int64) (int64, error) {
	unit := w.d.granule.Data
	end = min(end, m.End())
	f := filling{node: m.Node, lo: max(down(off, unit), m.Offset), off: off, end: end, hi: up(end, unit)}
	if m.End() < w.c.sizeOf(0) {
		f.hi = min(f.hi, m.End())
	}
	f.at = m.NodeOffset + f.lo - m.Offset
	if err := w.fill(ctx, &f, p[:end-off]); err != nil {
		return off, err
	}
	return end, w.show(ctx, &f, false)
}

// writeNew reserves blocks from the one that off lies in, as far as p goes and
// new ones are needed, fills and maps them.
func (w *writer) writeNew(ctx context.Context, p []byte, off, end int64) (int64, error) {
	lo := down(off, w.d.granule.Alloc)
	hi, packed := w.newRun(lo, end)
	b, err := w.alloc(ctx, lo, hi-lo)
	if err != nil {
		return off, err
	}
	hi = min(hi, lo+b.Length)
	end = min(end, hi)
	f := filling{node: b.Node, zeroed: b.Zeroed, lo: w.from(lo, off), off: off, end: end, hi: w.until(hi, end)}
	f.at = b.Offset + f.lo - lo
	if err := w.fill(ctx, &f, p[:end-off]); err != nil {
		return off, errors.Join(err, w.d.mapper.Free(context.WithoutCancel(ctx), b))
	}
	if err := w.show(ctx, &f, packed); err != nil {
		return off, errors.Join(err, w.freeRest(ctx, b))
	}
	return end, nil
}

// newRun is where the run of blocks ends that must be new, from the one at lo
// on; and whether it replaces packed ones.
func (w *writer) newRun(lo, end int64) (hi int64, packed bool) {
	block := w.d.granule.Alloc
	for hi = lo; hi < end; {
		m := w.at(max(hi, w.top.Start()))
		if hi > lo && (overwritable(m) || fillable(m)) {
			break
		}
		packed = packed || m.Flags&storage.Compressed != 0
		hi = max(hi+block, down(min(m.End(), up(end, block)), block))
	}
	return hi, packed
}

// from is where the first new block, at lo, is filled from, if bytes are written
// from off: the unit of data, or if it replaces a block, all of that.
func (w *writer) from(lo, off int64) int64 {
	if off == lo || w.owned(lo) {
		return lo
	}
	return down(off, w.d.granule.Data)
}

// until is likewise where the last new block, which ends at hi, is filled to.
func (w *writer) until(hi, end int64) int64 {
	if end == hi || w.owned(hi-w.d.granule.Alloc) {
		return hi
	}
	return up(end, w.d.granule.Data)
}

// owned reports whether the top layer has storage for a part of the block.
func (w *writer) owned(block int64) bool {
	end := block + w.d.granule.Alloc
	for i := w.top.Find(block); i >= 0 && i < w.top.Len() && w.top.At(i).Offset < end; i++ {
		if w.top.At(i).Status.Has(storage.Alloc) {
			return true
		}
	}
	return false
}

// alloc reserves up to n bytes for the block at guest and what follows.
func (w *writer) alloc(ctx context.Context, guest, n int64) (storage.Blocks, error) {
	b, err := w.d.mapper.Alloc(ctx, n, storage.AllocOptions{Guest: guest})
	if err != nil {
		return b, err
	}
	if b.Node == nil || b.Length <= 0 || b.Length > n || b.Length&(w.d.granule.Alloc-1) != 0 {
		err = fmt.Errorf("%w: %d bytes reserved where %d were wanted", storage.ErrContract, b.Length, n)
		return b, errors.Join(err, w.d.mapper.Free(context.WithoutCancel(ctx), b))
	}
	return b, nil
}

// freeRest gives back what a failed update has not mapped.
func (w *writer) freeRest(ctx context.Context, b storage.Blocks) error {
	ctx = context.WithoutCancel(ctx)
	var errs []error
	for at := int64(0); at < b.Length; at += w.d.granule.Alloc {
		part := b
		part.Offset, part.Length = b.Offset+at, w.d.granule.Alloc
		if err := w.d.mapper.Free(ctx, part); err != nil && !errors.Is(err, storage.ErrConflict) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// show maps what has been filled.
func (w *writer) show(ctx context.Context, f *filling, packed bool) error {
	n := min(f.hi, w.c.sizeOf(0)) - f.lo
	return w.update(ctx, f.lo, n, storage.Target{Kind: storage.ToData, Node: f.node, NodeOffset: f.at}, packed)
}

// remap records a change of what the range reads as, and changes the map.
func (w *writer) remap(ctx context.Context, off, n int64, to storage.Target, packed bool) error {
	if err := w.d.record(ctx, off, n); err != nil {
		return err
	}
	return w.update(ctx, off, n, to, packed)
}

// update changes the map. packed: compressed units may go.
func (w *writer) update(ctx context.Context, off, n int64, to storage.Target, packed bool) error {
	w.change()
	err := w.d.mapper.Update(ctx, off, n, to)
	w.c.lists[0].Reset()
	if unpacker := w.d.layers[0].unpacker; packed && unpacker != nil {
		w.d.units.drop(off, n, unpacker.PackedUnit())
	}
	return err
}
