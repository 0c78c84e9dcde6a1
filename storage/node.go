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

// A Node is an open protocol node: a [File] with a name, its limits asked once
// and enforced before the file is. Safe for concurrent use.
type Node struct {
	name   string
	file   File
	writer Writer // file, nil where it cannot be written to
	check  bool

	limits atomic.Pointer[Limits] // nil until asked for
	mu     sync.Mutex             // held while the limits are asked for
}

// NewNode returns a node that owns f. The name stands in mappings and error
// texts; it is no path of the host.
func NewNode(name string, f File, opt NodeOptions) *Node {
	w, _ := f.(Writer)
	return &Node{name: name, file: f, writer: w, check: opt.Check}
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

// Limits are the file's limits, complete; asked for at the first call and kept
// for as long as the node is open. An error is not kept.
func (n *Node) Limits(ctx context.Context) (Limits, error) {
	if l := n.limits.Load(); l != nil {
		return *l, nil
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if l := n.limits.Load(); l != nil {
		return *l, nil
	}
	l, err := ResolveLimits(ctx, n.file)
	if err != nil {
		return Limits{}, fmt.Errorf("%s: %w", n.name, err)
	}
	n.limits.Store(&l)
	return l, nil
}

// ReadAt reads len(p) bytes from off, as [File] does. A request that is no
// multiple of the minimum, the end of the file excepted, fails as misaligned
// before the file is asked.
func (n *Node) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	l, err := n.Limits(ctx)
	if err != nil {
		return 0, err
	}
	if err := n.checkAlignment(ctx, l, off, int64(len(p))); err != nil {
		return 0, err
	}
	read, err := n.file.ReadAt(ctx, p, off)
	if err != nil && err != io.EOF { //nolint:errorlint // File's contract is a bare io.EOF, as io.ReaderAt's
		err = fmt.Errorf("%s: read of %d bytes at %d: %w", n.name, len(p), off, err)
	}
	return read, err
}

func (n *Node) checkAlignment(ctx context.Context, l Limits, off, length int64) error {
	if (off|length)&(l.Minimum-1) == 0 {
		return nil
	}
	size, err := n.Size(ctx)
	if err != nil {
		return err
	}
	return l.CheckAlignment(off, length, size)
}

// WriteAt writes p at off, as [Writer] does, checked as ReadAt is.
func (n *Node) WriteAt(ctx context.Context, p []byte, off int64) (int, error) {
	if err := n.checkWrite(ctx, off, int64(len(p))); err != nil {
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
	if err := n.checkWrite(ctx, off, length); err != nil {
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
	if err := n.checkWrite(ctx, off, length); err != nil {
		return err
	}
	if err := n.writer.Trim(ctx, off, length); err != nil {
		return fmt.Errorf("%s: trim of %d bytes at %d: %w", n.name, length, off, err)
	}
	return nil
}

// Truncate sets the size of the file in bytes.
func (n *Node) Truncate(ctx context.Context, size int64) error {
	if err := n.checkWrite(ctx, 0, 0); err != nil {
		return err
	}
	if err := n.writer.Truncate(ctx, size); err != nil {
		return fmt.Errorf("%s: truncate to %d bytes: %w", n.name, size, err)
	}
	return nil
}

// Flush makes what was changed before it durable, as [Writer] does.
func (n *Node) Flush(ctx context.Context) error {
	if err := n.checkWrite(ctx, 0, 0); err != nil {
		return err
	}
	if err := n.writer.Flush(ctx); err != nil {
		return fmt.Errorf("%s: flush: %w", n.name, err)
	}
	return nil
}

func (n *Node) checkWrite(ctx context.Context, off, length int64) error {
	if n.writer == nil {
		return fmt.Errorf("%s: %w", n.name, ErrReadOnly)
	}
	if off < 0 || length < 0 || off > MaxSize-length {
		return fmt.Errorf("%s: %w: %d bytes at %d", n.name, ErrOutOfRange, length, off)
	}
	l, err := n.Limits(ctx)
	if err != nil {
		return err
	}
	return n.checkAlignment(ctx, l, off, length)
}

// Extents appends what the file knows of [off, off+length), as [File] does,
// with Node set.
func (n *Node) Extents(ctx context.Context, off, length int64, into *ExtentList) error {
	before := into.Len()
	if err := n.file.Extents(ctx, off, length, into); err != nil {
		return fmt.Errorf("%s: extents at %d: %w", n.name, off, err)
	}
	for i := before; i < into.Len(); i++ {
		into.mappings[i].Node = n
	}
	if n.check {
		if err := CheckNodeExtents(into, off); err != nil {
			return fmt.Errorf("%s: %w", n.name, err)
		}
	}
	return nil
}

// Close closes the file.
func (n *Node) Close() error { return n.file.Close() }
