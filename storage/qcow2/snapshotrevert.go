package qcow2

import (
	"context"
	"encoding/binary"
	"fmt"
)

// RevertTo makes the image what it was when the first snapshot with the id was
// taken, its size too. Enabled bitmaps record what differs. The snapshot stays. It fails with [storage.ErrNotFound] where
// there is none, and with [storage.ErrUnsupported] where bitmaps would not fit the
// size. The caller sees to it that nobody writes data meanwhile, and that no
// reservation is meant for blocks that the image has now. After a crash the image is
// wholly what it was before, or wholly the snapshot.
func (i *Image) RevertTo(ctx context.Context, id string) error {
	if err := i.recordRevert(ctx, id); err != nil {
		return err
	}
	return i.quiesced(ctx, func(w *writer) error { return w.revert(ctx, id) })
}

func (w *writer) revert(ctx context.Context, id string) error {
	_, s, err := w.findSnapshot(ctx, id)
	if err == nil && s == nil {
		err = errNoSnapshot(id)
	}
	if err != nil {
		return err
	}
	size := w.Size()
	if s.DiskSize&^(sectorSize-1) == size {
		return w.revertTree(ctx, s)
	}
	bitmaps, err := w.beginSizing(ctx, s.DiskSize&^(sectorSize-1))
	if err != nil {
		return err
	}
	return bitmaps.finish(ctx, size, w.revertTree(ctx, s))
}

// revertTree makes the tables, and the size, those of the snapshot.
func (w *writer) revertTree(ctx context.Context, s *found) (err error) {
	old := w.active()
	next := tree{writer: w, entries: s.tree.entries}
	clusters := max(next.l1Clusters(), 1)
	if next.at, err = w.allocMetadata(ctx, clusters, metaL1); err != nil {
		return err
	}
	if err := s.tree.copyL1(ctx, next.at, clusters, metaL1, l2Copied); err != nil {
		return w.dropping(ctx, err, next.at, clusters, metaL1)
	}
	if err := w.useTree(ctx, s, &next); err != nil {
		return w.dropping(ctx, err, next.at, clusters, metaL1)
	}
	ctx = context.WithoutCancel(ctx) // it is done, and this is left to tidy up
	if err := old.freeAll(ctx, metaL1); err != nil {
		return err
	}
	return w.writeBack(ctx)
}

// useTree makes the header point to a copy of the snapshot's L1 table, once all that
// it refers to has a reference more. On an error it does not.
func (w *writer) useTree(ctx context.Context, s *found, next *tree) error {
	if err := s.tree.cleanFlags(ctx); err != nil {
		return err
	}
	if err := s.tree.raiseAll(ctx); err != nil {
		return err
	}
	err := w.writeBack(ctx)
	if err == nil {
		err = w.sync(ctx)
	}
	if err == nil {
		err = w.writeHeaderFields(ctx, func(h *header) {
			h.l1Offset, h.l1Size, h.size = uint64(next.at), uint32(next.entries), uint64(s.DiskSize)
		})
	}
	if err != nil {
		if w.failure.Load() != nil {
			return err
		}
		return s.tree.lowerFirst(ctx, -1, err)
	}
	if err := w.sync(ctx); err != nil {
		return err
	}
	w.l1Page.clear()
	w.l2.clear()
	return nil
}

// cleanFlags clears the COPIED flag in the L2 tables of a snapshot. None should be
// there; a table that is copied with one would let the snapshot be written to.
func (t *tree) cleanFlags(ctx context.Context) error {
	buf := make([]byte, t.clusterSize())
	return t.eachTable(ctx, func(_ int64, entry uint64) error {
		table := hostOffset(entry & l1OffsetMask)
		if err := t.src.read(ctx, buf, table); err != nil {
			return fmt.Errorf("qcow2: l2 table at %#x: %w", int64(table), err)
		}
		dirty := false
		for k := 0; k < len(buf); k += t.entryBytes() {
			word := binary.BigEndian.Uint64(buf[k:])
			if kind := t.kindOf(word); word&l2Copied == 0 || kind != kindData && kind != kindZeroAlloc {
				continue
			}
			binary.BigEndian.PutUint64(buf[k:], word&^l2Copied)
			dirty = true
		}
		if !dirty {
			return nil
		}
		if err := t.checkOverlap(ctx, int64(table), t.clusterSize(), metaL2); err != nil {
			return err
		}
		return t.write(ctx, buf, table)
	})
}
