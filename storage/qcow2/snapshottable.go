package qcow2

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"strconv"

	"github.com/extentd/extentd/storage"
)

// A found snapshot is an entry of the snapshot table, with where it is.
type found struct {
	Snapshot
	from, to int64 // in the table: where it begins, and the next
	tree     tree
}

// findSnapshot reads the snapshot table, and returns it whole, padded to a
// multiple of 8, with the first entry of the id. w.mu must be held.
func (w *writer) findSnapshot(ctx context.Context, id string) (table []byte, s *found, err error) {
	var end int64
	err = w.walkSnapshotEntries(ctx, &window{source: w.src}, func(e *snapshotEntry) error {
		start := hostOffset(w.state.Load().header.snapshotsOffset)
		end = e.end()
		name, err := w.src.readString(ctx, start+hostOffset(e.at+snapshotHeaderSize+e.extra), e.id)
		if err != nil || name != id || s != nil {
			return err
		}
		s = &found{Snapshot: *decodeSnapshot(e.fixed, e.extra, w.Size()), from: e.at, to: (end + 7) &^ 7}
		s.ID = name
		s.tree = tree{w, hostOffset(binary.BigEndian.Uint64(e.fixed)), int64(binary.BigEndian.Uint32(e.fixed[8:]))}
		s.Name, err = w.src.readString(ctx, start+hostOffset(e.at+snapshotHeaderSize+e.extra+e.id), e.name)
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	table = make([]byte, (end+7)&^7) // at most 64 MiB
	if err := w.src.read(ctx, table, hostOffset(w.state.Load().header.snapshotsOffset)); err != nil {
		return nil, nil, fmt.Errorf("qcow2: snapshot table: %w", err)
	}
	if s == nil {
		return table, nil, nil
	}
	return table, s, w.checkTree(s)
}

// checkTree checks where the L1 table of a snapshot is, and that it covers the
// snapshot.
func (i *Image) checkTree(s *found) error {
	t := &s.tree
	size := t.entries * l1EntrySize
	switch {
	case int64(t.at)&(i.clusterSize()-1) != 0, t.at < 0, int64(t.at) > hostEnd-size:
		return corrupt("snapshot %q: its l1 table is at %#x: must be a multiple of the cluster size %d, and end below 2^56", s.ID, int64(t.at), i.clusterSize())
	case size > maxL1Table:
		return corrupt("snapshot %q: its l1 table has %d entries, may have %d", s.ID, t.entries, maxL1Table/l1EntrySize)
	case s.DiskSize < 0 || s.DiskSize > storage.MaxSize:
		return corrupt("snapshot %q: its size is %d, may be %d", s.ID, s.DiskSize, storage.MaxSize)
	case ceilDiv(s.DiskSize, 1<<i.tableSpanBits) > t.entries:
		return corrupt("snapshot %q: its l1 table has %d entries, too few for %d bytes", s.ID, t.entries, s.DiskSize)
	}
	return nil
}

func errNoSnapshot(id string) error {
	return fmt.Errorf("qcow2: snapshot %q: %w", id, storage.ErrNotFound)
}

// encodeSnapshot is the table entry of a snapshot whose L1 table is a tree.
func encodeSnapshot(s *Snapshot, t *tree) []byte {
	be := binary.BigEndian
	b := make([]byte, snapshotHeaderSize+knownExtra, snapshotHeaderSize+knownExtra+len(s.ID)+len(s.Name)+7)
	be.PutUint64(b, uint64(t.at))
	be.PutUint32(b[8:], uint32(t.entries))
	be.PutUint16(b[12:], uint16(len(s.ID)))
	be.PutUint16(b[14:], uint16(len(s.Name)))
	be.PutUint32(b[16:], uint32(s.Date.Unix()))
	be.PutUint32(b[20:], uint32(s.Date.Nanosecond()))
	be.PutUint64(b[24:], uint64(s.VMClock))
	be.PutUint32(b[36:], knownExtra)
	be.PutUint64(b[48:], uint64(s.DiskSize))
	be.PutUint64(b[56:], math.MaxUint64) // no instruction count
	b = append(append(b, s.ID...), s.Name...)
	return append(b, make([]byte, -len(b)&7)...)
}

// nextID is the id of a new snapshot, as QEMU gives it: one more than the largest
// number.
func nextID(all []Snapshot) string {
	var most uint64
	for k := range all {
		digits := all[k].ID[:len(all[k].ID)-len(bytes.TrimLeft([]byte(all[k].ID), "0123456789"))]
		if n, err := strconv.ParseUint(digits, 10, 64); err == nil && n < math.MaxUint64 {
			most = max(most, n)
		}
	}
	return strconv.FormatUint(most+1, 10)
}

// storeTable writes a snapshot table to new clusters, to which nothing refers yet.
// An empty one has none. w.mu must be held.
func (w *writer) storeTable(ctx context.Context, table []byte) (at hostOffset, err error) {
	if len(table) == 0 {
		return 0, nil
	}
	clusters := ceilDiv(int64(len(table)), w.clusterSize())
	if at, err = w.allocMetadata(ctx, clusters, metaSnapshots); err != nil {
		return 0, err
	}
	if err := w.write(ctx, table, at); err != nil {
		return 0, w.dropping(ctx, err, at, clusters, metaSnapshots)
	}
	return at, nil
}

// dropping gives back clusters that nothing refers to, after an error.
func (w *writer) dropping(ctx context.Context, cause error, at hostOffset, clusters int64, kind metadataKind) error {
	if clusters == 0 || w.failure.Load() != nil {
		return cause
	}
	if err := w.dropMetadata(context.WithoutCancel(ctx), at, clusters, kind); err != nil {
		return fmt.Errorf("%w; and clusters have leaked: %w", cause, err)
	}
	return cause
}

// useTable makes a table that storeTable wrote the snapshot table, durably, and
// frees the old one, of so many bytes. All that it refers to must be durable.
func (w *writer) useTable(ctx context.Context, at hostOffset, count uint32, oldBytes int) error {
	old := w.state.Load().header.snapshotsOffset
	err := w.writeHeaderFields(ctx, func(h *header) { h.snapshots, h.snapshotsOffset = count, uint64(at) })
	if err == nil {
		err = w.sync(ctx)
	}
	if err != nil {
		return err
	}
	if n := ceilDiv(int64(oldBytes), w.clusterSize()); n > 0 {
		w.freeMetadata(hostOffset(old), n, metaSnapshots)
	}
	return nil
}
