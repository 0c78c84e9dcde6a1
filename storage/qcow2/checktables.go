package qcow2

import (
	"context"
	"encoding/binary"
	"fmt"
	"math"
)

// Reserved bits of entries, which must be zero.
const (
	l1Reserved       = 0x7f000000000001ff
	l2Reserved       = 0x3f000000000001fe // of a standard cluster descriptor
	refcountReserved = 0x1ff              // of the refcount table
)

// checkRead is how much of the tables is read at a time, unless one is larger.
const checkRead = 1 << 20

// countAll counts what the metadata refers to, and checks it on the way.
func (c *checker) countAll(ctx context.Context) error {
	if c.counts == nil {
		c.counts = newCounts(c.header.refcountOrder)
	}
	if err := c.countContent(ctx); err != nil {
		return err
	}
	if err := c.countSnapshotTable(); err != nil {
		return err
	}
	return c.countRefcounts(ctx)
}

// countContent counts everything but the snapshot table and what holds the
// refcounts.
func (c *checker) countContent(ctx context.Context) error {
	c.l1Shared = runs{}
	for _, r := range c.held { // the file may end before them
		for cluster := r.start; cluster < r.end(); cluster++ {
			if _, err := c.counts.add(cluster); err != nil {
				return err
			}
		}
		c.end = max(c.end, r.end())
	}
	if err := c.countMetadata(0, c.clusterSize()); err != nil {
		return err
	}
	if err := c.countTables(ctx, c.header.l1Offset, c.header.l1Size, true); err != nil {
		return err
	}
	if err := c.countSnapshots(ctx); err != nil {
		return err
	}
	if err := c.countEncryption(ctx); err != nil {
		return err
	}
	return c.countBitmaps(ctx)
}

// count counts a reference to every cluster of [off, off+n). One that is beyond
// the end of the file is a corruption; the last cluster may be cut there.
func (c *checker) count(off uint64, n int64) error {
	if n <= 0 {
		return nil
	}
	if !c.inFile(off, n) {
		c.corruption("%d bytes at %#x are referred to, past the end of the file at %#x", n, off, c.fileEnd)
		return c.avoid(off, n)
	}
	first, last := int64(off)>>c.clusterBits, (int64(off)+n-1)>>c.clusterBits
	c.end = max(c.end, last+1)
	for cluster := first; cluster <= last; cluster++ {
		ok, err := c.counts.add(cluster)
		if err != nil {
			return err
		}
		if !ok {
			c.corruption("cluster %d is referred to more often than a refcount of %d bits can say", cluster, c.info.RefcountBits)
		}
	}
	return nil
}

// maxAvoid is how many clusters past the end of the file are looked after.
const maxAvoid = 1 << 16

// avoid keeps new metadata away from what is referred to past the end: the file
// may come to hold it.
func (c *checker) avoid(off uint64, n int64) error {
	if c.opt.Repair != RepairAll || off > uint64(hostEnd) || n > hostEnd {
		return nil
	}
	first := int64(off) >> c.clusterBits
	last := min((int64(off)+n-1)>>c.clusterBits, ceilDiv(c.fileEnd, c.clusterSize())+maxAvoid)
	for cluster := first; cluster <= last; cluster++ {
		if err := c.counts.mark(cluster); err != nil {
			return err
		}
	}
	return nil
}

// inFile reports whether [off, off+n) ends less than a cluster past the end.
func (c *checker) inFile(off uint64, n int64) bool {
	return off <= uint64(math.MaxInt64-n) && int64(off)+n-c.fileEnd < c.clusterSize()
}

// countMetadata is count for what nothing else may be written over.
func (c *checker) countMetadata(off uint64, n int64) error {
	c.noteL1(off, n)
	return c.countMarked(off, n)
}

// noteL1 notes where the active L1 table overlaps other metadata.
func (c *checker) noteL1(off uint64, n int64) {
	l1 := int64(c.header.l1Offset)
	if n <= 0 || !c.inFile(off, n) {
		return
	}
	first := max(int64(off), l1) >> c.clusterBits
	last := (min(int64(off)+n, l1+int64(c.header.l1Size)*l1EntrySize) - 1) >> c.clusterBits
	for ; first <= last; first++ {
		if c.l1Shared.end(first) == 0 {
			c.l1Shared.add(run{first, 1})
		}
	}
}

// countMarked is countMetadata for the active L1 table.
func (c *checker) countMarked(off uint64, n int64) error {
	if n <= 0 || !c.inFile(off, n) {
		return c.count(off, n)
	}
	for cluster := int64(off) >> c.clusterBits; cluster <= (int64(off)+n-1)>>c.clusterBits; cluster++ {
		if err := c.counts.mark(cluster); err != nil {
			return err
		}
	}
	return c.count(off, n)
}

