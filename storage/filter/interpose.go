package filter

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/extentd/extentd/storage"
)

// An Op is what is asked of a node. Its text is snake_case.
type Op uint8

// The operations that an [Interposer] sees.
const (
	Read Op = iota
	Extents
	Write
	Zero
	Trim
	Truncate
	Flush
	Ops // how many there are
)

// String is the operation's name, as configurations and counters have it.
func (o Op) String() string {
	names := [Ops]string{"read", "extents", "write", "zero", "trim", "truncate", "flush"}
	if o >= Ops {
		return fmt.Sprintf("Op(%d)", uint8(o))
	}
	return names[o]
}

// A Request is an operation on its way to the node below.
type Request struct {
	Op Op
	// Offset and Length of what has a range, bytes. The Offset of a truncate is
	// the new size.
	Offset, Length int64

	next *storage.Node
	keep bool
	p    []byte
	into *storage.ExtentList
}

// Do asks the node below. It may be called again after an error, and by several
// goroutines only if the caller knows why. n is what was read or written, bytes,
// and the error of a read that meets the end of the file is a bare io.EOF.
func (r Request) Do(ctx context.Context) (n int, err error) {
	switch r.Op {
	case Read:
		return r.next.ReadAt(ctx, r.p, r.Offset)
	case Write:
		return r.next.WriteAt(ctx, r.p, r.Offset)
	case Extents:
		return 0, r.next.Extents(ctx, r.Offset, r.Length, r.into)
	case Zero:
		return 0, r.next.Zero(ctx, r.Offset, r.Length, r.keep)
	case Trim:
		return 0, r.next.Trim(ctx, r.Offset, r.Length)
	case Truncate:
		return 0, r.next.Truncate(ctx, r.Offset)
	default:
		return 0, r.next.Flush(ctx)
	}
}

// An Interposer stands before every operation. It is asked concurrently.
type Interposer interface {
	// Interpose answers the request: by r.Do, or otherwise, then as
	// [storage.File] and [storage.Writer] say.
	Interpose(ctx context.Context, r Request) (n int, err error)
}

// Interpose returns a filter that hands every operation on next to by, and
// passes size and limits on. If by is an io.Closer it is closed before next; if
// it is [Counting] so is the filter.
func Interpose(next *storage.Node, by Interposer) Filter {
	return &interposed{
		Sizes: Sizes{Next: next}, Limits: Limits{Next: next}, Starts: Starts{Next: next},
		next: next, by: by,
	}
}

type interposed struct {
	Sizes
	Limits
	Starts
	next *storage.Node
	by   Interposer
}

var (
	_ Filter   = (*interposed)(nil)
	_ Counting = (*interposed)(nil)
)

func (f *interposed) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	return f.by.Interpose(ctx, Request{Op: Read, Offset: off, Length: int64(len(p)), next: f.next, p: p})
}

func (f *interposed) Extents(ctx context.Context, off, n int64, into *storage.ExtentList) error {
	_, err := f.by.Interpose(ctx, Request{Op: Extents, Offset: off, Length: n, next: f.next, into: into})
	return err
}

func (f *interposed) WriteAt(ctx context.Context, p []byte, off int64) (int, error) {
	return f.by.Interpose(ctx, Request{Op: Write, Offset: off, Length: int64(len(p)), next: f.next, p: p})
}

func (f *interposed) Zero(ctx context.Context, off, n int64, keep bool) error {
	_, err := f.by.Interpose(ctx, Request{Op: Zero, Offset: off, Length: n, next: f.next, keep: keep})
	return err
}

func (f *interposed) Trim(ctx context.Context, off, n int64) error {
	_, err := f.by.Interpose(ctx, Request{Op: Trim, Offset: off, Length: n, next: f.next})
	return err
}

func (f *interposed) Truncate(ctx context.Context, size int64) error {
	_, err := f.by.Interpose(ctx, Request{Op: Truncate, Offset: size, next: f.next})
	return err
}

func (f *interposed) Flush(ctx context.Context) error {
	_, err := f.by.Interpose(ctx, Request{Op: Flush, next: f.next})
	return err
}

// Counters are the interposer's, none if it does not count.
func (f *interposed) Counters() []Counter {
	if c, counts := f.by.(Counting); counts {
		return c.Counters()
	}
	return nil
}

func (f *interposed) Close() error {
	var err error
	if c, closes := f.by.(io.Closer); closes {
		err = c.Close()
	}
	return errors.Join(err, f.next.Close())
}
