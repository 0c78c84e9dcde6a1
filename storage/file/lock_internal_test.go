package file

import (
	"errors"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/extentd/extentd/storage"
)

// TestLockErrors plays a kernel that answers each call in turn.
func TestLockErrors(t *testing.T) {
	held := errors.New("held") // by another
	for _, c := range []struct {
		name    string
		lock    Lock
		answers []error // to the calls, the last to all after it
		want    error
		calls   int
	}{
		{"free", LockReader, []error{nil}, nil, 6},
		{"free, shared", LockShared, []error{nil}, nil, 2},
		{"none", LockNone, []error{unix.EIO}, nil, 0},
		{"no such locks", LockReader, []error{unix.EINVAL}, nil, 1},
		{"no such call", LockReader, []error{unix.ENOSYS}, nil, 1},
		{"no locks on this file system", LockReader, []error{unix.ENOLCK}, unix.ENOLCK, 1},
		{"no locks later", LockReader, []error{nil, unix.ENOLCK}, unix.ENOLCK, 2},
		{"cannot test", LockReader, []error{nil, nil, nil, unix.EIO}, unix.EIO, 4},
		{"locked exclusively", LockReader, []error{unix.EAGAIN}, storage.ErrBusy, 1},
		{"locked exclusively, elsewhere", LockReader, []error{nil, unix.EACCES}, storage.ErrBusy, 2},
		{"reading is denied", LockReader, []error{nil, nil, nil, held}, storage.ErrBusy, 4},
		{"written to", LockReader, []error{nil, nil, nil, nil, held}, storage.ErrBusy, 5},
		{"resized", LockReader, []error{nil, nil, nil, nil, nil, held}, storage.ErrBusy, 6},
	} {
		t.Run(c.name, func(t *testing.T) {
			calls := 0
			err := c.lock.take(3, func(fd uintptr, cmd int, lock *unix.Flock_t) error {
				if fd != 3 || lock.Len != 1 || (cmd == unix.F_OFD_SETLK) != (lock.Type == unix.F_RDLCK) {
					t.Errorf("call %d of %d with %+v", cmd, fd, *lock)
				}
				answer := c.answers[min(calls, len(c.answers)-1)]
				calls++
				if cmd == unix.F_OFD_GETLK && !errors.Is(answer, held) {
					lock.Type = unix.F_UNLCK
				}
				if errors.Is(answer, held) {
					return nil
				}
				return answer
			})
			if !errors.Is(err, c.want) || calls != c.calls {
				t.Errorf("after %d calls: %v, want %v after %d", calls, err, c.want, c.calls)
			}
		})
	}
}

// TestLockOrder is QEMU's: say what is held before looking at others.
func TestLockOrder(t *testing.T) {
	var order []int64
	err := LockReader.take(0, func(_ uintptr, cmd int, lock *unix.Flock_t) error {
		if cmd == unix.F_OFD_GETLK {
			lock.Type = unix.F_UNLCK
			lock.Start = -lock.Start
		}
		order = append(order, lock.Start)
		return nil
	})
	if want := []int64{100, 201, 203, -200, -101, -103}; err != nil || !slices.Equal(order, want) {
		t.Errorf("%v, %v, want %v", order, err, want)
	}
}
