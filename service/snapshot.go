package service

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/extentd/extentd/storage"
)

// idPrefix begins a reference to a snapshot by its id. Another is a name.
const idPrefix = "id:"

// findSnapshot finds the snapshot that a reference leads to: by "id:" and its id,
// the first of those that have it, or by its name, which must be unique.
func findSnapshot(all []Snapshot, ref string) (*Snapshot, error) {
	id, byID := strings.CutPrefix(ref, idPrefix)
	is := func(s Snapshot) bool { return s.Name == ref }
	if byID {
		is = func(s Snapshot) bool { return s.ID == id }
	}
	at := slices.IndexFunc(all, is)
	if at < 0 {
		return nil, storage.ErrNotFound
	}
	found := &all[at]
	if byID {
		return found, nil
	}
	if slices.ContainsFunc(all[at+1:], is) {
		return nil, fmt.Errorf("%w: several snapshots have this name: it takes %q and the id of one", storage.ErrConflict, idPrefix)
	}
	if first := slices.IndexFunc(all, func(s Snapshot) bool { return s.ID == found.ID }); first != at {
		return nil, fmt.Errorf("%w: another snapshot has the same id", storage.ErrConflict)
	}
	return found, nil
}

// ofSnapshot says of which snapshot an error is. It does not begin with the image,
// as what is said of an image that is not there.
func ofSnapshot(image, ref string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("snapshot %q of image %q: %w", ref, image, err)
}

// snapshotKeeper is the image's own, if its format has one.
func (h *Handle) snapshotKeeper() (SnapshotKeeper, error) {
	top := &h.chain.layers[0]
	if top.Snapshots == nil {
		return nil, fmt.Errorf("%w: images of format %s have no snapshots", storage.ErrUnsupported, top.format)
	}
	return top.Snapshots, nil
}

// Snapshots are the internal snapshots of the image, in the order of its table. It
// fails with storage.ErrUnsupported where the format has none.
func (s *Service) Snapshots(ctx context.Context, image string) ([]Snapshot, error) {
	h, err := s.Acquire(ctx, image)
	if err != nil {
		return nil, err
	}
	defer h.Release()
	keeper, err := h.snapshotKeeper()
	if err != nil {
		return nil, named(image, err)
	}
	all, err := keeper.List(ctx)
	return all, named(image, err)
}

// Snapshot is the one that ref leads to: the name of a snapshot, or "id:" and its
// id. It fails with storage.ErrNotFound where there is none, and with
// storage.ErrConflict where several have the name.
func (s *Service) Snapshot(ctx context.Context, image, ref string) (Snapshot, error) {
	all, err := s.Snapshots(ctx, image)
	if err != nil {
		return Snapshot{}, err
	}
	found, err := findSnapshot(all, ref)
	if err != nil {
		return Snapshot{}, ofSnapshot(image, ref, err)
	}
	return *found, nil
}

// keeping opens the image for writing, for who changes its snapshots. Nobody else
// opens, makes or deletes one until done is called, which also takes what became of
// it.
func (s *Service) keeping(ctx context.Context, image string) (h *Handle, keeper SnapshotKeeper, done func(error), err error) {
	if h, err = s.Acquire(ctx, image); err != nil {
		return nil, nil, nil, err
	}
	_, err = h.snapshotKeeper() // before it is opened for writing in vain
	h.Release()
	if err != nil {
		return nil, nil, nil, named(image, err)
	}
	if h, err = s.AcquireWritable(ctx, image); err != nil {
		return nil, nil, nil, err
	}
	keeper, err = h.snapshotKeeper()
	if err == nil {
		err = h.snapshots.take(ctx)
	}
	if err != nil {
		h.Release()
		return nil, nil, nil, named(image, err)
	}
	return h, keeper, func(err error) {
		h.snapshots.give()
		h.Report(err)
		h.Release()
	}, nil
}

