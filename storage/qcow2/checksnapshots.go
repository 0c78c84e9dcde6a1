package qcow2

import (
	"context"
	"encoding/binary"
	"fmt"
	"math"
)

// minSnapshotExtra is the extra data that an entry of the snapshot table must
// have in version 3, bytes.
const minSnapshotExtra = 16

// A checkedSnapshot is what a check needs of an entry of the snapshot table.
type checkedSnapshot struct {
	l1Offset uint64
	l1Size   uint32
	extra    uint32 // bytes
	at       int32  // in the table, bytes
	length   int32  // of the entry, bytes
}

// readSnapshots reads the snapshot table. What it has to be cut down for makes
// it unreadable, unless everything is to be repaired.
func (c *checker) readSnapshots(ctx context.Context) error {
	h, all := &c.header, c.opt.Repair == RepairAll
	number := int64(h.snapshots)
	if number > maxSnapshots {
		if !all {
			return corrupt("header: nb_snapshots is %d, may be %d at most", h.snapshots, maxSnapshots)
		}
		c.cut(number-maxSnapshots, "the snapshot table has %d entries, and may have %d", number, maxSnapshots)
		number = maxSnapshots
	}
	checked := *h
	checked.snapshots = uint32(number)
	if err := checked.checkTable("snapshots", h.snapshotsOffset, checked.snapshots, snapshotHeaderSize, snapshotHeaderSize*maxSnapshots, math.MaxInt64); err != nil {
		return err
	}
	c.snapshots = c.snapshots[:0]
	w := &window{source: c.src}
	var at, kept int64 // in the table, and in one that is written anew
	for n := range number {
		at = (at + 7) &^ 7
		s, extra, err := c.readSnapshot(ctx, w, at)
		if err != nil {
			return fmt.Errorf("qcow2: snapshot table: entry %d: %w", n, err)
		}
		if extra > maxSnapshotExtra {
			if !all {
				return corrupt("snapshot table: entry %d has %d bytes of extra data, may be %d at most", n, extra, maxSnapshotExtra)
			}
			c.cut(1, "snapshot table: entry %d has %d bytes of extra data, and may have %d", n, extra, maxSnapshotExtra)
		}
		end := at + snapshotHeaderSize + extra + int64(s.length)
		kept = (kept+7)&^7 + snapshotHeaderSize + min(extra, maxSnapshotExtra) + int64(s.length)
		if kept > maxSnapshotTable || end > math.MaxInt32 {
			if !all {
				return corrupt("snapshot table: entry %d ends at %d, may be %d at most", n, end, maxSnapshotTable)
			}
			c.cut(number-n, "snapshot table: entry %d ends at %d, and may at %d", n, end, maxSnapshotTable)
			break
		}
		if extra < minSnapshotExtra && c.info.Version >= 3 {
			c.cut(1, "snapshot table: entry %d has %d bytes of extra data, and must have %d", n, extra, minSnapshotExtra)
		}
		s.at, s.length = int32(at), int32(end-at)
		c.snapshots = append(c.snapshots, s)
		at = end
	}
	return nil
}

// cut counts what a new table is to mend.
func (c *checker) cut(corruptions int64, format string, args ...any) {
	c.cutShort = true
	c.res.Corruptions += corruptions
	c.describe(format, args...)
}

// readSnapshot reads the entry at an offset in the table. Its length is that of
// its strings only.
func (c *checker) readSnapshot(ctx context.Context, w *window, at int64) (s checkedSnapshot, extra int64, err error) {
	b, err := w.at(ctx, hostOffset(c.header.snapshotsOffset), at, snapshotHeaderSize)
	if err != nil {
		return s, 0, err
	}
	be := binary.BigEndian
	s = checkedSnapshot{
		l1Offset: be.Uint64(b),
		l1Size:   be.Uint32(b[8:]),
		extra:    be.Uint32(b[36:]),
		length:   int32(be.Uint16(b[12:])) + int32(be.Uint16(b[14:])),
	}
	return s, int64(s.extra), nil
}

// countSnapshots counts what the snapshots refer to.
func (c *checker) countSnapshots(ctx context.Context) error {
	if c.info.HasDataFile && len(c.snapshots) > 0 {
		c.corruption("%d snapshots in an image with an external data file", len(c.snapshots))
	}
	for n, s := range c.snapshots {
		switch {
		case s.l1Offset&uint64(c.clusterSize()-1) != 0:
			c.corruption("snapshot table: entry %d: the l1 table at %#x is not aligned to a cluster", n, s.l1Offset)
			continue
		case int64(s.l1Size)*l1EntrySize > maxL1Table:
			c.corruption("snapshot table: entry %d: the l1 table has %d entries, may have %d at most", n, s.l1Size, maxL1Table/l1EntrySize)
			continue
		case s.l1Offset > uint64(maxTableEnd-maxL1Table):
			// What the snapshot refers to would be taken for leaks.
			return corrupt("snapshot table: entry %d: the l1 table at %#x is beyond what can be read", n, s.l1Offset)
		}
		if err := c.countTables(ctx, s.l1Offset, s.l1Size, false); err != nil {
			return err
		}
	}
	return nil
}

// countSnapshotTable counts the snapshot table itself.
func (c *checker) countSnapshotTable() error {
	if len(c.snapshots) == 0 {
		return nil
	}
	last := c.snapshots[len(c.snapshots)-1]
	return c.countMetadata(c.header.snapshotsOffset, int64(last.at)+int64(last.length))
}
