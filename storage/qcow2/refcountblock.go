package qcow2

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/extentd/extentd/storage"
)

const (
	blockOffsetMask = ^uint64(511)

	maxPieces = 1 << (maxClusterBits - maxPieceBits) // of a block
)

// A refcountTable is the refcount table, whole, and those of its blocks that are
// cached. The writer's mu protects it.
type refcountTable struct {
	at      hostOffset // on disk
	order   uint32     // refcounts have 1<<order bits
	perBits uint       // log2 of the refcounts in a block
	entries []uint64   // offsets of blocks, 0 for none
	free    []int32    // free clusters by block; unknownFree
	blocks  map[int64]*refcountBlock
	dirty   map[int64]*refcountBlock
	fresh   map[int64]struct{} // blocks that the table on disk may not name yet
	changed map[int64]struct{} // pieces of the table that the file does not have yet
	moves   int                // how often it was written outside of a commit
	growing bool
}

// unknownFree: the block has not been read yet.
const unknownFree = -1

// A refcountBlock is a block as it is on disk but for what is dirty. A block
// that is not there stands for clusters that are all free.
type refcountBlock struct {
	number int64
	at     hostOffset
	bytes  []byte
	dirty  [maxPieces / 64]uint64 // pieces, one bit each
}

// per is how many refcounts a block has.
func (t *refcountTable) per() int64 { return 1 << t.perBits }

// has reports whether there is a block of the number.
func (t *refcountTable) has(number int64) bool {
	return number < int64(len(t.entries)) && t.entries[number]&blockOffsetMask != 0
}

// most is the largest refcount.
func (t *refcountTable) most() uint64 { return 1<<(1<<t.order) - 1 } // all bits with 64

// loadTable reads the refcount table.
func (w *writer) loadTable(ctx context.Context) error {
	h := &w.state.Load().header
	b := make([]byte, int64(h.refcountTableClusters)<<w.clusterBits) // at most maxRefcountTable
	at := hostOffset(h.refcountTableOffset)
	if err := w.src.read(ctx, b, at); err != nil {
		return fmt.Errorf("qcow2: refcount table at %#x: %w", int64(at), err)
	}
	t := &w.table
	*t = refcountTable{
		at:      at,
		order:   h.refcountOrder,
		perBits: w.clusterBits + 3 - uint(h.refcountOrder),
		entries: decodeEntries(b),
		blocks:  make(map[int64]*refcountBlock),
		dirty:   make(map[int64]*refcountBlock),
		fresh:   make(map[int64]struct{}),
		changed: make(map[int64]struct{}),
	}
	t.free = make([]int32, len(t.entries))
	for k := range t.free {
		t.free[k] = unknownFree
	}
	return nil
}

// block is the block of the number, which the table has. w.mu must be held.
func (w *writer) block(ctx context.Context, number int64) (*refcountBlock, error) {
	t := &w.table
	if b := t.blocks[number]; b != nil {
		return b, nil
	}
	at := t.entries[number] & blockOffsetMask
	if at&uint64(w.clusterSize()-1) != 0 || at >= hostEnd {
		return nil, w.corrupted(ctx, corrupt("refcount table at %#x: entry %d is %#x: the offset must be a multiple of the cluster size %d, below 2^56",
			int64(t.at), number, t.entries[number], w.clusterSize()))
	}
	b := &refcountBlock{number: number, at: hostOffset(at), bytes: make([]byte, w.clusterSize())}
	if err := w.src.read(ctx, b.bytes, b.at); err != nil {
		return nil, fmt.Errorf("qcow2: refcount block at %#x: %w", at, err)
	}
	t.free[number] = int32(t.per() - countRefcounts(b.bytes, t.order, int(t.per())))
	w.evictBlocks()
	t.blocks[number] = b
	return b, nil
}

// evictBlocks drops blocks that the file has, where there are too many.
func (w *writer) evictBlocks() {
	t := &w.table
	most := max(8, w.limitBytes()>>w.clusterBits)
	for number := range t.blocks {
		if int64(len(t.blocks)) < most {
			return
		}
		if t.dirty[number] == nil {
			delete(t.blocks, number)
		}
	}
}

// set changes refcount k of b. w.mu must be held.
func (w *writer) set(b *refcountBlock, k int, from, to uint64) {
	t := &w.table
	setRefcount(b.bytes, t.order, k, to)
	piece := (int64(k) << t.order >> 3) >> min(w.clusterBits, maxPieceBits)
	b.dirty[piece/64] |= 1 << (piece % 64)
	t.blocks[b.number], t.dirty[b.number] = b, b
	switch {
	case from == 0 && to != 0:
		t.free[b.number]--
	case from != 0 && to == 0:
		t.free[b.number]++
	}
}

// refcountOf is the refcount of a cluster. w.mu must be held.
func (w *writer) refcountOf(ctx context.Context, cluster int64) (uint64, error) {
	number := cluster >> w.table.perBits
	if !w.table.has(number) {
		return 0, nil
	}
	b, err := w.block(ctx, number)
	if err != nil {
		return 0, err
	}
	return refcount(b.bytes, w.table.order, int(cluster&(w.table.per()-1))), nil
}

