package qcow2

import (
	"context"
	"encoding/binary"
	"fmt"
)

// checkCopied checks the COPIED flags of the active tables: they must be set
// exactly where the refcount on disk is 1. counts must be what the disk says.
func (c *checker) checkCopied(ctx context.Context, fix bool) error {
	w := &window{source: c.src}
	return c.walkL1(ctx, c.header.l1Offset, c.header.l1Size, func(l1 []uint64, first int64) error {
		changed := span{from: -1} // entries in between are written as they are
		for k := 0; k < len(l1); {
			if l1[k]&l1OffsetMask == 0 {
				k++
				continue
			}
			tables, n, err := c.readL2Tables(ctx, l1[k:])
			if err != nil {
				return err
			}
			for end := k + n; k < end; k++ {
				b := tables[int64(n-(end-k))<<c.clusterBits:][:c.clusterSize()]
				ok, err := c.checkL1Copied(ctx, w, &l1[k], first+int64(k), b, fix)
				if err != nil {
					return err
				}
				if ok {
					continue
				}
				if changed.to = k + 1; changed.from < 0 {
					changed.from = k
				}
			}
		}
		if changed.from < 0 {
			return nil
		}
		at := c.header.l1Offset + uint64(first+int64(changed.from))*l1EntrySize
		return c.write(ctx, encodeEntries(l1[changed.from:changed.to]), at)
	})
}

// checkL1Copied checks the flags of an L1 entry and of the L2 table in b that it
// refers to. It reports whether the entry is as it was.
func (c *checker) checkL1Copied(ctx context.Context, w *window, entry *uint64, number int64, b []byte, fix bool) (same bool, err error) {
	e := *entry
	at := e & l1OffsetMask
	once, ok, err := c.once(ctx, w, at)
	if err != nil || !ok {
		return true, err
	}
	if once != (e&l2Copied != 0) {
		c.describe("l1 entry %d is %#x: its COPIED flag contradicts the refcount of the l2 table", number, e)
		if fix && c.l1Shared.end(int64(c.header.l1Offset+uint64(number)*l1EntrySize)>>c.clusterBits) == 0 {
			*entry ^= l2Copied
			c.res.CorruptionsFixed++
		} else {
			c.res.Corruptions++
		}
	}
	wrong, err := c.checkL2Copied(ctx, w, b, at)
	if err != nil || wrong == 0 {
		return *entry == e, err
	}
	// An l2 table that overlaps something else is not written to.
	if !fix || at&uint64(c.clusterSize()-1) != 0 || c.overlaps(at) {
		c.res.Corruptions += wrong
		return *entry == e, nil
	}
	c.res.CorruptionsFixed += wrong
	return *entry == e, c.write(ctx, b, at)
}

// checkL2Copied corrects the flags in the L2 table that b is. It returns how
// many were wrong.
func (c *checker) checkL2Copied(ctx context.Context, w *window, b []byte, at uint64) (wrong int64, err error) {
	be := binary.BigEndian
	step := 8
	if c.extended {
		step = 16
	}
	for k := 0; k < len(b); k += step {
		e := be.Uint64(b[k:])
		if e&(l2OffsetMask|l2Copied) == 0 {
			continue
		}
		if kind := c.kindOf(e); kind != kindData && kind != kindZeroAlloc {
			continue
		}
		once := c.info.HasDataFile
		if !once {
			var ok bool
			if once, ok, err = c.once(ctx, w, e&l2OffsetMask); err != nil {
				return wrong, err
			}
			if !ok {
				continue
			}
		}
		if once != (e&l2Copied != 0) {
			wrong++
			c.describe("l2 entry at %#x is %#x: its COPIED flag contradicts the refcount", at+uint64(k), e)
			be.PutUint64(b[k:], e^l2Copied)
		}
	}
	return wrong, nil
}

// once reports whether the refcount on disk of the cluster at an offset is 1,
// and whether it can be known.
func (c *checker) once(ctx context.Context, w *window, at uint64) (once, ok bool, err error) {
	cluster := int64(at >> c.clusterBits)
	if len(c.unusable.list) > 0 && c.unusable.end(cluster) != 0 {
		return false, false, nil
	}
	if cluster < c.end {
		return c.counts.refcount(cluster) == 1, true, nil
	}
	per := c.perBlock()
	block, ok := c.block(cluster / per)
	if block == 0 || !ok || block >= uint64(c.fileEnd) {
		return false, ok, nil
	}
	k, order := cluster%per, c.header.refcountOrder
	skip, n := k<<order>>3, max(1, 1<<order>>3)
	b, err := w.at(ctx, hostOffset(block), skip, n)
	if err != nil {
		return false, false, fmt.Errorf("qcow2: refcount block at %#x: %w", block, err)
	}
	if order < 3 {
		return refcount(b, order, int(k&(1<<(3-order)-1))) == 1, true, nil
	}
	return refcount(b, order, 0) == 1, true, nil
}
