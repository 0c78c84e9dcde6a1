package qcow2

import (
	"context"
	"errors"
	"fmt"

	"github.com/extentd/extentd/storage"
)

// Adopt reserves clusters that an earlier session had reserved. With verify it
// reads every L2 table, those of snapshots too, and the tables of bitmaps, and
// takes the memory that [Check] does.
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

// checkUnreferenced checks that nothing refers to the clusters, by counting all
// references as [Check] does. What a check takes for corrupt refers to nothing
// that can be read, or is counted all the same.
func (w *writer) checkUnreferenced(ctx context.Context, wanted *runs) error {
	last := wanted.list[len(wanted.list)-1]
	c := &checker{src: w.src}
	err := c.begin(ctx)
	if err == nil {
		c.fileEnd = max(c.fileEnd, last.end()<<w.clusterBits) // nothing may have been written there yet
		if err = c.readSnapshots(ctx); err == nil {
			err = c.countAll(ctx)
		}
	}
	if errors.Is(err, storage.ErrUnsupported) { // it is too large to tell
		return w.notAdopted(last, err.Error())
	}
	if err != nil {
		return err
	}
	for _, r := range wanted.list {
		if c.counts.used(r.start, r.end()) {
			return w.notAdopted(r, "something refers to them")
		}
	}
	return nil
}
