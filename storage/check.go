package storage

import (
	"context"
	"fmt"
)

// CheckMapper returns a mapper that verifies everything m's Fetch reports:
// coverage, order, range and the statuses of [FormatStatuses]. What it finds
// wraps [ErrContract]. Tests run every driver under it, and the server does
// with its debug flag. Abilities beyond Mapper are asserted on m, not on it.
func CheckMapper(m Mapper) Mapper { return checkedMapper{m} }

type checkedMapper struct{ Mapper }

func (c checkedMapper) Fetch(ctx context.Context, off, n int64, into *ExtentList) error {
	before := c.Size()
	if err := c.Mapper.Fetch(ctx, off, n, into); err != nil {
		return err
	}
	return CheckFetch(into, off, n, max(before, c.Size())) // it may have been resized meanwhile
}

// CheckFetch verifies the answer of a format driver of the given size to a
// fetch of [off, off+n).
func CheckFetch(l *ExtentList, off, n, size int64) error {
	if !l.Covers(off, n) {
		return fmt.Errorf("%w: fetch of %d bytes at %d answered with %d to %d", ErrContract, n, off, l.Start(), l.End())
	}
	if l.End() > size {
		return fmt.Errorf("%w: extents end at %d, past the size %d", ErrContract, l.End(), size)
	}
	return checkMappings(l, &formatStatuses)
}

// CheckNodeExtents verifies the answer of a protocol node to a request for
// extents from off.
func CheckNodeExtents(l *ExtentList, off int64) error {
	if l.Find(off) < 0 {
		return fmt.Errorf("%w: no extent at %d", ErrContract, off)
	}
	return checkMappings(l, &protocolStatuses)
}

func checkMappings(l *ExtentList, table *[16]StatusRule) error {
	at := l.Start()
	for i := range l.mappings {
		m := &l.mappings[i]
		if m.Offset != at || m.Length <= 0 {
			return fmt.Errorf("%w: extent %d at %d with length %d, expected it at %d", ErrContract, i, m.Offset, m.Length, at)
		}
		at = m.End()
		if rule := table[m.Status&15]; m.Status > 15 || !rule.Valid {
			return fmt.Errorf("%w: extent at %d has status %v: %s", ErrContract, m.Offset, m.Status, rule.Meaning)
		}
		located := m.Status.Has(OffsetValid) || m.Flags&Compressed != 0
		if located && (m.Node == nil || m.NodeOffset < 0 || m.NodeOffset > MaxSize) {
			return fmt.Errorf("%w: extent at %d names no valid place (%d)", ErrContract, m.Offset, m.NodeOffset)
		}
		if !located && m.Node != nil && table == &formatStatuses {
			return fmt.Errorf("%w: extent at %d names a place it says it does not know", ErrContract, m.Offset)
		}
		if compressed := m.Flags&Compressed != 0; compressed != (m.PackedLength > 0) || compressed && m.Status != Local|Alloc {
			return fmt.Errorf("%w: extent at %d: compressed data is %v with a packed length", ErrContract, m.Offset, Local|Alloc)
		}
	}
	return nil
}
