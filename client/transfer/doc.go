// Package transfer copies images: from anything that can be read at offsets to
// anything that can be written to at offsets, in parallel, and without touching what
// is zeros.
//
// It guarantees that [Copy] succeeds only when every byte of the source is on the
// target and the target has been flushed after the last write; that what a [Point]
// says to be copied had been flushed before the point was given to anybody; and that
// a target that lost what it had not flushed ([ErrLost]) is written again from the
// last point on. Memory is bounded: by the number of workers and the size of a piece,
// not by the size of the image or of its map.
//
// It does not guarantee that a source that changes is copied as of one time: sources
// tell whether they have changed, and then the copy fails. What it writes besides the
// source's bytes is zeros, at most up to the next multiple of the target's minimum
// behind the end of the source.
//
// # The checksum
//
// [Sum] is of content, whatever the format that it comes in: SHA-256 over the SHA-256
// digests of the consecutive blocks of 1 MiB, of which the last one may be shorter.
// It can be computed in parallel, and zeros cost next to nothing. For a raw image:
//
//	split -b 1M --filter='sha256sum | cut -c-64 | xxd -r -p' disk.raw | sha256sum
package transfer