// raise adds one to the refcounts of r, whose blocks exist. It fails with
// [storage.ErrUnsupported] before anything is changed where one has its largest
// value. What it has raised before a failure is lowered again. w.mu must be held.
func (w *writer) raise(ctx context.Context, r run) error {
	_, err := w.eachRefcount(ctx, r, func(_ *refcountBlock, _ int, n uint64) error {
		if n >= w.table.most() {
			return fmt.Errorf("qcow2: %w: more than %d references to a cluster", storage.ErrUnsupported, n)
		}
		return nil
	})
	if err != nil {
		return err
	}
	done, err := w.eachRefcount(ctx, r, func(b *refcountBlock, k int, n uint64) error {
		w.set(b, k, n, n+1)
		return nil
	})
	if err != nil && w.failure.Load() == nil {
		err = errors.Join(err, w.lower(ctx, run{r.start, done}))
	}
	return err
}

// lower takes one off the refcounts of r, and makes the clusters that nothing
// refers to any more available. What it cannot read the refcounts of is freed
// after a later commit: it is nobody's by now, and must not be forgotten. It goes
// on when ctx ends. w.mu must be held.
func (w *writer) lower(ctx context.Context, r run) error {
	done, err := w.eachRefcount(context.WithoutCancel(ctx), r, func(b *refcountBlock, k int, n uint64) error {
		cluster := b.number<<w.table.perBits + int64(k)
		if n == 0 {
			return w.refcountMissing(ctx, cluster)
		}
		w.set(b, k, n, n-1)
		if n == 1 {
			w.hint = min(w.hint, cluster)
		}
		return nil
	})
	if err != nil && done < r.count {
		w.free(run{r.start + done, r.count - done}, noMetadata)
	}
	return err
}

// refcountMissing is the error for a cluster that is in use and has no refcount:
// it could be handed out again while it holds data.
func (w *writer) refcountMissing(ctx context.Context, cluster int64) error {
	return w.corrupted(ctx, corrupt("cluster at %#x is in use and has no refcount", cluster<<w.clusterBits))
}

// eachRefcount calls fn for the refcounts of r, each as entry k of its block, and
// returns how many fn has taken. A block that does not exist is a refcount
// missing. w.mu must be held.
func (w *writer) eachRefcount(ctx context.Context, r run, fn func(b *refcountBlock, k int, n uint64) error) (done int64, err error) {
	t := &w.table
	for at := r.start; at < r.end(); {
		number := at >> t.perBits
		if !t.has(number) {
			return at - r.start, w.refcountMissing(ctx, at)
		}
		b, err := w.block(ctx, number)
		if err != nil {
			return at - r.start, err
		}
		for end := min(r.end(), (number+1)<<t.perBits); at < end; at++ {
			k := int(at & (t.per() - 1))
			if err := fn(b, k, refcount(b.bytes, t.order, k)); err != nil {
				return at - r.start, err
			}
		}
		if int64(len(t.dirty))<<w.clusterBits > w.limitBytes() { // early is not wrong: what is lower is free already
			if err := w.writeBlocks(ctx); err != nil {
				return at - r.start, err
			}
		}
	}
	return r.count, nil
}

// writeBlocks writes what is dirty of the refcount blocks. w.mu must be held.
func (w *writer) writeBlocks(ctx context.Context) error {
	t := &w.table
	for number, b := range t.dirty {
		if err := w.checkOverlap(ctx, int64(b.at), w.clusterSize(), metaRefcountBlock); err != nil {
			return err
		}
		if err := w.writeBlock(ctx, b); err != nil {
			return fmt.Errorf("qcow2: refcount block at %#x: %w", int64(b.at), err)
		}
		clear(b.dirty[:])
		delete(t.dirty, number)
	}
	return nil
}

// writeBlock writes the dirty pieces of b, those that follow each other at once.
func (w *writer) writeBlock(ctx context.Context, b *refcountBlock) error {
	pieces := w.clusterSize() / w.pieceSize
	isDirty := func(piece int64) bool { return b.dirty[piece/64]>>(piece%64)&1 != 0 }
	for from := int64(0); from < pieces; {
		to := from
		for to < pieces && isDirty(to) {
			to++
		}
		if to == from {
			from++
			continue
		}
		at := from * w.pieceSize
		if err := w.write(ctx, b.bytes[at:to*w.pieceSize], b.at+hostOffset(at)); err != nil {
			return err
		}
		from = to
	}
	return nil
}

// limitBytes is how many bytes of dirty metadata are too many.
func (w *writer) limitBytes() int64 { return int64(w.limit) * w.pieceSize }

// setRefcount sets entry k of a refcount block with entries of 1<<order bits.
func setRefcount(b []byte, order uint32, k int, n uint64) {
	switch order {
	case 3:
		b[k] = byte(n)
	case 4:
		binary.BigEndian.PutUint16(b[2*k:], uint16(n))
	case 5:
		binary.BigEndian.PutUint32(b[4*k:], uint32(n))
	case 6:
		binary.BigEndian.PutUint64(b[8*k:], n)
	default:
		bit := k << order
		mask := byte(1<<(1<<order)-1) << (bit & 7)
		b[bit>>3] = b[bit>>3]&^mask | byte(n)<<(bit&7)&mask
	}
}
