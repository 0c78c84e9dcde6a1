package qcow2

import (
	"context"
	"fmt"

	"github.com/extentd/extentd/storage"
)

// A request is a fetch on its way: all of it up to end is needed, and what lies
// in [low, high) is wanted as far as it comes along. low is never below where
// the list ends.
type request struct {
	end, low, high guestOffset
	size           guestOffset // of the image, when the fetch began
	into           *storage.ExtentList
}

// Fetch appends what the L1 and L2 tables say. It volunteers the slice of the
// L2 table that it had to read, as far as the list's window wants it, and runs
// of unallocated L2 tables as one mapping. A range that does not map what it
// needs of a cached slice costs no allocation and takes no lock. An entry that
// contradicts the format fails the fetch of its own range only, with
// [storage.ErrCorrupt]. Compressed clusters are one mapping each, whole.
func (i *Image) Fetch(ctx context.Context, off, n int64, into *storage.ExtentList) error {
	size := guestOffset(i.Size())
	if err := i.checkFetch(off, n, size); err != nil {
		return err
	}
	at, end := guestOffset(off), guestOffset(off+n)
	lo, hi := into.Window()
	r := request{end: end, low: min(guestOffset(lo), at), high: max(end, min(guestOffset(hi), size)), size: size, into: into}
	if into.Len() > 0 {
		r.low = max(r.low, guestOffset(into.End()))
		at = max(at, r.low)
	}
	for at < end {
		var err error
		if at, err = i.fetchAt(ctx, at, &r); err != nil {
			return err
		}
	}
	if i.Size() < int64(end) { // it has shrunk, and what was found may be of what it is now
		return fmt.Errorf("qcow2: %w", storage.CheckRange(off, n, i.Size()))
	}
	return nil
}

func (i *Image) checkFetch(off, n int64, size guestOffset) error {
	if err := i.checkOpen(); err != nil {
		return err
	}
	if n == 0 {
		return fmt.Errorf("qcow2: fetch of nothing at %d: %w", off, storage.ErrOutOfRange)
	}
	if err := storage.CheckRange(off, n, int64(size)); err != nil {
		return fmt.Errorf("qcow2: %w", err)
	}
	return nil
}

// fetchAt appends the slice, or the unallocated L2 tables, that at lies in, and
// returns where that ends.
func (i *Image) fetchAt(ctx context.Context, at guestOffset, r *request) (guestOffset, error) {
	key := int64(at >> i.sliceSpanBits)
	s := i.l2.lookup(key)
	if s != nil {
		i.hits.add()
	} else {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		page, err := i.l1At(ctx, at)
		if err != nil {
			return 0, err
		}
		table, err := i.l2Table(page, at)
		if err != nil {
			return 0, err
		}
		if table == 0 {
			return i.addTables(page, at, r)
		}
		if s, err = i.l2.get(ctx, key); err != nil {
			return 0, err
		}
	}
	return i.addSlice(s, at, r)
}

// addSlice appends what the entries of s say.
func (i *Image) addSlice(s *slice, at guestOffset, r *request) (guestOffset, error) {
	base := guestOffset(s.key) << i.sliceSpanBits
	end := min(base+1<<i.sliceSpanBits, r.size)
	up := guestOffset(i.clusterSize() - 1)
	span := span{
		from: int((max(base, r.low) - base) >> i.clusterBits),
		must: int((min(end, r.end) - base + up) >> i.clusterBits),
		to:   int((min(end, r.high) - base + up) >> i.clusterBits),
	}
	for k := int((at - base) >> i.clusterBits); k > span.from; k-- {
		if i.check(s, k-1, base) != nil { // what nobody asked for must not fail the fetch
			span.from = k
			break
		}
	}
	var err error
	if i.extended {
		err = i.addExtended(s, base, span, r)
	} else {
		err = i.addStandard(s, base, span, r)
	}
	return min(base+guestOffset(span.to)<<i.clusterBits, r.size), err
}

// A span is the entries of a slice that a request is about: [from, to), of
// which those from must on may be left out.
type span struct{ from, must, to int }

// loadPage reads a page of the L1 table.
func (i *Image) loadPage(ctx context.Context, number int64) (*slice, error) {
	h := &i.state.Load().header
	if number<<i.pageBits >= int64(h.l1Size) {
		return nil, fmt.Errorf("qcow2: l1 table: %w: it ended before page %d when the image shrank", storage.ErrOutOfRange, number)
	}
	table := hostOffset(h.l1Offset)
	at := table + hostOffset(number*i.pieceSize)
	entries, err := i.loadPiece(ctx, at)
	if err != nil {
		return nil, fmt.Errorf("qcow2: l1 table at %#x: %w", int64(table), err)
	}
	return &slice{key: number, at: at, entries: entries}, nil
}

// loadSlice reads a slice of an L2 table from where the L1 table says, at the
// time when the loading has been announced: from then on an update supersedes
// it.
func (i *Image) loadSlice(ctx context.Context, key int64) (*slice, error) {
	at := guestOffset(key) << i.sliceSpanBits
	page, err := i.l1At(ctx, at)
	if err != nil {
		return nil, err
	}
	table, err := i.l2Table(page, at)
	if err != nil {
		return nil, err
	}
	if table == 0 { // it went away after the caller had seen it
		return &slice{key: key, entries: make([]uint64, i.pieceSize/8)}, nil
	}
	s := &slice{key: key, at: table + i.sliceInTable(at)}
	if s.entries, err = i.loadPiece(ctx, s.at); err != nil {
		return nil, fmt.Errorf("qcow2: l2 table at %#x: %w", int64(table), err)
	}
	return s, nil
}

// loadPiece reads and decodes a piece of an L1 or L2 table.
func (i *Image) loadPiece(ctx context.Context, at hostOffset) ([]uint64, error) {
	buf := i.reads.Get().(*[]byte)
	defer i.reads.Put(buf)
	i.misses.Add(1)
	if err := i.src.read(ctx, *buf, at); err != nil {
		return nil, err
	}
	return decodeEntries(*buf), nil
}
