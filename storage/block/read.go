package block

import (
	"context"
	"fmt"
	"io"

	"github.com/extentd/extentd/storage"
)

// ReadAt fills p with the guest's bytes from off. The range must lie inside the
// size (else the error wraps storage.ErrOutOfRange and nothing is read) and be a
// multiple of the minimum. It is whole or it fails; on an error p's content is
// undefined.
func (d *Device) ReadAt(ctx context.Context, p []byte, off int64) error {
	if err := d.Check(ctx, off, int64(len(p))); err != nil {
		return err
	}
	return d.readAt(ctx, p, off)
}

func (d *Device) readAt(ctx context.Context, p []byte, off int64) error {
	c := d.cursor(false)
	defer c.put()
	for len(p) > 0 {
		m, err := c.resolve(ctx, off, off+int64(len(p)))
		if err != nil {
			return err
		}
		if err := c.read(ctx, &m, p[:m.Length]); err != nil {
			return err
		}
		p = p[m.Length:]
		off += m.Length
	}
	return nil
}

// read fills p, as long as m, with what m says, which the cursor has found since
// its last release.
func (c *cursor) read(ctx context.Context, m *storage.Mapping, p []byte) error {
	switch {
	case m.Status.Has(storage.Zero):
		clear(p)
		return nil
	case m.Flags&storage.Encrypted != 0:
		return fmt.Errorf("%w: reading encrypted data (offset %d)", storage.ErrUnsupported, m.Offset)
	case m.Flags&storage.Compressed != 0:
		return c.readPacked(ctx, m, p)
	case m.Status.Has(storage.OffsetValid):
		return readNode(ctx, m.Node, p, m.NodeOffset, m.Flags)
	}
	return fmt.Errorf("%w: data at offset %d is nowhere", storage.ErrContract, m.Offset)
}

// readNode reads raw bytes. A node that ends early reads as zeros where the
// mapping says so, and has shrunk where it does not.
func readNode(ctx context.Context, node *storage.Node, p []byte, off int64, flags storage.Flags) error {
	l, err := node.Limits(ctx)
	if err != nil {
		return err
	}
	for int64(len(p)) > l.MaxData {
		if err := readNode(ctx, node, p[:l.MaxData], off, flags); err != nil {
			return err
		}
		p, off = p[l.MaxData:], off+l.MaxData
	}
	whole := p
	if short := int64(len(p)) & (l.Minimum - 1); short != 0 { // the image ends here, its last block need not
		whole = make([]byte, int64(len(p))+l.Minimum-short)
		defer func() { copy(p, whole) }()
	}
	n, err := node.ReadAt(ctx, whole, off)
	if err == nil {
		return nil
	}
	if err != io.EOF { //nolint:errorlint // File's contract is a bare io.EOF, as io.ReaderAt's
		return err
	}
	if n < len(p) && flags&storage.ZeroTail == 0 {
		return fmt.Errorf("%s: ends at %d, short of %d: %w", node.Name(), off+int64(n), off+int64(len(p)), io.ErrUnexpectedEOF)
	}
	clear(whole[n:])
	return nil
}

// readPacked fills p from the unpacked unit that m lies in.
func (c *cursor) readPacked(ctx context.Context, m *storage.Mapping, p []byte) error {
	d := c.d
	unpacker := d.layers[m.Depth].unpacker
	if unpacker == nil {
		return fmt.Errorf("%w: compressed data at offset %d in a layer that cannot unpack", storage.ErrContract, m.Offset)
	}
	unit := unpacker.PackedUnit()
	skip := m.Offset & (unit - 1)
	key := unitKey{m.Depth, m.Offset - skip}
	if int64(len(p)) < unit { // of a whole unit there is no use in keeping it
		if u := d.units.pin(key, m.NodeOffset, unit); u != nil {
			copy(p, u.data[skip:])
			d.units.release(u)
			return nil
		}
	}
	if err := d.unpacks.begin(ctx, unit); err != nil {
		return err
	}
	defer d.unpacks.end(unit)
	if int64(len(p)) == unit {
		return d.unpack(ctx, unpacker, m, p)
	}
	u, hit := d.units.get(key, m.NodeOffset, unit)
	if !hit {
		if err := d.unpack(ctx, unpacker, m, u.data); err != nil {
			d.units.release(u)
			return err
		}
		d.units.add(u, c.units)
	}
	copy(p, u.data[skip:])
	d.units.release(u)
	return nil
}

// unpack reads the packed bytes of m's unit and unpacks them into dst.
func (d *Device) unpack(ctx context.Context, unpacker storage.Unpacker, m *storage.Mapping, dst []byte) error {
	buf := d.packed.Get().(*[]byte)
	defer d.packed.Put(buf)
	src, err := readPackedBytes(ctx, m.Node, buf, m.NodeOffset, int64(m.PackedLength))
	if err != nil {
		return err
	}
	if err := unpacker.Unpack(dst, src); err != nil {
		return fmt.Errorf("%s: compressed cluster at %d: %w", m.Node.Name(), m.NodeOffset, err)
	}
	return nil
}

// readPackedBytes reads n bytes at off into buf, which grows as needed. The
// node may end inside the range: the last unit of an image seldom fills its
// last sector.
func readPackedBytes(ctx context.Context, node *storage.Node, buf *[]byte, off, n int64) ([]byte, error) {
	if int64(cap(*buf)) < n {
		*buf = make([]byte, n)
	}
	src := (*buf)[:n]
	got, err := node.ReadAt(ctx, src, off)
	if err != nil && err != io.EOF { //nolint:errorlint // File's contract is a bare io.EOF, as io.ReaderAt's
		return nil, err
	}
	return src[:got], nil
}
