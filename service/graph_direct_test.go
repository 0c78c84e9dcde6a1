package service_test

import (
	"bytes"
	"errors"
	"path/filepath"
	"slices"
	"testing"

	"github.com/extentd/extentd/service"
	"github.com/extentd/extentd/storage"
)

// direct is a graph of a file past the page cache.
func direct(path string, filters ...service.GraphFilter) *service.Graph {
	g := on(path, filters...)
	g.Node.Direct = true
	return g
}

// One file is read past the page cache and through it side by side, and written
// to in one way at a time.
func TestDirect(t *testing.T) {
	dir := t.TempDir()
	disk := filepath.Join(dir, "disk.raw")
	write(t, disk, pattern(1, 1<<20))
	svc := start(t, service.Options{Dir: dir, Images: []service.ImageSpec{
		{Name: "d", Graph: direct(disk)}, {Name: "w", Graph: direct(disk, window(65536, 65536))},
	}})
	d, plain, w := acquire(t, svc, "d"), acquire(t, svc, "disk.raw"), acquire(t, svc, "w")
	limits, err := d.Device().Limits(t.Context())
	if err != nil || limits.Minimum < 512 {
		t.Fatalf("%+v, %v", limits, err)
	}
	var misaligned *storage.MisalignedError
	if err := d.Device().ReadAt(t.Context(), make([]byte, 10), 1); !errors.As(err, &misaligned) || misaligned.Minimum != limits.Minimum {
		t.Errorf("a misaligned read: %v", err)
	}
	if !bytes.Equal(read(t, d), pattern(1, 1<<20)) || !bytes.Equal(read(t, plain), pattern(1, 1<<20)) || !bytes.Equal(read(t, w), pattern(1, 65536)) {
		t.Error("wrong content")
	}
	w.Release()
	refused(t, svc, "d", storage.ErrConflict)
	refused(t, svc, "disk.raw", storage.ErrConflict)
	plain.Release()
	if again := acquireWritable(t, svc, "d"); again != d {
		t.Error("it was not upgraded in place")
	}
	put(t, d, pattern(2, 4096), 4096)
	if _, err := svc.Acquire(t.Context(), "disk.raw"); !errors.Is(err, storage.ErrConflict) {
		t.Errorf("reading through the page cache what is written to past it: %v", err)
	}
	d.Release()
	d.Release()
	plain = acquireWritable(t, svc, "disk.raw") // who is idle is in nobody's way
	put(t, plain, pattern(3, 4096), 8192)
	if _, err := svc.Acquire(t.Context(), "d"); !errors.Is(err, storage.ErrConflict) {
		t.Errorf("reading past the page cache what is written to through it: %v", err)
	}
	plain.Release()
	want := slices.Concat(pattern(1, 4096), pattern(2, 4096), pattern(3, 4096), pattern(1, 1<<20-12288))
	if !bytes.Equal(readImage(t, svc, "d"), want) || !bytes.Equal(readImage(t, svc, "disk.raw"), want) {
		t.Error("wrong content after writing")
	}
}

// A format that asks for any offset and length does so above any node.
func TestDirectQCOW2(t *testing.T) {
	dir := t.TempDir()
	newDisk(t, dir, "a.qcow2")
	path := filepath.Join(dir, "a.qcow2")
	opt := service.Options{Images: []service.ImageSpec{{Name: "a", Graph: direct(path)}}}
	svc := start(t, opt)
	if _, err := svc.Acquire(t.Context(), "a"); !errors.Is(err, storage.ErrUnsupported) {
		t.Errorf("without what splits: %v", err)
	}
	opt.Blocksize = unaligned
	svc = start(t, opt)
	w := acquireWritable(t, svc, "a")
	info, err := w.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	g := info.Layers[0].Graph
	if len(g) != 2 || g[0].Limits.Minimum < 512 || g[1].Kind != "blocksize" || g[1].Name != "blocksize(a.qcow2)" || g[1].Limits.Minimum != 1 || info.Limits.Minimum != 1 {
		t.Errorf("%+v, %+v", g, info.Limits)
	}
	put(t, w, pattern(5, 1000), 100)
	want := read(t, w)
	w.Release()
	if r := check(t, svc, "a", service.RepairNone); r.Corruptions+r.Leaks > 0 {
		t.Errorf("%+v", r)
	}
	if err := svc.Close(); err != nil {
		t.Error(err)
	}
	checkClean(t, dir, "a.qcow2")
	if !bytes.Equal(want[100:1100], pattern(5, 1000)) || !bytes.Equal(readImage(t, start(t, service.Options{Dir: dir}), "a.qcow2"), want) {
		t.Error("wrong content")
	}
}
