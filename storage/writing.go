package storage

import "context"

// A Writer is a [File] that can be changed. All methods are safe for concurrent
// use. A file that was opened for reading only may have them all the same: they
// fail with [ErrReadOnly] then. What no longer fits fails with [ErrNoSpace].
// Callers reach it through a [Node].
type Writer interface {
	// WriteAt writes p at off. The file grows where it must. As with
	// io.WriterAt, n < len(p) comes with an error.
	WriteAt(ctx context.Context, p []byte, off int64) (n int, err error)
	// Zero makes [off, off+n) read as zeros, as writing them would, without
	// sending them where that is possible. With keep, storage is kept and
	// may be reserved; without, it is given back where possible.
	Zero(ctx context.Context, off, n int64, keep bool) error
	// Trim gives the storage of [off, off+n) back where possible. What is read
	// there afterwards is undefined. What lies past the end is ignored.
	Trim(ctx context.Context, off, n int64) error
	// Truncate sets the size. What it grows by reads as zeros.
	Truncate(ctx context.Context, size int64) error
	// Flush makes everything that was changed before it durable. After a
	// failure nothing is known about what was changed since the last one that
	// succeeded, and trying again proves nothing.
	Flush(ctx context.Context) error
}

// A Starter is a [Writer] that must be made ready before it is written to: it
// was opened for reading, and reads go on meanwhile.
type Starter interface {
	// StartWriting fails with [ErrReadOnly] where the file cannot be written
	// to, with [ErrBusy] where another process does. After a failure the file
	// is as it was. Once it has succeeded it does nothing more.
	StartWriting(ctx context.Context) error
}

// A WritableMapper is a [Mapper] whose map can be changed. It does no data I/O:
// the caller reserves blocks, fills them, and then makes them visible. All
// methods are safe for concurrent use, but the caller orders what overlaps:
// of two concurrent updates of one block either may win. A mapper that was
// opened for reading fails them with [ErrReadOnly]; one whose metadata is in
// doubt, because it could not be written or synced, fails everything that writes
// with [ErrOutOfService]: it must be closed and opened anew.
type WritableMapper interface {
	Mapper
	// Units are the granularities of the map.
	Units() Units
	// Alloc reserves one run of blocks: n bytes rounded up to whole blocks, or,
	// unless the options say that it must be contiguous, less, but at least one
	// block. It is the caller's until it is mapped or freed; nothing refers to
	// it on disk, and after a crash it may have leaked. n is positive.
	Alloc(ctx context.Context, n int64, opt AllocOptions) (Blocks, error)
	// Free gives back blocks that were reserved and are not mapped. The range
	// may be a part of what Alloc gave, in whole blocks. What is not reserved
	// fails with [ErrConflict], and nothing is freed.
	Free(ctx context.Context, b Blocks) error
	// Update makes [off, off+n) what the target says. The range consists of
	// whole units (of Data for ToData, else of Alloc), or ends at the size.
	// Blocks that were mapped there, and are referred to by nothing else, are
	// freed: they are reserved anew only when the change is durable and every
	// [Pin] taken before it has been returned. Readers see each block wholly
	// old or wholly new. On an error a part may have been updated, block by
	// block from off on.
	Update(ctx context.Context, off, n int64, to Target) error
	// CheckWrite is asked before data is written in place, or into reserved
	// blocks, at [off, off+n) of the node: a range that overlaps metadata is a
	// sign of corruption, which takes the image out of service ([ErrCorrupt]).
	CheckWrite(ctx context.Context, node *Node, off, n int64) error
	// Flush makes every update, and every byte written to the nodes before it,
	// durable.
	Flush(ctx context.Context) error
}

// A Pinner is a mapper that reuses blocks. Who reads or writes where a mapping
// says takes a pin before the fetch and returns it when the I/O is done: blocks
// that a mapping of that time names are not reserved for something else
// meanwhile. Pins are for the time of I/O, not of a client. They cost two
// atomic operations, allocate nothing, and never block.
type Pinner interface {
	Pin() Pin
	Unpin(p Pin)
}

