package qcow2

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
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
// or not, are not touched. It does not sync.
//
// Where the write fails, it is as replaceBytes says. w.mu must be held.
func (w *writer) writeHeaderFields(ctx context.Context, edit func(h *header)) error {
	s := *w.state.Load()
	before := s.header.encode()
	edit(&s.header)
	after := s.header.encode()
	if err := w.replaceBytes(ctx, 0, before, after); err != nil {
		return err
	}
	h := &s.header
	s.info.Dirty = h.incompatible&incompatDirty != 0
	s.info.Corrupt = h.incompatible&incompatCorrupt != 0
	s.info.Snapshots = int(h.snapshots)
	w.apply(&s)
	return nil
}

// replaceBytes writes what differs of after, in one sector of the first cluster, so
// that it is done wholly or not at all. Where the write fails, what is found on disk
// decides: the new bytes are as good as written, and the old ones leave everything as
// it was. What cannot be read, or is neither, takes the image out of service. It does
// not sync. w.mu must be held.
func (w *writer) replaceBytes(ctx context.Context, at int64, before, after []byte) error {
	ctx = context.WithoutCancel(ctx)
	first, piece := difference(before, after)
	if len(piece) == 0 {
		return nil
	}
	err := w.src.write(ctx, piece, hostOffset(at+int64(first)))
	if err == nil {
		return nil
	}
	found := make([]byte, len(after))
	failed := w.src.read(ctx, found, hostOffset(at))
	switch {
	case failed == nil && bytes.Equal(found, after):
		return nil
	case failed == nil && bytes.Equal(found, before):
		return fmt.Errorf("qcow2: header: %w", err)
	}
	return w.outOfService(fmt.Errorf("header: %w", errors.Join(err, failed)))
}

// difference is the part of after, as long as before, from the first byte that
// differs to the last, and where it begins.
func difference(before, after []byte) (first int, piece []byte) {
	end := len(after)
	for first < end && before[first] == after[first] {
		first++
	}
	for end > first && before[end-1] == after[end-1] {
		end--
	}
	return first, after[first:end]
}
