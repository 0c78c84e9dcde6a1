package nbd

import (
	"context"
	"errors"
	"fmt"
	"syscall"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/nbd/wire"
)

// zeros is what is written where a server cannot zero.
var zeros = make([]byte, 1<<20)

// WriteAt writes p at off. Past the end there is no space: the size is fixed, and
// nothing is written then. One that is longer than the limit MaxData is several
// requests. When the context ends it returns at once, and p is not read any more;
// the server may do the write all the same. [ErrLost]: it may or may not be done.
func (f *File) WriteAt(ctx context.Context, p []byte, off int64) (int, error) {
	if err := f.change(ctx, off, int64(len(p))); err != nil {
		return 0, err
	}
	for done := 0; done < len(p); {
		part := p[done:min(len(p), done+int(f.export.data))]
		a := ask{command: wire.CmdWrite, off: off + int64(done), n: int64(len(part)), payload: part}
		if err := f.do(ctx, &a); err != nil {
			return done, err
		}
		done += len(part)
	}
	return len(p), nil
}

// Zero makes [off, off+n) read as zeros: by one request for each 4 GiB where the
// server can, else by writing them. With keep the server is told to make no holes.
// Errors are those of WriteAt.
func (f *File) Zero(ctx context.Context, off, n int64, keep bool) error {
	if err := f.change(ctx, off, n); err != nil {
		return err
	}
	if f.export.can(wire.SendWriteZeroes) {
		a := ask{command: wire.CmdWriteZeroes}
		if keep {
			a.flags = wire.FlagNoHole
		}
		if err := f.pieces(ctx, &a, off, n); !errors.Is(err, storage.ErrUnsupported) {
			return err
		}
	}
	most := min(f.export.data, int64(len(zeros)))
	for end := off + n; off < end; off += most {
		if _, err := f.WriteAt(ctx, zeros[:min(most, end-off)], off); err != nil {
			return err
		}
	}
	return nil
}

// Trim tells the server that [off, off+n) is not needed any more. Servers without
// trim are told nothing. What lies past the end is ignored.
func (f *File) Trim(ctx context.Context, off, n int64) error {
	if err := f.inReach(ctx, off, n); err != nil {
		return err
	}
	if n = min(n, f.export.size-off); n <= 0 || !f.export.can(wire.SendTrim) {
		return nil
	}
	err := f.pieces(ctx, &ask{command: wire.CmdTrim}, off, n)
	if errors.Is(err, storage.ErrUnsupported) {
		return nil // it was no more than a hint
	}
	return err
}

// pieces has something done to a range as large as lengths may be, and once more in
// smaller pieces where a server finds that too much.
func (f *File) pieces(ctx context.Context, a *ask, off, n int64) error {
	most := mostUncounted - f.export.minimum
	for end := off + n; off < end; {
		a.off, a.n = off, min(most, end-off)
		err := f.do(ctx, a)
		if a.n > f.export.data && (errors.Is(err, syscall.EOVERFLOW) || errors.Is(err, syscall.EINVAL)) {
			most = f.export.data
			continue
		}
		if err != nil {
			return err
		}
		off += a.n
	}
	return nil
}

// change checks a range that is to be changed.
func (f *File) change(ctx context.Context, off, n int64) error {
	if err := f.inReach(ctx, off, n); err != nil || n == 0 {
		return err
	}
	if n > f.export.size-off {
		return fmt.Errorf("%w: %d bytes at %d, and the size is fixed at %d", storage.ErrNoSpace, n, off, f.export.size)
	}
	return nil
}

// inReach checks a range that a file may have.
func (f *File) inReach(ctx context.Context, off, n int64) error {
	if err := f.StartWriting(ctx); err != nil {
		return err
	}
	if off < 0 || n < 0 || off > storage.MaxSize-n {
		return fmt.Errorf("%w: %d bytes at %d", storage.ErrOutOfRange, n, off)
	}
	return nil
}

// Truncate accepts the size that the export has, and no other.
func (f *File) Truncate(ctx context.Context, size int64) error {
	if err := f.inReach(ctx, size, 0); err != nil {
		return err
	}
	if size != f.export.size {
		return fmt.Errorf("%w: a size fixed at %d cannot become %d", storage.ErrUnsupported, f.export.size, size)
	}
	return nil
}

// Flush makes everything durable that was answered before it. One request does for
// all connections: there are several only where the server says so. It fails with
// [ErrLost], once, when a connection was lost since the last flush on which something
// had been changed: the server may not have it any more.
func (f *File) Flush(ctx context.Context) error {
	if err := f.StartWriting(ctx); err != nil {
		return err
	}
	f.mu.Lock()
	told := f.reported
	f.mu.Unlock()
	covered := f.generation.Add(1) // what is answered by now is of an earlier one
	var err error
	if f.export.can(wire.SendFlush) {
		err = f.do(ctx, &ask{command: wire.CmdFlush})
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.conns {
		if c.leaving.Load() { // the server that flushed may be another one
			f.account(c)
		}
	}
	if f.losses > told && (err == nil || errors.Is(err, ErrLost)) {
		f.reported = f.losses
		return fmt.Errorf("%w since the last flush: what was changed may not be durable", ErrLost)
	}
	if err == nil {
		f.flushed = max(f.flushed, covered)
	}
	return err
}
