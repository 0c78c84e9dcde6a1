package qcow2

import (
	"context"
	"encoding/binary"

	"github.com/extentd/extentd/storage"
)

// l1OffsetMask is the host offset of the L2 table in an L1 entry. The other
// bits are the COPIED flag and reserved ones, which QEMU ignores.
const l1OffsetMask = 0x00fffffffffffe00

// l1At is the page of the L1 table that has the entry for at.
func (i *Image) l1At(ctx context.Context, at guestOffset) (*slice, error) {
	number := int64(at >> i.tableSpanBits >> i.pageBits)
	return i.l1Page.get(ctx, number)
}

// l2Table is where the L2 table for at begins, 0 where there is none.
func (i *Image) l2Table(page *slice, at guestOffset) (hostOffset, error) {
	number := int64(at >> i.tableSpanBits)
	entry := page.entries[number&(1<<i.pageBits-1)]
	off := hostOffset(entry & l1OffsetMask)
	if int64(off)&(i.clusterSize()-1) != 0 {
		return 0, corrupt("l1 table at %#x: entry %d is %#x: the offset of the l2 table must be a multiple of the cluster size %d",
			i.l1Offset.Load(), number, entry, i.clusterSize())
	}
	return off, nil
}

// sliceInTable is how far into its L2 table the slice for at begins.
func (i *Image) sliceInTable(at guestOffset) hostOffset {
	inTable := at & (1<<i.tableSpanBits - 1)
	return hostOffset(int64(inTable>>i.sliceSpanBits) * i.pieceSize)
}

// addTables appends the unallocated L2 tables around at as one mapping: the one
// that maps at, and those next to it in the page as far as they are wanted.
func (i *Image) addTables(page *slice, at guestOffset, r *request) (guestOffset, error) {
	first := int64(at >> i.tableSpanBits)
	last := first
	start := page.key << i.pageBits
	unallocated := func(number int64) bool { return page.entries[number-start]&l1OffsetMask == 0 }
	for first > start && guestOffset(first)<<i.tableSpanBits > r.low && unallocated(first-1) {
		first--
	}
	for last++; last < start+1<<i.pageBits && guestOffset(last)<<i.tableSpanBits < r.high && unallocated(last); {
		last++
	}
	from, end := guestOffset(first)<<i.tableSpanBits, min(guestOffset(last)<<i.tableSpanBits, r.size)
	if r.into.Len() > 0 {
		from = max(from, r.low)
	}
	return end, r.into.Add(storage.Mapping{Offset: int64(from), Length: int64(end - from)})
}

// decodeEntries is the table entries in b, in host order.
func decodeEntries(b []byte) []uint64 {
	entries := make([]uint64, len(b)/8)
	for i := range entries {
		entries[i] = binary.BigEndian.Uint64(b[i*8:])
	}
	return entries
}

// encodeEntries is table entries as they are on disk.
func encodeEntries(entries []uint64) []byte {
	return appendEntries(make([]byte, 0, 8*len(entries)), entries)
}

func appendEntries(b []byte, entries []uint64) []byte {
	for _, e := range entries {
		b = binary.BigEndian.AppendUint64(b, e)
	}
	return b
}
