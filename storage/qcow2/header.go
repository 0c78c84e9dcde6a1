package qcow2

import (
	"context"
	"encoding/binary"
	"fmt"
	"math"

	"github.com/extentd/extentd/storage"
)

// Constants of the specification's header section, and QEMU's limits.
const (
	magic = 0x514649fb // "QFI\xfb"

	headerLengthV2 = 72
	headerLengthV3 = 104 // at least
	headerRead     = 112 // up to the padding after compression_type

	minClusterBits    = 9
	maxClusterBits    = 21
	maxRefcountOrder  = 6
	minSubclusterBits = 9
	subclusterBits    = 5 // 32 subclusters in a cluster

	maxBackingName   = 1023
	maxRefcountTable = 8 << 20  // bytes
	maxL1Table       = 32 << 20 // bytes
	maxSnapshots     = 65536

	l1EntrySize        = 8
	snapshotHeaderSize = 40
)

// Encryption methods.
const (
	cryptNone = iota
	cryptAES
	cryptLUKS
)

// Compression types.
const (
	compressionZlib = iota
	compressionZstd
)

// A header is the fixed part of the image's first cluster, in host order. The
// fields are untrusted until check has passed.
type header struct {
	magic                 uint32
	version               uint32
	backingOffset         uint64
	backingLength         uint32
	clusterBits           uint32
	size                  uint64
	cryptMethod           uint32
	l1Size                uint32 // entries
	l1Offset              uint64
	refcountTableOffset   uint64
	refcountTableClusters uint32
	snapshots             uint32
	snapshotsOffset       uint64
	incompatible          uint64
	compatible            uint64
	autoclear             uint64
	refcountOrder         uint32
	length                uint32
	compressionType       uint8
}

// readHeader reads the header and checks it, but for what header extensions
// have a say in.
func readHeader(ctx context.Context, w *window) (*header, error) {
	b, err := w.at(ctx, 0, 0, headerRead)
	if err != nil {
		return nil, fmt.Errorf("qcow2: header: %w", err)
	}
	h := decodeHeader(b)
	if err := h.checkLayout(); err != nil {
		return nil, err
	}
	if h.incompatible&^incompatKnown != 0 {
		return nil, unknownFeatures(ctx, w, h)
	}
	return h, h.checkTables()
}

func decodeHeader(b []byte) *header {
	be := binary.BigEndian
	h := &header{
		magic:                 be.Uint32(b[0:]),
		version:               be.Uint32(b[4:]),
		backingOffset:         be.Uint64(b[8:]),
		backingLength:         be.Uint32(b[16:]),
		clusterBits:           be.Uint32(b[20:]),
		size:                  be.Uint64(b[24:]),
		cryptMethod:           be.Uint32(b[32:]),
		l1Size:                be.Uint32(b[36:]),
		l1Offset:              be.Uint64(b[40:]),
		refcountTableOffset:   be.Uint64(b[48:]),
		refcountTableClusters: be.Uint32(b[56:]),
		snapshots:             be.Uint32(b[60:]),
		snapshotsOffset:       be.Uint64(b[64:]),
		refcountOrder:         4,
		length:                headerLengthV2,
	}
	if h.version >= 3 {
		h.incompatible = be.Uint64(b[72:])
		h.compatible = be.Uint64(b[80:])
		h.autoclear = be.Uint64(b[88:])
		h.refcountOrder = be.Uint32(b[96:])
		h.length = be.Uint32(b[100:])
		if h.length > headerLengthV3 {
			h.compressionType = b[104]
		}
	}
	return h
}

// checkLayout checks what decides how the rest of the header is to be read.
func (h *header) checkLayout() error {
	if h.magic != magic {
		return corrupt("not a qcow2 image: the magic number is %#08x, must be %#08x", h.magic, magic)
	}
	if h.version < 2 || h.version > 3 {
		return unsupported("header: version is %d, must be 2 or 3", h.version)
	}
	if h.clusterBits < minClusterBits || h.clusterBits > maxClusterBits {
		return corrupt("header: cluster_bits is %d, must be %d to %d", h.clusterBits, minClusterBits, maxClusterBits)
	}
	if h.version >= 3 && h.length < headerLengthV3 {
		return corrupt("header: header_length is %d, must be at least %d", h.length, headerLengthV3)
	}
	if int64(h.length) > h.clusterSize() {
		return corrupt("header: header_length is %d, exceeds the cluster size %d", h.length, h.clusterSize())
	}
	if h.backingOffset > uint64(h.clusterSize()) {
		return corrupt("header: backing_file_offset is %#x, exceeds the cluster size %d", h.backingOffset, h.clusterSize())
	}
	if most := min(maxBackingName, uint64(h.clusterSize())-h.backingOffset); h.backingOffset != 0 && uint64(h.backingLength) > most {
		return corrupt("header: backing_file_size is %d, may be %d at most", h.backingLength, most)
	}
	return h.checkCompression()
}

