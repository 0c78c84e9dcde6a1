package storage

// A Mapping says where a range of an image is, as one layer knows it. The zero
// value of everything but Offset and Length says "defers to backing".
type Mapping struct {
	// Offset and Length are the guest's range, bytes. Length is positive.
	Offset, Length int64
	// Node and NodeOffset are where the raw bytes are, when Status has
	// OffsetValid. For a compressed mapping, which has not, they are where
	// its packed bytes are.
	Node       *Node
	NodeOffset int64
	// PackedLength is the number of bytes at NodeOffset that a compressed
	// unit may take; 0 for everything that is not compressed. The unit may
	// end earlier, and the node may end inside it.
	PackedLength int32
	// Depth is the layer that says this: 0 is the top of the chain. Drivers
	// leave it 0; package block fills it in.
	Depth  int16
	Status Status
	Flags  Flags
}

// Flags qualify a mapping beyond its status.
type Flags uint8

const (
	// Compressed: the bytes must be unpacked (see [Unpacker]) before use.
	// Such a mapping is one unit, or the last unit cut at the image's end.
	Compressed Flags = 1 << iota
	// Encrypted: the raw bytes are cipher text.
	Encrypted
	// ZeroTail: the node may end inside the range, and what lies past its
	// end reads as zeros. Without it a node that ends early has shrunk, and
	// reading there is an error.
	ZeroTail
	// Writable: this layer may be overwritten in place (the COPIED bit of
	// qcow2). Without it the blocks are shared with a snapshot, and a write
	// must allocate.
	Writable
)

// End is the first offset after the mapping.
func (m *Mapping) End() int64 { return m.Offset + m.Length }

// Clip cuts m to [lo, hi), which must overlap it. A compressed mapping keeps
// its NodeOffset: it is still the same unit.
func (m *Mapping) Clip(lo, hi int64) {
	if m.End() > hi {
		m.Length = hi - m.Offset
	}
	if skip := lo - m.Offset; skip > 0 {
		m.Offset = lo
		m.Length -= skip
		if m.Status.Has(OffsetValid) {
			m.NodeOffset += skip
		}
	}
}

// Continues reports whether next goes on where m ends and says the same, so
// that the two can be one mapping. Compressed units stay apart.
func (m *Mapping) Continues(next *Mapping) bool {
	if m.End() != next.Offset || m.Status != next.Status || m.Flags != next.Flags ||
		m.Depth != next.Depth || m.Node != next.Node || m.Flags&Compressed != 0 {
		return false
	}
	return !m.Status.Has(OffsetValid) || m.NodeOffset+m.Length == next.NodeOffset
}
