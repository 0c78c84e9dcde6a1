package file

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/extentd/extentd/storage"
)

// A Lock says what other programs may do to a file while it is open here. QEMU
// honours these locks, and takes its own in the same way.
type Lock int

const (
	// LockReader lets others read, but neither write nor resize. It is what
	// qemu-img convert takes from every file that it reads, and every reader of
	// QEMU from a file in qcow2 format.
	LockReader Lock = iota
	// LockShared lets others write and resize as well, and is refused only by
	// who will not be read. It is what qemu-img map and compare take from a
	// raw image.
	LockShared
	// LockNone takes no lock and ignores those of others.
	LockNone
)

// A permission is a bit of QEMU's masks, and a byte of its lock ranges: held
// permissions from permBase on, permissions not shared with others from
// sharedBase on (block/file-posix.c, raw_apply_lock_bytes).
type permission int

const (
	consistentRead permission = iota
	write
	writeUnchanged
	resize
)

const (
	permBase   = 100
	sharedBase = 200
)

// String is QEMU's name of the permission.
func (p permission) String() string {
	return [...]string{"consistent read", "write", "write unchanged", "resize"}[p]
}

// denied are the permissions that others may not have.
func (l Lock) denied() []permission {
	if l == LockReader {
		return []permission{write, resize}
	}
	return nil
}

// fcntl is unix.FcntlFlock; tests put another in its place.
type fcntl func(fd uintptr, cmd int, lock *unix.Flock_t) error

// take locks an open file for reading, in QEMU's order: first say what is held
// and what is denied, then look whether others deny it or hold it. Two that
// conflict may both fail, but never both succeed. Closing the file unlocks it.
func (l Lock) take(fd uintptr, call fcntl) error {
	if l == LockNone {
		return nil
	}
	err := hold(fd, call, permBase, consistentRead)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) {
		return nil // a kernel without such locks; QEMU goes without them too
	}
	if err != nil {
		return err
	}
	for _, p := range l.denied() {
		if err := hold(fd, call, sharedBase, p); err != nil {
			return err
		}
	}
	if err := test(fd, call, sharedBase, consistentRead); err != nil {
		return err
	}
	for _, p := range l.denied() {
		if err := test(fd, call, permBase, p); err != nil {
			return err
		}
	}
	return nil
}

// hold locks one byte, shared, for as long as the file is open.
func hold(fd uintptr, call fcntl, base int64, p permission) error {
	lock := unix.Flock_t{Type: unix.F_RDLCK, Start: base + int64(p), Len: 1}
	err := call(fd, unix.F_OFD_SETLK, &lock)
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
		return busy(base, p)
	}
	if err != nil {
		return fmt.Errorf("lock byte %d: %w", base+int64(p), err)
	}
	return nil
}

// test reports whether another has locked the byte.
func test(fd uintptr, call fcntl, base int64, p permission) error {
	lock := unix.Flock_t{Type: unix.F_WRLCK, Start: base + int64(p), Len: 1}
	if err := call(fd, unix.F_OFD_GETLK, &lock); err != nil {
		return fmt.Errorf("test lock byte %d: %w", base+int64(p), err)
	}
	if lock.Type != unix.F_UNLCK {
		return busy(base, p)
	}
	return nil
}

func busy(base int64, p permission) error {
	if base == permBase {
		return fmt.Errorf("%w: no shared %q lock", storage.ErrBusy, p)
	}
	return fmt.Errorf("%w: no %q lock", storage.ErrBusy, p)
}
