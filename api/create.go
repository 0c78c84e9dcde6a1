package api

import (
	"context"
	"fmt"

	"github.com/extentd/extentd/auth"
	"github.com/extentd/extentd/service"
	"github.com/extentd/extentd/storage"
)

// CreateImage implements POST /v1/images.
func (s *server) CreateImage(ctx context.Context, request CreateImageRequestObject) (CreateImageResponseObject, error) {
	b := request.Body
	if !service.ValidName(b.Name) {
		return nil, invalid("name", rulePattern, namePattern)
	}
	if b.Size == nil && b.Backing == nil {
		return nil, invalid("size", ruleRequired, "is missing, and there is no backing that has one")
	}
	if err := mayCreate(auth.FromContext(ctx), b); err != nil {
		return nil, err
	}
	if err := s.svc.Create(ctx, creationOf(b)); err != nil {
		return nil, err
	}
	img, err := s.describeImage(ctx, b.Name)
	if err != nil {
		return nil, err
	}
	return CreateImage201JSONResponse{Body: img, Headers: CreateImage201ResponseHeaders{Location: "/v1/images/" + b.Name}}, nil
}

// mayCreate is nil if the caller may make the image, its data file, which is
// served by its own name as well, and read what shows through it.
func mayCreate(c *auth.Caller, b *ImageCreation) error {
	for _, name := range []string{b.Name, valueOf(b.DataFile)} {
		if service.ValidName(name) && !c.May(auth.Create, name) { // others are refused for what they are
			return fmt.Errorf("%w: %s image %q", auth.ErrForbidden, auth.Create, shorten(name))
		}
	}
	if b.Backing == nil || c.May(auth.Read, *b.Backing) {
		return nil
	}
	if !c.Sees(*b.Backing) { // as if there were none
		return fmt.Errorf("%w: backing image %q: %w", storage.ErrBackingUnavailable, shorten(*b.Backing), storage.ErrNotFound)
	}
	return fmt.Errorf("%w: %s on backing image %q", auth.ErrForbidden, auth.Read, *b.Backing)
}

func creationOf(b *ImageCreation) service.CreateRequest {
	r := service.CreateRequest{
		Name: b.Name, Format: string(b.Format), Size: valueOf(b.Size), HasSize: b.Size != nil,
		ClusterSize: valueOf(b.ClusterSize), RefcountBits: valueOf(b.RefcountBits),
		Compat: string(valueOf(b.Compat)), CompressionType: string(valueOf(b.CompressionType)), Preallocation: string(valueOf(b.Preallocation)),
		Backing: valueOf(b.Backing), BackingFormat: valueOf(b.BackingFormat), DataFile: valueOf(b.DataFile),
	}
	r.ExtendedL2, r.LazyRefcounts, r.DataFileRaw = valueOf(b.ExtendedL2), valueOf(b.LazyRefcounts), valueOf(b.DataFileRaw)
	return r
}

// valueOf is the value of a member, or the zero value if it is absent.
func valueOf[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}

// describeImage opens the image and describes it.
func (s *server) describeImage(ctx context.Context, name string) (Image, error) {
	h, err := s.acquire(ctx, name)
	if err != nil {
		return Image{}, err
	}
	defer h.Release()
	info, err := h.Info(ctx)
	if err != nil {
		return Image{}, err
	}
	return imageOf(&info), nil
}

// PatchImage implements PATCH /v1/images/{image}. The members of a patch are
// read alike, whichever way it is called.
func (s *server) PatchImage(ctx context.Context, request PatchImageRequestObject) (PatchImageResponseObject, error) {
	patch := request.JSONBody
	if patch == nil {
		patch = request.ApplicationMergePatchPlusJSONBody
	}
	match := writeCondition(callOf(ctx).r.Header)
	if patch.Size != nil {
		if err := s.svc.Resize(ctx, request.Image, *patch.Size, valueOf(patch.Shrink), match); err != nil {
			return nil, named(request.Image, err)
		}
	}
	img, err := s.describeImage(ctx, request.Image)
	if err != nil {
		return nil, err
	}
	if patch.Size == nil && match != nil && !match(img.DataGeneration) {
		return nil, errPrecondition
	}
	return PatchImage200JSONResponse(img), nil
}

// DeleteImage implements DELETE /v1/images/{image}.
func (s *server) DeleteImage(ctx context.Context, request DeleteImageRequestObject) (DeleteImageResponseObject, error) {
	if err := s.svc.Delete(ctx, request.Image, writeCondition(callOf(ctx).r.Header)); err != nil {
		return nil, named(request.Image, err)
	}
	return DeleteImage204Response{}, nil
}

// CheckImage implements POST /v1/images/{image}/check.
func (s *server) CheckImage(ctx context.Context, request CheckImageRequestObject) (CheckImageResponseObject, error) {
	repair := service.RepairNone
	if r := request.Body.Repair; r != nil {
		repair = string(*r)
	}
	if repair != service.RepairNone {
		if err := may(auth.FromContext(ctx), auth.Admin, request.Image); err != nil {
			return nil, err
		}
	}
	found, err := s.svc.Check(ctx, request.Image, repair)
	if err != nil {
		return nil, named(request.Image, err)
	}
	report := CheckReport{
		Corruptions: found.Corruptions, Leaks: found.Leaks,
		CorruptionsFixed: found.CorruptionsFixed, LeaksFixed: found.LeaksFixed,
		Errors: append([]string{}, found.Errors...), ImageEndOffset: found.ImageEnd,
		TotalClusters: found.TotalClusters, AllocatedClusters: found.AllocatedClusters,
		FragmentedClusters: found.FragmentedClusters, CompressedClusters: found.CompressedClusters,
	}
	return CheckImage200JSONResponse(report), nil
}
