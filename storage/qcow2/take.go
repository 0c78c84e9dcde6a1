package qcow2

import (
	"context"
	"fmt"

	"github.com/extentd/extentd/storage"
)

// take finds free clusters and gives them a refcount of 1: up to n of them in
// one run, the first that are free, or all of them where they must be
// contiguous. w.mu must be held.
func (w *writer) take(ctx context.Context, n int64, contiguous bool) (run, error) {
	for {
		r, err := w.find(ctx, n, contiguous)
		if err != nil {
			return run{}, err
		}
		if !contiguous {
			r = w.beforeMissing(r)
		}
		added, err := w.addBlocks(ctx, r)
		if err != nil {
			return run{}, err
		}
		if added {
			continue // in the very place that was found
		}
		if err := w.checkOverlap(ctx, r.start<<w.clusterBits, r.count<<w.clusterBits, noMetadata); err != nil {
			return run{}, err
		}
		if err := w.raise(ctx, r); err != nil {
			return run{}, err
		}
		if r.start == w.hint {
			w.hint = r.end()
		}
		w.high = max(w.high, r.end())
		return r, nil
	}
}

// find is a run of clusters that are free. Those without a refcount block are.
func (w *writer) find(ctx context.Context, n int64, contiguous bool) (run, error) {
	end := int64(hostEnd) >> w.clusterBits
	first, err := w.nextFree(ctx, w.hint)
	if err != nil {
		return run{}, err
	}
	w.hint = first
	for at := first; at < end; {
		count, err := w.freeRun(ctx, at, min(n, end-at))
		if err != nil {
			return run{}, err
		}
		if count == n || !contiguous {
			return run{at, count}, nil
		}
		if at, err = w.nextFree(ctx, at+count); err != nil {
			return run{}, err
		}
	}
	return run{}, fmt.Errorf("qcow2: %w: no %d clusters below 2^56", storage.ErrNoSpace, n)
}

// nextFree is the first free cluster from one on.
func (w *writer) nextFree(ctx context.Context, from int64) (int64, error) {
	t := &w.table
	for {
		number := from >> t.perBits
		if !t.has(number) {
			return from, nil
		}
		if t.free[number] != 0 {
			b, err := w.block(ctx, number)
			if err != nil {
				return 0, err
			}
			k := int(from & (t.per() - 1))
			if k = nextRefcount(b.bytes, t.order, k, int(t.per()), true); int64(k) < t.per() {
				return number<<t.perBits + int64(k), nil
			}
		}
		from = (number + 1) << t.perBits
	}
}

// freeRun is how many clusters are free from one on, up to most.
func (w *writer) freeRun(ctx context.Context, from, most int64) (int64, error) {
	t := &w.table
	for at, end := from, from+most; at < end; {
		number := at >> t.perBits
		next := min(end, (number+1)<<t.perBits)
		if t.has(number) {
			b, err := w.block(ctx, number)
			if err != nil {
				return 0, err
			}
			k, to := int(at&(t.per()-1)), int(next-number<<t.perBits)
			if k = nextRefcount(b.bytes, t.order, k, to, false); k < to {
				return number<<t.perBits + int64(k) - from, nil
			}
		}
		at = next
	}
	return most, nil
}

// nextRefcount is the first entry from k up to end that is 0, or that is not.
func nextRefcount(b []byte, order uint32, k, end int, zero bool) int {
	if order == 4 { // nearly all images
		for ; k < end; k++ {
			if (b[2*k]|b[2*k+1] == 0) == zero {
				return k
			}
		}
		return end
	}
	for ; k < end; k++ {
		if (refcount(b, order, k) == 0) == zero {
			return k
		}
	}
	return end
}

// addBlocks adds the first refcount block that r, which is free, lacks: in the
// first cluster of r, where it counts itself, or is counted by a block that the
// table on disk names. Blocks that depended on each other could be cut apart by
// a crash. It reports whether it added one, or made room for it.
func (w *writer) addBlocks(ctx context.Context, r run) (bool, error) {
	t := &w.table
	number := r.start >> t.perBits
	last := (r.end() - 1) >> t.perBits
	for number <= last && t.has(number) {
		number++
	}
	if number > last {
		return false, nil
	}
	if last >= int64(len(t.entries)) {
		return true, w.growTable(ctx, last+1)
	}
	if _, fresh := t.fresh[r.start>>t.perBits]; fresh {
		if err := w.linkBlocks(ctx); err != nil {
			return false, err
		}
	}
	home := run{r.start, 1}
	if err := w.initialize(ctx, home, metaRefcountBlock); err != nil {
		return false, fmt.Errorf("qcow2: new refcount block at %#x: %w", home.start<<w.clusterBits, err)
	}
	at := home.start << w.clusterBits
	b := &refcountBlock{number: number, at: hostOffset(at), bytes: make([]byte, w.clusterSize())}
	t.entries[number] = uint64(at)
	t.free[number] = int32(t.per())
	t.blocks[number], t.dirty[number] = b, b
	t.fresh[number] = struct{}{}
	t.changed[number*8/w.pieceSize] = struct{}{}
	if err := w.raise(ctx, home); err != nil { // a block in a cluster that is free would be written over
		t.entries[number] = 0
		delete(t.blocks, number)
		delete(t.dirty, number)
		delete(t.fresh, number)
		w.metadata.remove(home, metaRefcountBlock)
		return false, err
	}
	w.high = max(w.high, home.end())
	return true, nil
}

