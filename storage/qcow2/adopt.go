package qcow2

import (
	"context"
	"encoding/binary"
	"fmt"

	"github.com/extentd/extentd/storage"
)

// Adopt reserves clusters that an earlier session had reserved. With verify it
// reads every L2 table, those of snapshots too, and the tables of bitmaps.
func (i *Image) Adopt(ctx context.Context, blocks []storage.Blocks, verify bool) error {
	w, err := i.writing()
	if err != nil {
		return err
	}
	var wanted runs
	for _, b := range blocks {
		r, err := w.adoptable(b)
		if err != nil {
			return err
		}
		if wanted.overlaps(r) {
			return conflict(0, "the clusters at %#x are named twice", b.Offset)
		}
		wanted.add(r)
	}
	if len(wanted.list) == 0 {
		return nil
	}
	return i.quiesced(ctx, func(w *writer) error {
		if err := w.checkUnused(ctx, &wanted); err != nil {
			return err
		}
		if verify {
			if err := w.checkUnreferenced(ctx, &wanted); err != nil {
				return err
			}
		}
		for _, r := range wanted.list {
			w.reserved.add(r)
			w.high = max(w.high, r.end())
		}
		return nil
	})
}

// adoptable is the run of b, if it can be one.
func (w *writer) adoptable(b storage.Blocks) (run, error) {
	switch {
	case b.Node != w.node || w.info.HasDataFile:
		return run{}, fmt.Errorf("qcow2: %w: blocks of another node", storage.ErrConflict)
	case (b.Offset|b.Length)&(w.clusterSize()-1) != 0:
		return run{}, w.misaligned(b.Offset, b.Length, w.clusterSize())
	case b.Offset <= 0 || b.Length <= 0 || b.Offset > hostEnd-b.Length:
		return run{}, fmt.Errorf("qcow2: %w: blocks at %d, length %d", storage.ErrOutOfRange, b.Offset, b.Length)
	}
	return run{b.Offset >> w.clusterBits, b.Length >> w.clusterBits}, nil
}

// checkUnused checks that the clusters have a refcount of 1, and are neither
// reserved nor metadata. w.mu must be held.
func (w *writer) checkUnused(ctx context.Context, wanted *runs) error {
	for _, r := range wanted.list {
		if w.reserved.overlaps(r) {
			return w.notAdopted(r, "some are reserved")
		}
		if kind := w.metadata.overlap(r, noMetadata); kind != noMetadata {
			return w.notAdopted(r, "some are "+kind.String())
		}
		for at := r.start; at < r.end(); at++ {
			n, err := w.refcountOf(ctx, at)
			if err != nil {
				return err
			}
			if n != 1 {
				return w.notAdopted(r, fmt.Sprintf("that at %#x has refcount %d", at<<w.clusterBits, n))
			}
		}
	}
	return nil
}

func (w *writer) notAdopted(r run, why string) error {
	return fmt.Errorf("qcow2: %w: %d clusters at %#x: %s", storage.ErrConflict, r.count, r.start<<w.clusterBits, why)
}

// checkUnreferenced checks that no table refers to the clusters.
func (w *writer) checkUnreferenced(ctx context.Context, wanted *runs) error {
	h := &w.state.Load().header
	if err := w.checkL1(ctx, hostOffset(h.l1Offset), int64(h.l1Size), wanted); err != nil {
		return err
	}
	err := w.walkSnapshotEntries(ctx, &window{source: w.src}, func(e *snapshotEntry) error {
		at, size := binary.BigEndian.Uint64(e.fixed), binary.BigEndian.Uint32(e.fixed[8:])
		if at > hostEnd {
			return malformed("its l1 table is at %#x", at)
		}
		return w.checkL1(ctx, hostOffset(at), int64(size), wanted)
	})
	if err != nil {
		return err
	}
	return w.checkBitmaps(ctx, wanted)
}

// checkL1 checks an L1 table and all below it.
func (w *writer) checkL1(ctx context.Context, at hostOffset, entries int64, wanted *runs) error {
	table := window{source: w.src}
	perSlice := w.pieceSize / 8
	for k := range entries {
		b, err := table.at(ctx, at, k*8, 8)
		if err != nil {
			return fmt.Errorf("qcow2: l1 table at %#x: %w", int64(at), err)
		}
		off := int64(binary.BigEndian.Uint64(b) & l1OffsetMask)
		if off == 0 {
			continue
		}
		if r := (run{off >> w.clusterBits, 1}); wanted.overlaps(r) {
			return w.notAdopted(r, "an l2 table is there")
		}
		for skip := int64(0); skip < w.clusterSize(); skip += perSlice * 8 {
			piece, err := w.loadPiece(ctx, hostOffset(off+skip))
			if err != nil {
				return fmt.Errorf("qcow2: l2 table at %#x: %w", off, err)
			}
			if err := w.checkPiece(piece, wanted); err != nil {
				return err
			}
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	return nil
}

func (w *writer) checkPiece(piece []uint64, wanted *runs) error {
	words := 1
	if w.extended {
		words = 2
	}
	for k := 0; k < len(piece); k += words {
		kind := w.kindOf(piece[k])
		if r, _ := w.hostClusters(kind, piece[k]); r.count > 0 && wanted.overlaps(r) {
			return w.notAdopted(r, "they are mapped")
		}
	}
	return nil
}

// checkBitmaps checks the tables of the bitmaps.
func (w *writer) checkBitmaps(ctx context.Context, wanted *runs) error {
	type bitmapTable struct {
		at   hostOffset
		size int64
	}
	var tables []bitmapTable
	err := w.walkBitmapEntries(ctx, &window{source: w.src}, func(e *bitmapEntry, _ []byte) {
		tables = append(tables, bitmapTable{hostOffset(e.tableOffset), int64(e.tableSize)})
	})
	if err != nil {
		return err
	}
	for _, t := range tables {
		entries := window{source: w.src}
		for k := range t.size {
			b, err := entries.at(ctx, t.at, k*8, 8)
			if err != nil {
				return fmt.Errorf("qcow2: bitmap table at %#x: %w", int64(t.at), err)
			}
			off := int64(binary.BigEndian.Uint64(b) & l2OffsetMask)
			if r := (run{off >> w.clusterBits, 1}); off != 0 && wanted.overlaps(r) {
				return w.notAdopted(r, "a bitmap is there")
			}
		}
	}
	return nil
}
