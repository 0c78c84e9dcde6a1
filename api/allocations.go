package api

import (
	"context"
	"net/url"

	"github.com/extentd/extentd/service"
)

// CreateAllocation implements POST /v1/images/{image}/allocations.
func (s *server) CreateAllocation(ctx context.Context, request CreateAllocationRequestObject) (CreateAllocationResponseObject, error) {
	b := request.Body
	want := service.AllocationRequest{Length: valueOf(b.Length), Contiguous: valueOf(b.Contiguous)}
	if a := b.Anchored; a != nil {
		want.Anchored = &service.Range{Offset: a.Offset, Length: a.Length}
	}
	a, err := s.svc.Allocate(ctx, request.Image, want)
	if err != nil {
		return nil, named(request.Image, err)
	}
	at := "/v1/images/" + url.PathEscape(request.Image) + "/allocations/" + url.PathEscape(a.ID)
	return CreateAllocation201JSONResponse{Body: allocationOf(a), Headers: CreateAllocation201ResponseHeaders{Location: at}}, nil
}

// ListAllocations implements GET /v1/images/{image}/allocations.
func (s *server) ListAllocations(ctx context.Context, request ListAllocationsRequestObject) (ListAllocationsResponseObject, error) {
	found, err := s.svc.Allocations(ctx, request.Image)
	if err != nil {
		return nil, named(request.Image, err)
	}
	list := AllocationList{Allocations: make([]Allocation, len(found))}
	for i, a := range found {
		list.Allocations[i] = allocationOf(a)
	}
	return ListAllocations200JSONResponse(list), nil
}

// GetAllocation implements GET /v1/images/{image}/allocations/{allocation}.
func (s *server) GetAllocation(ctx context.Context, request GetAllocationRequestObject) (GetAllocationResponseObject, error) {
	a, err := s.svc.Allocation(ctx, request.Image, request.Allocation)
	if err != nil {
		return nil, named(request.Image, err)
	}
	return GetAllocation200JSONResponse(allocationOf(a)), nil
}

// DeleteAllocation implements DELETE
// /v1/images/{image}/allocations/{allocation}.
func (s *server) DeleteAllocation(ctx context.Context, request DeleteAllocationRequestObject) (DeleteAllocationResponseObject, error) {
	if err := s.svc.GiveBack(ctx, request.Image, request.Allocation); err != nil {
		return nil, named(request.Image, err)
	}
	return DeleteAllocation204Response{}, nil
}

func allocationOf(a *service.Allocation) Allocation {
	out := Allocation{
		Id: a.ID, Length: a.Length, Contiguous: a.Contiguous, Expires: a.Expires.UTC(),
		Extents: make([]AllocationExtent, len(a.Extents)), Mapped: make([]AllocationRange, len(a.Mapped)),
	}
	for i, e := range a.Extents {
		out.Extents[i] = AllocationExtent{AllocationOffset: e.AllocationOffset, Length: e.Length, Node: e.Node, NodeOffset: e.NodeOffset}
	}
	for i, m := range a.Mapped {
		out.Mapped[i] = AllocationRange{AllocationOffset: m.AllocationOffset, Length: m.Length}
	}
	return out
}
