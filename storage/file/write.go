package file

import (
	"context"
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"

	"github.com/extentd/extentd/storage"
)

// piece is the most that is zeroed or trimmed before the context is looked at
// again, and pieces end at multiples of it.
const piece = 1 << 30

// A verb is one of the things that fallocate does.
type verb int

const (
	zeroRange verb = iota
	punchHole
	reserve
	verbs
)

// None of them changes the size: see extend.
var modes = [verbs]uint32{
	zeroRange: unix.FALLOC_FL_ZERO_RANGE | unix.FALLOC_FL_KEEP_SIZE,
	punchHole: unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE,
	reserve:   unix.FALLOC_FL_KEEP_SIZE,
}

// zeros are written where nothing better is supported.
var zeros [1 << 20]byte //nolint:gochecknoglobals // nobody changes them

// start is what every change begins with.
func (f *File) start(ctx context.Context, off, n int64) (*writer, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if f.closed.Load() {
		return nil, storage.ErrClosed
	}
	w := f.w.Load()
	if w == nil {
		return nil, fmt.Errorf("%w: opened for reading only", storage.ErrReadOnly)
	}
	if off < 0 || n < 0 || off > storage.MaxSize-n {
		return nil, fmt.Errorf("%w: %d bytes at %d", storage.ErrOutOfRange, n, off)
	}
	return w, nil
}

// WriteAt writes p at off. The context is looked at before the write, which is
// not interrupted.
func (f *File) WriteAt(ctx context.Context, p []byte, off int64) (int, error) {
	w, err := f.start(ctx, off, int64(len(p)))
	if err != nil || len(p) == 0 {
		return 0, err
	}
	n, err := w.write(p, off)
	return n, writeError(err)
}

// Zero makes [off, off+n) read as zeros. With keep, storage that is there stays,
// and where the file system can do so, what is missing is reserved; without, it
// becomes a hole. Where the file system can do neither, zeros are written. Past
// the end the file grows; a device cannot.
func (f *File) Zero(ctx context.Context, off, n int64, keep bool) error {
	w, err := f.start(ctx, off, n)
	if err != nil || n == 0 {
		return err
	}
	if err := f.extend(w, off+n); err != nil {
		return err
	}
	return pieces(ctx, off, n, func(off, n int64) error {
		return w.aligned(off, n, func(off, n int64) error { return w.zero(off, n, keep) })
	})
}

// extend makes the file at least that long. Another may be writing behind that,
// so the size is never set; the last byte, which is the caller's own, is written
// instead, and what it took is given back afterwards.
func (f *File) extend(w *writer, end int64) error {
	size, err := f.seek(0, io.SeekEnd)
	if err != nil || end <= size {
		return err
	}
	_, err = w.buffered(zeros[:1], end-1) // a device says that there is no space
	return writeError(err)
}

// zero is Zero for one piece, inside the file.
func (w *writer) zero(off, n int64, keep bool) error {
	order := []verb{punchHole, zeroRange}
	if keep {
		order = []verb{zeroRange, punchHole}
	}
	for _, v := range order {
		done, err := w.fallocate(v, off, n)
		if done && keep && v == punchHole {
			done, err = w.fallocate(reserve, off, n) // what has just been given back
		}
		if done || err != nil {
			return err
		}
	}
	return w.writeZeros(off, n)
}

func (w *writer) writeZeros(off, n int64) error {
	for n > 0 {
		k, err := w.write(zeros[:min(n, int64(len(zeros)))], off)
		if err != nil {
			return writeError(err)
		}
		off, n = off+int64(k), n-int64(k)
	}
	return nil
}

// aligned calls do for the blocks of a device that lie inside [off, off+n), and
// writes zeros to what is beside them. Files know no alignment.
func (w *writer) aligned(off, n int64, do func(off, n int64) error) error {
	if !w.device {
		return do(off, n)
	}
	first, end := w.blocks(off, n)
	if first >= end {
		return w.writeZeros(off, n)
	}
	if err := w.writeZeros(off, first-off); err != nil {
		return err
	}
	if err := do(first, end-first); err != nil {
		return err
	}
	return w.writeZeros(end, off+n-end)
}

// blocks are the whole blocks inside [off, off+n).
func (w *writer) blocks(off, n int64) (first, end int64) {
	return (off + w.block - 1) / w.block * w.block, (off + n) / w.block * w.block
}

// Trim makes a hole of what lies in the file, where it can have one.
func (f *File) Trim(ctx context.Context, off, n int64) error {
	w, err := f.start(ctx, off, n)
	if err != nil {
		return err
	}
	size, err := f.seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	first, end := off, min(off+n, size)
	if w.device {
		first, end = w.blocks(off, end-off)
	}
	return pieces(ctx, first, end-first, func(off, n int64) error {
		_, err := w.fallocate(punchHole, off, n)
		return err
	})
}

// pieces calls do for one piece after the other.
func pieces(ctx context.Context, off, n int64, do func(off, n int64) error) error {
	for end := off + n; off < end; {
		if err := ctx.Err(); err != nil {
			return err
		}
		till := min(end, off-off%piece+piece)
		if err := do(off, till-off); err != nil {
			return err
		}
		off = till
	}
	return nil
}

// fallocate does one thing to one piece, unless it is not supported, which is
// remembered.
func (w *writer) fallocate(v verb, off, n int64) (done bool, err error) {
	if w.lacks[v].Load() {
		return false, nil
	}
	err = w.control(func(fd int) error { return w.calls.fallocate(fd, modes[v], off, n) })
	switch {
	case err == nil:
		return true, nil
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOSYS):
		w.lacks[v].Store(true)
		return false, nil
	case errors.Is(err, unix.EINVAL): // not this range, for reasons of its own
		return false, nil
	}
	return false, writeError(err)
}

// Truncate sets the size. A device has the size that it has: a smaller one is
// accepted and changes nothing, a larger one is not supported.
func (f *File) Truncate(ctx context.Context, size int64) error {
	w, err := f.start(ctx, size, 0)
	if err != nil {
		return err
	}
	if !w.device {
		return writeError(bare(w.f.Truncate(size)))
	}
	has, err := f.seek(0, io.SeekEnd)
	if err == nil && size > has {
		err = fmt.Errorf("%w: a device of %d bytes cannot grow to %d", storage.ErrUnsupported, has, size)
	}
	return err
}

// Flush makes everything that was changed before it durable. Once it has failed
// it fails for good: what the kernel could not write it may have dropped, and it
// says so only once.
func (f *File) Flush(ctx context.Context) error {
	w, err := f.start(ctx, 0, 0)
	if err != nil {
		return err
	}
	return w.flush(w.calls.fdatasync)
}

// flush is Flush by one of the system's ways. Concurrent ones go one after the
// other, so that none misses another's failure; and of those that wait, one does
// the work of all.
func (w *writer) flush(sync func(fd int) error) error {
	began := w.began.Load()
	w.syncs.Lock()
	defer w.syncs.Unlock()
	if w.failed != nil {
		return fmt.Errorf("an earlier sync failed: %w", w.failed)
	}
	if w.began.Load() > began {
		return nil // by one that began since, and has succeeded
	}
	w.began.Add(1)
	err := w.control(sync)
	if err != nil && !errors.Is(err, storage.ErrClosed) {
		w.failed = err
	}
	return err
}

// writeError is what an error of changing a file means.
func writeError(err error) error {
	err = bare(err)
	for _, full := range []error{unix.ENOSPC, unix.EDQUOT, unix.EFBIG} {
		if errors.Is(err, full) {
			return fmt.Errorf("%w: %w", storage.ErrNoSpace, err)
		}
	}
	return err
}
