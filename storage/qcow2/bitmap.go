package qcow2

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"hash/maphash"
)

// The bitmap directory's entries, and QEMU's limits.
const (
	bitmapHeader    = 24
	bitmapTypeDirty = 1

	bitmapInUse = 1 << 0
	bitmapAuto  = 1 << 1
	bitmapFlags = bitmapInUse | bitmapAuto

	minGranularityBits = 9
	maxGranularityBits = 31
	maxBitmapName      = 1023
	maxBitmapTable     = 0x8000000 // entries
	maxBitmapBytes     = 512 << 20 // of a bitmap, in whole clusters
)

// A Bitmap is a persistent dirty bitmap, as its directory entry describes it.
type Bitmap struct {
	Name        string // up to a NUL: untrusted, not always UTF-8
	Granularity int64  // bytes that a bit stands for, a power of two from 512 to 2 GiB
	InUse       bool   // it was not stored cleanly: its content is inconsistent
	Auto        bool   // enabled: whoever writes to the image must record it here
}

// Bitmaps reads the bitmap directory: at most 65,535 entries and 64 MiB. There
// are none where the image says that the bitmaps are not consistent with it.
func (i *Image) Bitmaps(ctx context.Context) ([]Bitmap, error) {
	if err := i.checkOpen(); err != nil {
		return nil, err
	}
	var all []Bitmap
	err := i.walkBitmaps(ctx, &window{source: i.src}, func(b *Bitmap) { all = append(all, *b) })
	return all, err
}

// A bitmapEntry is an entry of the directory, in host order.
type bitmapEntry struct {
	tableOffset uint64
	tableSize   uint32 // entries
	flags       uint32
	kind        uint8
	granularity uint8 // bits
	nameLength  uint16
	extra       uint32 // bytes
}

// walkBitmaps checks the bitmap directory, and hands each bitmap to visit, unless
// that is nil.
func (i *Image) walkBitmaps(ctx context.Context, w *window, visit func(*Bitmap)) error {
	return i.walkBitmapEntries(ctx, w, func(e *bitmapEntry, name []byte) {
		if visit != nil {
			visit(&Bitmap{
				Name:        string(name),
				Granularity: 1 << e.granularity,
				InUse:       e.flags&bitmapInUse != 0,
				Auto:        e.flags&bitmapAuto != 0,
			})
		}
	})
}

// walkBitmapEntries checks the bitmap directory entry by entry, and hands each to
// visit. The name is valid during the visit.
func (i *Image) walkBitmapEntries(ctx context.Context, w *window, visit func(e *bitmapEntry, name []byte)) error {
	directory := &i.state.Load().bitmaps
	if directory.count == 0 {
		return nil
	}
	names := bitmapNames{seed: maphash.MakeSeed(), seen: make(map[uint64]struct{})}
	var at int64
	for number := range directory.count {
		if at > directory.size-bitmapHeader {
			return corrupt("bitmap directory: entry %d of %d at %d does not fit into %d bytes", number, directory.count, at, directory.size)
		}
		e, name, err := i.readBitmapEntry(ctx, w, directory, at)
		if err == nil {
			err = names.add(e, name)
		}
		if err != nil {
			return fmt.Errorf("qcow2: bitmap directory: entry %d: %w", number, err)
		}
		visit(e, name)
		at += (bitmapHeader + int64(e.nameLength) + 7) &^ 7
	}
	if at != directory.size {
		return corrupt("bitmap directory: %d entries end at %d, must end at %d", directory.count, at, directory.size)
	}
	return nil
}

// readBitmapEntry reads and checks the entry at an offset in the directory. The
// name is valid until the next read.
func (i *Image) readBitmapEntry(ctx context.Context, w *window, directory *bitmapsExtension, at int64) (*bitmapEntry, []byte, error) {
	b, err := w.at(ctx, directory.offset, at, bitmapHeader)
	if err != nil {
		return nil, nil, err
	}
	be := binary.BigEndian
	e := &bitmapEntry{
		tableOffset: be.Uint64(b),
		tableSize:   be.Uint32(b[8:]),
		flags:       be.Uint32(b[12:]),
		kind:        b[16],
		granularity: b[17],
		nameLength:  be.Uint16(b[18:]),
		extra:       be.Uint32(b[20:]),
	}
	if err := i.checkBitmap(e); err != nil {
		return nil, nil, err
	}
	at += bitmapHeader
	if at+int64(e.nameLength) > directory.size {
		return nil, nil, malformed("its name ends at %d, past the directory's end %d", at+int64(e.nameLength), directory.size)
	}
	name, err := w.at(ctx, directory.offset, at, int(e.nameLength))
	name, _, _ = bytes.Cut(name, []byte{0})
	return e, name, err
}

func (i *Image) checkBitmap(e *bitmapEntry) error {
	bytes := int64(e.tableSize) << i.clusterBits // below 2^53
	switch {
	case e.extra != 0:
		return malformed("extra_data_size is %d, must be 0", e.extra)
	case e.tableOffset == 0 || e.tableOffset&uint64(i.clusterSize()-1) != 0:
		return malformed("bitmap_table_offset is %#x, must be a multiple of the cluster size %d, and not 0", e.tableOffset, i.clusterSize())
	case e.tableSize == 0 || e.tableSize > maxBitmapTable || bytes > maxBitmapBytes:
		return malformed("bitmap_table_size is %d, must be 1 to %d", e.tableSize, min(maxBitmapTable, maxBitmapBytes>>i.clusterBits))
	case e.flags&^bitmapFlags != 0:
		return malformed("flags are %#x, of which only %#x are known", e.flags, bitmapFlags)
	case e.kind != bitmapTypeDirty:
		return malformed("type is %d, must be %d", e.kind, bitmapTypeDirty)
	case e.granularity < minGranularityBits || e.granularity > maxGranularityBits:
		return malformed("granularity_bits is %d, must be %d to %d", e.granularity, minGranularityBits, maxGranularityBits)
	case e.nameLength > maxBitmapName:
		return malformed("name_size is %d, may be %d at most", e.nameLength, maxBitmapName)
	}
	// Bits are stored in words of 64.
	need := ceilDiv(ceilDiv(ceilDiv(i.Size(), 1<<e.granularity), 64)*8, i.clusterSize())
	if e.flags&bitmapInUse == 0 && int64(e.tableSize) != need {
		return malformed("bitmap_table_size is %d, must be %d for %d bytes", e.tableSize, need, i.Size())
	}
	return nil
}

// bitmapNames finds names that occur twice, in 8 bytes of memory each.
type bitmapNames struct {
	seed maphash.Seed
	seen map[uint64]struct{}
}

// add takes a name. As in QEMU, a bitmap in use may have that of another.
func (n *bitmapNames) add(e *bitmapEntry, name []byte) error {
	sum := maphash.Bytes(n.seed, name)
	if _, twice := n.seen[sum]; twice && e.flags&bitmapInUse == 0 {
		return malformed("another one has the name %q", name)
	}
	n.seen[sum] = struct{}{}
	return nil
}
