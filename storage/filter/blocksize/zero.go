package blocksize

import (
	"context"
	"errors"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/rangelock"
)

// Zero makes [off, off+n) read as zeros: the next node does so for whole blocks,
// and zeros are written to parts of others.
func (f *Filter) Zero(ctx context.Context, off, n int64, keep bool) error {
	g, err := f.geometry(ctx)
	if err != nil {
		return err
	}
	most, err := f.next.Limit(ctx, storage.MaxZero)
	if err != nil {
		return err
	}
	if g.block == 1 && n <= most {
		return f.next.Zero(ctx, off, n, keep)
	}
	if err := checkChange(off, n); err != nil {
		return err
	}
	if n == 0 {
		return f.next.Zero(ctx, g.down(off), 0, keep)
	}
	z := zeroing{f: f, geometry: g, most: most, keep: keep}
	err = z.zero(ctx, off, off+n, false)
	if errors.Is(err, errTail) { // before anything was changed
		err = z.zero(ctx, off, off+n, true)
	}
	return err
}

type zeroing struct {
	geometry
	f    *Filter
	most int64
	keep bool
}

// zero makes [off, end) zeros; with tail, the end of the file is locked. What is
// a part of the last block comes first.
func (z zeroing) zero(ctx context.Context, off, end int64, tail bool) error {
	hi := z.up(end)
	if tail {
		hi = rangelock.Everything
	}
	h, err := z.f.hold(ctx, z.geometry, z.down(off), hi, tail || !z.whole(off, end))
	if err != nil {
		return err
	}
	defer z.f.lock.Release(h)
	first, last := z.up(off), z.down(end)
	if tail {
		atEnd, err := z.reach(ctx, end)
		if err != nil {
			return err
		}
		if atEnd { // the next node takes it as an end
			last = end
		}
	}
	if first > last {
		return z.f.modify(ctx, z.geometry, off, end-off, nil, tail)
	}
	if last < end {
		if err := z.f.modify(ctx, z.geometry, last, end-last, nil, tail); err != nil {
			return err
		}
	}
	if off < first {
		if err := z.f.modify(ctx, z.geometry, off, first-off, nil, tail); err != nil {
			return err
		}
	}
	return z.blocks(ctx, first, last)
}

// reach makes the file at least as long as end, and reports whether it ends there.
func (z zeroing) reach(ctx context.Context, end int64) (bool, error) {
	size, err := z.f.next.Size(ctx)
	if err == nil && size < end {
		size, err = end, z.f.grow(ctx, end)
	}
	return size == end, err
}

// blocks zeroes [off, end), which the next node takes but for the length.
func (z zeroing) blocks(ctx context.Context, off, end int64) error {
	for off < end {
		n := min(end-off, z.most)
		if err := z.f.next.Zero(ctx, off, n, z.keep); err != nil {
			return err
		}
		off += n
	}
	return nil
}

// Trim gives back the whole blocks inside [off, off+n).
func (f *Filter) Trim(ctx context.Context, off, n int64) error {
	g, err := f.geometry(ctx)
	if err != nil {
		return err
	}
	most, err := f.next.Limit(ctx, storage.MaxTrim)
	if err != nil {
		return err
	}
	if g.block == 1 && n <= most {
		return f.next.Trim(ctx, off, n)
	}
	if err := checkChange(off, n); err != nil {
		return err
	}
	first, last := g.up(off), g.down(off+n)
	if last-first > most { // of what may lie far past the end of the file
		size, err := f.next.Size(ctx)
		if err != nil {
			return err
		}
		last = min(last, g.up(size))
	}
	if first >= last {
		return f.next.Trim(ctx, g.down(off), 0)
	}
	h, err := f.hold(ctx, g, first, last, false)
	if err != nil {
		return err
	}
	defer f.lock.Release(h)
	for first < last {
		n := min(last-first, most)
		if err := f.next.Trim(ctx, first, n); err != nil {
			return err
		}
		first += n
	}
	return nil
}
