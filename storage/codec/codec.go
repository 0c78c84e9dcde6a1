// Package codec unpacks compressed clusters: blocks of known size that were
// compressed one by one.
//
// A codec fills its output exactly or fails; it never writes past it, and what
// it allocates besides is bounded by a few hundred KiB whatever the input says.
// It knows nothing of images.
package codec

import "errors"

// ErrCorrupt is wrapped by every error of a codec that comes from its input.
var ErrCorrupt = errors.New("corrupt compressed data")

// A Codec unpacks one block. Safe for concurrent use.
type Codec interface {
	// Unpack fills dst from the packed bytes in src, of which trailing ones
	// may not belong to the block. Input that ends early, or that yields less
	// than dst takes, is an error that wraps [ErrCorrupt]; dst is undefined
	// then. src and dst do not overlap.
	Unpack(dst, src []byte) error
}
