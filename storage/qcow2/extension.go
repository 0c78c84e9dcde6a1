package qcow2

import (
	"context"
	"encoding/binary"
	"fmt"
)

// Types of header extensions.
const (
	extensionEnd           = 0
	extensionBackingFormat = 0xe2792aca
	extensionFeatureTable  = 0x6803f857
	extensionBitmaps       = 0x23852875
	extensionCrypto        = 0x0537be77
	extensionDataFile      = 0x44415441
)

const (
	maxBackingFormat  = 15   // bytes
	maxDataFileName   = 4095 // bytes, the longest path there is
	bitmapsLength     = 24
	cryptoLength      = 16
	maxBitmaps        = 65535
	maxDirectoryBytes = 1024 * maxBitmaps
)

// extensions is what the header extensions say. The last of a type counts, as
// in QEMU; unknown ones are passed over.
type extensions struct {
	backingFormat      string
	dataFile           string
	bitmaps            bitmapsExtension
	crypto             bool
	featureTable       hostOffset
	featureTableLength int64
}

// bitmapsExtension says where the bitmap directory is; the zero value says
// that there is none.
type bitmapsExtension struct {
	count  uint32
	offset hostOffset
	size   int64 // bytes
}

// readExtensions reads the header extensions, which begin after the header. On
// an error it returns what it has found so far.
func readExtensions(ctx context.Context, w *window, h *header) (extensions, error) {
	var ext extensions
	for at, end := int64(h.length), h.extensionsEnd(); at < end; {
		b, err := w.at(ctx, 0, at, 8)
		if err != nil {
			return ext, fmt.Errorf("qcow2: header extension at %#x: %w", at, err)
		}
		kind, length := binary.BigEndian.Uint32(b), int64(binary.BigEndian.Uint32(b[4:]))
		at += 8
		if length > end-at { // also where the 8 bytes went past the end
			return ext, corrupt("header extension %#08x at %#x: its length is %d, may be %d at most", kind, at-8, length, max(0, end-at))
		}
		if kind == extensionEnd {
			break
		}
		if err := ext.add(ctx, w, h, kind, at, length); err != nil {
			return ext, fmt.Errorf("qcow2: header extension %#08x at %#x: %w", kind, at-8, err)
		}
		at += (length + 7) &^ 7
	}
	if h.cryptMethod == cryptLUKS && !ext.crypto {
		return ext, corrupt("header: crypt_method is 2 (LUKS), which needs the encryption header extension")
	}
	return ext, nil
}

// add takes the extension whose data is at the offset.
func (e *extensions) add(ctx context.Context, w *window, h *header, kind uint32, at, length int64) (err error) {
	switch kind {
	case extensionBackingFormat:
		if length > maxBackingFormat {
			return malformed("the length of a backing format is %d, may be %d at most", length, maxBackingFormat)
		}
		e.backingFormat, err = w.readString(ctx, hostOffset(at), length)
	case extensionDataFile:
		if length > maxDataFileName {
			return malformed("the length of a data file name is %d, may be %d at most", length, maxDataFileName)
		}
		e.dataFile, err = w.readString(ctx, hostOffset(at), length)
	case extensionFeatureTable:
		e.featureTable, e.featureTableLength = hostOffset(at), length
	case extensionCrypto:
		e.crypto, err = true, checkCrypto(ctx, w, h, at, length)
	case extensionBitmaps:
		if length != bitmapsLength {
			return malformed("the length is %d, must be %d", length, bitmapsLength)
		}
		if h.autoclear&autoclearBitmaps != 0 { // else a program that knows no bitmaps has written to the image
			e.bitmaps, err = readBitmapsExtension(ctx, w, h, at)
		}
	}
	return err
}

func checkCrypto(ctx context.Context, w *window, h *header, at, length int64) error {
	if h.cryptMethod != cryptLUKS {
		return malformed("crypt_method is %d, must be 2 (LUKS)", h.cryptMethod)
	}
	if length != cryptoLength {
		return malformed("the length is %d, must be %d", length, cryptoLength)
	}
	b, err := w.at(ctx, 0, at, cryptoLength)
	if err != nil {
		return err
	}
	if off := binary.BigEndian.Uint64(b); off&uint64(h.clusterSize()-1) != 0 {
		return malformed("the offset of the encryption header is %#x, must be a multiple of the cluster size %d", off, h.clusterSize())
	}
	return nil
}

func readBitmapsExtension(ctx context.Context, w *window, h *header, at int64) (bitmapsExtension, error) {
	b, err := w.at(ctx, 0, at, bitmapsLength)
	if err != nil {
		return bitmapsExtension{}, err
	}
	count, reserved := binary.BigEndian.Uint32(b), binary.BigEndian.Uint32(b[4:])
	size, off := binary.BigEndian.Uint64(b[8:]), binary.BigEndian.Uint64(b[16:])
	switch {
	case reserved != 0:
		err = malformed("the reserved field is %#x, must be 0", reserved)
	case count == 0 || count > maxBitmaps:
		err = malformed("nb_bitmaps is %d, must be 1 to %d", count, maxBitmaps)
	case off&uint64(h.clusterSize()-1) != 0:
		err = malformed("bitmap_directory_offset is %#x, must be a multiple of the cluster size %d", off, h.clusterSize())
	case size == 0 || size > maxDirectoryBytes:
		err = malformed("bitmap_directory_size is %d, must be 1 to %d", size, maxDirectoryBytes)
	case off > maxTableEnd-size:
		err = malformed("bitmap_directory_offset is %#x, must be %#x at most", off, maxTableEnd-size)
	}
	if err != nil {
		return bitmapsExtension{}, err
	}
	return bitmapsExtension{count: count, offset: hostOffset(off), size: int64(size)}, nil
}
