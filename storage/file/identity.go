package file

import (
	"fmt"
	"io/fs"
	"path/filepath"
	"syscall"
	"time"

	"github.com/extentd/extentd/storage"
)

// An Identity says which file something is, and in which state: it changes
// whenever the file is replaced, written to or resized, as far as the file
// system's clock can tell the times apart. Writing to it here changes it as any
// other writing does: the one to keep is that of after the last write, and on
// network file systems of after the last flush. Opening for writing changes
// nothing. Comparable.
type Identity struct {
	// Dev and Ino are the file's. A block device has its own number as Dev
	// and 0 as Ino, whichever name it was found under.
	Dev, Ino uint64
	// Size in bytes; 0 for a block device.
	Size int64
	// Mtime and Ctime are nanoseconds since 1970. Those of a block device
	// are its name's: writing to it changes neither.
	Mtime, Ctime int64
	// Device marks a block device, whose identity does not tell whether its
	// content has changed.
	Device bool
}

// SameFile reports whether i and other are of one file, in whatever state.
func (i Identity) SameFile(other Identity) bool {
	return i.Dev == other.Dev && i.Ino == other.Ino && i.Device == other.Device
}

// Changed is when the content or the file itself last changed, by the file
// system's clock. A change that follows within its resolution does not show.
func (i Identity) Changed() time.Time { return time.Unix(0, max(i.Mtime, i.Ctime)) }

// Stat is the identity of a file that the operator named, which is not opened.
// It fails as [Open] does, but for locks.
func Stat(path string) (Identity, error) {
	id, err := stat(host{}, path)
	if err != nil {
		return Identity{}, fmt.Errorf("file: stat %q: %w", filepath.Base(path), err)
	}
	return id, nil
}

func stat(in tree, name string) (Identity, error) {
	info, err := in.Stat(name)
	if err != nil {
		return Identity{}, openError(err)
	}
	return identify(info)
}

// identify refuses what is neither a regular file nor a block device.
func identify(info fs.FileInfo) (Identity, error) {
	st, ok := info.Sys().(*syscall.Stat_t)
	if mode := info.Mode(); !ok || !served(mode) {
		return Identity{}, fmt.Errorf("%w: not a regular file or block device", storage.ErrRefused)
	}
	id := Identity{Dev: st.Dev, Ino: st.Ino, Size: st.Size, Mtime: st.Mtim.Nano(), Ctime: st.Ctim.Nano()}
	if !info.Mode().IsRegular() {
		id.Dev, id.Ino, id.Size, id.Device = st.Rdev, 0, 0, true
	}
	return id, nil
}

// served reports whether a file of that kind is opened.
func served(mode fs.FileMode) bool {
	return mode.IsRegular() || mode&fs.ModeType == fs.ModeDevice // a character device has another bit beside it
}
