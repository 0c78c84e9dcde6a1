package qcow2

import (
	"context"
	"encoding/binary"
	"fmt"

	"github.com/extentd/extentd/storage"
)

// repair is a check with a repair, in an order that leaves, wherever it is cut
// off, an image that is damaged no more than before:
//
//   - Refcounts first, in place: nothing relies on them meanwhile, and each is
//     right or as wrong as it was. Where the blocks cannot be used, or the
//     snapshot table has to be cut down, new ones are written to clusters that
//     nothing refers to, synced, and put in place by one write to the header.
//   - Then the COPIED flags, which allow writing in place where a refcount is
//     1: those are durable by now.
//   - At the end, when nothing is left, the dirty and corrupt bits.
func (c *checker) repair(ctx context.Context) error {
	if err := c.clearAutoclear(ctx); err != nil {
		return err
	}
	if err := c.readSnapshots(ctx); err != nil {
		return err
	}
	if err := c.countAndMend(ctx); err != nil {
		return err
	}
	before := c.res
	described := len(c.res.Errors)
	if err := c.compare(ctx, RepairNone, false); err != nil {
		return err
	}
	rebuild := c.rebuild || c.cutShort || c.res.CheckErrors > 0
	switch {
	case rebuild && c.opt.Repair != RepairAll:
		c.res.CheckErrors++
		c.describe("the refcount structures have to be rebuilt before leaks can be repaired")
		return nil
	case rebuild:
		if err := c.rebuildAndCheck(ctx); err != nil {
			return err
		}
	case c.res.Leaks > 0 || c.res.Corruptions > 0:
		errs := c.res.Errors[:described:described]
		c.res = before
		c.res.Errors = errs
		if err := c.compare(ctx, c.opt.Repair, true); err != nil {
			return err
		}
	}
	if err := c.sync(ctx); err != nil {
		return err
	}
	if err := c.checkCopied(ctx, c.opt.Repair == RepairAll || c.res.Clean()); err != nil {
		return err
	}
	if err := c.sync(ctx); err != nil {
		return err
	}
	if c.res.CheckErrors > 0 || c.res.Corruptions > 0 {
		return nil
	}
	return c.clearIncompatible(ctx, incompatDirty|incompatCorrupt)
}

// countAndMend counts everything, and once more where there are entries that can
// be mended.
func (c *checker) countAndMend(ctx context.Context) error {
	fresh := c.res
	if err := c.countAll(ctx); err != nil || !c.mendable || c.opt.Repair != RepairAll {
		return err
	}
	c.res, c.rebuild, c.mending = fresh, false, true
	c.seen, c.counts = c.counts, c.counts.marks()
	return c.countAll(ctx)
}

// clearAutoclear clears the bits of features that are not known, before
// anything is written.
func (c *checker) clearAutoclear(ctx context.Context) error {
	known := c.header.autoclear & (autoclearBitmaps | autoclearDataFileRaw)
	if c.header.autoclear == known {
		return nil
	}
	return c.writeHeader(ctx, func(h *header) { h.autoclear = known })
}

func (c *checker) clearIncompatible(ctx context.Context, bits uint64) error {
	if c.header.incompatible&bits == 0 {
		return nil
	}
	return c.writeHeader(ctx, func(h *header) { h.incompatible &^= bits })
}

// writeHeader changes fields of the header that lie in one sector, and syncs.
func (c *checker) writeHeader(ctx context.Context, edit func(h *header)) error {
	before := c.header.encode()
	edit(&c.header)
	first, piece := difference(before, c.header.encode())
	if len(piece) == 0 {
		return nil
	}
	if err := c.write(ctx, piece, uint64(first)); err != nil {
		return err
	}
	return c.sync(ctx)
}

// write writes metadata. It is not given up when ctx ends: half of a table would
// be written.
func (c *checker) write(ctx context.Context, p []byte, at uint64) error {
	return c.src.write(context.WithoutCancel(ctx), p, hostOffset(at))
}

func (c *checker) sync(ctx context.Context) error {
	return c.src.node.Flush(context.WithoutCancel(ctx))
}

