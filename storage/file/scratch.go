package file

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/extentd/extentd/storage"
)

// ScratchHeader is how much of a scratch file's beginning is not its user's,
// bytes: the magic stands there.
const ScratchHeader = 4096

// maxMagic is the longest magic, bytes.
const maxMagic = 64

// OpenScratch opens a file for what need not outlive it, or makes it, with
// permissions for its owner alone. It is writable, and has the writer's lock:
// who has it open already, in this process or another, makes it fail with
// [storage.ErrBusy]. magic, 1 to 64 bytes, stands at its beginning and says what
// it is for: a file that is neither empty nor begins with it is left alone, and
// the error wraps [storage.ErrExists]; what is no regular file is refused, and so
// is a link. Otherwise the file reads as zeros behind the magic, whatever was in
// it before: its size is [ScratchHeader]. The first ScratchHeader bytes must not
// be written to.
//
// Closing it removes its name, as long as that still leads to it: nothing is left
// behind but by a crash, and what is left then serves the next one.
func OpenScratch(ctx context.Context, path, magic string) (*File, error) {
	f, err := openScratch(ctx, path, magic)
	if err != nil {
		return nil, fmt.Errorf("file: open %q: %w", filepath.Base(path), err)
	}
	return f, nil
}

func openScratch(ctx context.Context, path, magic string) (*File, error) {
	if err := checkMagic(ctx, magic); err != nil {
		return nil, err
	}
	dir, base, err := parent(os.OpenRoot, path)
	if err != nil {
		return nil, err
	}
	f, err := dir.scratch(ctx, base, magic)
	if err != nil {
		dir.close()
		return nil, err
	}
	return f, nil
}

func checkMagic(ctx context.Context, magic string) error {
	if len(magic) == 0 || len(magic) > maxMagic {
		return &storage.InvalidError{Field: "magic", Detail: fmt.Sprintf("has %d bytes, must have 1 to %d", len(magic), maxMagic)}
	}
	return ctx.Err()
}

// scratch is OpenScratch in one directory. Who closes such a file removes its
// name first: what was opened and locked then has none, and it is tried again.
func (d *folder) scratch(ctx context.Context, base, magic string) (*File, error) {
	for range attempts {
		f, err := d.openScratch(base)
		if err != nil {
			return nil, err
		}
		switch named, err := d.names(base, f.f); {
		case err != nil:
			return nil, errors.Join(err, f.Close())
		case named:
			if err := f.void(ctx, magic); err != nil {
				return nil, errors.Join(err, f.Close())
			}
			f.scratch = d
			return f, nil
		}
		_ = f.Close() // it is nobody's any more
	}
	return nil, fmt.Errorf("%w: it is replaced again and again", storage.ErrBusy)
}

// openScratch opens or makes the file, and locks it.
func (d *folder) openScratch(base string) (*File, error) {
	switch info, err := d.root.Lstat(base); {
	case errors.Is(err, os.ErrNotExist):
	case err != nil:
		return nil, openError(err)
	case !info.Mode().IsRegular(): // of a device an open might be noticed
		return nil, fmt.Errorf("%w: not a regular file", storage.ErrRefused)
	}
	f, err := d.root.OpenFile(base, os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW|openFlags, 0o600)
	if err != nil {
		return nil, writeError(writeOpenError(err))
	}
	file, err := newFile(f, d.root, base)
	if err != nil {
		_ = f.Close() // nothing was written
		return nil, err
	}
	return file, nil
}

// names reports whether the name leads to the file, which is a regular one.
func (d *folder) names(base string, f *os.File) (bool, error) {
	own, err := f.Stat()
	if err != nil {
		return false, bare(err)
	}
	info, err := d.root.Lstat(base)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, openError(err)
	}
	if !own.Mode().IsRegular() {
		return false, fmt.Errorf("%w: not a regular file", storage.ErrRefused)
	}
	return os.SameFile(own, info), nil
}

// void empties a scratch file. The magic stays while it is there, so that it is
// known for what it is whenever the power fails.
func (f *File) void(ctx context.Context, magic string) error {
	size, err := f.Size(ctx)
	if err != nil {
		return err
	}
	if size > 0 {
		has := make([]byte, len(magic))
		if n, err := f.ReadAt(ctx, has, 0); err != nil && err != io.EOF { //nolint:errorlint // ReadAt returns it bare
			return err
		} else if string(has[:n]) != magic {
			return fmt.Errorf("%w: it is no scratch file of this kind, and is left as it is", storage.ErrExists)
		}
		if err := f.Truncate(ctx, int64(len(magic))); err != nil {
			return err
		}
	} else if _, err := f.WriteAt(ctx, []byte(magic), 0); err != nil {
		return err
	}
	return f.Truncate(ctx, ScratchHeader)
}

// remove removes the name of a scratch file that is about to be closed, so that
// nobody else can have locked it. It may have been removed or replaced.
func (f *File) remove() error {
	defer f.scratch.close()
	named, err := f.scratch.names(f.name, f.f)
	if err != nil || !named {
		return err
	}
	return f.scratch.unlink(f.name)
}

// TempScratch makes a scratch file without a name, in a directory, or where dir
// is "", in that of the system for temporary files. It is as [OpenScratch] has
// it, and gone when it is closed, or by a crash.
func TempScratch(ctx context.Context, dir, magic string) (*File, error) {
	if dir == "" {
		dir = os.TempDir()
	}
	f, err := tempScratch(ctx, dir, magic, unix.O_TMPFILE)
	if err != nil {
		return nil, fmt.Errorf("file: make a temporary file in %q: %w", filepath.Base(dir), err)
	}
	return f, nil
}

// tempScratch is TempScratch; nameless is O_TMPFILE.
func tempScratch(ctx context.Context, dir, magic string, nameless int) (*File, error) {
	if err := checkMagic(ctx, magic); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(dir, os.O_RDWR|nameless, 0o600)
	if lacksNameless(err) {
		f, err = createNameless(dir)
	}
	if err != nil {
		return nil, writeError(writeOpenError(err))
	}
	file, err := newFile(f, host{}, "temporary file")
	if err != nil {
		_ = f.Close() // nothing was written
		return nil, err
	}
	if err := file.void(ctx, magic); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return file, nil
}

// lacksNameless: the file system has no files without names. A kernel that does
// not know them takes the flag for that of a directory, which is not written to.
func lacksNameless(err error) bool {
	return errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EISDIR)
}

// createNameless makes a file and removes its name.
func createNameless(dir string) (*os.File, error) {
	for {
		path := filepath.Join(dir, fmt.Sprintf(".extentd.%08x.tmp", rand.Uint32()))
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL|syscall.O_NOFOLLOW, 0o600)
		if errors.Is(err, os.ErrExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if err := os.Remove(path); err != nil {
			_ = f.Close() // it is empty
			return nil, err
		}
		return f, nil
	}
}
