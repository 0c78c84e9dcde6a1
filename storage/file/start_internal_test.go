package file

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/extentd/extentd/storage"
)

// TestUpgradeOrder is QEMU's, and a conflict leaves what was there before.
func TestUpgradeOrder(t *testing.T) {
	all := []int64{100, 101, 103, 201, 203, -200, -201, -203, -101, -103}
	const unlock = 1000
	for _, c := range []struct {
		lock  Lock
		fails int // after how many calls; 0: never
		want  []int64
	}{
		{LockReader, 0, all},
		{LockShared, 0, all},
		{LockNone, 0, nil},
		{LockReader, 2, []int64{100, 101, unlock + 101, unlock + 103}},
		{LockReader, 7, append(slices.Clone(all[:7]), unlock+101, unlock+103)},
		{LockReader, 10, append(slices.Clone(all), unlock+101, unlock+103)},
		{LockShared, 10, append(slices.Clone(all), unlock+101, unlock+103, unlock+201, unlock+203)},
	} {
		t.Run(fmt.Sprint(c.lock, c.fails), func(t *testing.T) {
			var order []int64
			err := c.lock.upgrade(0, func(_ uintptr, cmd int, lock *unix.Flock_t) error {
				at := lock.Start
				switch {
				case cmd == unix.F_OFD_GETLK:
					at = -at
				case lock.Type == unix.F_UNLCK:
					at += unlock
				}
				order = append(order, at)
				if len(order) == c.fails {
					if cmd != unix.F_OFD_GETLK {
						return unix.EAGAIN
					}
					return nil // the lock that is in the way is left as the answer
				}
				if cmd == unix.F_OFD_GETLK {
					lock.Type = unix.F_UNLCK
				}
				return nil
			})
			if (err != nil) != (c.fails > 0) || err != nil && !errors.Is(err, storage.ErrBusy) || !slices.Equal(order, c.want) {
				t.Errorf("%v, %v, want %v", order, err, c.want)
			}
		})
	}
}

// started is a file of zeros, open for writing.
func started(t *testing.T, size int64) *File {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	if err := errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, size)); err != nil {
		t.Fatal(err)
	}
	f, err := Open(t.Context(), path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	if err := f.StartWriting(t.Context()); err != nil {
		t.Fatal(err)
	}
	return f
}

