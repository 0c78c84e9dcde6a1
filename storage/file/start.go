package file

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/extentd/extentd/storage"
)

// A writer is what a File has once it may be written to.
type writer struct {
	f      *os.File // of its own, or the File's where that was created here
	conn   syscall.RawConn
	device bool
	block  int64 // of a device: what fallocate takes multiples of, bytes
	calls  syscalls

	// direct writes past the page cache; nil: nothing does. ends is held for
	// reading by that, and for writing by what goes through the cache all the
	// same: a page may hold both, and must not come to bring old bytes back.
	direct *direct
	ends   sync.RWMutex

	lacks [verbs]atomic.Bool // what the file system does not support

	began  atomic.Int64 // syncs
	syncs  sync.Mutex   // held while syncing; protects failed
	failed error        // what the first sync that failed said
}

// syscalls are what package unix has; tests put others in their place.
type syscalls struct {
	fallocate func(fd int, mode uint32, off, n int64) error
	fdatasync func(fd int) error
}

// StartWriting makes the file writable, for everyone who has it: reads go on as
// before, through the descriptor that they use. The writer's lock is taken on
// that descriptor too, beside the reader's, so that at no time another writer
// can come between; a file that was opened with [LockNone] takes none. It fails
// with [storage.ErrBusy] where somebody else writes, or denies it (who reads in
// this process through another File does), and with [storage.ErrReadOnly] where
// the operating system does not allow it. After a failure the file is as it was.
// Once it has succeeded it does nothing more.
func (f *File) StartWriting(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed.Load() {
		return storage.ErrClosed
	}
	if f.w.Load() != nil {
		return nil
	}
	w, err := f.startWriting()
	if err != nil {
		return fmt.Errorf("file: open %q for writing: %w", filepath.Base(f.name), err)
	}
	f.w.Store(w)
	return nil
}

// startWriting is StartWriting with f.mu held.
func (f *File) startWriting() (*writer, error) {
	conn, err := f.f.SyscallConn()
	if err != nil {
		return nil, bare(err)
	}
	var w *writer
	var failed error
	err = conn.Control(func(fd uintptr) {
		if failed = f.lock.upgrade(fd, unix.FcntlFlock); failed != nil {
			return
		}
		if w, failed = f.reopen(linkTo(fd)); failed != nil {
			failed = errors.Join(failed, f.lock.downgrade(fd, unix.FcntlFlock))
		}
	})
	return w, errors.Join(bare(err), failed)
}

// linkTo is the kernel's link to a descriptor, which must stay open meanwhile.
func linkTo(fd uintptr) string { return "/proc/self/fd/" + strconv.Itoa(int(fd)) }

// reopen opens the file again, for writing.
func (f *File) reopen(link string) (*writer, error) {
	file, err := f.again(link, os.O_RDWR)
	if err != nil {
		return nil, writeOpenError(err)
	}
	w, err := newWriter(file, f.f)
	if err == nil && f.direct != nil {
		w.direct, err = f.againDirect(link, os.O_RDWR)
	}
	if err != nil {
		_ = file.Close() // nothing was written
		return nil, err
	}
	return w, nil
}

// again opens the file again: through the kernel's link to the descriptor, which
// cannot lead to another file, or where there is none, by its name, if that still
// leads to what may be opened.
func (f *File) again(link string, flag int) (*os.File, error) {
	file, err := host{}.OpenFile(link, flag|openFlags, 0)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		if _, err := stat(f.in, f.name); err != nil {
			return nil, err
		}
		file, err = f.in.OpenFile(f.name, flag|openFlags, 0)
	}
	return file, err
}

// newWriter returns a writer to file, which must be the same one as what reads.
func newWriter(file, reads *os.File) (*writer, error) {
	id, err := same(file, reads)
	if err != nil {
		return nil, err
	}
	conn, err := file.SyscallConn()
	if err != nil {
		return nil, bare(err)
	}
	w := &writer{f: file, conn: conn, device: id.Device, calls: syscalls{unix.Fallocate, unix.Fdatasync}}
	if w.device {
		err = w.control(func(fd int) error {
			w.block = sectorSize(fd)
			return nil
		})
	}
	return w, err
}

// same makes a file that was opened again ready for use, if it is the same one.
func same(file, reads *os.File) (Identity, error) {
	id, err := settle(file, LockNone)
	if err != nil {
		return Identity{}, err
	}
	info, err := reads.Stat()
	if err != nil {
		return Identity{}, bare(err)
	}
	has, err := identify(info)
	if err != nil {
		return Identity{}, err
	}
	if !id.SameFile(has) {
		return Identity{}, fmt.Errorf("%w: the name leads to another file by now", storage.ErrNotFound)
	}
	return id, nil
}

// writeOpenError is what an error of opening for writing means.
func writeOpenError(err error) error {
	err = openError(err)
	for _, denied := range []syscall.Errno{unix.EROFS, unix.EACCES, unix.EPERM, unix.ETXTBSY} {
		if errors.Is(err, denied) {
			return fmt.Errorf("%w: %w", storage.ErrReadOnly, err)
		}
	}
	return err
}

// control calls do with the descriptor, again and again while a signal
// interrupts it: the runtime's own ones do so on tmpfs.
func (w *writer) control(do func(fd int) error) error {
	for {
		var failed error
		if err := w.conn.Control(func(fd uintptr) { failed = do(int(fd)) }); err != nil {
			return storage.ErrClosed // nothing else keeps it from calling
		}
		if !errors.Is(failed, unix.EINTR) {
			return failed
		}
	}
}
