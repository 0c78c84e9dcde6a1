package storage

import (
	"context"
	"fmt"
)

// alignedExtents is what the file knows of [off, off+n), with boundaries at
// multiples of the minimum, which is more than 1: the node cannot be asked for
// less, so a block of which parts differ is told as one. The range itself may
// begin anywhere.
func (n *Node) alignedExtents(ctx context.Context, off, length, minimum int64, into *ExtentList) error {
	size, err := n.file.Size(ctx)
	if err != nil {
		return err
	}
	if err := CheckRange(off, length, size); err != nil {
		return err
	}
	if length == 0 {
		return fmt.Errorf("%w: an empty range at %d", ErrOutOfRange, off)
	}
	list := n.lists.Get().(*ExtentList)
	defer n.lists.Put(list)
	list.Reset()
	at := off &^ (minimum - 1)
	if err := n.file.Extents(ctx, at, length+off-at, list); err != nil {
		return err
	}
	for begin := at; at < list.End(); {
		m := *list.At(list.Find(at))
		m.Clip(at, m.End())
		end := m.End() &^ (minimum - 1)
		switch {
		case m.End() >= size: // it may have grown
			end = m.End()
		case end <= at: // a part of a block
			end = min(at+minimum, size)
			for list.End() < end {
				if at > begin {
					return nil
				}
				if err := n.file.Extents(ctx, list.End(), end-list.End(), list); err != nil {
					return err
				}
			}
			if m.Status = joined(list, at, end); !m.Status.Has(OffsetValid) {
				m.NodeOffset = 0
			}
		}
		m.Length, at = end-at, end
		m.Clip(max(m.Offset, off), end)
		if err := into.Add(m); err != nil {
			return err
		}
	}
	return nil
}

// joined is the status of a block in the words of [ProtocolStatuses]: zeros where
// all of it is, allocated where anything is, and known by its offset where all
// is. What cannot be accessed in part cannot be accessed.
func joined(l *ExtentList, lo, hi int64) Status {
	all, some := Zero|OffsetValid, Status(0)
	for i := l.Find(lo); i < l.Len() && l.At(i).Offset < hi; i++ {
		s := l.At(i).Status
		if s == 0 {
			return 0
		}
		all &= s
		some |= s
	}
	return all | some&Alloc
}
