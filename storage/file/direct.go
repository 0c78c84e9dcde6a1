package file

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/extentd/extentd/storage"
)

// bounceSize is the most that is copied at a time where the caller's buffer is
// not aligned, bytes.
const bounceSize = 256 << 10

// A direct reads and writes past the page cache. Beside the requests of a caller
// that are under way it has no more memory than a buffer for each.
type direct struct {
	f     *os.File
	conn  syscall.RawConn
	align alignment
	calls directCalls
	pool  sync.Pool // of *transfer
}

// directCalls are what package unix has; tests put others in their place.
type directCalls struct {
	pread, pwrite func(fd int, p []byte, off int64) (int, error)
}

func newDirect(file *os.File, conn syscall.RawConn, align alignment) *direct {
	return &direct{
		f: file, conn: conn, align: align, calls: directCalls{unix.Pread, unix.Pwrite},
		pool: sync.Pool{New: func() any { return newTransfer(align) }},
	}
}

// openDirect opens the file again for reading, past the page cache.
func (f *File) openDirect() (*direct, error) {
	conn, err := f.f.SyscallConn()
	if err != nil {
		return nil, bare(err)
	}
	var d *direct
	var failed error
	err = conn.Control(func(fd uintptr) { d, failed = f.againDirect(linkTo(fd), os.O_RDONLY) })
	return d, errors.Join(bare(err), failed)
}

// againDirect opens the file again, past the page cache.
func (f *File) againDirect(link string, flag int) (*direct, error) {
	file, err := f.again(link, flag|unix.O_DIRECT)
	if errors.Is(err, unix.EINVAL) {
		return nil, fmt.Errorf("%w: direct I/O to this file: %w", storage.ErrUnsupported, bare(err))
	}
	if err != nil && flag == os.O_RDONLY {
		return nil, openError(err)
	}
	if err != nil {
		return nil, writeOpenError(err)
	}
	d, err := f.asDirect(file)
	if err != nil {
		_ = file.Close() // it was never used
	}
	return d, err
}

// asDirect is a direct for the file, which was opened again.
func (f *File) asDirect(file *os.File) (*direct, error) {
	if _, err := same(file, f.f); err != nil {
		return nil, err
	}
	conn, err := file.SyscallConn()
	if err != nil {
		return nil, bare(err)
	}
	var align alignment
	var failed error
	if err := conn.Control(func(fd uintptr) { align, failed = directAlignment(int(fd), f.device) }); err != nil || failed != nil {
		return nil, errors.Join(bare(err), failed)
	}
	return newDirect(file, conn, align), nil
}

// A transfer is one system call after another, with what it needs: made once, so
// that a request allocates nothing.
type transfer struct {
	align alignment
	buf   []byte // aligned; nil until it is needed
	call  func(fd int, p []byte, off int64) (int, error)
	p     []byte
	off   int64
	n     int
	err   error
	run   func(fd uintptr) // t.do
}

func newTransfer(align alignment) *transfer {
	t := &transfer{align: align}
	t.run = t.do
	return t
}

func (t *transfer) do(fd uintptr) { t.n, t.err = t.call(int(fd), t.p, t.off) }

// bounce is the transfer's own buffer.
func (t *transfer) bounce() []byte {
	if t.buf == nil {
		b := make([]byte, bounceSize+t.align.memory)
		skip := -int64(address(b)) & (t.align.memory - 1)
		t.buf = b[skip : skip+bounceSize]
	}
	return t.buf
}

// address is where p begins. The runtime does not move what it has allocated for
// a system call.
func address(p []byte) uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(p))) }

// transfer makes a system call, again and again while a signal interrupts it.
func (d *direct) transfer(t *transfer, call func(fd int, p []byte, off int64) (int, error), p []byte, off int64) (int, error) {
	t.call, t.p, t.off = call, p, off
	defer func() { t.p = nil }()
	for {
		if err := d.conn.Control(t.run); err != nil {
			return 0, storage.ErrClosed // nothing else keeps it from calling
		}
		if !errors.Is(t.err, unix.EINTR) {
			return max(t.n, 0), t.err
		}
	}
}

