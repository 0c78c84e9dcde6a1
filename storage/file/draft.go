package file

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/extentd/extentd/storage"
)

// A Draft is a new file that has no name of its own yet: it lies beside where it
// is to be, as .NAME.RANDOM.tmp, open for writing and locked, until it is
// published or discarded. What a crash leaves behind of it is never listed, and
// nobody needs it. Safe for concurrent use.
type Draft struct {
	file *File
	dir  *folder
	name string // that it is to have

	mu   sync.Mutex // protects all below
	has  string     // the name that it has
	done bool       // published or discarded
}

// maxStem is how much of a name stands in the draft's, so that it is not too
// long where the name is not.
const maxStem = 200

// Create begins a file that the operator named, whose directory exists. It is to
// have the permissions that the process gives to new files. The error wraps
// [storage.ErrExists] where there is something of that name already,
// [storage.ErrNotFound] where there is no such directory, or
// [storage.ErrReadOnly].
func Create(ctx context.Context, path string) (*Draft, error) {
	d, err := create(ctx, os.OpenRoot, path)
	if err != nil {
		return nil, fmt.Errorf("file: create %q: %w", filepath.Base(path), err)
	}
	return d, nil
}

// Create begins a file in the directory, as [Create] does. A name that leads out
// fails with [storage.ErrRefused].
func (d *Dir) Create(ctx context.Context, name string) (*Draft, error) {
	draft, err := create(ctx, d.root.OpenRoot, name)
	if err != nil {
		return nil, fmt.Errorf("file: create %q: %w", name, err)
	}
	return draft, nil
}

func create(ctx context.Context, in func(name string) (*os.Root, error), name string) (*Draft, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	dir, base, err := parent(in, name)
	if err != nil {
		return nil, err
	}
	d, err := dir.create(base)
	if err != nil {
		dir.close()
		return nil, err
	}
	return d, nil
}

// create is Create in one directory.
func (d *folder) create(base string) (*Draft, error) {
	switch _, err := d.root.Lstat(base); {
	case err == nil:
		return nil, storage.ErrExists
	case !errors.Is(err, os.ErrNotExist):
		return nil, openError(err)
	}
	stem := base[:min(len(base), maxStem)]
	for {
		name := fmt.Sprintf(".%s.%08x.tmp", stem, rand.Uint32())
		f, err := d.root.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL|syscall.O_NOFOLLOW, 0o644) // less the umask
		if errors.Is(err, os.ErrExist) {
			continue
		}
		if err != nil {
			return nil, writeError(writeOpenError(err))
		}
		file, err := newFile(f, d.root, base)
		if err != nil {
			_ = f.Close() // it is empty
			return nil, errors.Join(err, d.unlink(name))
		}
		return &Draft{file: file, dir: d, name: base, has: name}, nil
	}
}

// newFile is the File of what has just been created, writable and locked.
func newFile(f *os.File, in tree, name string) (*File, error) {
	w, err := newWriter(f, f)
	if err != nil {
		return nil, err
	}
	if _, err := settle(f, lockWriter); err != nil {
		return nil, err
	}
	file := &File{f: f, seeks: f, in: in, name: name, lock: lockWriter}
	file.w.Store(w)
	return file, nil
}

// File is the file. It stays open, and locked, when it is published, and is the
// caller's to close then.
func (d *Draft) File() *File { return d.file }

// Publish makes the file durable, and gives it its name, durably too. It fails
// with [storage.ErrExists] where there is something of that name by now. After an
// error the draft is to be discarded.
func (d *Draft) Publish(ctx context.Context) error {
	if err := d.publish(ctx); err != nil {
		return fmt.Errorf("file: publish %q: %w", d.name, err)
	}
	return nil
}

func (d *Draft) publish(ctx context.Context) error {
	w, err := d.file.start(ctx, 0, 0)
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.done {
		return storage.ErrClosed
	}
	if err := w.flush(unix.Fsync); err != nil {
		return err
	}
	if err := d.dir.rename(d.has, d.name); err != nil {
		return err
	}
	d.has = d.name
	if err := d.dir.sync(); err != nil {
		return err
	}
	d.done = true
	d.dir.close()
	return nil
}

// Discard closes and removes the file, unless it has been published: then it
// does nothing. A second one does nothing either.
func (d *Draft) Discard() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.done {
		return nil
	}
	d.done = true
	defer d.dir.close()
	err := d.dir.unlink(d.has) // while it is locked
	if closed := d.file.Close(); !errors.Is(closed, storage.ErrClosed) {
		err = errors.Join(err, closed)
	}
	if err != nil {
		return fmt.Errorf("file: discard %q: %w", d.name, err)
	}
	return nil
}
