package qcow2

import (
	"encoding/binary"
	"math/bits"
)

// A layout is where the parts of a new image are: one after the other, in the
// order of the fields.
type layout struct {
	src source
	header
	tableClusters int64 // of the refcount table
	blocks        int64 // refcount blocks
	l1Clusters    int64
	l2Tables      int64
	data          int64 // clusters
	guest         int64 // clusters that are mapped
}

// newLayout lays an image out for options that have been checked.
func newLayout(o *CreateOptions) (*layout, error) {
	l := &layout{header: header{
		magic:         magic,
		version:       uint32(o.Version),
		clusterBits:   uint32(bits.TrailingZeros64(uint64(o.ClusterSize))),
		size:          uint64(ceilDiv(o.Size, sectorSize) * sectorSize),
		refcountOrder: uint32(bits.TrailingZeros(uint(o.RefcountBits))),
		length:        headerLengthV2,
	}}
	l.setFeatures(o)
	cluster := l.clusterSize()
	tables := ceilDiv(int64(l.size), 1<<l.l2SpanBits())
	if most := int64(maxL1Table / l1EntrySize); tables > most {
		return nil, invalid("size", "is %d, may be %d with clusters of %d bytes", o.Size, most<<l.l2SpanBits(), cluster)
	}
	l.l1Size = uint32(tables)
	l.l1Clusters = ceilDiv(tables*l1EntrySize, cluster)
	if o.maps() {
		l.l2Tables, l.guest = tables, ceilDiv(int64(l.size), cluster)
	}
	if o.DataFile == "" {
		l.data = l.guest
	}
	l.layRefcounts()
	if l.tableClusters*cluster > maxRefcountTable || l.end() > hostEnd>>l.clusterBits {
		return nil, invalid("preallocation", "is %s, which takes more clusters of %d bytes than refcounts of %d bits can be kept for",
			o.Preallocation, cluster, o.RefcountBits)
	}
	l.refcountTableOffset = uint64(cluster)
	l.refcountTableClusters = uint32(l.tableClusters)
	if l.l1Size > 0 {
		l.l1Offset = uint64(l.l1At() << l.clusterBits)
	}
	return l, nil
}

func (l *layout) setFeatures(o *CreateOptions) {
	if o.Version < 3 {
		return
	}
	l.length = headerRead
	set := func(to *uint64, bit uint64, on bool) {
		if on {
			*to |= bit
		}
	}
	set(&l.incompatible, incompatDataFile, o.DataFile != "")
	set(&l.incompatible, incompatCompression, o.CompressionType == compressionNameZstd)
	set(&l.incompatible, incompatExtendedL2, o.ExtendedL2)
	set(&l.compatible, compatLazyRefcounts, o.LazyRefcounts)
	set(&l.autoclear, autoclearDataFileRaw, o.DataFileRaw)
	if o.CompressionType == compressionNameZstd {
		l.compressionType = compressionZstd
	}
}

// layRefcounts finds how many refcount blocks there have to be, and how large
// the table: both have refcounts themselves.
func (l *layout) layRefcounts() {
	per := l.clusterSize() << 3 >> l.refcountOrder
	for {
		blocks := ceilDiv(l.end(), per)
		table := ceilDiv(blocks*8, l.clusterSize())
		if blocks == l.blocks && table == l.tableClusters {
			return
		}
		l.blocks, l.tableClusters = blocks, table
	}
}

// Where the parts begin, clusters. The sums are below 2^54.
func (l *layout) blocksAt() int64 { return 1 + l.tableClusters }
func (l *layout) l1At() int64     { return l.blocksAt() + l.blocks }
func (l *layout) l2At() int64     { return l.l1At() + l.l1Clusters }
func (l *layout) dataAt() int64   { return l.l2At() + l.l2Tables }
func (l *layout) end() int64      { return l.dataAt() + l.data }

// head is the first cluster: header, extensions, and the backing's name.
func (l *layout) head(o *CreateOptions) ([]byte, error) {
	be := binary.BigEndian
	var ext []byte
	add := func(kind uint32, data []byte) {
		ext = be.AppendUint32(ext, kind)
		ext = be.AppendUint32(ext, uint32(len(data)))
		ext = append(ext, data...)
		ext = append(ext, make([]byte, -len(data)&7)...)
	}
	if o.BackingFormat != "" {
		add(extensionBackingFormat, []byte(o.BackingFormat))
	}
	if o.DataFile != "" {
		add(extensionDataFile, []byte(o.DataFile))
	}
	// In small clusters there would not be room for names of files.
	if l.version >= 3 && l.clusterSize() > 4096 {
		add(extensionFeatureTable, featureTable())
	}
	add(extensionEnd, nil)
	end := int64(l.length) + int64(len(ext))
	if o.Backing != "" {
		l.backingOffset, l.backingLength = uint64(end), uint32(len(o.Backing))
		end += int64(len(o.Backing))
	}
	if end > l.clusterSize() {
		field, name := "backing", o.Backing
		if len(o.DataFile) > len(o.Backing) {
			field, name = "data_file", o.DataFile
		}
		return nil, invalid(field, "has %d bytes, %d too many for the cluster size %d", len(name), end-l.clusterSize(), l.clusterSize())
	}
	b := make([]byte, l.length, l.clusterSize())
	copy(b, l.encode())
	if l.version >= 3 {
		b[headerLengthV3] = l.compressionType
	}
	b = append(b, ext...)
	b = append(b, o.Backing...)
	return b[:cap(b)], nil
}

// featureTable is the feature name table, as QEMU writes it.
func featureTable() []byte {
	const incompatible, compatible, autoclear = 0, 1, 2
	var b []byte
	for _, f := range []struct {
		kind, bit byte
		name      string
	}{
		{incompatible, 0, "dirty bit"},
		{incompatible, 1, "corrupt bit"},
		{incompatible, 2, "external data file"},
		{incompatible, 3, "compression type"},
		{incompatible, 4, "extended L2 entries"},
		{compatible, 0, "lazy refcounts"},
		{autoclear, 0, "bitmaps"},
		{autoclear, 1, "raw external data"},
	} {
		entry := make([]byte, featureEntry)
		entry[0], entry[1] = f.kind, f.bit
		copy(entry[2:], f.name)
		b = append(b, entry...)
	}
	return b
}
