package qcow2

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
)

// A commit writes what is dirty, in an order that leaves the image consistent
// wherever it is cut off: the worst that a crash leaves behind are clusters with
// a refcount that nothing refers to. The order, and what it is for:
//
//	A  refcount blocks; with lazy refcounts the dirty bit in their place. New
//	   L2 tables and new refcount blocks were zeroed, and copies of tables
//	   written, when they were made. The external data file is flushed.
//	   Sync: clusters must be in use on disk, and hold their data, before
//	   anything refers to them. Otherwise another program could hand them out
//	   a second time, or a guest could read what a stranger had left there.
//	B  Entries of the refcount table for new blocks, and a sync. A block that
//	   was not durable when its entry is would supply arbitrary refcounts. A
//	   new block lies where it counts itself, or one that is named on disk
//	   counts it: entries may reach the disk in any order.
//	C  L2 slices and pages of the L1 table, in any order: a new L2 table is
//	   empty on disk since A, a copied one says what the old one does, so an
//	   L1 entry may come before the entries below it, or after. Sync.
//	D  Only now is what C has unlinked unused on disk. Its refcounts fall in
//	   memory, once no reader needs it, and reach the disk with a later A.
//	   So a refcount on disk is never too low.
//
// What is written in C is what was dirty when A began: an update that comes in
// between refers to clusters that A has not made durable.
type batch struct {
	slices []*slice
	pages  []*slice
	pieces []piece // of the refcount table
	fresh  []int64 // blocks that they name and the table on disk may not
	moves  int     // of the refcount table, when they were taken
}

// A piece is bytes to write at an offset of the refcount table.
type piece struct {
	number int64
	bytes  []byte
}

// flushes lets callers of Flush that wait for the same commit share it.
type flushes struct {
	mu   sync.Mutex // protects next
	next *round     // which has not begun
}

type round struct {
	done chan struct{}
	err  error
}

