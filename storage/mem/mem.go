package mem

import (
	"context"
	"fmt"
	"io"
	"sync"

	"github.com/extentd/extentd/storage"
)

// defaultMaxBytes is what a file may take unless the options say otherwise.
const defaultMaxBytes = 1 << 30

// Options configure a file. The zero value is an empty one.
type Options struct {
	// Size in bytes, 0 to [storage.MaxSize]. Default: 0. All of it is a hole.
	Size int64
	// MaxBytes is the most memory that the file's pages take, bytes, in whole
	// pages of [PageSize]. The index over them comes on top: less than a
	// hundredth, or up to a third where pages lie alone, far from each other.
	// Default: 1 GiB.
	MaxBytes int64
}

// A File is a file in memory, which can grow and shrink. Safe for concurrent
// use.
type File struct {
	most int64 // pages

	mu     sync.RWMutex // protects all below
	size   int64
	tree   tree // what is not in it is a hole; past the size pages are zeros
	closed bool
}

var (
	_ storage.File   = (*File)(nil)
	_ storage.Writer = (*File)(nil)
	_ storage.Sparse = (*File)(nil)
)

// New returns a file that is one hole. An option that it cannot have fails with
// a [storage.InvalidError].
func New(opt Options) (*File, error) {
	if opt.Size < 0 || opt.Size > storage.MaxSize {
		return nil, &storage.InvalidError{Field: "size", Detail: fmt.Sprintf("is %d, must be 0 to %d", opt.Size, storage.MaxSize)}
	}
	if opt.MaxBytes < 0 {
		return nil, &storage.InvalidError{Field: "max", Detail: fmt.Sprintf("is %d, must not be negative", opt.MaxBytes)}
	}
	if opt.MaxBytes == 0 {
		opt.MaxBytes = defaultMaxBytes
	}
	return &File{size: opt.Size, most: opt.MaxBytes / PageSize}, nil
}

// read takes the lock for reading, unless the context has ended or the file is
// closed: then nothing is locked.
func (f *File) read(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	f.mu.RLock()
	if f.closed {
		f.mu.RUnlock()
		return storage.ErrClosed
	}
	return nil
}

// Size is the size in bytes now.
func (f *File) Size(ctx context.Context) (int64, error) {
	if err := f.read(ctx); err != nil {
		return 0, err
	}
	defer f.mu.RUnlock()
	return f.size, nil
}

// Allocated is how many bytes of memory the pages take.
func (f *File) Allocated(ctx context.Context) (int64, error) {
	if err := f.read(ctx); err != nil {
		return 0, err
	}
	defer f.mu.RUnlock()
	return f.tree.count * PageSize, nil
}

// Limit leaves every limit to its default.
func (f *File) Limit(context.Context, storage.Limit) (int64, error) { return 0, nil }

// ReadAt reads len(p) bytes from off; it is io.EOF where the file ends.
func (f *File) ReadAt(ctx context.Context, p []byte, off int64) (n int, err error) {
	if off < 0 {
		return 0, fmt.Errorf("%w: offset %d", storage.ErrOutOfRange, off)
	}
	if err := f.read(ctx); err != nil {
		return 0, err
	}
	defer f.mu.RUnlock()
	if len(p) == 0 {
		return 0, nil
	}
	if left := max(0, f.size-off); int64(len(p)) > left {
		p, err = p[:left], io.EOF
	}
	for n < len(p) {
		number, within := place(off + int64(n))
		to := p[n:min(len(p), n+PageSize-within)]
		if page := f.tree.get(number); page != nil {
			copy(to, page[within:])
		} else {
			clear(to)
		}
		n += len(to)
	}
	return n, err
}

// place is the page that an offset lies in, and where in it.
func place(off int64) (number int64, within int) {
	return off / PageSize, int(off % PageSize)
}

// batch is the most extents that one call adds.
const batch = 1024

// Extents appends data where there are pages, zeros where there are none. It
// stops after a batch of extents, and the last one is reported as far as it
// goes.
func (f *File) Extents(ctx context.Context, off, n int64, into *storage.ExtentList) error {
	if err := f.read(ctx); err != nil {
		return err
	}
	defer f.mu.RUnlock()
	if err := storage.CheckRange(off, n, f.size); err != nil {
		return err
	}
	if n == 0 {
		return fmt.Errorf("%w: no extents of an empty range at %d", storage.ErrOutOfRange, off)
	}
	_, end := into.Window()
	end = min(off+n, end)
	for range batch {
		m := f.extent(off)
		if err := into.Add(m); err != nil {
			return err
		}
		if off = m.End(); off >= end {
			break
		}
	}
	return nil
}

// extent is the longest extent from off. f.mu must be held.
func (f *File) extent(off int64) storage.Mapping {
	number, _ := place(off)
	m := storage.Mapping{Offset: off, NodeOffset: off, Status: storage.Zero | storage.OffsetValid}
	end := f.size
	switch next, ok := f.tree.next(number); {
	case !ok:
	case next == number:
		m.Status = storage.Alloc | storage.OffsetValid
		end = f.tree.run(number) * PageSize
	default:
		end = next * PageSize
	}
	m.Length = min(end, f.size) - off
	return m
}

// Close frees the memory and makes every later call fail.
func (f *File) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return storage.ErrClosed
	}
	f.closed, f.tree = true, tree{}
	return nil
}
