package service

import (
	"fmt"

	"github.com/extentd/extentd/storage"
)

// checkUpdates refuses what no image can be asked for.
func checkUpdates(updates []Update) error {
	if n := len(updates); n < 1 || n > MaxUpdates {
		return &storage.InvalidError{Field: "updates", Detail: fmt.Sprintf("has %d entries, must have 1 to %d", n, MaxUpdates)}
	}
	for n := range updates {
		if field, detail := updates[n].invalid(); field != "" {
			return &storage.InvalidError{Field: fmt.Sprintf("updates[%d].%s", n, field), Detail: detail}
		}
	}
	return nil
}

// invalid is the first field that is wrong, "" for none.
func (u *Update) invalid() (field, detail string) {
	data := u.Kind == KindData
	switch {
	case u.Offset < 0:
		return "offset", fmt.Sprintf("is %d, must be at least 0", u.Offset)
	case u.Length < 1:
		return "length", fmt.Sprintf("is %d, must be at least 1", u.Length)
	case !data && u.Kind != KindUnmapped && u.Kind != KindZero:
		return "target.kind", fmt.Sprintf("is %q, must be data, unmapped or zero", u.Kind)
	case data && u.Allocation == "":
		return "target.allocation", "is missing, and data comes from one"
	case !data && u.Allocation != "":
		return "target.allocation", "is of kind data alone"
	case !data && u.AllocationOffset != 0:
		return "target.allocation_offset", "is of kind data alone"
	case u.AllocationOffset < 0:
		return "target.allocation_offset", fmt.Sprintf("is %d, must be at least 0", u.AllocationOffset)
	case u.Anchored && u.Kind != KindZero:
		return "target.anchored", "is of kind zero alone"
	}
	return "", ""
}

// check refuses what this image cannot be asked for.
func (b *batch) check() error {
	units, size := b.h.device.Units(), b.h.device.Size()
	for n := range b.updates {
		u := &b.updates[n]
		if err := storage.CheckRange(u.Offset, u.Length, size); err != nil {
			return fmt.Errorf("updates[%d]: %w", n, err)
		}
		if err := aligned(u.Offset, u.Length, units.Alloc, size); err != nil {
			field := "length"
			if u.Offset&(units.Alloc-1) != 0 {
				field = "offset"
			}
			return fmt.Errorf("updates[%d].%s: %w", n, field, err)
		}
		if u.Kind != KindData {
			continue
		}
		if units.Fixed {
			return fmt.Errorf("updates[%d].target.kind: %w: where every block lies is given", n, storage.ErrUnsupported)
		}
		if u.AllocationOffset&(units.Alloc-1) != 0 {
			return fmt.Errorf("updates[%d].target.allocation_offset: %w", n,
				&storage.MisalignedError{Minimum: units.Alloc, Offset: u.AllocationOffset, Length: u.Length})
		}
	}
	return nil
}

// begin makes the parts of allocations the batch's own: nobody fills or maps
// them, nor gives them back, until end.
func (b *batch) begin() error {
	b.parts = make([]mappedPart, len(b.updates))
	b.l.mu.Lock()
	defer b.l.mu.Unlock()
	for n := range b.updates {
		u := &b.updates[n]
		if u.Kind != KindData {
			continue
		}
		a, err := b.l.find(b.h, u.Allocation)
		if err != nil {
			b.back(0, n)
			return fmt.Errorf("updates[%d].target.allocation: %w", n, err)
		}
		part := span{u.AllocationOffset, roundUp(u.Length, b.h.device.Units().Alloc)}
		if err := a.mappable(part, u); err != nil {
			b.back(0, n)
			return fmt.Errorf("updates[%d].target.allocation_offset: allocation %q: %w", n, a.ID, err)
		}
		b.parts[n] = mappedPart{a, part}
		a.mapping.add(part)
	}
	return nil
}

// mappable reports whether the part may be mapped now. ledger.mu must be held.
func (a *allocation) mappable(part span, u *Update) error {
	if err := storage.CheckRange(part.Offset, part.Length, a.Length); err != nil {
		return err
	}
	if a.Guest != nil && *a.Guest+part.Offset != u.Offset {
		return fmt.Errorf("%w: these blocks are those of offset %d, and can be mapped nowhere else", storage.ErrConflict, *a.Guest+part.Offset)
	}
	if a.Spent.meet(part) || a.mapping.meet(part) {
		return fmt.Errorf("%w: [%d, %d) is mapped already, or a part of it", storage.ErrConflict, part.Offset, part.end())
	}
	for _, f := range a.filling {
		if f.Offset < part.end() && part.Offset < f.end() {
			return fmt.Errorf("%w: [%d, %d) is being filled", storage.ErrConflict, f.Offset, f.end())
		}
	}
	return nil
}

// record makes durable what is mapped, and may be mapped from now on.
func (b *batch) record() error {
	var parts []*allocation
	seen := map[*allocation]bool{}
	for n := range b.parts {
		if a := b.parts[n].a; a != nil && !seen[a] {
			seen[a] = true
			parts = append(parts, a)
		}
	}
	err := b.l.record(func(c *change) { b.l.update(c, parts...) })
	if err != nil {
		b.l.undo(nil, parts)
	}
	return err
}

// end gives the parts back: those of the first updates are spent, and the others
// as they were.
func (b *batch) end(spent int) {
	b.l.mu.Lock()
	defer b.l.mu.Unlock()
	for n := range b.parts[:spent] {
		if p := &b.parts[n]; p.a != nil {
			p.a.mapping.cut(p.part)
			p.a.Spent.add(p.part)
			b.l.renew(p.a)
			if len(p.a.Spent.rest(p.a.Length)) == 0 {
				p.a.unclaim() // others may write there again
			}
		}
	}
	b.back(spent, len(b.parts))
}

// back gives parts back unspent. ledger.mu must be held.
func (b *batch) back(from, to int) {
	for n := from; n < to; n++ {
		if p := &b.parts[n]; p.a != nil {
			p.a.mapping.cut(p.part)
			p.a.late = true
		}
	}
}