// countTables counts an L1 table and what it refers to.
func (c *checker) countTables(ctx context.Context, at uint64, entries uint32, active bool) error {
	if !active {
		c.noteL1(at, int64(entries)*l1EntrySize)
	}
	if err := c.countMarked(at, int64(entries)*l1EntrySize); err != nil {
		return err
	}
	return c.walkL1(ctx, at, entries, func(l1 []uint64, first int64) error {
		for k := 0; k < len(l1); {
			n, err := c.countL2Tables(ctx, l1[k:], at+uint64(first+int64(k))*l1EntrySize, active)
			if err != nil {
				return err
			}
			k += n
		}
		return nil
	})
}

// walkL1 hands an L1 table to visit piece by piece, with the number of the first
// entry of each.
func (c *checker) walkL1(ctx context.Context, at uint64, entries uint32, visit func(l1 []uint64, first int64) error) error {
	if c.l1 == nil {
		c.l1 = make([]byte, checkRead)
	}
	for first := int64(0); first < int64(entries); first += checkRead / l1EntrySize {
		b := c.l1[:min(checkRead, (int64(entries)-first)*l1EntrySize)]
		from := at + uint64(first)*l1EntrySize
		if from >= uint64(c.fileEnd) {
			return nil // it reads as zeros
		}
		if err := c.src.read(ctx, b, hostOffset(from)); err != nil {
			return fmt.Errorf("qcow2: l1 table at %#x: %w", at, err)
		}
		if err := visit(decodeEntries(b), first); err != nil {
			return err
		}
	}
	return nil
}

// countL2Tables counts the L2 table that the first entry refers to, and those
// of the entries after it as far as they follow it in the file. It returns how
// many entries that were. The first is at an offset.
func (c *checker) countL2Tables(ctx context.Context, l1 []uint64, entryAt uint64, active bool) (int, error) {
	if l1[0] == 0 {
		n := 1
		for n < len(l1) && l1[n] == 0 {
			n++
		}
		return n, nil
	}
	if l1[0]&l1OffsetMask == 0 && c.mend() && c.seen.get(int64(entryAt)>>c.clusterBits) == 1 {
		// Nowhere is it said what flags alone mean. QEMU takes the header for
		// an L2 table then.
		c.res.CorruptionsFixed++
		c.describe("l1 entry at %#x is %#x: flags without a table", entryAt, l1[0])
		return 1, c.write(ctx, make([]byte, l1EntrySize), entryAt)
	}
	tables, n, err := c.readL2Tables(ctx, l1)
	if err != nil {
		return 0, err
	}
	for k := range n {
		at := l1[k] & l1OffsetMask
		if l1[k]&l1Reserved != 0 {
			c.corruption("l1 entry at %#x is %#x: reserved bits are set", entryAt+uint64(k)*l1EntrySize, l1[k])
		}
		if active {
			c.noteL1(at, c.clusterSize())
		}
		if err := c.count(at, c.clusterSize()); err != nil {
			return 0, err
		}
		if at&uint64(c.clusterSize()-1) != 0 {
			c.corruption("l1 entry at %#x is %#x: the l2 table is not aligned to a cluster", entryAt+uint64(k)*l1EntrySize, l1[k])
		}
		if err := c.countL2(ctx, tables[int64(k)<<c.clusterBits:][:c.clusterSize()], at, active); err != nil {
			return 0, err
		}
	}
	return n, nil
}

// readL2Tables reads the L2 table that the first entry refers to, and those of
// the entries after it as far as they follow it in the file.
func (c *checker) readL2Tables(ctx context.Context, l1 []uint64) (tables []byte, n int, err error) {
	at := l1[0] & l1OffsetMask
	most := max(1, checkRead>>c.clusterBits)
	for n = 1; n < min(len(l1), most) && l1[n]&l1OffsetMask == at+uint64(n)<<c.clusterBits; {
		n++
	}
	if c.l2 == nil {
		c.l2 = make([]byte, int64(most)<<c.clusterBits)
	}
	tables = c.l2[:int64(n)<<c.clusterBits]
	if at >= uint64(c.fileEnd) {
		clear(tables)
		return tables, n, ctx.Err()
	}
	if err := c.src.read(ctx, tables, hostOffset(at)); err != nil {
		return nil, 0, fmt.Errorf("qcow2: l2 table at %#x: %w", at, err)
	}
	return tables, n, nil
}

