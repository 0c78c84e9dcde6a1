package file

import (
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