// A Pin is what [Pinner] hands out; its value means nothing to the caller.
type Pin uint64

// An Adopter is a WritableMapper that can take up reservations of an earlier
// session, after a restart.
type Adopter interface {
	// Adopt reserves blocks that an earlier session had reserved, all or none:
	// every one must have a refcount of exactly 1. With verify, which is for an
	// image that may have been changed by others, it reads all metadata and
	// makes sure that nothing refers to them. Otherwise it fails with
	// [ErrConflict].
	Adopt(ctx context.Context, blocks []Blocks, verify bool) error
}

// A Resizer is a WritableMapper whose size can be changed. The caller sees to it
// that nothing beyond the smaller of the two sizes is written meanwhile.
type Resizer interface {
	// Resize sets the size in bytes, which a format may round up. What the
	// image grows by reads as zeros, but for the rest of the block that the
	// old size lies in: an image that has shrunk before may show what was
	// there, and the caller clears it. On an error the size is what it was.
	Resize(ctx context.Context, size int64, opt ResizeOptions) error
}

// ResizeOptions configure a resize. The zero value only grows.
type ResizeOptions struct {
	// Shrink allows the size to become smaller: what lies beyond is lost.
	// Without it that fails with [ErrInvalid].
	Shrink bool
	// Backing is the size of the image's backing, bytes. Whole blocks that the
	// image grows by below it are made to read as zeros before the new size is
	// on disk. Default: 0, there is none.
	Backing int64
}

// Units are the granularities of a map, bytes; powers of two. Both are 1 where
// anything goes.
type Units struct {
	// Alloc is the size of a block: the qcow2 cluster. Reservations are made
	// of whole ones, and so are zero and unmapped updates.
	Alloc int64
	// Data is the granularity of a data update inside a block that is already
	// reserved for the range or being mapped whole: the qcow2 subcluster. At
	// most Alloc.
	Data int64
	// Fixed tells that node offsets are guest offsets (raw images, external
	// data files): there is nothing to reserve for others, and a block can be
	// mapped nowhere else.
	Fixed bool
}

// AllocOptions configure a reservation. The zero value takes what comes.
type AllocOptions struct {
	// Guest is the offset that the blocks are meant for, a multiple of the
	// block: with fixed units it decides, else it is not looked at.
	Guest int64
	// Contiguous: all in one run, or nothing with [ErrNoSpace].
	Contiguous bool
}

// Blocks are a run of storage in a node, bytes.
type Blocks struct {
	Node           *Node
	Offset, Length int64
	// Zeroed: they are known to read as zeros.
	Zeroed bool
}

// A TargetKind is what an update makes of a range.
type TargetKind uint8

// Targets of an update.
const (
	// ToData: the bytes at Node and NodeOffset. Those blocks are reserved, and
	// cease to be; or they are the ones that the range already has without
	// showing them (anchored, or preallocated): then they show.
	ToData TargetKind = iota + 1
	// ToUnmapped discards: the range reads as zeros, never as the backing's
	// bytes, and its blocks are freed. Where the format cannot say so it fails
	// with [ErrUnsupported] (qcow2 version 2 with a backing).
	ToUnmapped
	// ToZero reads as zeros, and frees the blocks. Where the format cannot say
	// so it fails as ToUnmapped does, and the caller writes zeros.
	ToZero
	// ToAnchored reads as zeros, and keeps the blocks that are there. Where the
	// format cannot say so it fails likewise.
	ToAnchored
)

// String is the kind for error texts.
func (k TargetKind) String() string {
	names := [...]string{ToData: "data", ToUnmapped: "unmapped", ToZero: "zero", ToAnchored: "anchored zero"}
	if int(k) >= len(names) || k == 0 {
		return "invalid target"
	}
	return names[k]
}

// A Target is what an update makes of a range.
type Target struct {
	Kind TargetKind
	// Node and NodeOffset are of ToData alone.
	Node       *Node
	NodeOffset int64
}
