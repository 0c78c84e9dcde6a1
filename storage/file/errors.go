package file

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"

	"github.com/extentd/extentd/storage"
)

// bare takes off what package os puts around an error, which is a path of the
// host.
func bare(err error) error {
	if err == nil {
		return nil
	}
	if path, ok := errors.AsType[*fs.PathError](err); ok {
		err = path.Err
	}
	if errors.Is(err, os.ErrClosed) {
		return storage.ErrClosed
	}
	return err
}

// openError is what an error of looking a name up or opening it means.
func openError(err error) error {
	if err == nil {
		return nil
	}
	err = bare(err)
	errno, ok := errors.AsType[syscall.Errno](err)
	if !ok {
		if errors.Is(err, storage.ErrClosed) {
			return err
		}
		// os.Root has no name for the one error of its own: the path escapes.
		return fmt.Errorf("%w: %w", storage.ErrRefused, err)
	}
	switch errno {
	case syscall.ENOENT, syscall.ENOTDIR, syscall.ENAMETOOLONG, syscall.ELOOP:
		return fmt.Errorf("%w: %w", storage.ErrNotFound, err)
	case syscall.EWOULDBLOCK: // a lease, which breaks now
		return fmt.Errorf("%w: %w", storage.ErrBusy, err)
	}
	return err
}
