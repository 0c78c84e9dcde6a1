package qcow2

import (
	"context"
	"slices"
)

// DeleteSnapshot deletes the first snapshot with the id, and frees what only it
// refers to. It fails with [storage.ErrNotFound] where there is none. Mappers of it
// fail from then on. After a crash the snapshot is there, or it is gone and its
// clusters may have leaked; flags that cost time are repaired as those of
// [Image.CreateSnapshot].
func (i *Image) DeleteSnapshot(ctx context.Context, id string) error {
	var clean func() error
	err := i.quiesced(ctx, func(w *writer) error {
		var err error
		clean, err = w.dropSnapshot(ctx, id)
		return err
	})
	if err != nil {
		return err
	}
	// What it alone referred to is free now, and refcounts are what they were before
	// it was taken. The snapshot is gone, whatever becomes of the flags.
	return i.quiesced(context.WithoutCancel(ctx), func(w *writer) error {
		if err := w.unshare(context.WithoutCancel(ctx)); err != nil {
			return err
		}
		return clean()
	})
}

// dropSnapshot takes the snapshot out of the table, and frees what it refers to. It
// returns what takes the mark away that the image bears meanwhile.
func (w *writer) dropSnapshot(ctx context.Context, id string) (clean func() error, err error) {
	table, s, err := w.findSnapshot(ctx, id)
	if err == nil && s == nil {
		err = errNoSnapshot(id)
	}
	if err != nil {
		return nil, err
	}
	rest := slices.Delete(slices.Clone(table), int(s.from), int(s.to))
	at, err := w.storeTable(ctx, rest)
	if err != nil {
		return nil, err
	}
	clusters := ceilDiv(int64(len(rest)), w.clusterSize())
	if err := w.writeBack(ctx); err != nil {
		return nil, w.dropping(ctx, err, at, clusters, metaSnapshots)
	}
	if err := w.sync(ctx); err != nil {
		return nil, err
	}
	clean, err = w.doubtful(ctx)
	if err == nil {
		err = w.useTable(ctx, at, w.state.Load().header.snapshots-1, len(table))
	}
	if err != nil {
		return nil, w.dropping(ctx, err, at, clusters, metaSnapshots)
	}
	w.views.close(s.ID, s.tree.at)
	ctx = context.WithoutCancel(ctx) // it is gone by now
	if err := s.tree.freeAll(ctx, metaSnapshots); err != nil {
		return nil, err
	}
	return clean, w.writeBack(ctx)
}
