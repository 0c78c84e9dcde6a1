package qcow2

import (
	"bytes"
	"context"
	"fmt"
	"math/bits"
	"strings"
)

// Feature bits, as in the specification's header section.
const (
	incompatDirty uint64 = 1 << iota
	incompatCorrupt
	incompatDataFile
	incompatCompression
	incompatExtendedL2
	incompatEnd

	incompatKnown = incompatEnd - 1

	compatLazyRefcounts uint64 = 1 << 0

	autoclearBitmaps     uint64 = 1 << 0
	autoclearDataFileRaw uint64 = 1 << 1
)

// A feature name table has entries of 48 bytes: type, bit, 46 bytes of name.
const (
	featureEntry            = 48
	featureTypeIncompatible = 0
)

// unknownFeatures is the error for incompatible bits that this package does not
// know, with the names that the image's feature name table has for them.
func unknownFeatures(ctx context.Context, w *window, h *header) error {
	unknown := h.incompatible &^ incompatKnown
	ext, _ := readExtensions(ctx, w, h) // what could be read is good enough for names
	var names []string
	for skip := int64(0); skip+featureEntry <= ext.featureTableLength && unknown != 0; skip += featureEntry {
		entry, err := w.at(ctx, ext.featureTable, skip, featureEntry)
		if err != nil || entry[2] == 0 {
			break
		}
		kind, bit := entry[0], entry[1]
		if kind != featureTypeIncompatible || bit > 63 || unknown&(1<<bit) == 0 {
			continue
		}
		name, _, _ := bytes.Cut(entry[2:], []byte{0})
		names = append(names, fmt.Sprintf("%q (bit %d)", name, bit))
		unknown &^= 1 << bit
	}
	for ; unknown != 0; unknown &= unknown - 1 {
		names = append(names, fmt.Sprintf("incompatible bit %d", bits.TrailingZeros64(unknown)))
	}
	return unsupported("header: the image needs %s", strings.Join(names, ", "))
}
