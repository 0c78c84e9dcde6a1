package file

import (
	"context"

	"golang.org/x/sys/unix"
)

// Without makes the file system lack some of fallocate's abilities: zero, punch
// and reserve are what it is asked for.
func (f *File) Without(zero, punch, reserving bool) {
	w := f.w.Load()
	w.calls.fallocate = func(fd int, mode uint32, off, n int64) error {
		for v, lacks := range [verbs]bool{zero, punch, reserving} {
			if lacks && mode == modes[v] {
				return unix.EOPNOTSUPP
			}
		}
		return unix.Fallocate(fd, mode, off, n)
	}
}

// NamedTempScratch is TempScratch where the file system has no files without
// names, as if the kernel had said so.
func NamedTempScratch(ctx context.Context, dir, magic string) (*File, error) {
	return tempScratch(ctx, dir, magic, unix.O_DIRECTORY) // a directory is not opened for writing
}
