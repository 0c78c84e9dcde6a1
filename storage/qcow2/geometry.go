package qcow2

// maxPieceBits limits how much of a table is read and kept at a time: 4 KiB,
// as in QEMU, so that a random read does not load a whole L2 table.
const maxPieceBits = 12

// A geometry is how guest offsets split into table indices, fixed by
// cluster_bits and the extended L2 bit.
type geometry struct {
	clusterBits    uint
	subclusterBits uint
	extended       bool  // extended L2 entries
	pieceSize      int64 // bytes of an L1 page or an L2 slice: min(4096, cluster size)
	pageBits       uint  // log2 of the L1 entries in a page
	sliceBits      uint  // log2 of the L2 entries in a slice
	sliceSpanBits  uint  // log2 of the bytes that a slice maps
	tableSpanBits  uint  // log2 of the bytes that an L2 table maps
}

func newGeometry(h *header) geometry {
	pieceBits := min(h.clusterBits, maxPieceBits)
	sliceBits := pieceBits - h.l2EntryBits()
	return geometry{
		clusterBits:    uint(h.clusterBits),
		subclusterBits: uint(h.subclusterBits()),
		extended:       h.extendedL2(),
		pieceSize:      1 << pieceBits,
		pageBits:       uint(pieceBits - 3),
		sliceBits:      uint(sliceBits),
		sliceSpanBits:  uint(sliceBits + h.clusterBits),
		tableSpanBits:  uint(h.l2SpanBits()),
	}
}

func (g *geometry) clusterSize() int64 { return 1 << g.clusterBits }

// slices is how many slices the L2 tables of an image of the size have.
func (g *geometry) slices(size guestOffset) int64 { return ceilDiv(int64(size), 1<<g.sliceSpanBits) }

// l1Pages is how many pages of the L1 table map an image of the size.
func (g *geometry) l1Pages(size guestOffset) int64 {
	return ceilDiv(ceilDiv(int64(size), 1<<g.tableSpanBits), 1<<g.pageBits)
}
