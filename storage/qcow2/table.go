package qcow2

import (
	"context"
	"errors"
	"fmt"

	"github.com/extentd/extentd/storage"
)

// current is the slice of the L2 table for at, as it is now, and false where
// there is no table. w.mu must be held.
func (w *writer) current(ctx context.Context, at guestOffset) (*slice, bool, error) {
	key := int64(at >> w.sliceSpanBits)
	if s := w.l2.lookup(key); s != nil {
		return s, true, nil
	}
	page, err := w.l1At(ctx, at)
	if err != nil {
		return nil, false, err
	}
	table, err := w.l2Table(page, at)
	if err != nil {
		return nil, false, w.corrupted(ctx, err)
	}
	if table == 0 {
		return nil, false, nil
	}
	s, err := w.l2.get(ctx, key)
	return s, true, err
}

// writableTable is where the L2 table for at is: one that may be written to,
// new where there was none, and a copy where it is shared with a snapshot. w.mu
// must be held.
func (w *writer) writableTable(ctx context.Context, at guestOffset) (hostOffset, error) {
	page, err := w.l1At(ctx, at)
	if err != nil {
		return 0, err
	}
	old, err := w.l2Table(page, at)
	if err != nil {
		return 0, w.corrupted(ctx, err)
	}
	number := int64(at >> w.tableSpanBits)
	if old != 0 && page.entries[number&(1<<w.pageBits-1)]&l2Copied != 0 {
		return old, nil
	}
	r, err := w.take(ctx, 1, true)
	if err != nil {
		return 0, err
	}
	if err := w.fillTable(ctx, r, old); err != nil {
		return 0, errors.Join(fmt.Errorf("qcow2: new l2 table at %#x: %w", r.start<<w.clusterBits, err), w.lower(ctx, r))
	}
	table := hostOffset(r.start << w.clusterBits)
	if err := w.setL1(ctx, number, uint64(table)|l2Copied); err != nil {
		w.metadata.remove(r, metaL2)
		return 0, errors.Join(err, w.lower(ctx, r))
	}
	if old != 0 {
		w.free(run{int64(old) >> w.clusterBits, 1}, metaL2)
	}
	return table, nil
}

// fillTable writes a new L2 table, empty or as the old one is: a table that is
// shared is never dirty.
func (w *writer) fillTable(ctx context.Context, r run, old hostOffset) error {
	if old == 0 {
		return w.initialize(ctx, r, metaL2)
	}
	b := make([]byte, w.clusterSize())
	if err := w.src.read(ctx, b, old); err != nil {
		return err
	}
	at := r.start << w.clusterBits
	if err := w.write(ctx, b, hostOffset(at)); err != nil {
		return err
	}
	w.metadata.add(r, metaL2)
	return nil
}

// setL1 sets an entry of the L1 table, which is on disk after the next commit.
// w.mu must be held.
func (w *writer) setL1(ctx context.Context, number int64, entry uint64) error {
	page, err := w.l1Page.get(ctx, number>>w.pageBits)
	if err != nil {
		return err
	}
	table := hostOffset(w.l1Offset.Load())
	next := &slice{key: page.key, at: table + hostOffset(page.key*w.pieceSize), entries: append([]uint64(nil), page.entries...)}
	next.entries[number&(1<<w.pageBits-1)] = entry
	w.l1Page.replace(next)
	return nil
}

// backed reports whether what is unallocated shows a backing.
func (w *writer) backed() bool { return w.opt.Backed || w.info.BackingFile != "" }

// hostClusters are the host clusters that an entry of an L2 table refers to, and
// what they are.
func (w *writer) hostClusters(kind clusterKind, e uint64) (run, metadataKind) {
	off := int64(e & l2OffsetMask)
	switch {
	case kind == kindCompressed:
		packed, n := w.packed(e)
		first := packed >> w.clusterBits
		return run{first, (packed+int64(n)-1)>>w.clusterBits - first + 1}, noMetadata
	case kind != kindData && kind != kindZeroAlloc:
		return run{}, noMetadata
	case w.info.HasDataFile:
		return run{off >> w.clusterBits, 1}, externalData
	}
	return run{off >> w.clusterBits, 1}, noMetadata
}

// conflict is the error for a target that does not fit what is there.
func conflict(guest guestOffset, format string, args ...any) error {
	return fmt.Errorf("qcow2: %w: at %d: %s", storage.ErrConflict, int64(guest), fmt.Sprintf(format, args...))
}
