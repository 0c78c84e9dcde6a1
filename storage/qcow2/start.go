package qcow2

import (
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/extentd/extentd/storage"
)

// StartWriting makes an open image writable, where its nodes are; those who read
// it go on. It may be called again. An image that is marked corrupt, or whose
// tables overlap, or with a malformed bitmap that is enabled, fails with
// [storage.ErrCorrupt]; one that is encrypted, or whose enabled bitmaps would take
// more than 64 MiB of memory, with [storage.ErrUnsupported]. Refcounts that are out of date are repaired, and
// autoclear bits of features that this package does not know are cleared.
func (i *Image) StartWriting(ctx context.Context) error {
	i.starting.Lock()
	defer i.starting.Unlock()
	if err := i.checkOpen(); err != nil {
		return err
	}
	if w := i.writer.Load(); w != nil {
		return w.usable()
	}
	if err := i.refresh(ctx); err != nil {
		return err
	}
	if err := i.checkWritable(); err != nil {
		return err
	}
	if i.state.Load().info.Dirty {
		if err := i.repairDirty(ctx); err != nil {
			return fmt.Errorf("qcow2: refcounts are out of date: %w", err)
		}
		if err := i.refresh(ctx); err != nil {
			return err
		}
	}
	w := &writer{Image: i, limit: int(max(16, i.opt.CacheSize/2/i.pieceSize))}
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.load(ctx); err != nil {
		return err
	}
	r, err := w.loadEnabled(ctx)
	if err != nil {
		return err
	}
	if err := w.clearAutoclear(ctx); err != nil {
		return err
	}
	i.recording.Store(r)
	i.writer.Store(w)
	return nil
}

// refresh reads the header anew, and drops the caches where it is not what was
// read last: whoever had the image before this one became its writer may have
// changed it.
func (i *Image) refresh(ctx context.Context) error {
	s, err := readState(ctx, &window{source: i.src})
	if err != nil {
		return err
	}
	old := i.state.Load()
	if *s == *old {
		return nil
	}
	if newGeometry(&s.header) != i.geometry || s.info.HasDataFile != i.info.HasDataFile || s.info.BackingFile != i.info.BackingFile {
		return fmt.Errorf("qcow2: %w: the image has been replaced since it was opened", storage.ErrConflict)
	}
	i.apply(s)
	i.bitmapsMoved.Add(1)
	i.l1Page.clear()
	i.l2.clear()
	return nil
}

func (i *Image) checkWritable() error {
	info := &i.state.Load().info
	if info.Corrupt {
		return corrupt("the image is marked corrupt: it can be read, and repaired")
	}
	if info.Encryption != "" {
		return unsupported("writing to an image with %s encryption", info.Encryption)
	}
	return nil
}

// clearAutoclear clears what a program that does not know a feature must clear
// before it writes: what is left says of the bitmaps and of the raw data file that
// they are still right.
func (w *writer) clearAutoclear(ctx context.Context) error {
	const known = autoclearBitmaps | autoclearDataFileRaw
	if w.state.Load().header.autoclear&^known == 0 {
		return nil
	}
	if err := w.writeHeaderFields(ctx, func(h *header) { h.autoclear &= known }); err != nil {
		return err
	}
	return w.sync(ctx)
}

// load reads what a writer needs to know. w.mu must be held.
func (w *writer) load(ctx context.Context) error {
	size, err := w.node.Size(ctx)
	if err != nil {
		return fmt.Errorf("qcow2: %w", err)
	}
	w.high = max(w.high, ceilDiv(size, w.clusterSize()))
	w.hint = 0
	if err := w.loadTable(ctx); err != nil {
		return err
	}
	return w.loadMetadata(ctx)
}

// reload drops everything that is known of the metadata and reads it anew, after
// the file was changed by other means than the writer's. Nothing may be dirty;
// what waits to be freed must still be in use. commit and w.mu must be held.
func (w *writer) reload(ctx context.Context) error {
	s, err := readState(ctx, &window{source: w.src})
	if err != nil {
		return w.fail(err)
	}
	w.apply(s)
	w.l1Page.clear()
	w.l2.clear()
	w.marked = s.info.Dirty
	return w.fail(w.load(ctx))
}

// An area is a run of metadata.
type area struct {
	run
	kind metadataKind
}

