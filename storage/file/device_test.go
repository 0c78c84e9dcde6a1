package file_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// device is a loop device with the content, whose size is a multiple of the
// sector. Where the machine does not allow any, ok is false and the test says
// so: what is special about devices is tested by TestDeviceAlignment then, and
// direct I/O on files.
func device(t *testing.T, content []byte, sector int64) (path string, ok bool) {
	t.Helper()
	backing := filepath.Join(t.TempDir(), "backing")
	write(t, backing, content)
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		t.Logf("no loop device: %v", err)
		return "", false
	}
	defer control.Close()
	file, err := os.OpenFile(backing, os.O_RDWR, 0)
	must(t, err)
	defer file.Close()
	for range 8 { // another may take it first
		number, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			t.Logf("no loop device: %v", err)
			return "", false
		}
		if path, ok = attach(t, number, file, sector); ok {
			return path, true
		}
	}
	t.Log("no loop device that can be had")
	return "", false
}

// attach makes a loop device of the file, which is gone when it is closed last.
func attach(t *testing.T, number int, backing *os.File, sector int64) (path string, ok bool) {
	t.Helper()
	path = fmt.Sprintf("/dev/loop%d", number)
	loop, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Logf("no loop device: %v", err)
		return "", false
	}
	config := unix.LoopConfig{Fd: uint32(backing.Fd()), Size: uint32(sector)}
	if err := unix.IoctlLoopConfigure(int(loop.Fd()), &config); err != nil {
		_ = loop.Close()
		t.Logf("no loop device: %v", err)
		return "", false
	}
	t.Cleanup(func() {
		_, err := unix.IoctlRetInt(int(loop.Fd()), unix.LOOP_CLR_FD)
		if err := errors.Join(err, loop.Close()); err != nil {
			t.Error(err)
		}
	})
	return path, true
}
