package service

import (
	"context"

	"github.com/extentd/extentd/storage/block"
)

// A SnapshotHandle is an open snapshot of an image. Who acquires it releases it
// once. After the snapshot has been deleted, all reading fails with
// storage.ErrNotFound.
type SnapshotHandle struct {
	h *Handle
	o *openSnapshot
}

// AcquireSnapshot opens the snapshot of the image that ref leads to: its name, or
// "id:" and its id. It fails as Snapshot and Acquire do.
func (s *Service) AcquireSnapshot(ctx context.Context, image, ref string) (*SnapshotHandle, error) {
	h, err := s.Acquire(ctx, image)
	if err != nil {
		return nil, err
	}
	o, err := h.openSnapshot(ctx, ref)
	if err != nil {
		h.Release()
		return nil, err
	}
	return &SnapshotHandle{h: h, o: o}, nil
}

// Snapshot describes the snapshot.
func (s *SnapshotHandle) Snapshot() Snapshot { return s.o.info }

// Device reads the image and its map as of the snapshot. It is never writable, and
// must not be used after Release.
func (s *SnapshotHandle) Device() *block.Device { return s.o.device }

// Size is that of the image as of the snapshot, bytes.
func (s *SnapshotHandle) Size() int64 { return s.o.device.Size() }

// Generation is an opaque string of [A-Za-z0-9-] that no other map has. It never
// changes while the snapshot is there and no backing of the image changes, across
// restarts too.
func (s *SnapshotHandle) Generation() string { return s.o.mapping }

// DataGeneration is likewise that of the data.
func (s *SnapshotHandle) DataGeneration() string { return s.o.data }

// HoldMap is there for being like a Handle: no update changes this map.
func (s *SnapshotHandle) HoldMap() (release func()) { return func() {} }

// Release gives the handle back.
func (s *SnapshotHandle) Release() {
	s.h.s.report(s.h.name, s.h.snapshots.put(s.o))
	s.h.Release()
}
