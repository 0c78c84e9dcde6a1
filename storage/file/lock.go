package file

import (
	"errors"
	"fmt"
	"slices"

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

	// lockWriter is what [File.StartWriting] takes: nobody else may write or
	// resize, and who does not let others do it keeps us out. It is what every
	// writer of QEMU takes from a file in qcow2 format.
	lockWriter
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

// held are the permissions that are used.
func (l Lock) held() []permission {
	switch l {
	case LockNone:
		return nil
	case lockWriter:
		return []permission{consistentRead, write, resize}
	}
	return []permission{consistentRead}
}

// denied are the permissions that others may not have.
func (l Lock) denied() []permission {
	if l == LockReader || l == lockWriter {
		return []permission{write, resize}
	}
	return nil
}

// fcntl is unix.FcntlFlock; tests put another in its place.
type fcntl func(fd uintptr, cmd int, lock *unix.Flock_t) error

// take locks an open file, in QEMU's order: first say what is held and what is
// denied, then look whether others deny it or hold it. Two that conflict may
// both fail, but never both succeed. Closing the file unlocks it. All locks are
// shared ones, so that a descriptor for reading is enough, and one that has some
// already takes more without being in its own way.
func (l Lock) take(fd uintptr, call fcntl) error {
	for i, p := range l.held() {
		err := hold(fd, call, permBase, p)
		if i == 0 && (errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS)) {
			return nil // a kernel without such locks; QEMU goes without them too
		}
		if err != nil {
			return err
		}
	}
	for _, p := range l.denied() {
		if err := hold(fd, call, sharedBase, p); err != nil {
			return err
		}
	}
	for _, p := range l.held() {
		if err := test(fd, call, sharedBase, p); err != nil {
			return err
		}
	}
	for _, p := range l.denied() {
		if err := test(fd, call, permBase, p); err != nil {
			return err
		}
	}
	return nil
}

// upgrade takes a writer's lock where l is held, or leaves it at l. Who took no
// lock takes none.
func (l Lock) upgrade(fd uintptr, call fcntl) error {
	if l == LockNone {
		return nil
	}
	if err := lockWriter.take(fd, call); err != nil {
		return errors.Join(err, l.downgrade(fd, call))
	}
	return nil
}

// downgrade gives back what a writer's lock has beyond l.
func (l Lock) downgrade(fd uintptr, call fcntl) error {
	if l == LockNone {
		return nil
	}
	var failed []error
	for _, p := range lockWriter.held() {
		if !slices.Contains(l.held(), p) {
			failed = append(failed, release(fd, call, permBase, p))
		}
	}
	for _, p := range lockWriter.denied() {
		if !slices.Contains(l.denied(), p) {
			failed = append(failed, release(fd, call, sharedBase, p))
		}
	}
	return errors.Join(failed...)
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

// release unlocks one byte.
func release(fd uintptr, call fcntl, base int64, p permission) error {
	lock := unix.Flock_t{Type: unix.F_UNLCK, Start: base + int64(p), Len: 1}
	if err := call(fd, unix.F_OFD_SETLK, &lock); err != nil {
		return fmt.Errorf("unlock byte %d: %w", base+int64(p), err)
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
