package storage

import (
	"errors"
	"fmt"
)

// Every error that leaves this module's storage packages wraps one of these,
// or is an I/O error of the operating system, or a context's error. Their texts
// hold names and offsets from inside the image, never a path of the host.
var (
	// ErrOutOfRange: offset and length do not lie inside the image or file.
	ErrOutOfRange = errors.New("out of range")
	// ErrMisaligned: the request is no multiple of the minimum block size.
	// The error is a *MisalignedError, or a *TooLongError.
	ErrMisaligned = errors.New("misaligned")
	// ErrCorrupt: the image's metadata or a compressed cluster contradicts
	// its format's specification. The image is not served.
	ErrCorrupt = errors.New("corrupt image")
	// ErrUnsupported: the image or the request needs a feature that is not
	// implemented here.
	ErrUnsupported = errors.New("unsupported feature")
	// ErrBackingUnavailable: a backing or data file is missing, loops, or the
	// chain is too deep.
	ErrBackingUnavailable = errors.New("backing unavailable")
	// ErrRefused: policy forbids it, such as a backing name that leads out of
	// the served directories.
	ErrRefused = errors.New("refused by policy")
	// ErrBusy: another process has the file open in a way that excludes ours.
	ErrBusy = errors.New("in use by another process")
	// ErrNotFound: no such file or image.
	ErrNotFound = errors.New("not found")
	// ErrExists: there is such a file or image already.
	ErrExists = errors.New("exists already")
	// ErrReadOnly: the image, or the server, is not to be written to.
	ErrReadOnly = errors.New("read-only")
	// ErrConflict: the state does not allow it: blocks that are mapped already,
	// a range that somebody has claimed, a file that another image needs.
	ErrConflict = errors.New("conflict")
	// ErrNoSpace: the file system, or the format, has no room left.
	ErrNoSpace = errors.New("no space left")
	// ErrOutOfService: metadata could not be written, or a sync failed. What is
	// on disk is consistent; the image must be opened anew.
	ErrOutOfService = errors.New("image is out of service after a failed write")
	// ErrInvalid: an option cannot have this value. The error is an
	// *InvalidError.
	ErrInvalid = errors.New("invalid option")
	// ErrChanged: a remote file is no longer the one that was opened. What was
	// read before belongs to the old one; it must be opened anew.
	ErrChanged = errors.New("changed underneath")
	// ErrClosed: the mapper or node has been closed.
	ErrClosed = errors.New("closed")
	// ErrContract: a mapper or node broke the rules of this package; it is a
	// bug in that layer, found by the checks.
	ErrContract = errors.New("contract violated")
)

// A MisalignedError says which request broke which minimum. It wraps
// [ErrMisaligned].
type MisalignedError struct {
	Minimum        int64 // bytes, a power of two
	Offset, Length int64 // as requested, bytes
}

func (e *MisalignedError) Error() string {
	return fmt.Sprintf("offset %d and length %d must be multiples of %d", e.Offset, e.Length, e.Minimum)
}

func (e *MisalignedError) Unwrap() error { return ErrMisaligned }

// A TooLongError says which request is longer than the node takes at a time. It
// wraps [ErrMisaligned]: it is for the caller to split.
type TooLongError struct {
	Limit          Limit // max_data, max_trim or max_zero
	Most           int64 // its value, bytes
	Offset, Length int64 // as requested, bytes
}

func (e *TooLongError) Error() string {
	return fmt.Sprintf("length %d at %d is more than %v, %d", e.Length, e.Offset, e.Limit, e.Most)
}

func (e *TooLongError) Unwrap() error { return ErrMisaligned }

// An InvalidError says which option has a value that it cannot have, alone or
// beside the others. It wraps [ErrInvalid].
type InvalidError struct {
	Field  string // as in the HTTP contract: cluster_size
	Detail string // what it is and must be: "is 1000, must be a power of two from 512 to 2097152"
}

func (e *InvalidError) Error() string { return e.Field + " " + e.Detail }

func (e *InvalidError) Unwrap() error { return ErrInvalid }

// MaxSize is the largest size of an image or file: 2 EiB, the most that a
// qcow2 image can describe. It leaves room to add two offsets without overflow.
const MaxSize = int64(1) << 61

// CheckRange reports whether [off, off+n) lies inside [0, size), as an error
// that wraps [ErrOutOfRange] when it does not. No sum overflows. n may be 0.
func CheckRange(off, n, size int64) error {
	if off < 0 || n < 0 || off > size || n > size-off {
		return fmt.Errorf("%w: offset %d and length %d exceed the size %d", ErrOutOfRange, off, n, size)
	}
	return nil
}