// beforeMissing is the beginning of r that needs no block that depends on one
// which the table on disk does not name yet.
func (w *writer) beforeMissing(r run) run {
	t := &w.table
	number := r.start >> t.perBits
	if _, fresh := t.fresh[number]; t.has(number) && !fresh {
		return r
	}
	for last := (r.end() - 1) >> t.perBits; number < last; {
		if number++; !t.has(number) {
			r.count = number<<t.perBits - r.start
			break
		}
	}
	return r
}

// linkBlocks makes the table on disk name all blocks. A table that is being
// moved will do so at its new place. w.mu must be held.
func (w *writer) linkBlocks(ctx context.Context) error {
	t := &w.table
	if t.growing {
		return nil
	}
	for number := range t.fresh { // a commit under way may have taken them out
		t.changed[number*8/w.pieceSize] = struct{}{}
	}
	if err := w.writeBlocks(ctx); err != nil {
		return err
	}
	if err := w.sync(ctx); err != nil {
		return err
	}
	pieces := w.takePieces()
	if err := w.writePieces(ctx, pieces); err != nil {
		return w.outOfService(err)
	}
	if err := w.sync(ctx); err != nil {
		return err
	}
	clear(t.fresh)
	t.moves++ // such a commit must not write what is older
	return nil
}

// initialize zeros new metadata clusters on disk, at once: where there is no
// space it is found now, when nothing depends on it, and whatever had been there
// is gone before anything refers to them (after the next sync). w.mu must be
// held.
func (w *writer) initialize(ctx context.Context, r run, kind metadataKind) error {
	at, n := r.start<<w.clusterBits, r.count<<w.clusterBits
	if err := w.checkOverlap(ctx, at, n, noMetadata); err != nil {
		return err
	}
	for n > 0 {
		part := min(n, int64(len(zeros)))
		if err := w.write(ctx, zeros[:part], hostOffset(at)); err != nil {
			return err
		}
		at, n = at+part, n-part
	}
	w.metadata.add(r, kind)
	return nil
}

// zeros are written and never change.
var zeros = make([]byte, 64<<10)

// allocMetadata reserves clusters in one run and knows them as metadata. What is
// in them is undefined: the caller writes all of them, and syncs, before
// anything on disk refers to them. w.mu must be held.
func (w *writer) allocMetadata(ctx context.Context, clusters int64, kind metadataKind) (hostOffset, error) {
	r, err := w.take(ctx, clusters, true)
	if err != nil {
		return 0, err
	}
	w.metadata.add(r, kind)
	return hostOffset(r.start << w.clusterBits), nil
}

// dropMetadata gives back what allocMetadata gave and nothing ever referred to.
// w.mu must be held.
func (w *writer) dropMetadata(ctx context.Context, at hostOffset, clusters int64, kind metadataKind) error {
	r := run{int64(at) >> w.clusterBits, clusters}
	w.metadata.remove(r, kind)
	return w.lower(ctx, r)
}

// growTable moves the refcount table to where it has room for so many blocks.
// The new one is complete and durable, with every block that it names, before
// the header points to it; the old one is free once the header is durable. A
// failure on the way takes the image out of service, and so it goes on when ctx
// ends. w.mu must be held.
func (w *writer) growTable(ctx context.Context, blocks int64) error {
	ctx = context.WithoutCancel(ctx)
	t := &w.table
	perCluster := w.clusterSize() / 8
	size := max(blocks+8, int64(len(t.entries))*3/2)
	size += size / 1024 // for the blocks that count the new table, see the widths
	size = min(ceilDiv(size, perCluster)*perCluster, maxRefcountTable/8)
	if size < blocks+8 || t.growing {
		return fmt.Errorf("qcow2: %w: the refcount table would exceed %d bytes", storage.ErrNoSpace, maxRefcountTable)
	}
	t.growing = true
	defer func() { t.growing = false }()
	old := run{int64(t.at) >> w.clusterBits, int64(len(t.entries)) / perCluster}
	t.entries = append(t.entries, make([]uint64, size-int64(len(t.entries)))...)
	t.free = append(t.free, make([]int32, size-int64(len(t.free)))...)
	at, err := w.allocMetadata(ctx, size/perCluster, metaRefcountTable)
	if err == nil {
		err = w.moveTable(ctx, at)
	}
	if err != nil { // in memory it has grown
		return w.outOfService(fmt.Errorf("qcow2: growing the refcount table: %w", err))
	}
	w.free(old, metaRefcountTable)
	return nil
}

func (w *writer) moveTable(ctx context.Context, at hostOffset) error {
	t := &w.table
	if err := w.writeBlocks(ctx); err != nil {
		return err
	}
	if err := w.write(ctx, encodeEntries(t.entries), at); err != nil {
		return err
	}
	if err := w.sync(ctx); err != nil {
		return err
	}
	err := w.writeHeaderFields(ctx, func(h *header) {
		h.refcountTableOffset = uint64(at)
		h.refcountTableClusters = uint32(int64(len(t.entries)) * 8 >> w.clusterBits)
	})
	if err != nil {
		return err
	}
	if err := w.sync(ctx); err != nil {
		return err
	}
	t.at = at
	t.moves++
	clear(t.changed)
	clear(t.fresh)
	return nil
}