// straight is how much of p can be given to the system as it is.
func (d *direct) straight(p []byte) int64 {
	if int64(address(p))&(d.align.memory-1) != 0 {
		return 0
	}
	return int64(len(p)) &^ (d.align.offset - 1)
}

// check refuses an offset that the system would, too.
func (d *direct) check(off, n int64) error {
	if off&(d.align.offset-1) != 0 {
		return &storage.MisalignedError{Minimum: d.align.offset, Offset: off, Length: n}
	}
	return nil
}

// readAt reads len(p) bytes from off, a multiple of the alignment; it is io.EOF
// where the file ends. The last block may be read as far as it is wanted.
func (d *direct) readAt(p []byte, off int64) (n int, err error) {
	if err := d.check(off, int64(len(p))); err != nil {
		return 0, err
	}
	t := d.pool.Get().(*transfer)
	defer d.pool.Put(t)
	for n < len(p) {
		rest := p[n:]
		into, bounced := rest[:d.straight(rest)], false
		if len(into) == 0 {
			into, bounced = t.bounce()[:min(bounceSize, d.align.up(int64(len(rest))))], true
		}
		k, err := d.transfer(t, d.calls.pread, into, off+int64(n))
		if err != nil {
			return n, err
		}
		if bounced {
			n += copy(rest, into[:k])
		} else {
			n += k
		}
		if n < len(p) && k < len(into) && !d.align.whole(k) {
			return n, io.EOF // only where the file ends does a part of a block
		}
	}
	return n, nil
}

// writeAt writes p, of whole blocks, at off, a multiple of the alignment.
func (d *direct) writeAt(p []byte, off int64) (n int, err error) {
	t := d.pool.Get().(*transfer)
	defer d.pool.Put(t)
	for n < len(p) {
		from := p[n:]
		if k := d.straight(from); k > 0 {
			from = from[:k]
		} else {
			from = t.bounce()[:copy(t.bounce(), from)]
		}
		k, err := d.transfer(t, d.calls.pwrite, from, off+int64(n))
		if err != nil {
			return n, err
		}
		if !d.align.whole(k) { // going on from there would not be aligned
			return n + k, fmt.Errorf("%d of %d bytes at %d: %w", k, len(from), off+int64(n), io.ErrShortWrite)
		}
		n += k
	}
	return n, nil
}

// write writes p at off: past the page cache, if that is wanted, but for what is
// behind the last whole block of the file, which only the cache can take.
func (w *writer) write(p []byte, off int64) (int, error) {
	if w.direct == nil {
		return w.f.WriteAt(p, off)
	}
	if err := w.direct.check(off, int64(len(p))); err != nil {
		return 0, err
	}
	tail := len(p) & int(w.direct.align.offset-1)
	if tail > 0 {
		size, err := w.f.Seek(0, io.SeekEnd)
		if err != nil {
			return 0, err
		}
		if off+int64(len(p)) < size {
			return 0, &storage.MisalignedError{Minimum: w.direct.align.offset, Offset: off, Length: int64(len(p))}
		}
	}
	whole := len(p) - tail
	n, err := w.straight(p[:whole], off)
	if err != nil || tail == 0 {
		return n, err
	}
	k, err := w.buffered(p[whole:], off+int64(whole))
	return n + k, err
}

// straight writes whole blocks past the page cache.
func (w *writer) straight(p []byte, off int64) (int, error) {
	w.ends.RLock()
	defer w.ends.RUnlock()
	return w.direct.writeAt(p, off)
}

// buffered writes through the page cache, whatever else does.
func (w *writer) buffered(p []byte, off int64) (int, error) {
	if w.direct != nil {
		w.ends.Lock()
		defer w.ends.Unlock()
	}
	return w.f.WriteAt(p, off)
}
