package service

import (
	"context"
	"errors"
	"fmt"

	"github.com/extentd/extentd/storage"
)

// MaxUpdates is the most updates of one call of [Service.Update].
const MaxUpdates = 10_000

// Kinds of updates.
const (
	KindData     = "data"     // the blocks of an allocation
	KindUnmapped = "unmapped" // a discard: it reads as zeros
	KindZero     = "zero"
)

// An Update says what a range of an image is to become.
type Update struct {
	// Offset and Length are the range, bytes: whole clusters, of which the end
	// of the image may cut the last.
	Offset, Length int64
	Kind           string
	// Allocation and AllocationOffset, whole clusters, are of KindData alone.
	Allocation       string
	AllocationOffset int64
	// Anchored, of KindZero alone, keeps the blocks that are there.
	Anchored bool
}

// A BatchError says how many updates were applied before one failed.
type BatchError struct {
	Applied int
	Err     error
}

func (e *BatchError) Error() string { return e.Err.Error() }

func (e *BatchError) Unwrap() error { return e.Err }

// Update changes the image's map, in order, up to the first error, which is a
// *BatchError then; each update happens at once for those who look under
// [Handle.HoldMap], and is not cut short when ctx ends. Before anything is
// changed all is checked that can be, and the error is not a *BatchError: it
// wraps storage.ErrInvalid, ErrMisaligned, ErrOutOfRange, ErrNotFound for an
// allocation that is not there, ErrConflict for a part of one that is mapped
// already, is being filled, or is a claim of another range, ErrUnsupported for
// data where blocks have their place, or ErrPrecondition if match, where it is
// not nil, says no to the generation. It returns the generation after the
// updates.
func (s *Service) Update(ctx context.Context, image string, updates []Update, match func(generation string) bool) (string, error) {
	if err := checkUpdates(updates); err != nil {
		return "", err
	}
	h, err := s.AcquireWritable(ctx, image)
	if err != nil {
		return "", err
	}
	defer h.Release()
	b := &batch{l: s.ledger, h: h, updates: updates}
	err = b.run(ctx, match)
	h.Report(err)
	if err != nil {
		return "", fmt.Errorf("image %q: %w", image, err)
	}
	return h.Generation(), nil
}

// HoldMap keeps updates of the map, by [Service.Update], from happening until
// release is called: what is fetched meanwhile has each of them wholly or not
// at all. It is for the time of some fetches, not of a client.
func (h *Handle) HoldMap() (release func()) {
	h.updates.RLock()
	return h.updates.RUnlock
}

// A batch is the updates of one call.
type batch struct {
	l       *ledger
	h       *Handle
	updates []Update
	parts   []mappedPart // as updates; empty for those that are not data
}

// A mappedPart is the part of an allocation that an update maps.
type mappedPart struct {
	a    *allocation
	part span
}

func (b *batch) run(ctx context.Context, match func(string) bool) error {
	if err := b.check(); err != nil {
		return err
	}
	if err := b.begin(); err != nil {
		return err
	}
	if !b.h.ClaimGeneration(match) {
		b.end(0)
		return ErrPrecondition
	}
	// From here on, after a crash, none of the parts is mapped a second time.
	if err := b.record(); err != nil {
		b.end(0)
		return err
	}
	for n := range b.updates {
		err := ctx.Err()
		spent := n
		if err == nil {
			spent, err = b.apply(context.WithoutCancel(ctx), n)
		}
		if err != nil {
			b.end(spent)
			// What the store says is too much, and harmless: the next change
			// of the record repairs it.
			b.h.s.report(b.h.name, b.record())
			return &BatchError{Applied: n, Err: fmt.Errorf("updates[%d]: %w", n, err)}
		}
	}
	b.end(len(b.updates))
	return nil
}

// apply makes one update true. It returns how many updates have spent their
// part: with this one, unless it failed without an effect.
func (b *batch) apply(ctx context.Context, n int) (spent int, err error) {
	b.h.updates.Lock()
	defer b.h.updates.Unlock()
	u := &b.updates[n]
	to := storage.Target{Kind: storage.ToUnmapped}
	switch {
	case u.Kind == KindData:
		return b.publish(ctx, n)
	case u.Anchored:
		to.Kind = storage.ToAnchored
	case u.Kind == KindZero:
		to.Kind = storage.ToZero
	}
	if err := b.h.device.Update(ctx, u.Offset, u.Length, to); err != nil {
		return n, err
	}
	return n + 1, nil
}

// publish maps a part of an allocation.
func (b *batch) publish(ctx context.Context, n int) (spent int, err error) {
	u, p := &b.updates[n], &b.parts[n]
	// Should this fail half-way, then nobody reserves anew what was mapped and
	// at once freed again.
	if pinner, ok := b.h.chain.layers[0].Mapper.(storage.Pinner); ok {
		defer pinner.Unpin(pinner.Pin())
	}
	if p.a.Guest != nil {
		if err := b.publishClaim(ctx, p.a, u); err != nil {
			return n, err // the claim knows what it has published
		}
		return n + 1, nil
	}
	pieces := p.a.pieces(p.part)
	for k, e := range pieces {
		off := u.Offset + e.Offset - p.part.Offset
		length := min(e.Length, u.Offset+u.Length-off)
		err := b.h.device.Update(ctx, off, length, storage.Target{Kind: storage.ToData, Node: p.a.node, NodeOffset: e.NodeOffset})
		if err == nil {
			continue
		}
		if k == 0 && b.untouched(ctx, off, length, e.NodeOffset, err) {
			return n, err
		}
		b.abandon(ctx, p.a, pieces[k:])
		return n + 1, err
	}
	return n + 1, nil
}

// untouched reports whether an update that failed has mapped nothing, so that it
// can be tried again: it was refused, or found no space, and the map shows none
// of the blocks.
func (b *batch) untouched(ctx context.Context, off, n, nodeOffset int64, err error) bool {
	if !refused(err) && !errors.Is(err, storage.ErrNoSpace) || errors.Is(err, storage.ErrOutOfService) {
		return false
	}
	top := b.h.chain.layers[0].Mapper
	var list storage.ExtentList
	for at, end := off, min(off+n, top.Size()); at < end; {
		list.ResetWindow(at, end)
		if top.Fetch(ctx, at, 1, &list) != nil || list.End() <= at {
			return false
		}
		for i := range list.Len() {
			m := list.At(i)
			if m.Status.Has(storage.OffsetValid) && m.NodeOffset < nodeOffset+n && nodeOffset < m.NodeOffset+m.Length {
				return false
			}
		}
		at = list.End()
	}
	return true
}

// publishClaim shows blocks that the range has.
func (b *batch) publishClaim(ctx context.Context, a *allocation, u *Update) error {
	for _, c := range a.claims {
		lo, hi := max(u.Offset, c.Offset), min(u.Offset+u.Length, c.Offset+c.Length)
		if lo >= hi {
			continue
		}
		if err := c.Publish(ctx, lo, hi-lo); err != nil {
			return err
		}
	}
	return nil
}

// abandon gives back what an update that failed has not mapped: cluster by
// cluster, because nobody knows how far it came. What is mapped is not reserved
// any more, and nobody else can have reserved it, for the pin.
func (b *batch) abandon(ctx context.Context, a *allocation, pieces []extent) {
	d, unit := b.h.device, b.h.device.Units().Alloc
	for _, e := range pieces {
		for at := int64(0); at < e.Length; at += unit {
			err := d.Free(ctx, storage.Blocks{Node: a.node, Offset: e.NodeOffset + at, Length: unit})
			if outOfService(err) {
				return // what is reserved leaks
			}
		}
	}
}
