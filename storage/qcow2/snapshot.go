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
	for {
		var all []Snapshot
		before := i.state.Load()
		err := i.walkSnapshots(ctx, &window{source: i.src}, func(s *Snapshot) { all = append(all, *s) })
		if i.state.Load() == before || ctx.Err() != nil { // else the table may have been replaced, and be free
			return all, err
		}
	}
}

// A snapshotEntry is where an entry of the snapshot table is, and its fixed
// part.
type snapshotEntry struct {
	at       int64  // in the table
	fixed    []byte // the header and what there may be of the extra data; valid during the visit
	extra    int64  // bytes of extra data that are there
	id, name int64  // bytes
}

// end is where the entry ends in the table.
func (e *snapshotEntry) end() int64 { return e.at + snapshotHeaderSize + e.extra + e.id + e.name }

// walkSnapshotEntries checks the snapshot table entry by entry, and hands each to
// visit. Names are not read.
func (i *Image) walkSnapshotEntries(ctx context.Context, w *window, visit func(e *snapshotEntry) error) error {
	h := &i.state.Load().header
	table := hostOffset(h.snapshotsOffset)
	var at int64 // in the table, at most its largest size and an entry
	for number := range h.snapshots {
		at = (at + 7) &^ 7
		b, err := w.at(ctx, table, at, snapshotHeaderSize+knownExtra)
		if err != nil {
			return fmt.Errorf("qcow2: snapshot table: entry %d: %w", number, err)
		}
		extra := int64(binary.BigEndian.Uint32(b[36:]))
		if extra > maxSnapshotExtra {
			return corrupt("snapshot table: entry %d has %d bytes of extra data, may be %d at most", number, extra, maxSnapshotExtra)
		}
		e := snapshotEntry{at: at, fixed: b, extra: extra}
		e.id, e.name = int64(binary.BigEndian.Uint16(b[12:])), int64(binary.BigEndian.Uint16(b[14:]))
		at = e.end()
		if at > maxSnapshotTable {
			return corrupt("snapshot table: entry %d ends at %d, may be %d at most", number, at, maxSnapshotTable)
		}
		if err := visit(&e); err != nil {
			return fmt.Errorf("qcow2: snapshot table: entry %d: %w", number, err)
		}
	}
	return nil
}

// walkSnapshots checks the snapshot table, and hands each snapshot to visit,
// unless that is nil: names are not read then.
func (i *Image) walkSnapshots(ctx context.Context, w *window, visit func(*Snapshot)) error {
	table := hostOffset(i.state.Load().header.snapshotsOffset)
	return i.walkSnapshotEntries(ctx, w, func(e *snapshotEntry) error {
		if visit == nil {
			return nil
		}
		s := decodeSnapshot(e.fixed, e.extra, i.Size())
		idAt := table + hostOffset(e.at+snapshotHeaderSize+e.extra)
		var err error
		if s.ID, err = i.src.readString(ctx, idAt, e.id); err != nil {
			return err
		}
		if s.Name, err = i.src.readString(ctx, idAt+hostOffset(e.id), e.name); err != nil {
			return err
		}
		visit(s)
		return nil
	})
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
