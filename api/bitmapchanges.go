package api

import (
	"context"
	"errors"
	"fmt"

	"github.com/extentd/extentd/auth"
	"github.com/extentd/extentd/service"
	"github.com/extentd/extentd/storage"
)

// ChangeBitmaps implements POST /v1/bitmaps. It is no call of one image, as one for
// tickets is none: the images stand in the body.
func (s *server) ChangeBitmaps(ctx context.Context, request ChangeBitmapsRequestObject) (ChangeBitmapsResponseObject, error) {
	given := request.Body.Changes
	caller := auth.FromContext(ctx)
	changes := make([]service.ImageBitmapChange, len(given))
	for i := range given {
		c := &given[i]
		if !service.ValidName(c.Image) {
			return nil, invalid(fmt.Sprintf("changes[%d].image", i), rulePattern, namePattern)
		}
		if err := may(caller, auth.Write, c.Image); err != nil {
			return nil, err
		}
		changes[i] = service.ImageBitmapChange{Image: c.Image, BitmapChange: storage.BitmapChange{
			Kind: kindOfChange(c.Operation), Name: c.Bitmap, Granularity: valueOf(c.Granularity),
			Enabled: c.Enabled == nil || *c.Enabled, From: valueOf(c.From),
		}}
	}
	if err := s.svc.ChangeBitmaps(ctx, changes); err != nil {
		return nil, ofChange(err)
	}
	return ChangeBitmaps204Response{}, nil
}

func kindOfChange(o BitmapChangeOperation) storage.BitmapChangeKind {
	switch o {
	case BitmapChangeOperationCreate:
		return storage.BitmapCreate
	case BitmapChangeOperationDelete:
		return storage.BitmapDelete
	case BitmapChangeOperationClear:
		return storage.BitmapClear
	case BitmapChangeOperationEnable:
		return storage.BitmapEnable
	case BitmapChangeOperationDisable:
		return storage.BitmapDisable
	case BitmapChangeOperationMerge:
		return storage.BitmapMerge
	}
	return 0
}

// ofChange tells which of the changes an error is about.
func ofChange(err error) error {
	var change *service.BitmapChangeError
	if !errors.As(err, &change) {
		return err
	}
	var option *storage.InvalidError
	if !errors.As(err, &option) {
		return fmt.Errorf("changes[%d]: %w", change.Index, err)
	}
	field := option.Field
	if field == "name" {
		field = "bitmap"
	}
	return invalid(fmt.Sprintf("changes[%d].%s", change.Index, field), ruleValue, option.Detail)
}
