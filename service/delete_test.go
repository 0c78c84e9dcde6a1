package service_test

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/extentd/extentd/service"
	"github.com/extentd/extentd/storage"
)

func TestDelete(t *testing.T) {
	dir, elsewhere := t.TempDir(), t.TempDir()
	for _, name := range []string{"a.raw", "b.raw", "base.raw"} {
		write(t, filepath.Join(dir, name), pattern(1, 2<<20))
	}
	write(t, filepath.Join(dir, "broken.qcow2"), pattern(1, 4096))
	write(t, filepath.Join(elsewhere, "far.raw"), pattern(1, 4096))
	overlay(t, dir, "over.qcow2", "base.raw", "raw")
	far := service.ImageSpec{Name: "far.raw", Path: filepath.Join(elsewhere, "far.raw")}
	svc := start(t, service.Options{Dir: dir, Images: []service.ImageSpec{far}})
	failing := func(name string, match func(string) bool, want error) {
		t.Helper()
		if err := svc.Delete(t.Context(), name, match); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", name, err, want)
		}
	}
	failing("none.raw", nil, storage.ErrNotFound)
	failing("notes.txt", nil, storage.ErrNotFound)
	failing("far.raw", nil, storage.ErrReadOnly)
	failing("base.raw", nil, storage.ErrConflict)
	failing("a.raw", func(string) bool { return false }, service.ErrPrecondition)
	// A download goes on.
	h := acquire(t, svc, "a.raw")
	generation := h.DataGeneration()
	stream, err := h.Device().Stream(t.Context(), 0, 2<<20)
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	if _, err := stream.Read(make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
	if err := svc.Delete(t.Context(), "a.raw", func(g string) bool { return g == generation }); err != nil {
		t.Error(err)
	}
	failing("a.raw", nil, storage.ErrNotFound)
	if n, err := stream.WriteTo(discardWriter{}); err != nil || n != 2<<20-100 {
		t.Errorf("the download ends after %d bytes: %v", n, err)
	}
	h.Release()
	// So does who writes.
	w := acquireWritable(t, svc, "b.raw")
	put(t, w, pattern(2, 100), 0)
	if err := svc.Delete(t.Context(), "b.raw", nil); err != nil {
		t.Error(err)
	}
	put(t, w, pattern(3, 100), 0)
	w.Release()
	for _, name := range []string{"broken.qcow2", "over.qcow2", "base.raw"} {
		if err := svc.Delete(t.Context(), name, nil); err != nil {
			t.Error(err)
		}
	}
	if left := entries(t, dir); len(left) > 0 {
		t.Error(left)
	}
	eventually(t, "all is closed", func() bool { return openFiles(t, dir) == 0 })
	if err := svc.Create(t.Context(), raw("a.raw", 512)); err != nil {
		t.Error(err)
	}
	h = acquire(t, svc, "a.raw")
	if h.DataGeneration() == generation {
		t.Error("a new image has the generation of the one before")
	}
	h.Release()
}

type discardWriter struct{}

func (discardWriter) Write(p []byte) (int, error) {
	time.Sleep(time.Millisecond)
	return len(p), nil
}

// What another process has open is not deleted.
func TestDeleteBusy(t *testing.T) {
	dir := t.TempDir()
	qemu(t, dir, "qemu-img", "create", "-q", "-f", "qcow2", "a.qcow2", "1M")
	svc := start(t, service.Options{Dir: dir})
	for _, args := range [][]string{{"-f", "qcow2"}, {"-r", "-f", "qcow2"}} {
		end := occupy(t, append(args, filepath.Join(dir, "a.qcow2"))...)
		if err := svc.Delete(t.Context(), "a.qcow2", nil); !errors.Is(err, storage.ErrBusy) {
			t.Errorf("%v: %v", args, err)
		}
		end()
	}
	if err := svc.Delete(t.Context(), "a.qcow2", nil); err != nil {
		t.Error(err)
	}
}

func TestResize(t *testing.T) {
	for _, format := range []string{"raw", "qcow2"} {
		t.Run(format, func(t *testing.T) {
			dir := t.TempDir()
			name := "a." + format
			qemu(t, dir, "qemu-img", "create", "-q", "-f", format, name, "1M")
			svc := start(t, service.Options{Dir: dir})
			reader := acquire(t, svc, name)
			generation := reader.DataGeneration()
			if err := svc.Resize(t.Context(), name, 2<<20, false, func(g string) bool { return g == generation }); err != nil {
				t.Fatal(err)
			}
			if reader.Device().Size() != 2<<20 || reader.DataGeneration() == generation {
				t.Errorf("size %d, generation %s", reader.Device().Size(), reader.DataGeneration())
			}
			if err := svc.Resize(t.Context(), name, 1<<20, false, nil); !errors.Is(err, storage.ErrInvalid) {
				t.Errorf("shrink: %v", err)
			}
			if err := svc.Resize(t.Context(), name, 1<<20, true, nil); err != nil {
				t.Error(err)
			}
			var invalid *storage.InvalidError
			if err := svc.Resize(t.Context(), name, -1, true, nil); !errors.As(err, &invalid) || invalid.Field != "size" {
				t.Errorf("a negative size: %v", err)
			}
			reader.Release()
			if err := svc.Close(); err != nil {
				t.Fatal(err)
			}
			if out := qemu(t, dir, "qemu-img", "info", "-f", format, name); !strings.Contains(out, "virtual size: 1 MiB") {
				t.Error(out)
			}
		})
	}
}
