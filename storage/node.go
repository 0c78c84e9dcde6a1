package storage

import (
	"context"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
)

// NodeOptions configure a node. The zero value is what a server uses.
type NodeOptions struct {
	// Check verifies every extent that the file reports against
	// [ProtocolStatuses]. Default: false. Tests and the debug flag set it.
	Check bool
}

// A Node is an open protocol node or filter: a [File] with a name, its limits
// asked once and enforced before the file is. Safe for concurrent use.
type Node struct {
	name   string
	file   File
	writer Writer // file, nil where it cannot be written to
	check  bool

	limits [limitCount]atomic.Int64 // 0 until asked for
	mu     sync.Mutex               // held while they are
	lists  sync.Pool                // of *ExtentList
}

// NewNode returns a node that owns f. The name stands in mappings and error
// texts; it is no path of the host.
func NewNode(name string, f File, opt NodeOptions) *Node {
	w, _ := f.(Writer)
	n := &Node{name: name, file: f, writer: w, check: opt.Check}
	n.lists.New = func() any { return new(ExtentList) }
	return n
}

// Name is the node's name.
func (n *Node) Name() string { return n.name }

// File is the file below, for abilities beyond the interface (syscall.Conn).
func (n *Node) File() File { return n.file }

// Size is the size of the file in bytes now.
func (n *Node) Size(ctx context.Context) (int64, error) {
	size, err := n.file.Size(ctx)
	if err != nil {
		return 0, fmt.Errorf("%s: size: %w", n.name, err)
	}
	return size, nil
}

// Limit is one of the file's limits, with the default in and clamped. It is
// asked for at the first call, as are those that bound it, and kept for as long
// as the node is open. An error is not kept.
func (n *Node) Limit(ctx context.Context, which Limit) (int64, error) {
	if which < 0 || which >= limitCount {
		return 0, fmt.Errorf("%s: %w: %v", n.name, ErrContract, which)
	}
	if v := n.limits[which].Load(); v != 0 {
		return v, nil
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	var l Limits
	for w := range which + 1 {
		if w != which && !w.bounds(which) {
			continue
		}
		if *l.at(w) = n.limits[w].Load(); l.Of(w) != 0 {
			continue
		}
		if err := l.ask(ctx, n.file, w); err != nil {
			return 0, fmt.Errorf("%s: %w", n.name, err)
		}
		n.limits[w].Store(l.Of(w))
	}
	return l.Of(which), nil
}

// Limits are all of the file's limits, as Limit gives them.
func (n *Node) Limits(ctx context.Context) (Limits, error) {
	var l Limits
	for which := range limitCount {
		v, err := n.Limit(ctx, which)
		if err != nil {
			return Limits{}, err
		}
		*l.at(which) = v
	}
	return l, nil
}

// Advertised are the limits that clients are told of: those that bind, unless
// the file is an [Advertiser]. They are not kept.
func (n *Node) Advertised(ctx context.Context) (Limits, error) {
	a, advertises := n.file.(Advertiser)
	if !advertises {
		return n.Limits(ctx)
	}
	l, err := ResolveLimits(ctx, advertised{a})
	if err != nil {
		return Limits{}, fmt.Errorf("%s: advertised %w", n.name, err)
	}
	return l, nil
}

type advertised struct{ Advertiser }

func (a advertised) Limit(ctx context.Context, which Limit) (int64, error) {
	return a.Advertise(ctx, which)
}

// ReadAt reads len(p) bytes from off, as [File] does. A request that is longer
// than the limit MaxData, or no multiple of the minimum, the end of the file
// excepted, fails as misaligned before the file is asked.
func (n *Node) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if err := n.checkLimits(ctx, MaxData, off, int64(len(p))); err != nil {
		return 0, err
	}
	read, err := n.file.ReadAt(ctx, p, off)
	if err != nil && err != io.EOF { //nolint:errorlint // File's contract is a bare io.EOF, as io.ReaderAt's
		err = fmt.Errorf("%s: read of %d bytes at %d: %w", n.name, len(p), off, err)
	}
	return read, err
}

// checkLimits checks a request against the minimum and the most that the node
// takes of its kind.
func (n *Node) checkLimits(ctx context.Context, which Limit, off, length int64) error {
	most, err := n.Limit(ctx, which)
	if err != nil {
		return err
	}
	if length > most {
		return fmt.Errorf("%s: %w", n.name, &TooLongError{Limit: which, Most: most, Offset: off, Length: length})
	}
	minimum, err := n.Limit(ctx, Minimum)
	if err != nil || (off|length)&(minimum-1) == 0 {
		return err
	}
	size, err := n.Size(ctx)
	if err != nil {
		return err
	}
	return Limits{Minimum: minimum}.CheckAlignment(off, length, size)
}