func (h *header) checkCompression() error {
	if h.compressionType > compressionZstd {
		return unsupported("header: compression_type is %d, must be 0 (zlib) or 1 (zstd)", h.compressionType)
	}
	if bit := h.incompatible&incompatCompression != 0; bit != (h.compressionType != compressionZlib) {
		return corrupt("header: compression_type is %d, which contradicts incompatible bit 3 (%v)", h.compressionType, bit)
	}
	return nil
}

// checkTables checks the rest: features, sizes, and where the tables are.
func (h *header) checkTables() error {
	if bits := h.subclusterBits(); bits < minSubclusterBits {
		return corrupt("header: cluster_bits is %d, must be at least %d with extended L2 entries", h.clusterBits, minSubclusterBits+subclusterBits)
	}
	if h.refcountOrder > maxRefcountOrder {
		return corrupt("header: refcount_order is %d, may be %d at most", h.refcountOrder, maxRefcountOrder)
	}
	if h.cryptMethod > cryptLUKS {
		return unsupported("header: crypt_method is %d, must be 0 (none), 1 (AES) or 2 (LUKS)", h.cryptMethod)
	}
	if h.refcountTableClusters == 0 {
		return corrupt("header: refcount_table_clusters is 0, must be at least 1")
	}
	err := h.checkTable("refcount_table", h.refcountTableOffset, h.refcountTableClusters, h.clusterSize(), maxRefcountTable, maxTableEnd)
	if err != nil {
		return err
	}
	err = h.checkTable("snapshots", h.snapshotsOffset, h.snapshots, snapshotHeaderSize, snapshotHeaderSize*maxSnapshots, math.MaxInt64)
	if err != nil {
		return err
	}
	if err := h.checkTable("l1_table", h.l1Offset, h.l1Size, l1EntrySize, maxL1Table, maxTableEnd); err != nil {
		return err
	}
	return h.checkSize()
}

// checkTable checks a table of so many entries of so many bytes at off: its
// size in bytes against most, its offset, and where it ends.
func (h *header) checkTable(name string, off uint64, entries uint32, entrySize, most, end int64) error {
	size := int64(entries) * entrySize // below 2^53
	if size > most {
		return corrupt("header: %s has %d entries of %d bytes, may be %d bytes at most", name, entries, entrySize, most)
	}
	if off&uint64(h.clusterSize()-1) != 0 {
		return corrupt("header: %s_offset is %#x, must be a multiple of the cluster size %d", name, off, h.clusterSize())
	}
	if off > uint64(end-size) {
		return corrupt("header: %s_offset is %#x, must be %#x at most", name, off, end-size)
	}
	return nil
}

// checkSize checks that the L1 table covers the virtual size.
func (h *header) checkSize() error {
	if h.size > uint64(storage.MaxSize) {
		return corrupt("header: size is %d, may be %d at most", h.size, storage.MaxSize)
	}
	covers := int64(1) << h.l2SpanBits()
	if need := ceilDiv(int64(h.size), covers); need > int64(h.l1Size) {
		return corrupt("header: l1_size is %d, must be at least %d for %d bytes", h.l1Size, need, h.size)
	}
	if h.autoclear&autoclearDataFileRaw != 0 && h.incompatible&incompatDataFile == 0 {
		return corrupt("header: autoclear bit 1 (raw external data file) without incompatible bit 2 (external data file)")
	}
	if h.autoclear&autoclearDataFileRaw != 0 && h.backingOffset != 0 && h.backingLength > 0 {
		return corrupt("header: a raw external data file excludes a backing file")
	}
	if h.incompatible&incompatDataFile != 0 && h.snapshots > 0 {
		return corrupt("header: nb_snapshots is %d, must be 0 with an external data file", h.snapshots)
	}
	return nil
}

func (h *header) clusterSize() int64 { return 1 << h.clusterBits }

func (h *header) extendedL2() bool { return h.incompatible&incompatExtendedL2 != 0 }

// subclusterBits is clusterBits where there are no subclusters.
func (h *header) subclusterBits() uint32 {
	if h.extendedL2() {
		return h.clusterBits - subclusterBits
	}
	return h.clusterBits
}

// l2EntryBits is the size of an L2 entry.
func (h *header) l2EntryBits() uint32 {
	if h.extendedL2() {
		return 4
	}
	return 3
}

// l2SpanBits is what an L2 table maps: at most 2^39 bytes.
func (h *header) l2SpanBits() uint32 { return 2*h.clusterBits - h.l2EntryBits() }

// extensionsEnd is where the header extensions must end.
func (h *header) extensionsEnd() int64 {
	if h.backingOffset != 0 {
		return int64(h.backingOffset)
	}
	return h.clusterSize()
}
