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

// What a qcow2 image on a graph stores of its children is relative to the
// directory of the file below, where there is one.
func TestGraphNamesItsBacking(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "base.raw"), pattern(1, 1<<20))
	overlay(t, dir, "over.qcow2", "base.raw", "raw")
	content, err := os.ReadFile(filepath.Join(dir, "over.qcow2"))
	if err != nil {
		t.Fatal(err)
	}
	d := &diary{}
	mem := func() *service.Graph { return &service.Graph{Node: d.keptNode(content, nil)} }
	opt := service.Options{BackingDirs: []string{dir}, Images: []service.ImageSpec{
		{Name: "file", Graph: on(filepath.Join(dir, "over.qcow2"), d.pass("x"))},
		{Name: "mem", Format: "qcow2", Graph: mem()},
		{Name: "bound", Format: "qcow2", Graph: mem(), Backing: "window"},
		{Name: "window", Graph: on(filepath.Join(dir, "base.raw"), window(512, 65536))},
		{Name: "base", Path: filepath.Join(dir, "base.raw")},
		{Name: "loop", Format: "qcow2", Graph: mem(), Backing: "loop"},
	}}
	svc := start(t, opt)
	if !bytes.Equal(readImage(t, svc, "file"), pattern(1, 1<<20)) {
		t.Error("wrong content over a named backing")
	}
	for _, name := range []string{"mem", "loop"} {
		if _, err := svc.Acquire(t.Context(), name); !errors.Is(err, storage.ErrBackingUnavailable) {
			t.Errorf("%s: %v", name, err)
		}
	}
	want := append(pattern(1, 1<<20)[512:512+65536], make([]byte, 1<<20-65536)...)
	if !bytes.Equal(readImage(t, svc, "bound"), want) {
		t.Error("wrong content over a bound backing")
	}
	// What one of them needs is not written to, open or not.
	refused(t, svc, "base", storage.ErrConflict)
	if err := svc.Close(); err != nil {
		t.Error(err)
	}
	d.take()
	svc = start(t, service.Options{BackingDirs: []string{dir}, Images: []service.ImageSpec{opt.Images[0], opt.Images[4]}})
	refused(t, svc, "base", storage.ErrConflict)
	d.expect(t, "open x", "close x") // to look what it stores
	svc = start(t, opt)
	refused(t, svc, "window", storage.ErrConflict)
	acquireWritable(t, svc, "file").Release()
	h := acquireWritable(t, svc, "bound")
	put(t, h, pattern(9, 65536), 0)
	h.Release()
	if !bytes.Equal(readImage(t, svc, "base"), pattern(1, 1<<20)) {
		t.Error("the backing was written to")
	}
}

// An image whose backing stands on memory has the memory that others write to.
func TestGraphBacksAnother(t *testing.T) {
	dir := t.TempDir()
	qemu(t, dir, "qemu-img", "create", "-q", "-f", "qcow2", "top.qcow2", "1M")
	d := &diary{}
	svc := start(t, service.Options{Idle: shortIdle, Images: []service.ImageSpec{
		{Name: "mem", Format: "raw", Graph: &service.Graph{Node: d.keptNode(pattern(1, 1<<20), nil)}},
	}})
	w := acquireWritable(t, svc, "mem")
	put(t, w, pattern(2, 4096), 0)
	w.Release()
	if err := svc.Close(); err != nil {
		t.Error(err)
	}
	d.take()
	svc = start(t, service.Options{Idle: shortIdle, Images: []service.ImageSpec{
		{Name: "mem", Format: "raw", Graph: &service.Graph{Node: d.keptNode(pattern(1, 1<<20), nil)}},
		{Name: "top", Path: filepath.Join(dir, "top.qcow2"), Backing: "mem"},
	}})
	if !bytes.Equal(readImage(t, svc, "top"), pattern(1, 1<<20)) || !bytes.Equal(readImage(t, svc, "mem"), pattern(1, 1<<20)) {
		t.Error("wrong content")
	}
	refused(t, svc, "mem", storage.ErrConflict)
	h := acquireWritable(t, svc, "top")
	put(t, h, pattern(3, 4096), 65536)
	h.Release()
	d.expect(t, "open mem")
}