// WriteAt writes p at off, as [Writer] does, checked as ReadAt is.
func (n *Node) WriteAt(ctx context.Context, p []byte, off int64) (int, error) {
	if err := n.checkWrite(ctx, MaxData, off, int64(len(p))); err != nil {
		return 0, err
	}
	written, err := n.writer.WriteAt(ctx, p, off)
	if err == nil && written < len(p) {
		err = fmt.Errorf("%w: a short write without an error", ErrContract)
	}
	if err != nil {
		err = fmt.Errorf("%s: write of %d bytes at %d: %w", n.name, len(p), off, err)
	}
	return written, err
}

// Zero makes [off, off+length) read as zeros, as [Writer] does. The length is
// at most the limit MaxZero: longer ones are the caller's to split.
func (n *Node) Zero(ctx context.Context, off, length int64, keep bool) error {
	if err := n.checkWrite(ctx, MaxZero, off, length); err != nil {
		return err
	}
	if err := n.writer.Zero(ctx, off, length, keep); err != nil {
		return fmt.Errorf("%s: zero of %d bytes at %d: %w", n.name, length, off, err)
	}
	return nil
}

// Trim gives storage back, as [Writer] does. The length is at most the limit
// MaxTrim: longer ones are the caller's to split.
func (n *Node) Trim(ctx context.Context, off, length int64) error {
	if err := n.checkWrite(ctx, MaxTrim, off, length); err != nil {
		return err
	}
	if err := n.writer.Trim(ctx, off, length); err != nil {
		return fmt.Errorf("%s: trim of %d bytes at %d: %w", n.name, length, off, err)
	}
	return nil
}

// Truncate sets the size of the file in bytes, 0 to [MaxSize].
func (n *Node) Truncate(ctx context.Context, size int64) error {
	if n.writer == nil {
		return fmt.Errorf("%s: %w", n.name, ErrReadOnly)
	}
	if err := CheckRange(0, size, MaxSize); err != nil {
		return fmt.Errorf("%s: truncate: %w", n.name, err)
	}
	if err := n.writer.Truncate(ctx, size); err != nil {
		return fmt.Errorf("%s: truncate to %d bytes: %w", n.name, size, err)
	}
	return nil
}

// Flush makes what was changed before it durable, as [Writer] does.
func (n *Node) Flush(ctx context.Context) error {
	if n.writer == nil {
		return fmt.Errorf("%s: %w", n.name, ErrReadOnly)
	}
	if err := n.writer.Flush(ctx); err != nil {
		return fmt.Errorf("%s: flush: %w", n.name, err)
	}
	return nil
}

func (n *Node) checkWrite(ctx context.Context, which Limit, off, length int64) error {
	if n.writer == nil {
		return fmt.Errorf("%s: %w", n.name, ErrReadOnly)
	}
	if off < 0 || length < 0 || off > MaxSize-length {
		return fmt.Errorf("%s: %w: %d bytes at %d", n.name, ErrOutOfRange, length, off)
	}
	return n.checkLimits(ctx, which, off, length)
}

// Extents appends what the file knows of [off, off+length), as [File] does,
// with Node set, and with boundaries at multiples of the minimum, but for off and
// the end of the file. After an error the list is as it was.
func (n *Node) Extents(ctx context.Context, off, length int64, into *ExtentList) error {
	minimum, err := n.Limit(ctx, Minimum)
	if err != nil {
		return err
	}
	before := into.mark()
	if minimum == 1 {
		err = n.file.Extents(ctx, off, length, into)
	} else {
		err = n.alignedExtents(ctx, off, length, minimum, into)
	}
	if err != nil {
		into.rewind(before)
		return fmt.Errorf("%s: extents at %d: %w", n.name, off, err)
	}
	for i := before.n; i < into.Len(); i++ {
		into.mappings[i].Node = n
	}
	if n.check {
		if err := CheckNodeExtents(into, off); err != nil {
			return fmt.Errorf("%s: %w", n.name, err)
		}
	}
	return nil
}

// StartWriting makes the file ready for being written to, as [Starter] does.
func (n *Node) StartWriting(ctx context.Context) error {
	err := ErrReadOnly
	if f, must := n.file.(Starter); must {
		err = f.StartWriting(ctx)
	} else if n.writer != nil {
		err = ctx.Err()
	}
	if err != nil {
		return fmt.Errorf("%s: %w", n.name, err)
	}
	return nil
}

// Allocated is how many bytes the file takes on disk: its size, where it does
// not know better.
func (n *Node) Allocated(ctx context.Context) (int64, error) {
	f, knows := n.file.(Sparse)
	if !knows {
		return n.Size(ctx)
	}
	allocated, err := f.Allocated(ctx)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", n.name, err)
	}
	return allocated, nil
}

// Close closes the file.
func (n *Node) Close() error { return n.file.Close() }