// countL2 counts what the entries of the L2 table in b, which is at an offset,
// refer to. The active one's tell how fragmented the image is.
func (c *checker) countL2(ctx context.Context, b []byte, at uint64, active bool) error {
	be := binary.BigEndian
	step := 8
	if c.extended {
		step = 16
	}
	aligned, last := uint64(c.clusterSize()-1), uint64(max(0, c.fileEnd-c.clusterSize()))
	next := uint64(0)
	for k := 0; k < len(b); k += step {
		e, bitmap := be.Uint64(b[k:]), uint64(0)
		if c.extended {
			bitmap = be.Uint64(b[k+8:])
		}
		if e|bitmap == 0 {
			continue
		}
		off := e & l2OffsetMask
		plain := e&^(l2Copied|l2OffsetMask) == 0 && off != 0 && off&aligned == 0 && off <= last && bitmap == 0
		if !plain || c.info.HasDataFile {
			kind, err := c.countEntry(ctx, b[k:k+step], at+uint64(k), e, bitmap, active)
			if err != nil {
				return err
			}
			if kind != kindData && kind != kindZeroAlloc {
				continue
			}
		} else if ok, err := c.counts.add(int64(off >> c.clusterBits)); err != nil {
			return err
		} else if !ok {
			c.corruption("cluster %d is referred to more often than a refcount of %d bits can say", off>>c.clusterBits, c.info.RefcountBits)
		}
		if active {
			c.res.AllocatedClusters++
			if next != 0 && off != next {
				c.res.FragmentedClusters++
			}
			next = off + uint64(c.clusterSize())
		}
	}
	return nil
}

// countEntry checks an L2 entry that is not plain, and counts what it refers
// to. It returns what it is, kindZeroPlain where it was made that.
func (c *checker) countEntry(ctx context.Context, b []byte, at, e, bitmap uint64, active bool) (clusterKind, error) {
	kind, off := c.kindOf(e), e&l2OffsetMask
	if kind == kindCompressed {
		return kind, c.countCompressed(at, e, bitmap, active)
	}
	if e&l2Reserved != 0 {
		c.corruption("l2 entry at %#x is %#x: reserved bits are set", at, e)
	}
	if kind == kindUnallocated && uint32(bitmap) != 0 {
		c.corruption("l2 entry at %#x is %#x, bitmap %#x: allocated subclusters of an unallocated cluster", at, e, bitmap)
	}
	if kind != kindData && kind != kindZeroAlloc {
		return kind, nil
	}
	if uint32(bitmap)&uint32(bitmap>>32) != 0 {
		c.corruption("l2 entry at %#x is %#x, bitmap %#x: subclusters both allocated and zero", at, e, bitmap)
	}
	if off&uint64(c.clusterSize()-1) != 0 {
		c.corruption("l2 entry at %#x is %#x: the cluster is not aligned", at, e)
		// Without data nothing is lost by giving the cluster up.
		empty := kind == kindZeroAlloc || c.extended && uint32(bitmap) == 0
		if empty && c.mend() && !c.overlaps(at) {
			return kindZeroPlain, c.zeroEntry(ctx, b, at, bitmap)
		}
	}
	if c.info.HasDataFile {
		return kind, nil
	}
	return kind, c.count(off, c.clusterSize())
}

func (c *checker) countCompressed(at, e, bitmap uint64, active bool) error {
	if e&l2Copied != 0 {
		c.corruption("l2 entry at %#x is %#x: a compressed cluster with the COPIED flag", at, e)
	}
	switch {
	case c.info.HasDataFile:
		c.corruption("l2 entry at %#x is %#x: a compressed cluster in an image with an external data file", at, e)
		return nil
	case bitmap != 0:
		c.corruption("l2 entry at %#x is %#x, bitmap %#x: a compressed cluster with subclusters", at, e, bitmap)
		return nil
	}
	off, n := c.packed(e)
	if active {
		c.res.AllocatedClusters++
		c.res.CompressedClusters++
		c.res.FragmentedClusters++ // by nature
	}
	return c.count(uint64(off), int64(n))
}

// mend reports whether entries are to be mended. It takes note that there is
// one: it is done when all metadata is known, so that nothing else is hit.
func (c *checker) mend() bool {
	c.mendable = true
	return c.mending
}

// overlaps reports whether the L2 entry at an offset lies in what is no L2 table,
// or in none that is aligned.
func (c *checker) overlaps(at uint64) bool {
	return c.counts.marked(int64(at) >> c.clusterBits)
}

// zeroEntry makes the entry, which b is, one that reads as zeros and has no
// cluster.
func (c *checker) zeroEntry(ctx context.Context, b []byte, at, bitmap uint64) error {
	if c.extended {
		binary.BigEndian.PutUint64(b, 0)
		binary.BigEndian.PutUint64(b[8:], bitmap&allZero|bitmap<<32)
	} else {
		binary.BigEndian.PutUint64(b, l2Zero)
	}
	if err := c.write(ctx, b, at); err != nil {
		return err
	}
	c.res.Corruptions--
	c.res.CorruptionsFixed++
	return nil
}
