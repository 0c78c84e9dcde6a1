package qcow2

import (
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"time"
)

const (
	maxSnapshotTable = 1024 * maxSnapshots // bytes
	maxSnapshotExtra = 1024                // bytes
	knownExtra       = 24                  // bytes: up to the instruction count
)

// A Snapshot is an internal snapshot, as its table entry describes it. Numbers
// beyond an int64 are cut to its largest value.
type Snapshot struct {
	ID, Name    string        // up to a NUL: untrusted, not always UTF-8, and not always unique
	Date        time.Time     // UTC, when it was taken
	VMClock     time.Duration // how long the guest had been running then
	VMStateSize int64         // bytes, 0 without one
	DiskSize    int64         // the virtual size then, bytes
	ICount      int64         // instructions executed then; -1 where not recorded
}

// Snapshots reads the snapshot table: at most 65,536 entries and 64 MiB.
func (i *Image) Snapshots(ctx context.Context) ([]Snapshot, error) {
	if err := i.checkOpen(); err != nil {
		return nil, err
	}
	var all []Snapshot
	err := i.walkSnapshots(ctx, &window{source: i.src}, func(s *Snapshot) { all = append(all, *s) })
	return all, err
}

// walkSnapshots checks the snapshot table entry by entry, and hands each to
// visit, unless that is nil: names are not read then.
func (i *Image) walkSnapshots(ctx context.Context, w *window, visit func(*Snapshot)) error {
	table := hostOffset(i.header.snapshotsOffset)
	var at int64 // in the table, at most its largest size and an entry
	for number := range i.header.snapshots {
		at = (at + 7) &^ 7
		b, err := w.at(ctx, table, at, snapshotHeaderSize+knownExtra)
		if err != nil {
			return fmt.Errorf("qcow2: snapshot table: entry %d: %w", number, err)
		}
		extra := int64(binary.BigEndian.Uint32(b[36:]))
		if extra > maxSnapshotExtra {
			return corrupt("snapshot table: entry %d has %d bytes of extra data, may be %d at most", number, extra, maxSnapshotExtra)
		}
		id, name := int64(binary.BigEndian.Uint16(b[12:])), int64(binary.BigEndian.Uint16(b[14:]))
		idAt := at + snapshotHeaderSize + extra
		at = idAt + id + name
		if at > maxSnapshotTable {
			return corrupt("snapshot table: entry %d ends at %d, may be %d at most", number, at, maxSnapshotTable)
		}
		if visit == nil {
			continue
		}
		s := decodeSnapshot(b, extra, int64(i.size))
		if s.ID, err = i.src.readString(ctx, table+hostOffset(idAt), id); err == nil {
			s.Name, err = i.src.readString(ctx, table+hostOffset(idAt+id), name)
		}
		if err != nil {
			return fmt.Errorf("qcow2: snapshot table: entry %d: %w", number, err)
		}
		visit(s)
	}
	return nil
}

// decodeSnapshot is a table entry but for its strings. b holds the header and
// what there may be of the extra data, of which so many bytes are there.
func decodeSnapshot(b []byte, extra, size int64) *Snapshot {
	be := binary.BigEndian
	s := &Snapshot{
		Date:        time.Unix(int64(be.Uint32(b[16:])), int64(be.Uint32(b[20:]))).UTC(),
		VMClock:     time.Duration(clamp(be.Uint64(b[24:]))),
		VMStateSize: int64(be.Uint32(b[32:])),
		DiskSize:    size,
		ICount:      -1,
	}
	if extra >= 8 {
		s.VMStateSize = clamp(be.Uint64(b[40:]))
	}
	if extra >= 16 {
		s.DiskSize = clamp(be.Uint64(b[48:]))
	}
	if extra >= 24 && be.Uint64(b[56:]) != math.MaxUint64 {
		s.ICount = clamp(be.Uint64(b[56:]))
	}
	return s
}

func clamp(n uint64) int64 { return int64(min(n, math.MaxInt64)) }
