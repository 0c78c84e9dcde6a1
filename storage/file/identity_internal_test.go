package file

import (
	"errors"
	"io/fs"
	"syscall"
	"testing"
	"time"

	"github.com/extentd/extentd/storage"
)

// info is what stat says of a file of some kind.
type info struct {
	fs.FileInfo
	mode fs.FileMode
	stat syscall.Stat_t
}

func (i *info) Mode() fs.FileMode { return i.mode }
func (i *info) Sys() any          { return &i.stat }

func TestIdentify(t *testing.T) {
	stat := syscall.Stat_t{Dev: 1, Ino: 2, Rdev: 3, Size: 4, Mtim: syscall.Timespec{Sec: 5, Nsec: 6}, Ctim: syscall.Timespec{Sec: 7, Nsec: 8}}
	regular := Identity{Dev: 1, Ino: 2, Size: 4, Mtime: 5e9 + 6, Ctime: 7e9 + 8}
	device := Identity{Dev: 3, Mtime: 5e9 + 6, Ctime: 7e9 + 8, Device: true}
	for _, c := range []struct {
		mode fs.FileMode
		want Identity
		err  error
	}{
		{0o644, regular, nil},
		{0o4755 | fs.ModeSetuid, regular, nil},
		{fs.ModeDevice | 0o600, device, nil},
		{fs.ModeDevice | fs.ModeCharDevice, Identity{}, storage.ErrRefused},
		{fs.ModeDir, Identity{}, storage.ErrRefused},
		{fs.ModeNamedPipe, Identity{}, storage.ErrRefused},
		{fs.ModeSocket, Identity{}, storage.ErrRefused},
		{fs.ModeSymlink, Identity{}, storage.ErrRefused},
		{fs.ModeIrregular, Identity{}, storage.ErrRefused},
	} {
		if got, err := identify(&info{mode: c.mode, stat: stat}); got != c.want || !errors.Is(err, c.err) {
			t.Errorf("%v: %+v, %v, want %+v, %v", c.mode, got, err, c.want, c.err)
		}
	}
	if !regular.Changed().Equal(time.Unix(7, 8)) {
		t.Errorf("changed %v", regular.Changed())
	}
	other := device
	other.Mtime++
	if !device.SameFile(other) || device.SameFile(Identity{Dev: 3}) {
		t.Error("a device is itself, and not the file system on it")
	}
}
