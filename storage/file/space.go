package file

import (
	"fmt"
	"math"

	"golang.org/x/sys/unix"
)

// Available is how many bytes the file system of the directory has left for who is
// not its administrator. Others may take them meanwhile.
func (d *Dir) Available() (int64, error) {
	f, err := d.root.Open(".")
	if err != nil {
		return 0, fmt.Errorf("file: free space: %w", bare(err))
	}
	defer f.Close() //nolint:errcheck // it was opened to be looked at
	var s unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &s); err != nil {
		return 0, fmt.Errorf("file: free space: %w", err)
	}
	if s.Bavail > uint64(math.MaxInt64/max(s.Bsize, 1)) {
		return math.MaxInt64, nil
	}
	return int64(s.Bavail) * s.Bsize, nil
}
