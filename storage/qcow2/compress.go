package qcow2

import (
	"fmt"

	"github.com/extentd/extentd/storage"
)

// sectorSize is the unit in which the length of packed bytes is stored.
const sectorSize = 512

// packed is where the packed bytes of a compressed cluster are, and how many
// there may be: the sectors that its descriptor counts, less what lies before
// the offset in the first of them. At most 4 MiB.
func (i *Image) packed(e uint64) (off int64, length int32) {
	shift := i.sectorsShift()
	off = int64(e & (1<<shift - 1))
	sectors := e >> shift & (1<<(62-shift) - 1)
	return off, int32((sectors+1)*sectorSize) - int32(off%sectorSize)
}

// sectorsShift is where the number of sectors begins in a compressed cluster
// descriptor (x in the specification).
func (i *Image) sectorsShift() uint { return 62 - (i.clusterBits - 8) }

func (i *Image) compressedProblem(e uint64) string {
	if i.info.HasDataFile {
		return "a compressed cluster in an image with an external data file"
	}
	if off, _ := i.packed(e); off >= hostEnd {
		return "the offset of compressed data must be below 2^56"
	}
	return ""
}

// PackedUnit is the cluster size.
func (i *Image) PackedUnit() int64 { return i.clusterSize() }

// Unpack unpacks a compressed cluster. What QEMU accepts is accepted: sectors
// that follow the data, and data that goes on past the cluster where it is
// deflated.
func (i *Image) Unpack(dst, src []byte) error {
	if err := i.checkOpen(); err != nil {
		return err
	}
	if int64(len(dst)) != i.clusterSize() {
		return fmt.Errorf("qcow2: %w: unpacking into %d bytes, must be the cluster size %d", storage.ErrContract, len(dst), i.clusterSize())
	}
	if err := i.codec.Unpack(dst, src); err != nil {
		return fmt.Errorf("qcow2: %w: %w", storage.ErrCorrupt, err)
	}
	return nil
}
