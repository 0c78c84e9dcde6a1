package service

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/extentd/extentd/storage"
)

// Bounds on a call of [Service.ChangeBitmaps].
const (
	MaxBitmapChanges = 1000
	MaxBitmapImages  = 64
)

// An ImageBitmapChange is one step of a change of bitmaps.
type ImageBitmapChange struct {
	Image string
	storage.BitmapChange
}

// A BitmapChangeError says which of the changes cannot be. Nothing was changed.
type BitmapChangeError struct {
	Index int
	Err   error
}

func (e *BitmapChangeError) Error() string { return e.Err.Error() }

func (e *BitmapChangeError) Unwrap() error { return e.Err }

// ChangeBitmaps changes bitmaps of one image or of several: all of the changes or
// none, in their order. Nobody writes to any of the images meanwhile, so that what
// one bitmap records ends in all of them where another one begins. It is durable
// when it returns. The error wraps storage.ErrUnsupported where the format has no
// bitmaps, storage.ErrNotFound and ErrExists, ErrConflict for a bitmap that is
// inconsistent, and while a range of an image is claimed, ErrInvalid for what
// cannot be, or what AcquireWritable's does; it is a *BitmapChangeError where one of
// the changes is to blame.
//
// Of one image a crash leaves what was before or what is after. Of several it may
// leave some changed and others not: they are changed one after the other, in the
// time that takes; what an error cuts short is undone. What is lost then in an image
// that is changed before others is kept meanwhile, as a bitmap whose name begins with
// extentd-undo-, which such a crash leaves behind.
func (s *Service) ChangeBitmaps(ctx context.Context, changes []ImageBitmapChange) error {
	if err := checkBitmapChanges(changes); err != nil {
		return err
	}
	b := &bitmapBatch{s: s}
	defer b.release()
	for n := range changes {
		if err := b.add(ctx, n, &changes[n]); err != nil {
			return err
		}
	}
	// All who hold several of them take them in this order: none waits for another.
	slices.SortFunc(b.images, func(x, y *changedImage) int { return cmp.Compare(x.h.image.name, y.h.image.name) })
	return b.exclusively(ctx, 0)
}

func checkBitmapChanges(changes []ImageBitmapChange) error {
	if len(changes) == 0 || len(changes) > MaxBitmapChanges {
		return &storage.InvalidError{Field: "changes", Detail: fmt.Sprintf("are %d, must be 1 to %d", len(changes), MaxBitmapChanges)}
	}
	for n := range changes {
		c := &changes[n]
		var err error
		switch {
		case c.Kind == storage.BitmapCreate:
			err = cmp.Or(checkBitmapName(c.Name), checkGranularity(c.Granularity))
		case c.Kind == storage.BitmapMerge && len(c.From) == 0:
			err = &storage.InvalidError{Field: "from", Detail: "must name at least one bitmap"}
		case c.Kind < storage.BitmapCreate || c.Kind > storage.BitmapMerge:
			err = &storage.InvalidError{Field: "operation", Detail: "is " + c.Kind.String()}
		}
		if err != nil {
			return &BitmapChangeError{Index: n, Err: err}
		}
	}
	return nil
}

// checkGranularity allows 0 for the default.
func checkGranularity(n int64) error {
	const least, most = 512, 2 << 30
	if n == 0 || n >= least && n <= most && n&(n-1) == 0 {
		return nil
	}
	return &storage.InvalidError{Field: "granularity", Detail: fmt.Sprintf("is %d, must be a power of two from %d to %d", n, least, int64(most))}
}

// A bitmapBatch is the changes of one call.
type bitmapBatch struct {
	s      *Service
	images []*changedImage
}

// A changedImage is the changes of one image, whatever names it was given.
type changedImage struct {
	h       *Handle
	keeper  storage.BitmapKeeper
	changes []storage.BitmapChange
	indices []int // of the changes, in the call
	undo    []storage.BitmapChange
	copies  []string // bitmaps to be removed in the end
}

func (b *bitmapBatch) release() {
	for _, i := range b.images {
		i.h.Release()
	}
}

// add adds a change, and opens its image if it is the first of it.
func (b *bitmapBatch) add(ctx context.Context, index int, c *ImageBitmapChange) error {
	h, k, err := b.s.acquireKeeper(ctx, c.Image)
	if err != nil {
		return &BitmapChangeError{Index: index, Err: err}
	}
	n := slices.IndexFunc(b.images, func(i *changedImage) bool { return i.h.image == h.image })
	switch {
	case n >= 0:
		h.Release()
	case len(b.images) == MaxBitmapImages:
		h.Release()
		return &storage.InvalidError{Field: "changes", Detail: fmt.Sprintf("are of more than %d images", MaxBitmapImages)}
	default:
		n = len(b.images)
		b.images = append(b.images, &changedImage{h: h, keeper: k})
	}
	i := b.images[n]
	i.changes, i.indices = append(i.changes, c.BitmapChange), append(i.indices, index)
	return nil
}

// acquireKeeper opens an image for writing that has bitmaps.
func (s *Service) acquireKeeper(ctx context.Context, name string) (*Handle, storage.BitmapKeeper, error) {
	h, err := s.Acquire(ctx, name)
	if err != nil {
		return nil, nil, err
	}
	_, err = h.keeper()
	h.Release()
	if err != nil {
		return nil, nil, err
	}
	if h, err = s.AcquireWritable(ctx, name); err != nil {
		return nil, nil, err
	}
	k, err := h.keeper()
	if err != nil {
		h.Release()
		return nil, nil, err
	}
	return h, k, nil
}

// exclusively changes all images once nobody writes to any, from the nth on.
func (b *bitmapBatch) exclusively(ctx context.Context, n int) error {
	if n == len(b.images) {
		return b.apply(ctx)
	}
	inner := false
	err := b.images[n].h.device.Exclusively(ctx, func(ctx context.Context) error {
		inner = true
		return b.exclusively(ctx, n+1)
	})
	if err != nil && !inner {
		b.images[n].h.Report(err)
		return b.images[n].h.named(err)
	}
	return err
}

// apply changes one image after the other. Those from which nothing is lost are
// first: it is easy to undo them.
func (b *bitmapBatch) apply(ctx context.Context) error {
	for _, i := range b.images {
		if err := i.prepare(ctx); err != nil {
			return err
		}
	}
	order := slices.Clone(b.images)
	slices.SortStableFunc(order, func(x, y *changedImage) int { return cmp.Compare(len(x.copies), len(y.copies)) })
	order[len(order)-1].keepNothing()
	ctx = context.WithoutCancel(ctx) // from here on it is brought to an end
	for n, i := range order {
		err := i.keeper.ChangeBitmaps(ctx, i.changes)
		if err == nil {
			continue
		}
		i.h.Report(err)
		err = i.h.named(err)
		for _, done := range slices.Backward(order[:n]) {
			err = errors.Join(err, done.revert(ctx))
		}
		return err
	}
	for _, i := range order {
		i.forget(ctx)
	}
	return nil
}
