package file

import (
	"context"
	"errors"

	"golang.org/x/sys/unix"

	"github.com/extentd/extentd/storage"
)

// Bounds of what is preferred, bytes.
const (
	minPreferred = 4 << 10
	maxPreferred = 2 << 20
)

// Limit leaves every limit of a regular file to its default: through the page
// cache any offset and length will do, on a device as well. Direct I/O has a
// minimum. What direct I/O and devices prefer is the block size of the file
// system, or of the device what it says of itself.
func (f *File) Limit(_ context.Context, which storage.Limit) (int64, error) {
	switch {
	case which == storage.Minimum && f.direct != nil:
		return f.direct.align.offset, nil
	case which == storage.Preferred && (f.direct != nil || f.device):
		return f.preferred()
	}
	return 0, nil
}

// preferred is the largest power of two that is told and sensible.
func (f *File) preferred() (int64, error) {
	best := int64(minPreferred)
	if f.direct != nil {
		best = max(best, f.direct.align.offset)
	}
	conn, err := f.f.SyscallConn()
	if err != nil {
		return 0, bare(err)
	}
	err = conn.Control(func(fd uintptr) {
		for _, size := range told(int(fd), f.device) {
			if size <= maxPreferred && size&(size-1) == 0 {
				best = max(best, size)
			}
		}
	})
	return best, bare(err)
}

// told are the sizes that a file system, or a device, recommends; 0 where it
// recommends nothing.
func told(fd int, device bool) []int64 {
	if device {
		return []int64{ioctlSize(fd, unix.BLKPBSZGET), ioctlSize(fd, unix.BLKIOOPT)}
	}
	var st unix.Stat_t
	if unix.Fstat(fd, &st) != nil {
		return nil
	}
	return []int64{int64(st.Blksize)} //nolint:unconvert // it is an int32 elsewhere
}

// sectorSize is the logical block size of a device.
func sectorSize(fd int) int64 {
	if size := ioctlSize(fd, unix.BLKSSZGET); size > 0 {
		return size
	}
	return defaultAlignment
}

// ioctlSize asks a device for one of its sizes, 0 where it does not tell.
func ioctlSize(fd int, which uint) int64 {
	for {
		size, err := unix.IoctlGetUint32(fd, which)
		switch {
		case err == nil:
			return int64(size)
		case !errors.Is(err, unix.EINTR):
			return 0
		}
	}
}