// Flush makes everything that was updated, and written to the nodes, before it
// durable. At most one commit is under way and one waits: who comes meanwhile
// shares that one. A failed sync takes the image out of service. That freed
// clusters could not be given back is no error: they wait for the next commit.
func (i *Image) Flush(ctx context.Context) error {
	w, err := i.writing()
	if err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	f := &w.flushes
	f.mu.Lock()
	r := f.next
	if r != nil {
		f.mu.Unlock()
		select {
		case <-r.done:
			return r.err
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	r = &round{done: make(chan struct{})}
	f.next = r
	f.mu.Unlock()

	w.commit.Lock()
	defer w.commit.Unlock()
	f.mu.Lock()
	f.next = nil // who comes now has written something that this commit may miss
	f.mu.Unlock()
	r.err = w.commitOnce(ctx)
	close(r.done)
	if r.err != nil {
		return r.err
	}
	if err := w.reclaimOnce(ctx); w.failure.Load() != nil {
		return err
	}
	return nil
}

// commitAll commits, and gives back what can be. commit must be held, and w.mu
// not: others go on during the syncs.
func (w *writer) commitAll(ctx context.Context) error {
	if err := w.commitOnce(ctx); err != nil {
		return err
	}
	return w.reclaimOnce(ctx)
}

func (w *writer) commitOnce(ctx context.Context) error {
	if err := w.lock(); err != nil {
		return err
	}
	defer w.mu.Unlock()
	return w.writeOut(ctx, true, false)
}

func (w *writer) reclaimOnce(ctx context.Context) error {
	if err := w.lock(); err != nil {
		return err
	}
	defer w.mu.Unlock()
	return w.reclaim(ctx, true, false)
}

// writeBack commits everything, lazy refcounts too, gives back what can be, and
// commits that: nothing is dirty then. commit and w.mu must be held.
func (w *writer) writeBack(ctx context.Context) error { return w.writeAll(ctx, false) }

func (w *writer) writeAll(ctx context.Context, force bool) error {
	if err := w.writeOut(ctx, false, true); err != nil {
		return err
	}
	if err := w.reclaim(ctx, false, force); err != nil {
		return err
	}
	if len(w.table.dirty) == 0 {
		return nil
	}
	return w.writeOut(ctx, false, true)
}

// writeOut is phases A to C of a commit. With release it lets others go on
// during its syncs. all: refcounts too where they are lazy. commit and w.mu must
// be held.
func (w *writer) writeOut(ctx context.Context, release, all bool) error {
	b := w.takeBatch()
	linking := len(b.slices)+len(b.pages) > 0
	err := w.prepare(ctx, b, linking, all)
	if err == nil {
		err = w.syncing(ctx, release, w.data != w.node)
	}
	if err == nil && len(b.pieces) > 0 && b.moves == w.table.moves { // else moving it wrote all of it
		if err = w.writePieces(ctx, b.pieces); err == nil {
			err = w.syncing(ctx, release, false)
		}
	}
	if err == nil {
		for _, number := range b.fresh {
			delete(w.table.fresh, number)
		}
	}
	if err == nil && linking {
		if err = w.linkTables(ctx, b); err == nil {
			err = w.syncing(ctx, release, false)
		}
	}
	w.endBatch(b, err)
	return err
}

// takeBatch is what is dirty now.
func (w *writer) takeBatch() *batch {
	b := &batch{
		slices: w.l2.appendDirty(nil),
		pages:  w.l1Page.appendDirty(nil),
		moves:  w.table.moves,
	}
	w.freed.committing, w.freed.pending = w.freed.pending, nil
	return b
}

// endBatch takes note of what is durable, or that it is not.
func (w *writer) endBatch(b *batch, err error) {
	f := &w.freed
	if err == nil {
		w.l2.clean(b.slices)
		w.l1Page.clean(b.pages)
		f.durable = append(f.durable, f.committing...)
		f.committing = nil
		return
	}
	f.pending = append(f.committing, f.pending...)
	f.committing = nil
	for _, p := range b.pieces {
		w.table.changed[p.number] = struct{}{}
	}
}

// extend makes the file as long as what is mapped, if nobody has written there:
// QEMU takes clusters past the end of the file for a corruption. All that is
// being written lies below what was ever reserved, so making the file as long as
// that cuts nothing off. w.mu must be held.
func (w *writer) extend(ctx context.Context) error {
	if w.mapped == 0 {
		return nil
	}
	ctx = context.WithoutCancel(ctx)
	size, err := w.node.Size(ctx)
	if err == nil && size < w.mapped<<w.clusterBits {
		err = w.node.Truncate(ctx, w.high<<w.clusterBits)
	}
	if err == nil {
		w.mapped = 0
	}
	return w.fail(err)
}

// prepare is phase A without its sync.
func (w *writer) prepare(ctx context.Context, b *batch, linking, all bool) error {
	if err := w.extend(ctx); err != nil {
		return err
	}
	lazy := w.state.Load().info.LazyRefcounts && w.info.Version >= 3
	if lazy && linking && !w.marked {
		err := w.writeHeaderFields(ctx, func(h *header) { h.incompatible |= incompatDirty })
		if err != nil {
			return err
		}
		w.marked = true
	}
	if lazy && !all {
		return nil
	}
	if err := w.writeBlocks(ctx); err != nil {
		return err
	}
	b.pieces = w.takePieces()
	b.fresh = slices.Collect(maps.Keys(w.table.fresh))
	return nil
}

// takePieces copies what is dirty of the refcount table: the blocks that it
// names are on disk, those that are added from now on may not be.
func (w *writer) takePieces() []piece {
	t := &w.table
	var pieces []piece
	per := w.pieceSize / 8
	for number := range t.changed {
		entries := t.entries[number*per : (number+1)*per]
		pieces = append(pieces, piece{number, encodeEntries(entries)})
	}
	clear(t.changed)
	return pieces
}

func (w *writer) writePieces(ctx context.Context, pieces []piece) error {
	for _, p := range pieces {
		at := w.table.at + hostOffset(p.number*w.pieceSize)
		if err := w.checkOverlap(ctx, int64(at), w.pieceSize, metaRefcountTable); err != nil {
			return err
		}
		if err := w.write(ctx, p.bytes, at); err != nil {
			return fmt.Errorf("qcow2: refcount table at %#x: %w", int64(w.table.at), err)
		}
	}
	return nil
}

// syncing syncs the image's file, after the external data file where data is
// set, and lets go of w.mu meanwhile where release is.
func (w *writer) syncing(ctx context.Context, release, data bool) error {
	if release {
		w.mu.Unlock()
		defer w.mu.Lock()
	}
	if data {
		if err := w.data.Flush(context.WithoutCancel(ctx)); err != nil {
			return w.outOfService(fmt.Errorf("external data file: %w", err))
		}
	}
	return w.sync(ctx)
}

// linkTables is phase C without its sync.
func (w *writer) linkTables(ctx context.Context, b *batch) error {
	if err := w.writeSlices(ctx, b.slices, metaL2); err != nil {
		return fmt.Errorf("qcow2: l2 tables: %w", err)
	}
	if err := w.writeSlices(ctx, b.pages, metaL1); err != nil {
		return fmt.Errorf("qcow2: l1 table: %w", err)
	}
	return nil
}

// maxWrite is how many bytes of tables are written at once.
const maxWrite = 1 << 20

// writeSlices writes pieces of tables where they belong, those that follow each
// other at once.
func (w *writer) writeSlices(ctx context.Context, list []*slice, kind metadataKind) error {
	slices.SortFunc(list, func(a, b *slice) int { return cmp.Compare(a.at, b.at) })
	var buf []byte
	for k := 0; k < len(list); {
		at := list[k].at
		buf = buf[:0]
		for k < len(list) && list[k].at == at+hostOffset(len(buf)) && len(buf) < maxWrite {
			buf = appendEntries(buf, list[k].entries)
			k++
		}
		if err := w.checkOverlap(ctx, int64(at), int64(len(buf)), kind); err != nil {
			return err
		}
		if err := w.write(ctx, buf, at); err != nil {
			return err
		}
	}
	return nil
}

// close is the end of writing: the bitmaps are stored, what was freed is free on disk
// too, and the image is marked clean. What is still reserved stays in use: it has leaked, unless a
// later session adopts it.
func (w *writer) close() error {
	ctx := context.Background()
	w.commit.Lock()
	defer w.commit.Unlock()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stopped = true
	if err := w.failure.Load(); err != nil {
		return *err // nothing is written any more
	}
	if err := w.writeOut(ctx, false, true); err != nil {
		return err
	}
	unstored := w.storeRecorded(ctx) // before anything is freed that somebody still reads
	if err := w.writeAll(ctx, true); err != nil || !w.marked {
		return errors.Join(unstored, err)
	}
	err := w.writeHeaderFields(ctx, func(h *header) { h.incompatible &^= incompatDirty })
	if err == nil {
		err = w.sync(ctx)
	}
	return errors.Join(unstored, err)
}
