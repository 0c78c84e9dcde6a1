package readahead

import (
	"context"
	"fmt"
	"io"

	"github.com/extentd/extentd/storage"
)

// ReadAt reads len(p) bytes from off: what was read ahead from memory, and the
// rest from the node.
func (f *Filter) ReadAt(ctx context.Context, p []byte, off int64) (n int, err error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	if off < 0 || off > storage.MaxSize-int64(len(p)) || len(p) == 0 {
		return f.next.ReadAt(ctx, p, off)
	}
	most, err := f.next.Limit(ctx, storage.MaxData)
	if err != nil {
		return 0, err
	}
	minimum, err := f.next.Limit(ctx, storage.Minimum)
	if err != nil {
		return 0, err
	}
	f.note(off, off+int64(len(p)), minimum, most)
	for n < len(p) {
		k, err := f.some(ctx, p[n:], off+int64(n))
		if n += k; err != nil {
			return n, err
		}
	}
	return n, nil
}

// some reads a beginning of p, which may be nothing: then it is to be called
// again.
func (f *Filter) some(ctx context.Context, p []byte, off int64) (int, error) {
	f.mu.Lock()
	if f.closed {
		f.mu.Unlock()
		return 0, storage.ErrClosed
	}
	w, hi := f.find(off, off+int64(len(p)))
	if w == nil {
		f.mu.Unlock()
		n, err := f.next.ReadAt(ctx, p[:hi-off], off)
		if err == nil && int64(n) < hi-off {
			err = fmt.Errorf("%w: a short read without an error", storage.ErrContract)
		}
		return n, err
	}
	w.readers++
	w.last = f.clock
	f.mu.Unlock()
	n, err := w.copy(ctx, p, off)
	f.mu.Lock()
	defer f.mu.Unlock()
	w.readers--
	f.used += max(0, off+int64(n)-max(w.seen, off))
	w.seen = max(w.seen, off+int64(n))
	return n, err
}

// copy waits for the window, of which the caller is a reader, and copies a
// beginning of p: nothing, where it has been dropped meanwhile.
func (w *window) copy(ctx context.Context, p []byte, off int64) (int, error) {
	select {
	case <-w.done:
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	if w.dropped.Load() {
		return 0, nil
	}
	n := copy(p, w.buf[min(off-w.lo, w.got):w.got])
	if n < len(p) && w.short() {
		return n, io.EOF
	}
	return n, nil
}
