package file

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/extentd/extentd/storage"
)

// Options configure an open. The zero value is what a server uses.
type Options struct {
	// Lock is taken for as long as the file is open. Default: LockReader.
	Lock Lock
	// Direct reads and writes past the page cache (O_DIRECT). The limits say
	// what offsets and lengths are multiples of then; buffers may lie anywhere,
	// but those that are aligned in memory are not copied. A file system that
	// cannot do that fails the open with [storage.ErrUnsupported]. Default: false.
	Direct bool
}

// A File is a regular file or block device that is open for reading, and for
// writing once [File.StartWriting] has succeeded. Safe for concurrent use; what
// is called after Close fails with [storage.ErrClosed].
type File struct {
	f       *os.File
	seeks   io.Seeker   // f; tests put another in its place
	noHoles atomic.Bool // the file system cannot tell holes from data
	device  bool        // a block device
	direct  *direct     // reads past the page cache; nil: nothing does

	in   tree // where the file was found, and under which name, a path of the host perhaps
	name string
	lock Lock // as it was opened

	scratch *folder // where the name is removed from when it is closed; nil unless it is a scratch file's

	w      atomic.Pointer[writer] // nil until writing has started
	mu     sync.Mutex             // held while writing starts, and by Close
	closed atomic.Bool            // set with mu held
}

var (
	_ storage.File   = (*File)(nil)
	_ storage.Writer = (*File)(nil)
	_ syscall.Conn   = (*File)(nil)
)

// Open opens a file that the operator named, following links wherever they
// lead. The error wraps [storage.ErrNotFound], [storage.ErrRefused] for what is
// neither a regular file nor a block device, [storage.ErrBusy], or is the
// operating system's.
func Open(ctx context.Context, path string, opt Options) (*File, error) {
	f, err := open(ctx, host{}, path, opt)
	if err != nil {
		return nil, fmt.Errorf("file: open %q: %w", filepath.Base(path), err)
	}
	return f, nil
}

// A tree is where names are looked up: an os.Root, or the host.
type tree interface {
	Stat(name string) (os.FileInfo, error)
	OpenFile(name string, flag int, perm os.FileMode) (*os.File, error)
}

type host struct{}

func (host) Stat(name string) (os.FileInfo, error) { return os.Stat(name) }

func (host) OpenFile(name string, flag int, perm os.FileMode) (*os.File, error) {
	return os.OpenFile(name, flag, perm)
}

// openFlags keep the open of something unexpected from blocking, and from
// making it this process's terminal.
const openFlags = syscall.O_NONBLOCK | syscall.O_NOCTTY

// open looks at what it opens before and after: before, so that nothing happens
// to a device that is not served; after, because the name may lead elsewhere by
// then.
func open(ctx context.Context, in tree, name string, opt Options) (*File, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if _, err := stat(in, name); err != nil {
		return nil, err
	}
	f, err := in.OpenFile(name, os.O_RDONLY|openFlags, 0)
	if err != nil {
		return nil, openError(err)
	}
	file := &File{f: f, seeks: f, in: in, name: name, lock: opt.Lock}
	if err := file.ready(opt); err != nil {
		_ = f.Close() // it was never used, and the first error says more
		return nil, err
	}
	return file, nil
}

// ready makes a file that has just been opened ready for use.
func (f *File) ready(opt Options) error {
	id, err := settle(f.f, opt.Lock)
	if err != nil {
		return err
	}
	f.device = id.Device
	if opt.Direct {
		f.direct, err = f.openDirect()
	}
	return err
}

// settle checks what was opened, and makes it ready for use: not blocking was for
// the open alone, and file systems in user space may take it seriously.
func settle(f *os.File, lock Lock) (Identity, error) {
	info, err := f.Stat()
	if err != nil {
		return Identity{}, bare(err)
	}
	id, err := identify(info)
	if err != nil {
		return Identity{}, err
	}
	conn, err := f.SyscallConn()
	if err != nil {
		return Identity{}, bare(err)
	}
	var failed error
	err = conn.Control(func(fd uintptr) {
		if failed = syscall.SetNonblock(int(fd), false); failed == nil {
			failed = lock.take(fd, unix.FcntlFlock)
		}
	})
	return id, errors.Join(bare(err), failed)
}

// Size is the size in bytes now.
func (f *File) Size(ctx context.Context) (int64, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	return f.seek(0, io.SeekEnd)
}

// ReadAt reads len(p) bytes from off; it is io.EOF where the file ends. The
// context is looked at before the read, which is not interrupted. An offset that
// direct I/O does not take fails with [storage.ErrMisaligned].
func (f *File) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	switch {
	case off < 0:
		return 0, fmt.Errorf("%w: offset %d", storage.ErrOutOfRange, off)
	case off >= storage.MaxSize && len(p) > 0: // the sum of offset and length might overflow
		return 0, io.EOF
	}
	if f.direct != nil {
		return f.direct.readAt(p, off)
	}
	n, err := f.f.ReadAt(p, off)
	if err != nil && err != io.EOF { //nolint:errorlint // os returns a bare io.EOF, and so does storage.File
		err = bare(err)
	}
	return n, err
}

// Identity is the file's identity now.
func (f *File) Identity() (Identity, error) {
	info, err := f.f.Stat()
	if err != nil {
		return Identity{}, bare(err)
	}
	return identify(info)
}

// Allocated is how many bytes the file takes on disk. For a block device that
// is its size.
func (f *File) Allocated(ctx context.Context) (int64, error) {
	info, err := f.f.Stat()
	if err != nil {
		return 0, bare(err)
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && info.Mode().IsRegular() {
		return st.Blocks * 512, nil
	}
	return f.Size(ctx)
}

// Direct reports whether the file is read and written past the page cache.
func (f *File) Direct() bool { return f.direct != nil }

// SyscallConn gives access to the descriptor, as for sendfile from an explicit
// offset. Its position means nothing and must not be relied on. It goes through
// the page cache also where the file itself is direct: there it is not for data.
func (f *File) SyscallConn() (syscall.RawConn, error) {
	conn, err := f.f.SyscallConn()
	return conn, bare(err)
}

// Close closes the file and releases its lock. It makes nothing durable. A scratch
// file loses its name.
func (f *File) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	var err error
	if f.scratch != nil && !f.closed.Load() {
		err = f.remove()
	}
	f.closed.Store(true)
	w := f.w.Load()
	if w != nil && w.direct != nil {
		err = errors.Join(err, w.direct.f.Close())
	}
	if w != nil && w.f != f.f {
		err = errors.Join(err, w.f.Close())
	}
	if f.direct != nil {
		err = errors.Join(err, f.direct.f.Close())
	}
	return bare(errors.Join(err, f.f.Close())) // last, so that the lock outlives the others
}
