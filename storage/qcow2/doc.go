// Package qcow2 is the format driver for qcow2 images, versions 2 and 3, as
// specified in QEMU's docs/interop/qcow2.rst: it maps guest blocks to where
// they live. Images are read, never written.
//
// It guarantees that a hostile image costs no more than a well-formed one:
// every number of the header is checked before memory is allocated for it,
// tables are read in small pieces when they are needed, and what is kept of
// them is bounded ([Options].CacheSize). Opening an image takes no time that
// grows with its size. What QEMU refuses to open is refused, and where QEMU is
// lenient so is this package: what of the metadata lies past the end of the
// file reads as zeros, for one.
//
// It does not verify refcounts, follow backing file names, or decrypt. An entry
// that contradicts the format fails the fetch of the range that it describes
// and no other.
package qcow2
