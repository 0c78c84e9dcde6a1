package blocksize

import (
	"context"
	"errors"
	"io"

	"github.com/extentd/extentd/storage/rangelock"
)

// errTail: a change ends inside the last block of the file, or past its end, and
// inside a block. Such a block is written up to the file's end and no further,
// so nobody else may make the file longer meanwhile: all from there on must be
// locked.
var errTail = errors.New("change at the end of the file")

// WriteAt writes p at off.
func (f *Filter) WriteAt(ctx context.Context, p []byte, off int64) (int, error) {
	g, err := f.geometry(ctx)
	if err != nil {
		return 0, err
	}
	if g.block == 1 && int64(len(p)) <= g.most {
		return f.next.WriteAt(ctx, p, off)
	}
	if err := checkChange(off, int64(len(p))); err != nil {
		return 0, err
	}
	if len(p) == 0 {
		return f.next.WriteAt(ctx, nil, g.down(off))
	}
	done, err := f.write(ctx, g, p, off, false)
	if errors.Is(err, errTail) {
		var more int
		more, err = f.write(ctx, g, p[done:], off+int64(done), true)
		done += more
	}
	return done, err
}

// write is WriteAt; with tail, the end of the file is locked.
func (f *Filter) write(ctx context.Context, g geometry, p []byte, off int64, tail bool) (done int, err error) {
	hi := g.up(off + int64(len(p)))
	if tail {
		hi = rangelock.Everything
	}
	h, err := f.hold(ctx, g, g.down(off), hi, tail || !g.whole(off, int64(len(p))))
	if err != nil {
		return 0, err
	}
	defer f.lock.Release(h)
	for done < len(p) {
		at := off + int64(done)
		n, direct := g.piece(at, int64(len(p)-done))
		part := p[done : done+int(n)]
		if !direct {
			if err := f.modify(ctx, g, at, n, part, tail); err != nil {
				return done, err
			}
			done += len(part)
			continue
		}
		k, err := f.next.WriteAt(ctx, part, at)
		if done += k; err != nil {
			return done, err
		}
	}
	return done, nil
}

// modify makes [off, off+n), whose blocks fit into a buffer, p, or zeros if that
// is nil. Its blocks are locked, and with tail all that follow. The file ends
// where it did, or at the end of the range.
func (f *Filter) modify(ctx context.Context, g geometry, off, n int64, p []byte, tail bool) error {
	b := buffers.Get().(*buffer)
	defer buffers.Put(b)
	end := off + n
	lo, hi := g.down(off), g.up(end)
	short, err := f.readEdges(ctx, g, b[:hi-lo], off, end)
	if err != nil {
		return err
	}
	if part := b[off-lo : end-lo]; p != nil {
		copy(part, p)
	} else {
		clear(part)
	}
	if short {
		if !tail {
			return errTail
		}
		size, err := f.next.Size(ctx)
		if err != nil {
			return err
		}
		if size < end {
			if err := f.grow(ctx, end); err != nil {
				return err
			}
		}
		hi = min(hi, max(size, end))
	}
	_, err = f.next.WriteAt(ctx, b[:hi-lo], lo)
	return err
}

// readEdges reads into b, which holds the blocks of [off, end), those of which
// that range is a part, with zeros for what lies past the end of the file. It
// reports whether the range ends inside a block that the file does not fill.
func (f *Filter) readEdges(ctx context.Context, g geometry, b []byte, off, end int64) (short bool, err error) {
	lo, hi := g.down(off), g.up(end)
	from, to := lo, hi
	if off == lo {
		from = hi - g.block
	}
	if end == hi {
		to = lo + g.block
	}
	b = b[from-lo : to-lo]
	got, err := f.next.ReadAt(ctx, b, from)
	if got == len(b) {
		return false, nil
	}
	if err != io.EOF { //nolint:errorlint // bare by contract
		return false, shortRead(err)
	}
	clear(b[got:])
	return end < hi, nil
}
