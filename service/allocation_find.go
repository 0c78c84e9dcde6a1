package service

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/extentd/extentd/storage"
)

// Allocations are the live allocations of the image, the oldest first.
func (s *Service) Allocations(ctx context.Context, image string) ([]*Allocation, error) {
	h, err := s.wake(ctx, image)
	if err != nil {
		return nil, err
	}
	defer h.Release()
	l := s.ledger
	l.mu.Lock()
	defer l.mu.Unlock()
	var live []*allocation
	if acc := l.accounts[fileOf(h.image)]; acc != nil {
		for _, a := range acc.allocations {
			if a.Image == h.name && a.i == h.image {
				live = append(live, a)
			}
		}
	}
	slices.SortFunc(live, older)
	out := make([]*Allocation, len(live))
	for n, a := range live {
		out[n] = a.describe()
	}
	return out, nil
}

func older(a, b *allocation) int {
	return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.ID, b.ID))
}

// Allocation is one allocation of the image. What is not there, or has expired,
// or could not be resumed after a restart, fails with storage.ErrNotFound.
func (s *Service) Allocation(ctx context.Context, image, id string) (*Allocation, error) {
	h, err := s.wake(ctx, image)
	if err != nil {
		return nil, err
	}
	defer h.Release()
	s.ledger.mu.Lock()
	defer s.ledger.mu.Unlock()
	a, err := s.ledger.find(h, id)
	if err != nil {
		return nil, err
	}
	return a.describe(), nil
}

// wake opens the image, and for writing if it may have allocations: they are
// resumed then.
func (s *Service) wake(ctx context.Context, image string) (*Handle, error) {
	if s.ledger.has(image) {
		h, err := s.AcquireWritable(ctx, image)
		if !errors.Is(err, storage.ErrReadOnly) {
			return h, err
		}
	}
	return s.Acquire(ctx, image)
}

// GiveBack ends an allocation: what is not mapped is freed. While somebody fills
// or maps a part of it, it fails with storage.ErrConflict.
func (s *Service) GiveBack(ctx context.Context, image, id string) error {
	h, err := s.writableFor(ctx, image, id)
	if err != nil {
		return err
	}
	defer h.Release()
	l := s.ledger
	l.mu.Lock()
	a, err := l.find(h, id)
	if err == nil && !a.idle() {
		err = fmt.Errorf("allocation %q: %w: it is being filled or mapped", id, storage.ErrConflict)
	}
	if err != nil {
		l.mu.Unlock()
		return err
	}
	l.strike(a)
	l.mu.Unlock()
	if err := l.drop(a); err != nil {
		return err
	}
	err = a.free(context.WithoutCancel(ctx), a.i)
	h.Report(err)
	return err
}

// writableFor opens the image for writing, if it has that allocation.
func (s *Service) writableFor(ctx context.Context, image, id string) (*Handle, error) {
	if !s.ledger.has(image) && !s.opt.ReadOnly {
		h, err := s.Acquire(ctx, image)
		if err != nil {
			return nil, err
		}
		defer h.Release()
		if !h.ReadOnly() {
			return nil, fmt.Errorf("allocation %q of image %q: %w", id, image, storage.ErrNotFound)
		}
	}
	return s.AcquireWritable(ctx, image)
}

// bury forgets the allocations of an image whose file has been removed. One that
// is in use stays until it expires.
func (s *Service) bury(name string, i *image) error {
	l := s.ledger
	var gone []*allocation
	l.mu.Lock()
	for _, a := range l.byID {
		if (a.Image == name && a.i == nil || i != nil && a.i == i) && a.idle() {
			gone = append(gone, a)
		}
	}
	for _, a := range gone {
		l.strike(a)
	}
	l.mu.Unlock()
	if err := l.drop(gone...); err != nil {
		return err
	}
	var errs []error
	for _, a := range gone {
		a.unclaim()
		if a.i != nil {
			errs = append(errs, s.putImage(a.i))
		}
	}
	return errors.Join(errs...)
}
