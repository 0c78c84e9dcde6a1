package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/extentd/extentd/client/transfer"
	"github.com/extentd/extentd/service"
	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/file"
)

// partial is what the name of a file ends with while it is not complete.
const partial = ".partial"

// A fileTarget is a file that gets its name when it is complete, or a block device,
// which is written in place.
type fileTarget struct {
	*localDisk // nil until it is open
	f          *copyFlags
	path       string
	format     string
	device     bool
	options    service.CreateRequest
}

// planFileTarget refuses what exists, unless it may be written over.
func (f *copyFlags) planFileTarget(path string) (*fileTarget, error) {
	t := &fileTarget{f: f, path: path}
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist) && !f.changesOnly():
	case err != nil:
		return nil, err
	case !f.force && !f.changesOnly():
		return nil, fmt.Errorf("%s exists already: give --force to write over it", path)
	case info.Mode()&fs.ModeDevice != 0 && info.Mode()&fs.ModeCharDevice == 0:
		t.device = true
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("%s is neither a regular file nor a block device", path)
	}
	if t.device && f.targetFormat == "" {
		t.format = "raw"
	} else if t.format, err = formatFor(path, f.targetFormat); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if t.device && (t.format != "raw" || len(f.options) > 0) {
		return nil, fmt.Errorf("%s: a block device is written to as raw, and has no options", path)
	}
	t.options, err = f.creation(t.format)
	return t, err
}

// inPlace reports whether what is there is written to, under its name.
func (t *fileTarget) inPlace() bool { return t.device || t.f.changesOnly() }

// working is the path that is written to.
func (t *fileTarget) working() string {
	if t.inPlace() {
		return t.path
	}
	return t.path + partial
}

func (t *fileTarget) stateFile() string {
	if t.inPlace() {
		return ""
	}
	return t.path + partial + ".state"
}

func (t *fileTarget) endpoint() transfer.Endpoint {
	e := transfer.Endpoint{Name: absolute(t.path), Format: t.format}
	if t.localDisk == nil {
		return e
	}
	e.Size = t.Size()
	if id, err := file.Stat(t.working()); err == nil {
		e.Tag = fmt.Sprintf("%x:%x", id.Dev, id.Ino)
	}
	return e
}

// create makes the file anew. One that another copy is writing is left alone.
func (t *fileTarget) create(ctx context.Context, size int64) (err error) {
	if t.inPlace() {
		t.localDisk, err = openLocalWritable(ctx, t.path, t.format)
		return wrapPath(t.path, err)
	}
	if err := t.clear(ctx); err != nil {
		return err
	}
	opt := service.CreateOptions{CreateRequest: t.options}
	opt.Size, opt.HasSize = size, true
	if err := service.CreateFile(ctx, t.working(), formats()[t.format], opt); err != nil {
		return wrapPath(t.working(), err)
	}
	return t.reuse(ctx)
}

// clear removes what an earlier copy left.
func (t *fileTarget) clear(ctx context.Context) error {
	if _, err := os.Lstat(t.working()); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	left, err := openLocalWritable(ctx, t.working(), "raw") // whatever it is: for the lock
	if errors.Is(err, storage.ErrBusy) {
		return fmt.Errorf("%s: another copy is writing it: %w", t.working(), err)
	}
	if err == nil {
		err = left.close()
	}
	return errors.Join(err, os.Remove(t.working()), removeState(t.stateFile()))
}

// reuse opens the file that is there.
func (t *fileTarget) reuse(ctx context.Context) (err error) {
	t.localDisk, err = openLocalWritable(ctx, t.working(), t.format)
	return wrapPath(t.working(), err)
}

func (t *fileTarget) isZero() bool { return !t.inPlace() || t.f.targetIsZero }

func (t *fileTarget) reopen(context.Context) (copySource, error) {
	return borrowedDisk{t.localDisk}, nil
}

// borrowedDisk is closed by its owner.
type borrowedDisk struct{ *localDisk }

func (borrowedDisk) close() error { return nil }

// finish closes the file and gives it its name. What a crash leaked of one that was
// resumed is given back before.
func (t *fileTarget) finish(ctx context.Context, resumed bool) error {
	if resumed && t.format == "qcow2" {
		if _, err := t.svc.Check(ctx, localImage, "leaks"); err != nil {
			return t.failed("give back what was leaked", err)
		}
	}
	disk := t.localDisk
	t.localDisk = nil
	if err := disk.close(); err != nil || t.inPlace() {
		return err
	}
	if err := rename(t.working(), t.path, t.f.force); err != nil {
		return fmt.Errorf("rename %s: %w", t.working(), err)
	}
	return transfer.SyncDir(filepath.Dir(t.path))
}

// rename gives a file another name, which nothing has unless it may be replaced.
func rename(from, to string, replace bool) error {
	if replace {
		return os.Rename(from, to)
	}
	err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EOPNOTSUPP) {
		if err = os.Link(from, to); err == nil {
			err = os.Remove(from)
		}
	}
	return err
}

// discard leaves everything: a file that is not complete has no other name.
func (t *fileTarget) discard(context.Context) error { return nil }

func (t *fileTarget) close() error {
	if t.localDisk == nil {
		return nil
	}
	return t.localDisk.close()
}

func wrapPath(path string, err error) error {
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}
