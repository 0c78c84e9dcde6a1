package api

import (
	"context"
	"net/url"

	"github.com/extentd/extentd/service"
	"github.com/extentd/extentd/storage"
)

// ListBitmaps implements GET /v1/images/{image}/bitmaps.
func (s *server) ListBitmaps(ctx context.Context, request ListBitmapsRequestObject) (ListBitmapsResponseObject, error) {
	h, err := s.acquire(ctx, request.Image)
	if err != nil {
		return nil, err
	}
	defer h.Release()
	all, err := h.Bitmaps(ctx)
	if err != nil {
		return nil, err
	}
	return ListBitmaps200JSONResponse(BitmapList{Bitmaps: bitmapsOf(all)}), nil
}

// CreateBitmap implements POST /v1/images/{image}/bitmaps.
func (s *server) CreateBitmap(ctx context.Context, request CreateBitmapRequestObject) (CreateBitmapResponseObject, error) {
	b := request.Body
	now, err := s.changeBitmap(ctx, request.Image, storage.BitmapChange{
		Kind: storage.BitmapCreate, Name: b.Name, Granularity: valueOf(b.Granularity), Enabled: b.Enabled == nil || *b.Enabled,
	})
	if err != nil {
		return nil, err
	}
	at := "/v1/images/" + url.PathEscape(request.Image) + "/bitmaps/" + url.PathEscape(b.Name)
	return CreateBitmap201JSONResponse{Body: now, Headers: CreateBitmap201ResponseHeaders{Location: at}}, nil
}

// GetBitmap implements GET /v1/images/{image}/bitmaps/{bitmap}.
func (s *server) GetBitmap(ctx context.Context, request GetBitmapRequestObject) (GetBitmapResponseObject, error) {
	b, err := s.describeBitmap(ctx, request.Image, request.Bitmap)
	if err != nil {
		return nil, err
	}
	return GetBitmap200JSONResponse(b), nil
}

// PatchBitmap implements PATCH /v1/images/{image}/bitmaps/{bitmap}.
func (s *server) PatchBitmap(ctx context.Context, request PatchBitmapRequestObject) (PatchBitmapResponseObject, error) {
	patch := request.Body
	if patch.Enabled == nil {
		b, err := s.describeBitmap(ctx, request.Image, request.Bitmap)
		if err != nil {
			return nil, err
		}
		return PatchBitmap200JSONResponse(b), nil
	}
	kind := storage.BitmapDisable
	if *patch.Enabled {
		kind = storage.BitmapEnable
	}
	b, err := s.changeBitmap(ctx, request.Image, storage.BitmapChange{Kind: kind, Name: request.Bitmap})
	if err != nil {
		return nil, err
	}
	return PatchBitmap200JSONResponse(b), nil
}

// DeleteBitmap implements DELETE /v1/images/{image}/bitmaps/{bitmap}.
func (s *server) DeleteBitmap(ctx context.Context, request DeleteBitmapRequestObject) (DeleteBitmapResponseObject, error) {
	c := service.ImageBitmapChange{Image: request.Image, BitmapChange: storage.BitmapChange{Kind: storage.BitmapDelete, Name: request.Bitmap}}
	if err := s.svc.ChangeBitmaps(ctx, []service.ImageBitmapChange{c}); err != nil {
		return nil, named(request.Image, err)
	}
	return DeleteBitmap204Response{}, nil
}

// ClearBitmap implements POST /v1/images/{image}/bitmaps/{bitmap}/clear.
func (s *server) ClearBitmap(ctx context.Context, request ClearBitmapRequestObject) (ClearBitmapResponseObject, error) {
	b, err := s.changeBitmap(ctx, request.Image, storage.BitmapChange{Kind: storage.BitmapClear, Name: request.Bitmap})
	if err != nil {
		return nil, err
	}
	return ClearBitmap200JSONResponse{Body: b}, nil
}

// MergeBitmap implements POST /v1/images/{image}/bitmaps/{bitmap}/merge.
func (s *server) MergeBitmap(ctx context.Context, request MergeBitmapRequestObject) (MergeBitmapResponseObject, error) {
	b, err := s.changeBitmap(ctx, request.Image, storage.BitmapChange{Kind: storage.BitmapMerge, Name: request.Bitmap, From: request.Body.From})
	if err != nil {
		return nil, err
	}
	return MergeBitmap200JSONResponse{Body: b}, nil
}

// changeBitmap makes one change, and describes the bitmap as it is then.
func (s *server) changeBitmap(ctx context.Context, image string, c storage.BitmapChange) (Bitmap, error) {
	if err := s.svc.ChangeBitmaps(ctx, []service.ImageBitmapChange{{Image: image, BitmapChange: c}}); err != nil {
		return Bitmap{}, named(image, err)
	}
	return s.describeBitmap(ctx, image, c.Name)
}

func (s *server) describeBitmap(ctx context.Context, image, name string) (Bitmap, error) {
	h, err := s.acquire(ctx, image)
	if err != nil {
		return Bitmap{}, err
	}
	defer h.Release()
	b, err := h.Bitmap(ctx, name)
	if err != nil {
		return Bitmap{}, err
	}
	return bitmapOf(&b), nil
}

func bitmapsOf(all []storage.BitmapInfo) []Bitmap {
	out := make([]Bitmap, len(all))
	for i := range all {
		out[i] = bitmapOf(&all[i])
	}
	return out
}

func bitmapOf(b *storage.BitmapInfo) Bitmap {
	out := Bitmap{Name: b.Name, Granularity: b.Granularity, Enabled: b.Enabled, InUse: b.Inconsistent, Inconsistent: b.Inconsistent}
	if b.Dirty >= 0 && !b.Inconsistent {
		out.Dirty = &b.Dirty
	}
	return out
}