// rebuildAndCheck writes new refcount structures, and checks the image anew.
func (c *checker) rebuildAndCheck(ctx context.Context) error {
	old := c.res
	r := &rebuilding{checker: c}
	if err := r.run(ctx); err != nil {
		return err
	}
	again := &checker{src: c.src, held: c.held, opt: CheckOptions{Repair: c.opt.Repair}}
	if err := again.begin(ctx); err != nil {
		return err
	}
	if err := again.readSnapshots(ctx); err != nil {
		return err
	}
	if err := again.countAll(ctx); err != nil {
		return err
	}
	if err := again.compare(ctx, RepairAll, true); err != nil {
		return err
	}
	errs := old.Errors
	*c = *again
	c.res.CorruptionsFixed += old.CorruptionsFixed + max(0, old.Corruptions-c.res.Corruptions)
	c.res.LeaksFixed += old.LeaksFixed + max(0, old.Leaks-c.res.Leaks)
	c.res.Errors = append(errs, c.res.Errors[:min(len(c.res.Errors), maxFindings-len(errs))]...)
	return nil
}

// A rebuilding makes new refcount structures from what was counted, and a new
// snapshot table where that is to be cut down.
type rebuilding struct {
	*checker
	table     []uint64
	tableAt   int64 // cluster, 0 for none
	next      int64 // where free clusters are looked for
	snapshots int64 // cluster of the new snapshot table, 0 for the old one
}

func (r *rebuilding) run(ctx context.Context) error {
	// What holds the refcounts now is given up, but not written over: its
	// clusters are marked.
	r.counts = r.counts.marks()
	r.res = CheckResult{Errors: r.res.Errors[:len(r.res.Errors):len(r.res.Errors)]}
	if err := r.countContent(ctx); err != nil {
		return err
	}
	if err := r.placeSnapshots(ctx); err != nil {
		return err
	}
	if err := r.place(ctx); err != nil {
		return err
	}
	if err := r.writeBlocks(ctx); err != nil {
		return err
	}
	if err := r.write(ctx, encodeEntries(r.table), uint64(r.tableAt)<<r.clusterBits); err != nil {
		return err
	}
	if err := r.sync(ctx); err != nil {
		return err
	}
	return r.writeHeader(ctx, func(h *header) {
		h.refcountTableOffset = uint64(r.tableAt) << r.clusterBits
		h.refcountTableClusters = uint32(int64(len(r.table)) >> (r.clusterBits - 3))
		if r.cutShort {
			h.snapshots = uint32(len(r.checker.snapshots))
			h.snapshotsOffset = uint64(r.snapshots) << r.clusterBits
		}
	})
}

// place finds clusters for a block wherever there is a refcount, and for the
// table, until these have refcounts too.
func (r *rebuilding) place(ctx context.Context) error {
	entries := r.clusterSize() / 8
	for reserved := int64(0); ; {
		if err := r.placeBlocks(ctx, entries); err != nil {
			return err
		}
		need := int64(len(r.table)) / entries
		if need <= reserved {
			return nil
		}
		for n := range reserved {
			if err := r.counts.set(r.tableAt+n, 0); err != nil {
				return err
			}
		}
		reserved = need + 1 // it may grow by the blocks for its own clusters
		r.table = append(r.table, make([]uint64, entries)...)
		var err error
		if r.tableAt, err = r.take(reserved); err != nil {
			return err
		}
	}
}

// placeBlocks finds clusters for the blocks.
func (r *rebuilding) placeBlocks(ctx context.Context, entries int64) error {
	per := r.perBlock()
	for number := int64(0); number*per < r.counts.end(); number++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		if number < int64(len(r.table)) && r.table[number] != 0 || !r.counts.used(number*per, (number+1)*per) {
			continue
		}
		for number >= int64(len(r.table)) {
			r.table = append(r.table, make([]uint64, entries)...)
		}
		if len(r.table)*8 > maxRefcountTable {
			return unsupported("the refcount table would be larger than %d bytes", maxRefcountTable)
		}
		at, err := r.take(1)
		if err != nil {
			return err
		}
		r.table[number] = uint64(at) << r.clusterBits
		number = min(number, at/per-1) // where that one needs a block itself
	}
	return nil
}