// TestReopenByName: without /proc the name must still lead to the same file.
func TestReopenByName(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	if err := os.WriteFile(path, []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := Open(t.Context(), path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	missing := filepath.Join(dir, "no proc", "1")
	w, err := f.reopen(missing)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.f.WriteAt([]byte("C"), 0); err != nil {
		t.Error(err)
	}
	if err := w.f.Close(); err != nil {
		t.Fatal(err)
	}
	for name, replace := range map[string]func() error{
		"another file": func() error {
			return errors.Join(os.WriteFile(path+"2", []byte("another"), 0o600), os.Rename(path+"2", path))
		},
		"fifo":    func() error { return errors.Join(os.Remove(path), unix.Mkfifo(path, 0o600)) },
		"nothing": func() error { return os.Remove(path) },
	} {
		if err := replace(); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		if _, err := f.reopen(missing); !errors.Is(err, storage.ErrNotFound) && !errors.Is(err, storage.ErrRefused) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestWriteOpenErrors: what the system says when a file is not to be written to.
func TestWriteOpenErrors(t *testing.T) {
	for _, errno := range []error{unix.EROFS, unix.EACCES, unix.EPERM, unix.ETXTBSY} {
		if err := writeOpenError(&os.PathError{Path: "/secret", Err: errno}); !errors.Is(err, storage.ErrReadOnly) || !errors.Is(err, errno) {
			t.Errorf("%v becomes %v", errno, err)
		}
	}
	for _, errno := range []error{unix.EIO, unix.ENOENT, unix.EMFILE} {
		if err := writeOpenError(&os.PathError{Path: "/secret", Err: errno}); errors.Is(err, storage.ErrReadOnly) || !errors.Is(err, errno) {
			t.Errorf("%v becomes %v", errno, err)
		}
	}
	for _, errno := range []error{unix.ENOSPC, unix.EDQUOT, unix.EFBIG} {
		if err := writeError(&os.PathError{Path: "/secret", Err: errno}); !errors.Is(err, storage.ErrNoSpace) || !errors.Is(err, errno) {
			t.Errorf("%v becomes %v", errno, err)
		}
	}
}

// TestFlushFailsForGood: the kernel tells of a failure once.
func TestFlushFailsForGood(t *testing.T) {
	f := started(t, 0)
	w := f.w.Load()
	w.calls.fdatasync = func(int) error { return unix.EIO }
	if err := f.Flush(t.Context()); !errors.Is(err, unix.EIO) {
		t.Errorf("Flush = %v", err)
	}
	w.calls.fdatasync = func(int) error { return nil }
	if err := f.Flush(t.Context()); !errors.Is(err, unix.EIO) {
		t.Errorf("Flush after one that failed = %v", err)
	}
}

// TestFlushTogether: each of many flushes has a sync between its beginning and
// its end, and they do not need one each.
func TestFlushTogether(t *testing.T) {
	f := started(t, 0)
	var clock atomic.Int64
	type span struct{ begin, end int64 }
	var syncs []span
	f.w.Load().calls.fdatasync = func(int) error { // one at a time, says the race detector
		begin := clock.Add(1)
		time.Sleep(time.Millisecond)
		syncs = append(syncs, span{begin, clock.Add(1)})
		return nil
	}
	const workers, rounds = 8, 20
	var flushes [workers][rounds]span
	var wg sync.WaitGroup
	for w := range flushes {
		wg.Go(func() {
			for r := range rounds {
				begin := clock.Add(1)
				if err := f.Flush(t.Context()); err != nil {
					t.Error(err)
				}
				flushes[w][r] = span{begin, clock.Add(1)}
			}
		})
	}
	wg.Wait()
	for _, flush := range slices.Concat(flushes[0][:], flushes[1][:], flushes[workers-1][:]) {
		if !slices.ContainsFunc(syncs, func(s span) bool { return s.begin > flush.begin && s.end < flush.end }) {
			t.Errorf("no sync within the flush %v", flush)
		}
	}
	if len(syncs) >= workers*rounds {
		t.Errorf("%d syncs for %d flushes", len(syncs), workers*rounds)
	}
}

// TestInterrupted: a call that a signal ends is made again.
func TestInterrupted(t *testing.T) {
	f := started(t, 100)
	w, calls := f.w.Load(), 0
	w.calls.fallocate = func(int, uint32, int64, int64) error {
		if calls++; calls < 3 {
			return unix.EINTR
		}
		return nil
	}
	if err := f.Zero(t.Context(), 0, 100, false); err != nil || calls != 3 {
		t.Errorf("Zero = %v after %d calls", err, calls)
	}
}

// TestLacksAreRemembered: what is not supported is asked for once, and what was
// refused for a range again.
func TestLacksAreRemembered(t *testing.T) {
	for errno, want := range map[error]int{unix.EOPNOTSUPP: 1, unix.ENOSYS: 1, unix.EINVAL: 3} {
		f := started(t, 0)
		if _, err := f.WriteAt(t.Context(), bytes.Repeat([]byte{1}, 4096), 0); err != nil {
			t.Fatal(err)
		}
		calls := map[uint32]int{}
		f.w.Load().calls.fallocate = func(_ int, mode uint32, _, _ int64) error {
			calls[mode]++
			return errno
		}
		for range 3 {
			if err := f.Zero(t.Context(), 0, 4096, true); err != nil {
				t.Fatal(err)
			}
		}
		p := make([]byte, 4096)
		if _, err := f.ReadAt(t.Context(), p, 0); err != nil || !bytes.Equal(p, make([]byte, 4096)) {
			t.Errorf("%v: the zeros are not there, %v", errno, err)
		}
		if err := f.Trim(t.Context(), 0, 4096); err != nil {
			t.Errorf("%v: Trim = %v", errno, err)
		}
		if calls[modes[zeroRange]] != want || calls[modes[reserve]] != 0 {
			t.Errorf("%v: the calls are %v", errno, calls)
		}
	}
}

// TestErrorsOfFallocate that mean more than a lack end the request.
func TestErrorsOfFallocate(t *testing.T) {
	f := started(t, 8192)
	for errno, want := range map[error]error{unix.EIO: unix.EIO, unix.ENOSPC: storage.ErrNoSpace} {
		f.w.Load().calls.fallocate = func(int, uint32, int64, int64) error { return errno }
		for name, err := range map[string]error{
			"zero": f.Zero(t.Context(), 0, 8192, false),
			"keep": f.Zero(t.Context(), 0, 8192, true),
			"trim": f.Trim(t.Context(), 0, 8192),
		} {
			if !errors.Is(err, want) {
				t.Errorf("%s: %v, want %v", name, err, want)
			}
		}
	}
}

// TestPieces end at multiples, so that blocks at their edges are whole.
func TestPieces(t *testing.T) {
	f := started(t, 0)
	type call struct{ off, n int64 }
	var calls []call
	f.w.Load().calls.fallocate = func(_ int, _ uint32, off, n int64) error {
		calls = append(calls, call{off, n})
		return nil
	}
	if err := f.Zero(t.Context(), piece-1, 2*piece+2, false); err != nil {
		t.Fatal(err)
	}
	if want := []call{{piece - 1, 1}, {piece, piece}, {2 * piece, piece}, {3 * piece, 1}}; !slices.Equal(calls, want) {
		t.Errorf("%v, want %v", calls, want)
	}
}

// TestDeviceAlignment plays a device of 4 KiB blocks on a file.
func TestDeviceAlignment(t *testing.T) {
	const size, block = 64 << 10, 4096
	f := started(t, size)
	w := f.w.Load()
	w.device, w.block = true, block
	full := bytes.Repeat([]byte{1}, size)
	for _, c := range []struct{ off, n int64 }{{0, size}, {1, size - 2}, {block, block}, {block - 1, 2}, {5, 6}, {block - 1, block + 2}, {100, block}} {
		if _, err := f.WriteAt(t.Context(), full, 0); err != nil {
			t.Fatal(err)
		}
		w.calls.fallocate = func(fd int, mode uint32, off, n int64) error {
			if off%block != 0 || n%block != 0 || n == 0 {
				t.Errorf("fallocate of %d bytes at %d", n, off)
			}
			return unix.Fallocate(fd, mode, off, n)
		}
		if err := errors.Join(f.Trim(t.Context(), c.off, 0), f.Zero(t.Context(), c.off, c.n, false)); err != nil {
			t.Fatal(err)
		}
		want := bytes.Clone(full)
		clear(want[c.off : c.off+c.n])
		got := make([]byte, size)
		if _, err := f.ReadAt(t.Context(), got, 0); err != nil || !bytes.Equal(got, want) {
			t.Errorf("zero of %d bytes at %d: wrong content, %v", c.n, c.off, err)
		}
		if err := f.Trim(t.Context(), c.off, c.n); err != nil {
			t.Error(err)
		}
	}
	if err := f.Truncate(t.Context(), size+1); !errors.Is(err, storage.ErrUnsupported) {
		t.Errorf("a device grows: %v", err)
	}
	if err := errors.Join(f.Truncate(t.Context(), size), f.Truncate(t.Context(), 1)); err != nil {
		t.Error(err)
	}
	if got, err := f.Size(t.Context()); err != nil || got != size {
		t.Errorf("Size() = %d, %v", got, err)
	}
}
