package file

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/extentd/extentd/storage"
)

// A folder is one directory in which names are made and removed. It stays the
// same one if its name, or a link to it, comes to lead elsewhere.
type folder struct {
	root *os.Root
	f    *os.File // root's, to sync and to make system calls
}

// parent is the directory of a name, and the name's last part.
func parent(in func(name string) (*os.Root, error), name string) (*folder, string, error) {
	base := filepath.Base(name)
	if base == "." || base == ".." || base == string(filepath.Separator) || os.IsPathSeparator(name[len(name)-1]) {
		return nil, "", fmt.Errorf("%w: not the name of a file", storage.ErrRefused)
	}
	root, err := in(filepath.Dir(name))
	if err != nil {
		return nil, "", openError(err)
	}
	f, err := root.Open(".")
	if err != nil {
		_ = root.Close() // opened for reading
		return nil, "", openError(err)
	}
	return &folder{root: root, f: f}, base, nil
}

// Remove removes a name from the directory, durably. What is open stays open. Of
// a link it is the link that is removed. What is neither a link nor a regular
// file fails with [storage.ErrRefused].
func (d *Dir) Remove(ctx context.Context, name string) error {
	if err := d.remove(ctx, name); err != nil {
		return fmt.Errorf("file: remove %q: %w", name, err)
	}
	return nil
}

func (d *Dir) remove(ctx context.Context, name string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	in, base, err := parent(d.root.OpenRoot, name)
	if err != nil {
		return err
	}
	defer in.close()
	info, err := in.root.Lstat(base)
	if err != nil {
		return openError(err)
	}
	if kind := info.Mode().Type(); kind != 0 && kind != os.ModeSymlink {
		return fmt.Errorf("%w: not a regular file", storage.ErrRefused)
	}
	if err := in.unlink(base); err != nil {
		return err
	}
	return in.sync()
}

// rename gives a file another name, that nothing must have. Where the file
// system cannot do so at once, the file has both for a moment.
func (d *folder) rename(from, to string) error {
	fd := int(d.f.Fd())
	err := unix.Renameat2(fd, from, fd, to, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EOPNOTSUPP) {
		if err = unix.Linkat(fd, from, fd, to, 0); err == nil {
			err = unix.Unlinkat(fd, from, 0)
		}
	}
	return nameError(err)
}

// unlink removes a name, but no directory.
func (d *folder) unlink(name string) error {
	return nameError(unix.Unlinkat(int(d.f.Fd()), name, 0))
}

// sync makes names durable. Some file systems have nothing to sync there.
func (d *folder) sync() error {
	err := unix.Fsync(int(d.f.Fd()))
	if errors.Is(err, unix.EINVAL) {
		return nil
	}
	return err
}

func (d *folder) close() {
	_ = d.f.Close() // opened for reading, as the root is
	_ = d.root.Close()
}

// nameError is what an error of making or removing a name means.
func nameError(err error) error {
	if errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("%w: %w", storage.ErrExists, err)
	}
	return writeError(writeOpenError(err))
}
