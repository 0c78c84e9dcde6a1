// Package qcow2 is the format driver for qcow2 images, versions 2 and 3, as
// specified in QEMU's docs/interop/qcow2.rst: it maps guest blocks to where
// they live, and changes the map. It reads and writes metadata only: the data
// are its caller's.
//
// It guarantees that a hostile image costs no more than a well-formed one:
// every number of the header is checked before memory is allocated for it,
// tables are read in small pieces when they are needed, and what is kept of
// them is bounded ([Options].CacheSize). Opening an image takes no time that
// grows with its size, but reads through the snapshot table and the bitmap
// directory, 64 MiB each at most; starting to write reads the L1 and the refcount
// table too, 40 MiB at most. No read or write of metadata is longer than 8 MiB.
// What QEMU refuses to open is refused, and where QEMU is lenient so is this
// package: what of the metadata lies past the end of the file reads as zeros, for
// one. An entry that contradicts the format fails the fetch of the range that it
// describes and no other; a write that comes across it marks the image corrupt.
//
// # Writing
//
// An image is opened for reading, and becomes writable by
// [Image.StartWriting]. From then on it guarantees, if the nodes' Flush keeps
// its promise:
//
//   - After a crash at any time the image is consistent. The worst that is left
//     are clusters that are in use and that nothing refers to. With lazy
//     refcounts the image is marked dirty instead, and repaired by whoever
//     writes to it next.
//   - What was updated before a Flush that succeeded is there; of what came
//     later each cluster is wholly old or wholly new, and no entry refers to a
//     cluster whose data were not durable before it.
//   - A cluster is reserved for one caller at a time, and not before what
//     referred to it last is durably gone, its readers have returned their
//     pins, and the host has been told that it is unused.
//   - Nothing is written over metadata: of a write that would do so the image
//     says that it is corrupt, and is written to no more.
//   - A metadata write or a sync that fails takes the image out of service for
//     everything that writes; reading goes on from what is in memory. A lack of
//     space does not: what could not be written stays dirty. Nor does a failed
//     write of the header that is found to be wholly done, or not at all.
//   - What a failed read kept from being given back is given back by a later
//     flush.
//
// Updates change the tables in memory; [Image.Flush] writes them, in the order
// that commit.go describes, and so does an update that finds half of the cache
// dirty. Readers take no lock: slices of tables never change, an update replaces
// them.
//
// It does not verify refcounts while it writes (see [Check]), follow backing file
// names, encrypt or decrypt, or compress.
//
// # Bitmaps
//
// Enabled bitmaps are in memory while an image is written to, up to 64 MiB of them;
// whoever writes data tells [Image.Record] first. They are marked in use on disk,
// durably, before the first change that they lack there, and stored when the image is
// closed. After a crash a bitmap is inconsistent, or says at least what has changed.
// Nothing is recorded by itself: what updates change is what their caller has recorded,
// but for resizes and reverts to snapshots.
package qcow2