// loadMetadata finds out where metadata are. Tables that overlap are a sign of
// corruption that will destroy one of them. w.mu must be held.
func (w *writer) loadMetadata(ctx context.Context) error {
	areas, err := w.areas(ctx)
	if err != nil {
		return err
	}
	slices.SortFunc(areas, func(a, b area) int { return cmp.Compare(a.start, b.start) })
	for k := 1; k < len(areas); k++ {
		if before, a := areas[k-1], areas[k]; before.end() > a.start {
			return w.corrupted(ctx, corrupt("%v at %#x overlaps %v at %#x",
				before.kind, before.start<<w.clusterBits, a.kind, a.start<<w.clusterBits))
		}
	}
	m := &w.metadata
	m.mu.Lock()
	defer m.mu.Unlock()
	m.kinds = [noMetadata]runs{}
	for _, a := range areas {
		m.kinds[a.kind].add(a.run)
	}
	return nil
}

// areas are all metadata, in no order.
func (w *writer) areas(ctx context.Context) ([]area, error) {
	h := &w.state.Load().header
	areas := []area{{run{0, 1}, metaHeader}}
	add := func(kind metadataKind, at uint64, bytes int64) {
		if bytes > 0 {
			areas = append(areas, area{run{int64(at >> w.clusterBits), ceilDiv(bytes, w.clusterSize())}, kind})
		}
	}
	add(metaL1, h.l1Offset, int64(h.l1Size)*8)
	add(metaRefcountTable, h.refcountTableOffset, int64(h.refcountTableClusters)<<w.clusterBits)
	// What is not aligned is found when it is used.
	for _, e := range w.table.entries {
		if at := e & blockOffsetMask; at != 0 && at < hostEnd && at&uint64(w.clusterSize()-1) == 0 {
			add(metaRefcountBlock, at, w.clusterSize())
		}
	}
	table := window{source: w.src}
	for k := range int64(h.l1Size) {
		b, err := table.at(ctx, hostOffset(h.l1Offset), k*8, 8)
		if err != nil {
			return nil, fmt.Errorf("qcow2: l1 table at %#x: %w", h.l1Offset, err)
		}
		if at := binary.BigEndian.Uint64(b) & l1OffsetMask; at != 0 && at&uint64(w.clusterSize()-1) == 0 {
			add(metaL2, at, w.clusterSize())
		}
	}
	if err := w.snapshotAreas(ctx, add); err != nil {
		return nil, err
	}
	return areas, w.bitmapAreas(ctx, add)
}

// snapshotAreas are the snapshot table and the L1 tables of snapshots.
func (w *writer) snapshotAreas(ctx context.Context, add func(kind metadataKind, at uint64, bytes int64)) error {
	var end int64
	err := w.walkSnapshotEntries(ctx, &window{source: w.src}, func(e *snapshotEntry) error {
		end = e.end()
		at, size := binary.BigEndian.Uint64(e.fixed), int64(binary.BigEndian.Uint32(e.fixed[8:]))*8
		if at&uint64(w.clusterSize()-1) != 0 || at > uint64(hostEnd-size) {
			return malformed("its l1 table is at %#x: must be a multiple of the cluster size %d, and end below 2^56", at, w.clusterSize())
		}
		add(metaSnapshots, at, size)
		return nil
	})
	add(metaSnapshots, w.state.Load().header.snapshotsOffset, end)
	return err
}

// bitmapAreas are the bitmap directory and the tables of bitmaps.
func (w *writer) bitmapAreas(ctx context.Context, add func(kind metadataKind, at uint64, bytes int64)) error {
	directory := &w.state.Load().bitmaps
	add(metaBitmaps, uint64(directory.offset), directory.size)
	return w.walkBitmaps(ctx, &window{source: w.src}, func(_ int64, e *bitmapEntry, _ []byte) {
		add(metaBitmaps, e.tableOffset, int64(e.tableSize)*8)
	})
}

// repairDirty rebuilds the refcounts that a writer with lazy refcounts did not
// get to write, and repairs whatever else it finds, as QEMU does.
func (i *Image) repairDirty(ctx context.Context) error {
	res, err := checkSource(ctx, i.src, CheckOptions{Repair: RepairAll}, nil)
	if err != nil {
		return err
	}
	if !res.Clean() {
		return fmt.Errorf("%w: %d corruptions, %d leaks and %d errors are left", storage.ErrCorrupt, res.Corruptions, res.Leaks, res.CheckErrors)
	}
	return nil
}
