package crash_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/qcow2"
	"github.com/extentd/extentd/storage/storagetest"
)

// check runs our check over the files of an image.
func check(ctx context.Context, files map[string]*storagetest.MemFile, repair qcow2.Repair) (qcow2.CheckResult, error) {
	node := storage.NewNode("image.qcow2", files["image.qcow2"], storage.NodeOptions{})
	return qcow2.Check(ctx, node, qcow2.CheckOptions{
		Repair: repair,
		OpenData: func(context.Context, string) (*storage.Node, error) {
			return storage.NewNode("data.raw", files["data.raw"], storage.NodeOptions{}), nil
		},
	})
}

// sound checks what holds of an image after any crash or failure: no
// corruption, and its bytes are among those that may be there at a position.
// At the end the image has no leaks either. It returns the bytes.
func (r *recording) sound(ctx context.Context, files map[string]*storagetest.MemFile, at int) ([]byte, error) {
	before, err := r.read(ctx, files, at)
	if err != nil {
		return nil, err
	}
	if r.kind.lazy {
		if _, err := check(ctx, files, qcow2.RepairAll); err != nil {
			return nil, fmt.Errorf("check -r all: %w", err)
		}
	}
	result, err := check(ctx, files, qcow2.RepairNone)
	if err != nil || result.Corruptions != 0 {
		return nil, fmt.Errorf("check: %+v, %w", result, wrapped(err))
	}
	if _, err := check(ctx, files, qcow2.RepairLeaks); err != nil {
		return nil, fmt.Errorf("check -r leaks: %w", err)
	}
	if err := clean(ctx, files); err != nil {
		return nil, fmt.Errorf("after a repair of leaks: %w", err)
	}
	after, err := r.read(ctx, files, at)
	if err == nil && !bytes.Equal(before, after) {
		err = errors.New("a repair changed the bytes")
	}
	return after, err
}

var errNothing = errors.New("no error")

// wrapped is an error that can be wrapped.
func wrapped(err error) error {
	if err == nil {
		return errNothing
	}
	return err
}

// clean wants neither corruptions nor leaks.
func clean(ctx context.Context, files map[string]*storagetest.MemFile) error {
	result, err := check(ctx, files, qcow2.RepairNone)
	if err != nil || result.Corruptions != 0 || result.Leaks != 0 {
		return fmt.Errorf("check: %+v, %w", result, wrapped(err))
	}
	return nil
}

// read opens the image for reading and compares size and bytes with what may be.
func (r *recording) read(ctx context.Context, files map[string]*storagetest.MemFile, at int) ([]byte, error) {
	d, err := openDisk(ctx, asFiles(files))
	if err != nil {
		return nil, err
	}
	got, err := readAll(ctx, d)
	if err != nil {
		return nil, errors.Join(err, d.close())
	}
	return got, errors.Join(r.history.checkSize(d.Size(), at), r.history.check(got, at), d.close())
}

// usable writes to the image again, closes it and checks it.
func (r *recording) usable(t *testing.T, files map[string]*storagetest.MemFile, name string) error {
	ctx := t.Context()
	d, err := openDisk(ctx, asFiles(files))
	if err != nil {
		return err
	}
	initial, err := readAll(ctx, d)
	if err != nil {
		return err
	}
	if err := d.startWriting(ctx); err != nil {
		return errors.Join(fmt.Errorf("start writing: %w", err), d.close())
	}
	w := &worker{
		kind: r.kind, disk: d, history: newHistory(initial), random: source(name),
		at: func() int { return 0 }, hi: d.Size(), stamp: 1 << 48,
	}
	for range 8 {
		if err := w.step(ctx); err != nil {
			return errors.Join(fmt.Errorf("%s: %w", w.log[len(w.log)-1], err), d.close())
		}
	}
	w.history.flushed(w.history.now(), 0)
	got, err := readAll(ctx, d)
	if err := errors.Join(err, w.history.check(got, 0)); err != nil {
		return errors.Join(fmt.Errorf("%s: %w", strings.Join(w.log, "; "), err), d.close())
	}
	if err := d.close(); err != nil {
		return fmt.Errorf("close: %w", err)
	}
	return clean(ctx, files)
}

// askQEMU has qemu-img check the image of a crash, and repair its leaks, and
// read its snapshots.
func (r *recording) askQEMU(t *testing.T, files map[string]*storagetest.MemFile, at int) error {
	contents := map[string][]byte{}
	for name, f := range files {
		contents[name] = f.Bytes()
	}
	dir := dump(t, contents)
	defer func() { _ = os.RemoveAll(dir) }()
	if r.kind.lazy {
		if out, err := try(dir, "qemu-img", "check", "-q", "-r", "all", "-f", "qcow2", "image.qcow2"); err != nil {
			return fmt.Errorf("qemu-img check -r all: %w\n%s", err, out)
		}
	}
	out, err := try(dir, "qemu-img", "check", "-f", "qcow2", "image.qcow2")
	if c := code(err); c != 0 && c != 3 {
		return fmt.Errorf("qemu-img check: %w\n%.2000s", err, out)
	}
	if out, err := try(dir, "qemu-img", "check", "-q", "-r", "leaks", "-f", "qcow2", "image.qcow2"); err != nil {
		return fmt.Errorf("qemu-img check -r leaks: %w\n%s", err, out)
	}
	if out, err := try(dir, "qemu-img", "check", "-f", "qcow2", "image.qcow2"); err != nil {
		return fmt.Errorf("qemu-img check after a repair of leaks: %w\n%s", err, out)
	}
	if out, err := try(dir, "qemu-img", "convert", "-f", "qcow2", "-O", "raw", "image.qcow2", "read.raw"); err != nil {
		return fmt.Errorf("qemu-img convert: %w\n%s", err, out)
	}
	got, err := os.ReadFile(filepath.Join(dir, "read.raw"))
	if err != nil {
		return err
	}
	if err := r.history.check(got, at); err != nil {
		return fmt.Errorf("as QEMU reads it: %w", err)
	}
	return r.snapshots(t, dir)
}

// snapshots compares those of an image with those of the first one.
func (r *recording) snapshots(t *testing.T, dir string) error {
	read := func(dir, name string) ([]byte, error) {
		if out, err := try(dir, "qemu-img", "convert", "-f", "qcow2", "-O", "raw", "-l", "snapshot.name="+name, "image.qcow2", "snapshot.raw"); err != nil {
			return nil, fmt.Errorf("snapshot %s: %w\n%s", name, err, out)
		}
		return os.ReadFile(filepath.Join(dir, "snapshot.raw"))
	}
	first := ""
	for _, c := range r.kind.before {
		name, ok := strings.CutPrefix(c, "snapshot ")
		if !ok {
			continue
		}
		if first == "" {
			first = dump(t, r.kind.load(t))
			defer func() { _ = os.RemoveAll(first) }()
		}
		want, err := read(first, name)
		if err != nil {
			return err
		}
		got, err := read(dir, name)
		if err != nil {
			return err
		}
		if !bytes.Equal(got, want) {
			return fmt.Errorf("snapshot %s has changed", name)
		}
	}
	return nil
}
