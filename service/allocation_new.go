package service

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/block"
)

// Allocate reserves blocks in the image. Nothing refers to them until [Service.Update]
// maps them; what they hold until they are filled is undefined, and secret. The
// error wraps storage.ErrUnsupported where the format has nothing to reserve,
// storage.ErrInvalid and storage.ErrMisaligned for what cannot be asked for,
// storage.ErrNoSpace, or what AcquireWritable's does. After an error nothing is
// reserved.
func (s *Service) Allocate(ctx context.Context, image string, req AllocationRequest) (*Allocation, error) {
	if err := req.check(); err != nil {
		return nil, err
	}
	h, err := s.AcquireWritable(ctx, image)
	if err != nil {
		return nil, err
	}
	defer h.Release()
	a, err := s.allocate(ctx, h, &req)
	h.Report(err)
	if err != nil {
		return nil, fmt.Errorf("image %q: %w", image, err)
	}
	return a, nil
}

func (s *Service) allocate(ctx context.Context, h *Handle, req *AllocationRequest) (*Allocation, error) {
	if h.device.Units().Fixed {
		return nil, fmt.Errorf("%w: where every block lies is given, there is nothing to reserve", storage.ErrUnsupported)
	}
	l := s.ledger
	if err := l.expect(h.image); err != nil {
		return nil, err
	}
	a, err := l.reserve(ctx, h, req)
	if err != nil {
		l.unexpect(h.image)
		return nil, err
	}
	out, err := l.admit(a, h)
	if err != nil {
		return nil, errors.Join(err, a.free(context.WithoutCancel(ctx), nil))
	}
	return out, nil
}

// expect keeps a place for one allocation.
func (l *ledger) expect(i *image) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	acc := l.account(fileOf(i))
	if len(acc.allocations)+acc.coming >= maxAllocations {
		return fmt.Errorf("%w: there are %d allocations already", storage.ErrConflict, maxAllocations)
	}
	acc.coming++
	return nil
}

func (l *ledger) unexpect(i *image) {
	l.mu.Lock()
	defer l.mu.Unlock()
	acc := l.account(fileOf(i))
	acc.coming--
	l.tidy(acc)
}

// reserve is the reservation alone.
func (l *ledger) reserve(ctx context.Context, h *Handle, req *AllocationRequest) (*allocation, error) {
	now := time.Now().UTC().Round(0)
	a := &allocation{record: record{
		ID: newID(), Image: h.name, File: storeKey(fileOf(h.image)), Boot: l.bootOf(h.image), Created: now, Expires: l.expiry(),
	}}
	var err error
	if req.Anchored != nil {
		err = a.claim(ctx, h.device, *req.Anchored)
	} else {
		err = a.gather(ctx, h.device, roundUp(req.Length, h.device.Units().Alloc), req.Contiguous)
		if err == nil {
			err = a.cover(ctx)
		}
		if err == nil && l.store.state.Kept() {
			// Refcounts that a crash would undo could not be resumed.
			err = h.device.Flush(ctx)
		}
	}
	if err != nil {
		return nil, errors.Join(err, a.free(context.WithoutCancel(ctx), nil))
	}
	a.Contiguous = len(a.Extents) == 1
	return a, nil
}

// gather reserves n bytes, whole blocks. On an error what it has reserved is
// still to be freed.
func (a *allocation) gather(ctx context.Context, d *block.Device, n int64, contiguous bool) error {
	a.d = d
	var runs []storage.Blocks
	defer func() { a.Extents = extentsOf(runs) }()
	for a.Length < n {
		b, err := d.Alloc(ctx, n-a.Length, storage.AllocOptions{Contiguous: contiguous})
		if err != nil {
			return err
		}
		if b.Length <= 0 || b.Length > n-a.Length {
			return fmt.Errorf("%w: %d bytes reserved, asked for %d", storage.ErrContract, b.Length, n-a.Length)
		}
		a.node = b.Node
		a.Length += b.Length
		if runs = append(runs, b); len(runs) >= maxExtents && len(extentsOf(runs)) > maxExtents {
			return fmt.Errorf("%w: it would take more than %d pieces", storage.ErrNoSpace, maxExtents)
		}
	}
	return nil
}

// cover makes the file reach the end of what is reserved. A check looks no
// further: what leaked there would stay lost until the file has grown.
func (a *allocation) cover(ctx context.Context) error {
	last := a.Extents[0]
	for _, e := range a.Extents {
		if e.NodeOffset > last.NodeOffset {
			last = e
		}
	}
	size, err := a.node.Size(ctx)
	if err != nil || size >= last.NodeOffset+last.Length {
		return err
	}
	limits, err := a.d.Limits(ctx)
	if err != nil {
		return err
	}
	n := min(limits.Minimum, last.Length)
	b := storage.Blocks{Node: a.node, Offset: last.NodeOffset, Length: last.Length}
	return a.d.FillBlocks(ctx, b, make([]byte, n), last.Length-n)
}

// claim takes the blocks that a range has.
func (a *allocation) claim(ctx context.Context, d *block.Device, r Range) error {
	if err := storage.CheckRange(r.Offset, r.Length, d.Size()); err != nil {
		return err
	}
	unit := d.Units().Alloc
	if err := aligned(r.Offset, r.Length, unit, d.Size()); err != nil {
		return err
	}
	c, err := d.Claim(ctx, r.Offset, r.Length)
	if err != nil {
		return err
	}
	a.d, a.claims, a.Guest = d, []*block.Claim{c}, &r.Offset
	a.Length = roundUp(r.Length, unit)
	var runs []storage.Blocks
	for _, b := range c.Blocks() {
		a.node = b.Node
		runs = append(runs, b.Blocks)
	}
	a.Extents = extentsOf(runs)
	switch {
	case len(a.Extents) > maxExtents:
		return fmt.Errorf("%w: the range has more than %d pieces", storage.ErrUnsupported, maxExtents)
	case a.check() != nil:
		return fmt.Errorf("%w: %w", storage.ErrContract, a.check())
	}
	return nil
}

// admit makes a reservation an allocation: first on disk, then for all to see.
func (l *ledger) admit(a *allocation, h *Handle) (*Allocation, error) {
	err := l.record(func(c *change) { c.put = append(c.put, a.record) })
	l.mu.Lock()
	acc := l.account(fileOf(h.image))
	acc.coming--
	if err == nil && acc.i != h.image {
		err = fmt.Errorf("%w: the image was closed meanwhile", storage.ErrConflict)
	}
	if err != nil {
		l.tidy(acc)
		l.mu.Unlock()
		return nil, errors.Join(err, l.record(func(c *change) { c.remove([]*allocation{a}) }))
	}
	defer l.mu.Unlock()
	a.i = h.image
	l.enter(a)
	h.s.holdImage(h.image)
	return a.describe(), nil
}

// holdImage keeps an image open that somebody has open already.
func (s *Service) holdImage(i *image) {
	s.mu.Lock()
	defer s.mu.Unlock()
	i.refs++
}

// free gives back what is not mapped. Nobody else has the allocation anymore, and
// no record of it is left. An image, where given, is let go.
func (a *allocation) free(ctx context.Context, i *image) error {
	var errs []error
	for _, c := range a.claims {
		c.Release()
	}
	if a.Guest == nil {
		for _, b := range a.blocks(a.node) {
			errs = append(errs, a.d.Free(ctx, b))
		}
	}
	if i != nil {
		if outOfService(errors.Join(errs...)) {
			i.lose()
		}
		errs = append(errs, i.s.putImage(i))
	}
	return errors.Join(errs...)
}