// An image in a window of a disk is checked, repaired, resized and allocated in.
func TestQCOW2InAWindow(t *testing.T) {
	dir := t.TempDir()
	damaged(t, dir, "a.qcow2", true)
	content, err := os.ReadFile(filepath.Join(dir, "a.qcow2"))
	if err != nil {
		t.Fatal(err)
	}
	disk := filepath.Join(dir, "disk.raw")
	const at, room = 1 << 20, 4 << 20
	write(t, disk, append(append(make([]byte, at), content...), make([]byte, room-len(content))...))
	opt := service.Options{
		Dir: dir, Blocksize: unaligned,
		Images: []service.ImageSpec{{Name: "q", Format: "qcow2", Graph: on(disk, window(at, room))}},
	}
	keep(t, &opt, filepath.Join(dir, ".state"))
	svc := start(t, opt)
	if r := check(t, svc, "q", service.RepairNone); r.Corruptions == 0 || r.Leaks == 0 {
		t.Errorf("%+v", r)
	}
	if r := check(t, svc, "q", service.RepairAll); r.Corruptions+r.Leaks != 0 || r.CorruptionsFixed == 0 {
		t.Errorf("%+v", r)
	}
	if err := svc.Resize(t.Context(), "q", 2<<20, false, nil); err != nil {
		t.Error(err)
	}
	a := allocate(t, svc, "q", service.AllocationRequest{Length: 2 * cluster})
	fill(t, svc, "q", a.ID, pattern(9, 2*cluster), 0)
	if err := svc.Close(); err != nil {
		t.Error(err)
	}
	svc = start(t, opt)
	update(t, svc, "q", data(4*cluster, 2*cluster, a.ID, 0)) // as after any restart
	got := readImage(t, svc, "q")
	if len(got) != 2<<20 || !bytes.Equal(got[4*cluster:6*cluster], pattern(9, 2*cluster)) || got[0] != 7 {
		t.Error("wrong content")
	}
	if err := svc.Close(); err != nil {
		t.Error(err)
	}
	whole, err := os.ReadFile(disk)
	if err != nil || len(whole) != at+room || !bytes.Equal(whole[:at], make([]byte, at)) {
		t.Errorf("what lies around the window has changed: %v", err)
	}
	write(t, filepath.Join(dir, "out.qcow2"), whole[at:])
	checkClean(t, dir, "out.qcow2")
}

// What is allocated in an overlay is gone with it.
func TestAllocationsInAnOverlay(t *testing.T) {
	dir := t.TempDir()
	newDisk(t, dir, "a.qcow2")
	before, err := os.ReadFile(filepath.Join(dir, "a.qcow2"))
	if err != nil {
		t.Fatal(err)
	}
	opt := service.Options{
		Blocksize: unaligned,
		Images:    []service.ImageSpec{{Name: "a", Graph: on(filepath.Join(dir, "a.qcow2"), overlaid())}},
	}
	keep(t, &opt, filepath.Join(dir, ".state"))
	svc := start(t, opt)
	a := allocate(t, svc, "a", service.AllocationRequest{Length: 2 * cluster})
	fill(t, svc, "a", a.ID, pattern(9, 2*cluster), 0)
	if _, err := svc.Allocation(t.Context(), "a", a.ID); err != nil {
		t.Error(err)
	}
	if err := svc.Close(); err != nil {
		t.Error(err)
	}
	keep(t, &opt, filepath.Join(dir, ".state"))
	svc = start(t, opt)
	if _, err := svc.Allocation(t.Context(), "a", a.ID); !errors.Is(err, storage.ErrNotFound) {
		t.Errorf("it should be gone: %v", err)
	}
	put(t, acquireAndRelease(t, svc, "a"), pattern(3, 512), 0)
	if err := svc.Close(); err != nil {
		t.Error(err)
	}
	after, err := os.ReadFile(filepath.Join(dir, "a.qcow2"))
	if err != nil || !bytes.Equal(before, after) {
		t.Errorf("the file below was written to: %v", err)
	}
}

// acquireAndRelease is a handle for writing until the end of the test.
func acquireAndRelease(t *testing.T, svc *service.Service, name string) *service.Handle {
	t.Helper()
	h := acquireWritable(t, svc, name)
	t.Cleanup(h.Release)
	return h
}