// take finds clusters in one run that nothing refers to, now or before the
// repair, and counts them.
func (r *rebuilding) take(n int64) (int64, error) {
	first := r.next
	for at := first; at < first+n; at++ {
		if r.counts.get(at) != 0 || r.counts.marked(at) {
			first = at + 1
		}
	}
	if n == 1 {
		r.next = first + 1
	}
	if (first+n)<<r.clusterBits > hostEnd {
		return 0, fmt.Errorf("qcow2: %w: no %d clusters below 2^56", storage.ErrNoSpace, n)
	}
	for at := first; at < first+n; at++ {
		if _, err := r.counts.add(at); err != nil {
			return 0, err
		}
	}
	r.end = max(r.end, first+n)
	return first, nil
}

// writeBlocks writes the refcount blocks.
func (r *rebuilding) writeBlocks(ctx context.Context) error {
	per := r.perBlock()
	b := make([]byte, r.clusterSize())
	for number, at := range r.table {
		if at == 0 {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		clear(b)
		for k := range per {
			if n := r.counts.refcount(int64(number)*per + k); n != 0 {
				setRefcount(b, r.header.refcountOrder, int(k), uint64(n))
			}
		}
		if err := r.write(ctx, b, at); err != nil {
			return err
		}
	}
	return nil
}

// placeSnapshots writes a new snapshot table where the old one is to be cut
// down, and counts the table.
func (r *rebuilding) placeSnapshots(ctx context.Context) error {
	if !r.cutShort || len(r.checker.snapshots) == 0 {
		return r.countSnapshotTable()
	}
	// The old table was marked when it was counted: it is not written over.
	var size int64
	for _, s := range r.checker.snapshots {
		size = (size+7)&^7 + r.keptLength(s)
	}
	at, err := r.take(ceilDiv(size, r.clusterSize()))
	if err != nil {
		return err
	}
	r.snapshots = at
	var b []byte
	to := uint64(at) << r.clusterBits
	for _, s := range r.checker.snapshots {
		b = append(b, make([]byte, -len(b)&7)...)
		if len(b) >= checkRead {
			if err := r.write(ctx, b, to); err != nil {
				return err
			}
			to += uint64(len(b))
			b = b[:0]
		}
		entry, err := r.keptSnapshot(ctx, s)
		if err != nil {
			return err
		}
		b = append(b, entry...)
	}
	return r.write(ctx, b, to)
}

// keptLength is the length of an entry of the snapshot table once its extra
// data is as long as it must and may be. At most 132 KiB.
func (r *rebuilding) keptLength(s checkedSnapshot) int64 {
	strings := int64(s.length) - snapshotHeaderSize - int64(s.extra)
	return snapshotHeaderSize + max(knownExtra, min(int64(s.extra), maxSnapshotExtra)) + strings
}

// keptSnapshot is an entry of the snapshot table as it is to be.
func (r *rebuilding) keptSnapshot(ctx context.Context, s checkedSnapshot) ([]byte, error) {
	be := binary.BigEndian
	at := hostOffset(r.header.snapshotsOffset) + hostOffset(s.at)
	b := make([]byte, r.keptLength(s))
	fixed, extra := b[:snapshotHeaderSize], min(int64(s.extra), maxSnapshotExtra)
	if err := r.src.read(ctx, b[:snapshotHeaderSize+extra], at); err != nil {
		return nil, err
	}
	kept := b[snapshotHeaderSize:]
	if extra < 8 {
		be.PutUint64(kept, uint64(be.Uint32(fixed[32:]))) // the size of the VM state
	}
	if extra < 16 {
		be.PutUint64(kept[8:], uint64(r.Size()))
	}
	if extra < 24 {
		be.PutUint64(kept[16:], ^uint64(0)) // no instruction count
	}
	extra = max(extra, knownExtra)
	be.PutUint32(fixed[36:], uint32(extra))
	if names := kept[extra:]; len(names) > 0 {
		return b, r.src.read(ctx, names, at+snapshotHeaderSize+hostOffset(s.extra))
	}
	return b, nil
}
