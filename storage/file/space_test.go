package file_test

import (
	"testing"

	"golang.org/x/sys/unix"

	"github.com/extentd/extentd/storage/file"
)

// TestAvailable compares with what the file system says of a path, roughly: others
// write too.
func TestAvailable(t *testing.T) {
	path := t.TempDir()
	d, err := file.OpenDir(path)
	must(t, err)
	defer d.Close()
	got, err := d.Available()
	must(t, err)
	var s unix.Statfs_t
	must(t, unix.Statfs(path, &s))
	if want := int64(s.Bavail) * s.Bsize; got < want/2 || got > 2*want+1<<30 {
		t.Errorf("Available() = %d, the file system says %d", got, want)
	}
}
