package api

import (
	"context"

	"github.com/extentd/extentd/service"
)

// changed is what every answer to a change of the data says.
type changed struct {
	AcceptRanges       string
	BlockSizeMaximum   int64
	BlockSizeMinimum   int64
	BlockSizePreferred int64
	CacheControl       string
	ETag               string
}

// change changes the data of an image, unless the conditions of the request
// forbid it.
func (s *server) change(ctx context.Context, name string, do func(h *service.Handle) error) (changed, error) {
	h, err := s.acquireWritable(ctx, name)
	if err != nil {
		return changed{}, err
	}
	defer h.Release()
	if err := do(h); err != nil {
		h.Report(err)
		return changed{}, err
	}
	limits, err := h.Device().Limits(ctx)
	if err != nil {
		return changed{}, err
	}
	return changed{
		AcceptRanges: "bytes", CacheControl: cacheData, ETag: `"` + h.DataGeneration() + `"`,
		BlockSizeMinimum: limits.Minimum, BlockSizePreferred: limits.Preferred, BlockSizeMaximum: limits.MaxData,
	}, nil
}

// claim makes sure of a range that is to be written, and then that the data is
// what the conditions of the request want.
func claim(ctx context.Context, h *service.Handle, off, n int64) error {
	match := writeCondition(callOf(ctx).r.Header)
	if match != nil && !match(h.DataGeneration()) {
		return errPrecondition
	}
	if err := h.Device().CheckWrite(ctx, off, n); err != nil {
		return err
	}
	if match != nil && !h.ClaimDataGeneration(match) { // another one was faster
		return errPrecondition
	}
	return nil
}

// ZeroData implements POST /v1/images/{image}/zero.
func (s *server) ZeroData(ctx context.Context, request ZeroDataRequestObject) (ZeroDataResponseObject, error) {
	b := request.Body
	headers, err := s.change(ctx, request.Image, func(h *service.Handle) error {
		if err := claim(ctx, h, b.Offset, b.Length); err != nil {
			return err
		}
		return h.Device().Zero(ctx, b.Offset, b.Length, valueOf(b.Anchor))
	})
	if err != nil {
		return nil, err
	}
	return ZeroData204Response{Headers: ZeroData204ResponseHeaders(headers)}, nil
}

// TrimData implements POST /v1/images/{image}/trim.
func (s *server) TrimData(ctx context.Context, request TrimDataRequestObject) (TrimDataResponseObject, error) {
	b := request.Body
	headers, err := s.change(ctx, request.Image, func(h *service.Handle) error {
		if err := claim(ctx, h, b.Offset, b.Length); err != nil {
			return err
		}
		return h.Device().Trim(ctx, b.Offset, b.Length)
	})
	if err != nil {
		return nil, err
	}
	return TrimData204Response{Headers: TrimData204ResponseHeaders(headers)}, nil
}

// FlushData implements POST /v1/images/{image}/flush.
func (s *server) FlushData(ctx context.Context, request FlushDataRequestObject) (FlushDataResponseObject, error) {
	headers, err := s.change(ctx, request.Image, func(h *service.Handle) error { return h.Device().Flush(ctx) })
	if err != nil {
		return nil, err
	}
	return FlushData204Response{Headers: FlushData204ResponseHeaders(headers)}, nil
}
