package qcow2

import (
	"context"
	"encoding/binary"
)

// encode is the fixed part of the header up to refcount_order and
// header_length, or all there is in version 2.
func (h *header) encode() []byte {
	be := binary.BigEndian
	b := make([]byte, headerLengthV3)
	be.PutUint32(b[0:], h.magic)
	be.PutUint32(b[4:], h.version)
	be.PutUint64(b[8:], h.backingOffset)
	be.PutUint32(b[16:], h.backingLength)
	be.PutUint32(b[20:], h.clusterBits)
	be.PutUint64(b[24:], h.size)
	be.PutUint32(b[32:], h.cryptMethod)
	be.PutUint32(b[36:], h.l1Size)
	be.PutUint64(b[40:], h.l1Offset)
	be.PutUint64(b[48:], h.refcountTableOffset)
	be.PutUint32(b[56:], h.refcountTableClusters)
	be.PutUint32(b[60:], h.snapshots)
	be.PutUint64(b[64:], h.snapshotsOffset)
	if h.version < 3 {
		return b[:headerLengthV2]
	}
	be.PutUint64(b[72:], h.incompatible)
	be.PutUint64(b[80:], h.compatible)
	be.PutUint64(b[88:], h.autoclear)
	be.PutUint32(b[96:], h.refcountOrder)
	be.PutUint32(b[100:], h.length)
	return b
}

// writeHeaderFields changes fields of the header, on disk and for everyone here:
// in one write from the first byte that differs to the last, all of which lie in
// one sector, so that it is done wholly or not at all. Header extensions, known
// or not, are not touched. It does not sync. w.mu must be held.
func (w *writer) writeHeaderFields(ctx context.Context, edit func(h *header)) error {
	old := w.state.Load()
	s := *old
	edit(&s.header)
	before, after := old.header.encode(), s.header.encode()
	first, end := 0, len(after)
	for first < end && before[first] == after[first] {
		first++
	}
	for end > first && before[end-1] == after[end-1] {
		end--
	}
	if first < end {
		if err := w.write(ctx, after[first:end], hostOffset(first)); err != nil {
			return err
		}
	}
	h := &s.header
	s.info.Dirty = h.incompatible&incompatDirty != 0
	s.info.Corrupt = h.incompatible&incompatCorrupt != 0
	s.info.Snapshots = int(h.snapshots)
	w.apply(&s)
	return nil
}
