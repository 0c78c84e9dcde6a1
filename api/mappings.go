package api

import (
	"context"

	"github.com/extentd/extentd/service"
)

// maxUpdates is how many updates a batch may have.
const maxUpdates = 10_000

// UpdateMappings implements POST /v1/images/{image}/mappings.
func (s *server) UpdateMappings(ctx context.Context, request UpdateMappingsRequestObject) (UpdateMappingsResponseObject, error) {
	given := request.Body.Updates
	if len(given) > maxUpdates {
		return nil, &tooLargeError{maxUpdates, "updates"}
	}
	updates := make([]service.Update, len(given))
	for i := range given {
		u := &given[i]
		updates[i] = service.Update{
			Offset: u.Offset, Length: u.Length, Kind: string(u.Target.Kind),
			Allocation: valueOf(u.Target.Allocation), AllocationOffset: valueOf(u.Target.AllocationOffset), Anchored: valueOf(u.Target.Anchored),
		}
	}
	generation, err := s.svc.Update(ctx, request.Image, updates, writeCondition(callOf(ctx).r.Header))
	if err != nil {
		return nil, named(request.Image, err)
	}
	return UpdateMappings200JSONResponse{
		Body:    MappingResult{Generation: generation},
		Headers: UpdateMappings200ResponseHeaders{ETag: `"` + generation + `"`},
	}, nil
}
