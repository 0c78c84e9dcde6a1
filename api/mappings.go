package api

import (
	"context"
	"errors"

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
	if request.Params.IdempotencyKey != nil {
		err = s.settle(ctx, request.Image, len(updates), err)
	}
	if err != nil {
		return nil, named(request.Image, err)
	}
	return UpdateMappings200JSONResponse{
		Body:    MappingResult{Generation: generation},
		Headers: UpdateMappings200ResponseHeaders{ETag: `"` + generation + `"`},
	}, nil
}

// settle makes durable what was done of n updates, which ended with the error: an
// answer that is kept must not outlive what it says.
func (s *server) settle(ctx context.Context, image string, n int, err error) error {
	var batch *service.BatchError
	switch {
	case errors.As(err, &batch):
		n = batch.Applied
	case err != nil:
		n = 0
	}
	if n == 0 {
		return err
	}
	_, flushed := s.change(ctx, image, func(h *service.Handle) error { return h.Device().Flush(ctx) })
	if flushed == nil {
		return err
	}
	return &service.BatchError{Applied: n, Err: errors.Join(flushed, err)}
}
