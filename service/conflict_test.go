package service_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/extentd/extentd/service"
	"github.com/extentd/extentd/storage"
)

func hardLink(t *testing.T, dir, old, name string) {
	t.Helper()
	if err := os.Link(filepath.Join(dir, old), filepath.Join(dir, name)); err != nil {
		t.Fatal(err)
	}
}

// Two names for one file are one image: one lock, one writer, one cache.
func TestAliasesShare(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "a.raw"), pattern(1, 4096))
	hardLink(t, dir, "a.raw", "b.raw")
	if err := os.Symlink("a.raw", filepath.Join(dir, "c.raw")); err != nil {
		t.Fatal(err)
	}
	spec := service.ImageSpec{Name: "d", Path: filepath.Join(dir, "a.raw")}
	svc := start(t, service.Options{Dir: dir, Images: []service.ImageSpec{spec}})
	names := []string{"a.raw", "b.raw", "c.raw", "d"}
	var handles []*service.Handle
	for _, name := range names {
		h := acquire(t, svc, name)
		defer h.Release()
		if h.Name() != name {
			t.Errorf("%s is called %s", name, h.Name())
		}
		handles = append(handles, h)
	}
	if n := openFiles(t, dir); n != 1 {
		t.Errorf("%d files are open, want 1", n)
	}
	for i, name := range names {
		w := acquireWritable(t, svc, name)
		put(t, w, pattern(byte(10+i), 4096), 0)
		w.Release()
		for _, h := range handles {
			if !bytes.Equal(read(t, h), pattern(byte(10+i), 4096)) {
				t.Errorf("%s does not see what %s has written", h.Name(), name)
			}
			if h.DataGeneration() != handles[0].DataGeneration() {
				t.Errorf("%s has a generation of its own", h.Name())
			}
		}
	}
}

// Deleting one name of what is written to under another leaves the other.
func TestDeleteAnAlias(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "a.raw"), pattern(1, 4096))
	hardLink(t, dir, "a.raw", "b.raw")
	svc := start(t, service.Options{Dir: dir})
	w := acquireWritable(t, svc, "a.raw")
	defer w.Release()
	if err := svc.Delete(t.Context(), "b.raw", nil); err != nil {
		t.Fatal(err)
	}
	put(t, w, pattern(2, 4096), 0)
	if again := acquire(t, svc, "a.raw"); again != w {
		t.Error("the other name's handle is another now")
	} else {
		again.Release()
	}
	if _, err := svc.Acquire(t.Context(), "b.raw"); !errors.Is(err, storage.ErrNotFound) {
		t.Error(err)
	}
}

// One file as two different images has no writer while both are in use.
func TestAliasesThatDiffer(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "a.raw"), pattern(1, 4096))
	write(t, filepath.Join(dir, "other.raw"), pattern(2, 4096))
	qemu(t, dir, "qemu-img", "create", "-q", "-f", "qcow2", "q.qcow2", "1M")
	hardLink(t, dir, "q.qcow2", "q.raw")
	svc := start(t, service.Options{Dir: dir})
	other := acquire(t, svc, "q.qcow2")
	refused(t, svc, "q.raw", storage.ErrConflict)
	other.Release()
	w := acquireWritable(t, svc, "q.raw") // what is idle is in nobody's way
	if _, err := svc.Acquire(t.Context(), "q.qcow2"); !errors.Is(err, storage.ErrConflict) {
		t.Errorf("read as another image while it is written to: %v", err)
	}
	w.Release()
}

// What another image needs is not written to, whether that is open or not.
func TestBackingIsNotWritten(t *testing.T) {
	dir, bases := t.TempDir(), t.TempDir()
	write(t, filepath.Join(dir, "base.raw"), pattern(1, 1<<20))
	overlay(t, dir, "over.qcow2", "base.raw", "raw")
	write(t, filepath.Join(dir, "deep.raw"), pattern(1, 1<<20))
	overlay(t, bases, "middle", filepath.Join(dir, "deep.raw"), "raw")
	overlay(t, dir, "top.qcow2", filepath.Join(bases, "middle"), "qcow2")
	write(t, filepath.Join(dir, "bound.raw"), pattern(1, 1<<20))
	qemu(t, dir, "qemu-img", "create", "-q", "-f", "qcow2", filepath.Join(bases, "free.qcow2"), "1M")
	write(t, filepath.Join(dir, "free.raw"), pattern(1, 1<<20))
	qemu(t, dir, "qemu-img", "create", "-q", "-f", "qcow2", "-o", "data_file=data.raw", "ext.qcow2", "1M")
	spec := service.ImageSpec{Name: "bound", Path: filepath.Join(bases, "free.qcow2"), Backing: "bound.raw"}
	opt := service.Options{Dir: dir, BackingDirs: []string{bases}, Images: []service.ImageSpec{spec}}
	svc := start(t, opt)
	for base, over := range map[string]string{"base.raw": "over.qcow2", "deep.raw": "top.qcow2", "bound.raw": "bound", "data.raw": "ext.qcow2"} {
		refused(t, svc, base, storage.ErrConflict)
		h := acquire(t, svc, base) // it can still be read
		h.Release()
		h = acquire(t, svc, over)
		refused(t, svc, base, storage.ErrConflict)
		h.Release()
		refused(t, svc, base, storage.ErrConflict)
		if err := svc.Delete(t.Context(), base, nil); !errors.Is(err, storage.ErrConflict) {
			t.Errorf("delete %s: %v", base, err)
		}
	}
	if err := os.Remove(filepath.Join(dir, "over.qcow2")); err != nil {
		t.Fatal(err)
	}
	w := acquireWritable(t, svc, "base.raw")
	put(t, w, pattern(9, 1<<20), 0)
	overlay(t, dir, "late.qcow2", "base.raw", "raw")
	if _, err := svc.Acquire(t.Context(), "late.qcow2"); !errors.Is(err, storage.ErrConflict) {
		t.Errorf("an image over one that is being written to: %v", err)
	}
	w.Release()
	if !bytes.Equal(readImage(t, svc, "late.qcow2"), pattern(9, 1<<20)) { // once nobody writes it is closed
		t.Error("an image over one that was written to")
	}
	acquireWritable(t, svc, "free.raw").Release()
}
