package qcow2

import (
	"context"
	"fmt"
	"slices"

	"github.com/extentd/extentd/storage"
)

// Update makes the range what the target says, in memory: on disk it is after a
// Flush. It leaves the entries that QEMU does. In version 2, which has no zero
// clusters, nothing of this can be said over a backing, nor ToAnchored where
// blocks are allocated: that fails with [storage.ErrUnsupported]. Where
// blocks are not reserved, nor what the range has already, it fails with
// [storage.ErrConflict]. What is unallocated and stays so costs nothing.
//
// Of an update over up to 4,096 slices of 4 KiB of L2 tables, everything or
// nothing is done, unless reading a table fails. Longer ones are done in parts.
func (i *Image) Update(ctx context.Context, off, n int64, to storage.Target) error {
	w, err := i.writing()
	if err != nil {
		return err
	}
	c, err := w.newChange(off, n, to)
	if err != nil || n == 0 {
		return err
	}
	if err := w.zeroExternal(ctx, c); err != nil {
		return err
	}
	for c.at < c.end {
		if err := ctx.Err(); err != nil {
			return err
		}
		full, err := w.updatePart(ctx, c)
		if err != nil {
			return err
		}
		if full {
			if err := w.relieve(ctx); err != nil {
				return err
			}
		}
	}
	return nil
}

// A change is an update on its way: [at, end) remains to be done.
type change struct {
	kind    storage.TargetKind
	at, end guestOffset
	host    int64 // ToData: add it to a guest offset; multiples of the cluster
	backed  bool
}

// newChange checks what can be checked without the tables.
func (w *writer) newChange(off, n int64, to storage.Target) (*change, error) {
	size := w.Size()
	if err := storage.CheckRange(off, n, size); err != nil {
		return nil, fmt.Errorf("qcow2: %w", err)
	}
	unit := w.clusterSize()
	if to.Kind == storage.ToData {
		unit = 1 << w.subclusterBits
	}
	if off&(unit-1) != 0 || n&(unit-1) != 0 && off+n != size {
		return nil, w.misaligned(off, n, unit)
	}
	c := &change{kind: to.Kind, at: guestOffset(off), end: guestOffset(off + n), backed: w.backed()}
	switch to.Kind {
	case storage.ToData:
		c.host = to.NodeOffset - off
		return c, w.checkTarget(off, n, to)
	case storage.ToUnmapped, storage.ToZero, storage.ToAnchored:
		if w.info.Version < 3 && c.backed {
			return nil, unsupported("%v at %d: version 2 has no zero clusters, and the image a backing", to.Kind, off)
		}
	default:
		return nil, fmt.Errorf("qcow2: %w: %v", storage.ErrUnsupported, to.Kind)
	}
	return c, nil
}

// checkTarget checks that the blocks are where the data of the range may be.
func (w *writer) checkTarget(off, n int64, to storage.Target) error {
	at := to.NodeOffset
	switch {
	case to.Node != w.data:
		return conflict(guestOffset(off), "blocks of another node")
	case at < 0 || at > hostEnd-n:
		return fmt.Errorf("qcow2: %w: blocks at %d", storage.ErrOutOfRange, at)
	case w.info.HasDataFile && at != off:
		return conflict(guestOffset(off), "the offset in the external data file must be that of the guest")
	case (at-off)&(w.clusterSize()-1) != 0:
		return w.misaligned(at, n, w.clusterSize())
	}
	return nil
}

// zeroExternal zeroes a raw external data file, which must be right when it is
// read alone: before the tables say so, since either way the range may read
// zeros from now on.
func (w *writer) zeroExternal(ctx context.Context, c *change) error {
	if !w.info.DataFileRaw || c.kind == storage.ToData {
		return nil
	}
	l, err := w.data.Limits(ctx)
	if err != nil {
		return fmt.Errorf("qcow2: external data file: %w", err)
	}
	for at, end := int64(c.at), int64(c.end); at < end; {
		n := min(end-at, l.MaxZero)
		if err := w.data.Zero(ctx, at, n, c.kind == storage.ToAnchored); err != nil {
			return fmt.Errorf("qcow2: external data file: %w", err)
		}
		at += n
	}
	return nil
}

// partSlices is how many slices are changed before others get a turn.
const partSlices = 4096

// An edit is what one part of an update changes.
type edit struct {
	slices []*slice // to publish
	linked []run    // reserved clusters that cease to be
	freed  []freed
	avail  run // a reserved run, to find the next cluster in
}

