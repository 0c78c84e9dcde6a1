package block

import (
	"context"

	"github.com/extentd/extentd/storage"
)

// composeMost is up to where new bytes are copied beside what lies around them,
// so that one write does.
const composeMost = 128 << 10

// A filling is new bytes for the guest's [off, end), and with what is read there
// now around them up to [lo, hi), on their way into blocks that nobody can see.
type filling struct {
	lo, off, end, hi int64 // hi may lie past the size
	node             *storage.Node
	at               int64 // where lo goes, in the node
	zeroed           bool  // the blocks read as zeros already
}

// fill writes p and what lies around it.
func (w *writer) fill(ctx context.Context, f *filling, p []byte) error {
	head, tail := f.off-f.lo, f.hi-f.end
	if head == 0 && tail == 0 {
		w.change()
		return w.d.writeNode(ctx, f.node, p, f.at)
	}
	n := head + tail
	together := f.hi-f.lo <= composeMost
	if together {
		n = f.hi - f.lo
	}
	buf := w.buffer(n)
	noHead, err := w.around(ctx, buf[:head], f.lo)
	if err != nil {
		return err
	}
	noTail, err := w.around(ctx, buf[n-tail:], f.end)
	if err != nil {
		return err
	}
	w.change()
	lo, hi := int64(0), n
	if noHead && f.zeroed {
		lo = head
	}
	if noTail && f.zeroed {
		hi -= tail
	}
	if together {
		copy(buf[head:], p)
		if lo == head && hi == n-tail {
			buf, lo, hi, f = p, 0, int64(len(p)), &filling{node: f.node, at: f.at + head}
		}
		return w.d.writeNode(ctx, f.node, buf[lo:hi], f.at+lo)
	}
	for _, part := range []struct {
		p  []byte
		at int64
	}{{buf[lo:head], f.at + lo}, {p, f.at + head}, {buf[head:hi], f.at + f.end - f.lo}} {
		if err := w.d.writeNode(ctx, f.node, part.p, part.at); err != nil {
			return err
		}
	}
	return nil
}

// buffer is n bytes, valid until the next call.
func (w *writer) buffer(n int64) []byte {
	if int64(cap(w.buf)) < n {
		w.buf = make([]byte, n)
	}
	return w.buf[:n]
}

// around reads what the guest sees from off on, and reports whether the map says
// that all of it is zeros. Past the size there are zeros.
func (w *writer) around(ctx context.Context, p []byte, off int64) (zero bool, err error) {
	zero = true
	for size := w.c.sizeOf(0); len(p) > 0 && off < size; {
		m, err := w.c.resolve(ctx, off, min(off+int64(len(p)), size))
		if err != nil {
			return false, err
		}
		zero = zero && m.Status.Has(storage.Zero)
		if err := w.c.read(ctx, &m, p[:m.Length]); err != nil {
			return false, err
		}
		p, off = p[m.Length:], m.End()
	}
	clear(p)
	return zero, nil
}
