package blocksize

import (
	"context"
	"fmt"
	"io"

	"github.com/extentd/extentd/storage"
)

// ReadAt reads len(p) bytes from off. It needs no lock: the bytes of a block that
// a change beside it does not touch are written as they were.
func (f *Filter) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	g, err := f.geometry(ctx)
	if err != nil {
		return 0, err
	}
	switch {
	case g.block == 1 && int64(len(p)) <= g.most:
		return f.next.ReadAt(ctx, p, off)
	case off < 0:
		return 0, fmt.Errorf("%w: offset %d", storage.ErrOutOfRange, off)
	case len(p) == 0 || off > storage.MaxSize: // no sum below overflows
		return f.readNothing(ctx, len(p))
	}
	done := 0
	for done < len(p) {
		at := off + int64(done)
		n, direct := g.piece(at, int64(len(p)-done))
		part := p[done : done+int(n)]
		var got int
		if direct {
			got, err = f.next.ReadAt(ctx, part, at)
		} else {
			got, err = f.readThrough(ctx, g, part, at)
		}
		if done += got; got < len(part) {
			return done, shortRead(err)
		}
	}
	return done, nil
}

// readNothing is a read past every file's end, or of nothing, which fails for
// other reasons alone.
func (f *Filter) readNothing(ctx context.Context, n int) (int, error) {
	_, err := f.next.ReadAt(ctx, nil, 0)
	if err == nil && n > 0 {
		err = io.EOF
	}
	return 0, err
}

// readThrough reads the blocks around p into a buffer.
func (f *Filter) readThrough(ctx context.Context, g geometry, p []byte, off int64) (int, error) {
	b := buffers.Get().(*buffer)
	defer buffers.Put(b)
	lo := g.down(off)
	n, err := f.next.ReadAt(ctx, b[:g.up(off+int64(len(p)))-lo], lo)
	got := copy(p, b[min(int(off-lo), n):n])
	return got, err
}

// shortRead is the error of a read of less than was asked for.
func shortRead(err error) error {
	if err == nil {
		return fmt.Errorf("%w: a short read without an error", storage.ErrContract)
	}
	return err
}
