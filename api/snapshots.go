package api

import (
	"context"
	"net/url"
	"strings"

	"github.com/extentd/extentd/service"
)

// ListSnapshots implements GET /v1/images/{image}/snapshots.
func (s *server) ListSnapshots(ctx context.Context, request ListSnapshotsRequestObject) (ListSnapshotsResponseObject, error) {
	all, err := s.svc.Snapshots(ctx, request.Image)
	if err != nil {
		return nil, named(request.Image, err)
	}
	list := SnapshotList{Snapshots: make([]Snapshot, len(all))}
	for i := range all {
		list.Snapshots[i] = snapshotOf(&all[i])
	}
	return ListSnapshots200JSONResponse(list), nil
}

func snapshotOf(s *service.Snapshot) Snapshot {
	out := Snapshot{
		Id: s.ID, Name: s.Name, Created: s.Created.UTC(), Size: s.Size,
		VmStateSize: s.VMStateSize, VmClock: s.VMClock.String(),
	}
	if s.ICount >= 0 {
		out.Icount = &s.ICount
	}
	return out
}

// CreateSnapshot implements POST /v1/images/{image}/snapshots.
func (s *server) CreateSnapshot(ctx context.Context, request CreateSnapshotRequestObject) (CreateSnapshotResponseObject, error) {
	made, err := s.svc.CreateSnapshot(ctx, request.Image, request.Body.Name)
	if err != nil {
		return nil, named(request.Image, err)
	}
	return CreateSnapshot201JSONResponse{
		Body:    snapshotOf(&made),
		Headers: CreateSnapshot201ResponseHeaders{Location: "/v1/images/" + request.Image + "/snapshots/" + snapshotSegment(&made)},
	}, nil
}

// snapshotSegment is the segment of a path that leads to a snapshot with a name of
// its own: the name, unless it is one that clients or proxies read otherwise.
func snapshotSegment(s *service.Snapshot) string {
	if s.Name == "." || s.Name == ".." || strings.ContainsAny(s.Name, "/\\%;?#") {
		return "id:" + url.PathEscape(s.ID)
	}
	return url.PathEscape(s.Name)
}

// GetSnapshot implements GET /v1/images/{image}/snapshots/{snapshot}.
func (s *server) GetSnapshot(ctx context.Context, request GetSnapshotRequestObject) (GetSnapshotResponseObject, error) {
	found, err := s.svc.Snapshot(ctx, request.Image, request.Snapshot)
	if err != nil {
		return nil, named(request.Image, err)
	}
	return GetSnapshot200JSONResponse(snapshotOf(&found)), nil
}

// DeleteSnapshot implements DELETE /v1/images/{image}/snapshots/{snapshot}.
func (s *server) DeleteSnapshot(ctx context.Context, request DeleteSnapshotRequestObject) (DeleteSnapshotResponseObject, error) {
	if err := s.svc.DeleteSnapshot(ctx, request.Image, request.Snapshot, writeCondition(callOf(ctx).r.Header)); err != nil {
		return nil, named(request.Image, err)
	}
	return DeleteSnapshot204Response{}, nil
}

// RevertSnapshot implements POST /v1/images/{image}/snapshots/{snapshot}/revert.
func (s *server) RevertSnapshot(ctx context.Context, request RevertSnapshotRequestObject) (RevertSnapshotResponseObject, error) {
	if err := s.svc.RevertSnapshot(ctx, request.Image, request.Snapshot, writeCondition(callOf(ctx).r.Header)); err != nil {
		return nil, named(request.Image, err)
	}
	img, err := s.describeImage(ctx, request.Image)
	if err != nil {
		return nil, err
	}
	return RevertSnapshot200JSONResponse(img), nil
}

// GetSnapshotExtents implements GET /v1/images/{image}/snapshots/{snapshot}/extents.
func (s *server) GetSnapshotExtents(ctx context.Context, request GetSnapshotExtentsRequestObject) (GetSnapshotExtentsResponseObject, error) {
	from, err := s.acquireSnapshot(ctx, request.Image, request.Snapshot)
	if err != nil {
		return nil, err
	}
	p := &request.Params
	return s.answerMap(ctx, from, &GetExtentsParams{
		Offset: p.Offset, Length: p.Length, Limit: p.Limit, One: p.One, Volunteer: p.Volunteer, Resolve: p.Resolve, Since: p.Since, Only: (*GetExtentsParamsOnly)(p.Only),
	})
}
