package qcow2

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/maphash"

	"github.com/extentd/extentd/storage"
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

var (
	_ storage.BitmapKeeper = (*Image)(nil)
	_ storage.BitmapJoiner = (*Image)(nil)
	_ storage.Recorder     = (*Image)(nil)
)

// maxCounted bounds what is read to count the bits of bitmaps that are not in
// memory, of all of them together.
const maxCounted = 16 << 20 // bytes

// Bitmaps is the bitmap directory, of at most 65,535 entries and 64 MiB, with what
// is dirty in each. Those beyond the first 16 MiB that would have to be read are not
// counted, nor are those whose tables cannot be. There are none where the image says
// that the bitmaps are not consistent with it.
func (i *Image) Bitmaps(ctx context.Context) ([]storage.BitmapInfo, error) {
	all, err := i.BitmapDirectory(ctx)
	left := int64(maxCounted)
	for k := range all {
		b := &all[k]
		if b.Inconsistent || b.Dirty >= 0 {
			continue
		}
		cost := max(bitsetBytes(i.Size(), granularityBits(b.Granularity)), leastBitmap)
		if left -= cost; left < 0 {
			break
		}
		n, err := i.countDirty(ctx, b.Name)
		switch {
		case err == nil:
			b.Dirty = n
		case errors.Is(err, storage.ErrCorrupt), errors.Is(err, storage.ErrNotFound), errors.Is(err, storage.ErrConflict):
		default:
			return nil, err
		}
	}
	return all, err
}

func (i *Image) countDirty(ctx context.Context, name string) (n int64, err error) {
	err = i.Dirty(ctx, name, 0, i.Size(), func(_, length int64, dirty bool) error {
		if dirty {
			n += length
		}
		return nil
	})
	return n, err
}

// BitmapDirectory is [Image.Bitmaps] without reading any: only those in memory are
// counted.
func (i *Image) BitmapDirectory(ctx context.Context) ([]storage.BitmapInfo, error) {
	if err := i.checkOpen(); err != nil {
		return nil, err
	}
	defer i.Unpin(i.Pin()) // the directory may be replaced
	r := i.recording.Load()
	var all []storage.BitmapInfo
	err := i.walkBitmaps(ctx, &window{source: i.src}, func(_ int64, e *bitmapEntry, name []byte) {
		b := storage.BitmapInfo{
			Name:         string(name),
			Granularity:  1 << e.granularity,
			Enabled:      e.flags&bitmapAuto != 0,
			Inconsistent: e.flags&bitmapInUse != 0,
			Dirty:        -1,
		}
		if l := r.find(b.Name); l != nil && b.Enabled {
			b.Inconsistent, b.Dirty = false, l.count()
		}
		all = append(all, b)
	})
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

// length is how many bytes the entry takes, up to the next.
func (e *bitmapEntry) length() int64 { return (bitmapHeader + int64(e.nameLength) + 7) &^ 7 }

// walkBitmaps checks the bitmap directory entry by entry, and hands each to visit,
// unless that is nil, with where it begins. The name is valid during the visit.
func (i *Image) walkBitmaps(ctx context.Context, w *window, visit func(at int64, e *bitmapEntry, name []byte)) error {
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
		if visit != nil {
			visit(at, e, name)
		}
		at += e.length()
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
	need := ceilDiv(bitsetBytes(i.Size(), e.granularity), i.clusterSize())
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
