package service

import (
	"context"
	"errors"
	"fmt"

	"github.com/extentd/extentd/storage"
)

const (
	// changesSpan is how much is compared at a time, bytes.
	changesSpan = 1 << 30
	// changesMost is how many pieces of it are kept at a time.
	changesMost = 4096
)

// A Difference tells where an image, or a snapshot of it, differs from a snapshot.
// It belongs to one goroutine; who asked for it releases it before what it is of.
type Difference struct {
	h      *Handle
	now    storage.Mapper // with the Differ
	since  *openSnapshot
	pieces []changedPiece // of the last span
}

// A changedPiece is a run of bytes of which all, or none, may have changed.
type changedPiece struct {
	n       int64
	changed bool
}

// Since compares the image as it is with the snapshot that ref leads to. It fails
// as Snapshot does.
func (h *Handle) Since(ctx context.Context, ref string) (*Difference, error) {
	return h.difference(ctx, h.chain.layers[0].Mapper, ref)
}

// Since compares the snapshot with another of its image, as old or not.
func (s *SnapshotHandle) Since(ctx context.Context, ref string) (*Difference, error) {
	return s.h.difference(ctx, s.o.mapper, ref)
}

func (h *Handle) difference(ctx context.Context, now storage.Mapper, ref string) (*Difference, error) {
	since, err := h.openSnapshot(ctx, ref)
	if err != nil {
		return nil, err
	}
	return &Difference{h: h, now: now, since: since}, nil
}

// Since is what the difference is from.
func (d *Difference) Since() Snapshot { return d.since.info }

// Generation tells the snapshot that the difference is from: an opaque string of
// [A-Za-z0-9-] that no other has.
func (d *Difference) Generation() string { return d.since.mapping }

// Release gives it back.
func (d *Difference) Release() { d.h.s.report(d.h.name, d.h.snapshots.put(d.since)) }

// Changes calls visit for [off, off+n) in order and without gaps: whether the piece
// may read otherwise than in the snapshot. Neighbours may say the same. Nothing that
// differs is called unchanged; what is written meanwhile may be seen or not. visit
// may take its time: nothing is held meanwhile. It fails with storage.ErrNotFound
// once the snapshot has been deleted; an error of visit ends it, and is returned.
func (d *Difference) Changes(ctx context.Context, off, n int64, visit func(off, n int64, changed bool) error) error {
	if err := storage.CheckRange(off, n, d.now.Size()); err != nil {
		return err
	}
	for end := off + n; off < end; {
		if err := d.look(ctx, off, min(end-off, changesSpan)); err != nil {
			return ofSnapshot(d.h.name, d.since.ref, err)
		}
		for _, p := range d.pieces {
			if err := visit(off, p.n, p.changed); err != nil {
				return err
			}
			off += p.n
		}
	}
	return nil
}

// errSpan ends a comparison that has found as much as is kept.
var errSpan = errors.New("enough for now")

// look compares a span, or as much of it as is kept. Tables are not used for
// something else meanwhile.
func (d *Difference) look(ctx context.Context, off, n int64) error {
	differ, can := d.now.(storage.Differ)
	if !can {
		return fmt.Errorf("%w: this format cannot be compared", storage.ErrUnsupported)
	}
	if pinner, ok := d.now.(storage.Pinner); ok {
		defer pinner.Unpin(pinner.Pin())
	}
	d.pieces = d.pieces[:0]
	err := differ.Changes(ctx, d.since.mapper, off, n, func(_, n int64, changed bool) error {
		if len(d.pieces) == changesMost {
			return errSpan
		}
		d.pieces = append(d.pieces, changedPiece{n, changed})
		return nil
	})
	if errors.Is(err, errSpan) {
		return nil
	}
	return err
}

// Changes calls visit for [off, off+n) in order, without gaps and each time with
// another answer: whether the piece may read otherwise than in the snapshot that
// since leads to. For the rest it is as Difference's.
func (h *Handle) Changes(ctx context.Context, since string, off, n int64, visit func(off, n int64, changed bool) error) error {
	d, err := h.Since(ctx, since)
	if err != nil {
		return err
	}
	return d.alternate(ctx, off, n, visit)
}

// Changes is likewise of the snapshot.
func (s *SnapshotHandle) Changes(ctx context.Context, since string, off, n int64, visit func(off, n int64, changed bool) error) error {
	d, err := s.Since(ctx, since)
	if err != nil {
		return err
	}
	return d.alternate(ctx, off, n, visit)
}

// alternate merges neighbours that say the same, and releases the difference.
func (d *Difference) alternate(ctx context.Context, off, n int64, visit func(off, n int64, changed bool) error) error {
	defer d.Release()
	var length int64
	var was bool
	err := d.Changes(ctx, off, n, func(_, n int64, changed bool) error {
		if length > 0 && changed != was {
			if err := visit(off, length, was); err != nil {
				return err
			}
			off, length = off+length, 0
		}
		length, was = length+n, changed
		return nil
	})
	if err != nil || length == 0 {
		return err
	}
	return visit(off, length, was)
}
