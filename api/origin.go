package api

import (
	"context"
	"net/http"

	"github.com/extentd/extentd/service"
	"github.com/extentd/extentd/storage/block"
)

// An origin is what data and maps are read from: an image, or a snapshot of one.
type origin interface {
	Device() *block.Device
	Generation() string
	DataGeneration() string
	HoldMap() (release func())
	Since(ctx context.Context, ref string) (*service.Difference, error)
	Release()
}

var (
	_ origin = (*service.Handle)(nil)
	_ origin = (*service.SnapshotHandle)(nil)
)

// openOrigin opens what the path names.
func (s *server) openOrigin(r *http.Request) (origin, error) {
	if ref := pathParameter(r, "snapshot"); ref != "" {
		return s.acquireSnapshot(r.Context(), imageName(r), ref)
	}
	h, err := s.acquire(r.Context(), imageName(r))
	if err != nil {
		return nil, err
	}
	return h, nil
}

func (s *server) acquireSnapshot(ctx context.Context, image, ref string) (origin, error) {
	h, err := s.svc.AcquireSnapshot(ctx, image, ref)
	if err != nil {
		return nil, named(image, err)
	}
	return h, nil
}
