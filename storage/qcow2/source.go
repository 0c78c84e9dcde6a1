package qcow2

import (
	"bytes"
	"context"
	"fmt"
	"io"

	"github.com/extentd/extentd/storage"
)

// A source reads and writes an image's metadata. What lies past the end of the
// file reads as zeros, as it does in QEMU. Its errors do not say what was read or
// written. No caller asks for more than a refcount table at once, 8 MiB, which a
// node with the default limits takes.
type source struct {
	node  *storage.Node
	align int64 // the node's minimum block size
}

func newSource(ctx context.Context, node *storage.Node) (source, error) {
	l, err := node.Limits(ctx)
	if err != nil {
		return source{}, fmt.Errorf("qcow2: %w", err)
	}
	return source{node: node, align: l.Minimum}, nil
}

// read fills p from off.
func (s source) read(ctx context.Context, p []byte, off hostOffset) error {
	at, n := int64(off), int64(len(p))
	if at < 0 || at > maxTableEnd-n {
		return malformed("metadata at %#x, beyond what can be read", at)
	}
	if at > storage.MaxSize-n { // no file is as long
		clear(p)
		return nil
	}
	if (at|n)&(s.align-1) == 0 {
		return s.readAligned(ctx, p, at)
	}
	skip := at & (s.align - 1)
	buf := make([]byte, ceilDiv(skip+n, s.align)*s.align)
	if err := s.readAligned(ctx, buf, at-skip); err != nil {
		return err
	}
	copy(p, buf[skip:])
	return nil
}

func (s source) readAligned(ctx context.Context, p []byte, at int64) error {
	n, err := s.node.ReadAt(ctx, p, at)
	switch {
	case n == len(p):
		return nil
	case err == io.EOF: //nolint:errorlint // File's contract is a bare io.EOF, as io.ReaderAt's
		clear(p[n:])
		return nil
	case err == nil:
		return fmt.Errorf("%s: %w: read of %d bytes at %#x gave %d and no error", s.node.Name(), storage.ErrContract, len(p), at, n)
	}
	return err
}

// write writes p at off, of whole blocks of the node: what else is in them is
// read and written back.
func (s source) write(ctx context.Context, p []byte, off hostOffset) error {
	at, n := int64(off), int64(len(p))
	if (at|n)&(s.align-1) == 0 {
		_, err := s.node.WriteAt(ctx, p, at)
		return err
	}
	skip := at & (s.align - 1)
	buf := make([]byte, ceilDiv(skip+n, s.align)*s.align)
	if err := s.readAligned(ctx, buf, at-skip); err != nil {
		return err
	}
	copy(buf[skip:], p)
	_, err := s.node.WriteAt(ctx, buf, at-skip)
	return err
}

// readString reads n bytes, which the caller has found to be few, up to the
// first NUL: there QEMU ends a string.
func (s source) readString(ctx context.Context, at hostOffset, n int64) (string, error) {
	if n == 0 {
		return "", nil
	}
	b := make([]byte, n)
	if err := s.read(ctx, b, at); err != nil {
		return "", err
	}
	b, _, _ = bytes.Cut(b, []byte{0})
	return string(b), nil
}

// A window reads small pieces of a table one after the other, through a buffer.
type window struct {
	source
	buf   []byte // of windowSize, allocated by the first read
	start hostOffset
}

const windowSize = 4 << 10

// at is the n bytes that begin skip bytes into a table. n is at most
// windowSize. They are valid until the next call.
func (w *window) at(ctx context.Context, table hostOffset, skip int64, n int) ([]byte, error) {
	if table < 0 || skip < 0 || skip > maxTableEnd || int64(table) > maxTableEnd-skip-int64(n) {
		return nil, malformed("metadata at %#x + %#x, beyond what can be read", int64(table), skip)
	}
	off := table + hostOffset(skip)
	if w.buf != nil && off >= w.start && off <= w.start+hostOffset(len(w.buf)-n) {
		return w.buf[off-w.start:][:n], nil
	}
	if w.buf == nil {
		w.buf = make([]byte, windowSize)
	}
	start := min(off, maxTableEnd-windowSize)
	if err := w.read(ctx, w.buf, start); err != nil {
		w.buf = nil
		return nil, err
	}
	w.start = start
	return w.buf[off-start:][:n], nil
}