// CreateSnapshot takes a snapshot of the image as it is between two writes: of each
// writer it has everything that was answered before a write that it has began. The
// name has 1 to 255 bytes, and does not begin with "id:". Writers wait meanwhile. The
// error wraps storage.ErrExists where there is one of the name,
// storage.ErrConflict while a part of the image is claimed, storage.ErrUnsupported
// where the format has no snapshots, or what AcquireWritable's does. Blocks that are
// reserved and not mapped are no part of it. It is durable when it returns.
func (s *Service) CreateSnapshot(ctx context.Context, image, name string) (Snapshot, error) {
	if strings.HasPrefix(name, idPrefix) {
		return Snapshot{}, &storage.InvalidError{Field: "name", Detail: "begins with id:, which stands for an id"}
	}
	h, keeper, done, err := s.keeping(ctx, image)
	if err != nil {
		return Snapshot{}, err
	}
	var made Snapshot
	defer func() { done(err) }()
	if err = h.device.Flush(ctx); err != nil { // most of it, before anybody waits
		return Snapshot{}, named(image, err)
	}
	err = h.device.Still(ctx, func(ctx context.Context) error {
		if err := h.device.Unclaimed(); err != nil {
			return err
		}
		all, err := keeper.List(ctx)
		if err != nil {
			return err
		}
		if slices.ContainsFunc(all, func(s Snapshot) bool { return s.Name == name }) {
			return fmt.Errorf("%w: a snapshot of this name", storage.ErrExists)
		}
		if err := h.device.Flush(ctx); err != nil {
			return err
		}
		h.counts.remapping()
		defer h.counts.remapping()
		made, err = keeper.Create(ctx, name)
		return err
	})
	return made, ofSnapshot(image, name, err)
}

// DeleteSnapshot deletes the snapshot that ref leads to. Who reads it meanwhile
// fails. match is Delete's, of the image.
func (s *Service) DeleteSnapshot(ctx context.Context, image, ref string, match func(dataGeneration string) bool) (err error) {
	h, keeper, done, err := s.keeping(ctx, image)
	if err != nil {
		return err
	}
	defer func() { done(err) }()
	found, err := h.lookUp(ctx, keeper, ref, match)
	if err != nil {
		return ofSnapshot(image, ref, err)
	}
	h.counts.remapping()
	defer h.counts.remapping()
	err = keeper.Delete(ctx, found.ID)
	h.snapshots.drop(found.ID)
	return ofSnapshot(image, ref, err)
}

// RevertSnapshot makes the image what it was when the snapshot was taken that ref
// leads to, its size too. The snapshot stays, and so do blocks that are reserved and
// not mapped; while a part of the image is claimed, it fails with
// storage.ErrConflict. match is Delete's, of the image.
func (s *Service) RevertSnapshot(ctx context.Context, image, ref string, match func(dataGeneration string) bool) (err error) {
	h, keeper, done, err := s.keeping(ctx, image)
	if err != nil {
		return err
	}
	defer func() { done(err) }()
	found, err := h.lookUp(ctx, keeper, ref, match)
	if err != nil {
		return ofSnapshot(image, ref, err)
	}
	h.updates.Lock() // who looks at the map sees what was before, or what is after
	defer h.updates.Unlock()
	err = h.device.Exclusively(ctx, func(ctx context.Context) error {
		if err := h.device.Flush(ctx); err != nil {
			return err
		}
		return keeper.Revert(ctx, found.ID)
	})
	return ofSnapshot(image, ref, err)
}

// lookUp finds a snapshot, and claims the data generation for what is done with it.
func (h *Handle) lookUp(ctx context.Context, keeper SnapshotKeeper, ref string, match func(string) bool) (*Snapshot, error) {
	all, err := keeper.List(ctx)
	if err != nil {
		return nil, err
	}
	found, err := findSnapshot(all, ref)
	if err == nil && !h.ClaimDataGeneration(match) {
		err = ErrPrecondition
	}
	return found, err
}