// updatePart changes the slices from c.at on, up to partSlices. It reports
// whether so much is dirty that it should be written.
func (w *writer) updatePart(ctx context.Context, c *change) (full bool, err error) {
	if err := w.lock(); err != nil {
		return false, err
	}
	defer w.mu.Unlock()
	e := &w.edit
	e.slices, e.linked, e.freed, e.avail = e.slices[:0], e.linked[:0], e.freed[:0], run{}
	at, err := w.compute(ctx, c, e)
	if err != nil {
		return false, err
	}
	for _, s := range e.slices {
		base := guestOffset(s.key) << w.sliceSpanBits
		table, err := w.writableTable(ctx, base)
		if err != nil {
			return false, err
		}
		s.at = table + w.sliceInTable(base)
	}
	w.publish(e)
	if c.kind == storage.ToData && w.info.HasDataFile {
		w.keepExternal(run{int64(c.at) >> w.clusterBits, ceilDiv(int64(at-c.at), w.clusterSize())})
	}
	c.at = at
	return w.full(), nil
}

// compute makes the slices that differ, without anyone seeing them, and returns
// how far it came.
func (w *writer) compute(ctx context.Context, c *change, e *edit) (guestOffset, error) {
	at := c.at
	for at < c.end && len(e.slices) < partSlices {
		s, exists, err := w.current(ctx, at)
		if err != nil {
			return at, err
		}
		next := min(c.end, at>>w.sliceSpanBits<<w.sliceSpanBits+1<<w.sliceSpanBits)
		if !exists {
			if !c.touchesUnallocated(w.info.Version) {
				if at, err = w.skipTables(ctx, at, c.end); err != nil {
					return at, err
				}
				continue
			}
			s = &slice{key: int64(at >> w.sliceSpanBits)}
		}
		if err := w.computeSlice(ctx, c, e, s, at, next); err != nil {
			return at, err
		}
		at = next
	}
	return at, nil
}

// touchesUnallocated reports whether an entry of 0 would be changed.
func (c *change) touchesUnallocated(version int) bool {
	switch c.kind {
	case storage.ToData:
		return true
	case storage.ToUnmapped:
		return c.backed
	}
	return version >= 3
}

// skipTables is where the next L2 table after at begins that is allocated.
func (w *writer) skipTables(ctx context.Context, at, end guestOffset) (guestOffset, error) {
	page, err := w.l1At(ctx, at)
	if err != nil {
		return at, err
	}
	number := int64(at >> w.tableSpanBits)
	for number++; number&(1<<w.pageBits-1) != 0; number++ {
		if page.entries[number&(1<<w.pageBits-1)]&l1OffsetMask != 0 {
			break
		}
	}
	return min(end, guestOffset(number)<<w.tableSpanBits), nil
}

// computeSlice appends a changed copy of s, if [at, end) in it changes.
func (w *writer) computeSlice(ctx context.Context, c *change, e *edit, s *slice, at, end guestOffset) error {
	base := guestOffset(s.key) << w.sliceSpanBits
	words := 1
	if w.extended {
		words = 2
	}
	var changed *slice
	for at < end {
		k := int((at - base) >> w.clusterBits)
		guest := base + guestOffset(k)<<w.clusterBits
		stop := min(end, guest+guestOffset(w.clusterSize()))
		var old entry
		if s.entries != nil {
			if old.word = s.entries[k*words]; w.extended {
				old.bitmap = s.entries[k*words+1]
			}
			if w.problem(old.word, old.bitmap, guest) != "" {
				return w.corrupted(ctx, w.check(s, k, base))
			}
		}
		next, err := w.next(c, e, old, guest, at, stop)
		if err != nil {
			return err
		}
		if next != old {
			if changed == nil {
				changed = &slice{key: s.key, entries: w.cloneEntries(s)}
				e.slices = append(e.slices, changed)
			}
			if changed.entries[k*words] = next.word; w.extended {
				changed.entries[k*words+1] = next.bitmap
			}
		}
		at = stop
	}
	return nil
}

func (w *writer) cloneEntries(s *slice) []uint64 {
	if s.entries == nil {
		return make([]uint64, w.pieceSize/8)
	}
	return slices.Clone(s.entries)
}

// publish makes an edit visible.
func (w *writer) publish(e *edit) {
	for _, s := range e.slices {
		w.l2.replace(s)
	}
	for _, r := range e.linked {
		w.reserved.remove(r)
		w.mapped = max(w.mapped, r.end())
	}
	for _, f := range e.freed {
		w.free(f.run, f.kind)
	}
	clear(e.slices) // not to keep them
}

// full reports whether a commit is due. w.mu must be held.
func (w *writer) full() bool {
	return w.l2.dirtyCount()+w.l1Page.dirtyCount() > w.limit || w.tooMuchFreed()
}

// relieve commits, unless somebody else just did.
func (w *writer) relieve(ctx context.Context) error {
	w.commit.Lock()
	defer w.commit.Unlock()
	if err := w.lock(); err != nil {
		return err
	}
	full := w.full()
	w.mu.Unlock()
	if !full {
		return nil
	}
	return w.commitAll(ctx)
}
