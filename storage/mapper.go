package storage

import "context"

// A Mapper is one image layer: the map from guest blocks to where they live.
// It does no data I/O. Fetch is safe for concurrent use. One whose map can be
// changed is a [WritableMapper].
type Mapper interface {
	// Size is the virtual size in bytes, 0 to [MaxSize]. A resize changes it.
	Size() int64
	// Fetch appends mappings that cover [off, off+n) to into, contiguously:
	// from at or before off to at or after off+n. Metadata that it had to
	// read anyway is volunteered whole, as far as into's window wants it.
	// n is positive, and the range lies inside the size, else the error wraps
	// [ErrOutOfRange]. Nothing that it appends reaches past the size. On an
	// error the list's content is undefined.
	Fetch(ctx context.Context, off, n int64, into *ExtentList) error
	// Close releases what the mapper holds, but not the nodes it was given; one
	// that was written to is flushed and marked clean first, and an error says
	// that this failed. A fetch after it fails with [ErrClosed].
	Close() error
}

// An Unpacker is a Mapper with compressed units. Unpack fills dst, which is
// one unit, from the packed bytes in src, of which trailing ones may not belong
// to it. It fails with an error that wraps [ErrCorrupt]. Safe for concurrent
// use.
type Unpacker interface {
	// PackedUnit is the size of an unpacked unit in bytes, a power of two to
	// which compressed mappings are aligned.
	PackedUnit() int64
	Unpack(dst, src []byte) error
}

// A File is a protocol node: bytes at offsets. All methods are safe for
// concurrent use. Callers reach it through a [Node], which checks its limits.
type File interface {
	// Size is the size in bytes now.
	Size(ctx context.Context) (int64, error)
	// ReadAt reads len(p) bytes from off. As with io.ReaderAt, n < len(p)
	// comes with an error, which is io.EOF where the file ends.
	ReadAt(ctx context.Context, p []byte, off int64) (n int, err error)
	// Extents appends what is known of [off, off+n), beginning at off; it may
	// stop early once it has added one extent, and may go past the end of the
	// range, but not of the file. n is positive, and the range lies inside the
	// file, else the error wraps [ErrOutOfRange]. Statuses are those of
	// [ProtocolStatuses]. Node is left nil, and NodeOffset is the offset in
	// this file.
	Extents(ctx context.Context, off, n int64, into *ExtentList) error
	Limiter
	// Close releases the file. What is called after it fails with [ErrClosed].
	Close() error
}

// A Sparse file may take less on disk than its size.
type Sparse interface {
	// Allocated is how many bytes the file takes.
	Allocated(ctx context.Context) (int64, error)
}

// A Differ is a mapper of one point in time that can tell where it differs from
// another point of the same image, without reading data.
type Differ interface {
	// Changes calls visit for [off, off+n) in order, without gaps and each time with
	// another answer: whether the piece may read otherwise than in since. Nothing
	// that differs is called unchanged. What since had no room for is changed, unless
	// it reads as zeros. It fails with [ErrInvalid] where since is not of the same
	// image; an error of visit ends it, and is returned.
	Changes(ctx context.Context, since Mapper, off, n int64, visit func(off, n int64, changed bool) error) error
}
