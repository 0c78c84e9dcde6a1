package service_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/extentd/extentd/service"
	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/block"
	"github.com/extentd/extentd/storage/filter"
)

// Windows of one disk and the disk itself are read side by side, and written to
// one at a time.
func TestWindowsShareAFile(t *testing.T) {
	dir := t.TempDir()
	disk := filepath.Join(dir, "disk.raw")
	write(t, disk, slices.Concat(pattern(1, 4096), pattern(2, 4096), pattern(3, 4096)))
	svc := start(t, service.Options{Dir: dir, Images: []service.ImageSpec{
		{Name: "first", Graph: on(disk, window(0, 4096))},
		{Name: "second", Graph: on(disk, window(4096, 4096))},
	}})
	first, second, whole := acquire(t, svc, "first"), acquire(t, svc, "second"), acquire(t, svc, "disk.raw")
	if !bytes.Equal(read(t, first), pattern(1, 4096)) || !bytes.Equal(read(t, second), pattern(2, 4096)) {
		t.Error("wrong content")
	}
	if n := openFiles(t, dir); n != 1 {
		t.Errorf("%d descriptors", n)
	}
	refused(t, svc, "first", storage.ErrConflict)
	refused(t, svc, "disk.raw", storage.ErrConflict)
	second.Release()
	whole.Release()
	w := acquireWritable(t, svc, "first") // who is idle is in nobody's way
	if w != first {
		t.Error("it was not upgraded in place")
	}
	put(t, w, pattern(7, 512), 3584)
	if err := w.Device().WriteAt(t.Context(), pattern(7, 512), 3840); !errors.Is(err, storage.ErrOutOfRange) {
		t.Errorf("beyond the window: %v", err)
	}
	for _, other := range []string{"second", "disk.raw"} {
		if _, err := svc.Acquire(t.Context(), other); !errors.Is(err, storage.ErrConflict) {
			t.Errorf("%s is read while it is written to: %v", other, err)
		}
	}
	w.Release()
	first.Release()
	want := slices.Concat(pattern(1, 3584), pattern(7, 512), pattern(2, 4096), pattern(3, 4096))
	if !bytes.Equal(readImage(t, svc, "disk.raw"), want) {
		t.Error("wrong content of the whole disk")
	}
	w = acquireWritable(t, svc, "disk.raw")
	put(t, w, pattern(8, 4096), 4096)
	w.Release()
	if !bytes.Equal(readImage(t, svc, "second"), pattern(8, 4096)) {
		t.Error("a window does not show what was written to the disk")
	}
	if err := svc.Delete(t.Context(), "disk.raw", nil); !errors.Is(err, storage.ErrConflict) {
		t.Errorf("delete what windows stand on: %v", err)
	}
	if err := svc.Delete(t.Context(), "second", nil); !errors.Is(err, storage.ErrReadOnly) {
		t.Errorf("delete a window: %v", err)
	}
	if err := svc.Resize(t.Context(), "second", 8192, false, nil); !errors.Is(err, storage.ErrUnsupported) {
		t.Errorf("resize a window: %v", err)
	}
}

// A file that is replaced under a graph is opened anew, and one that is missing
// is no missing image.
func TestFileUnderAGraphIsReplaced(t *testing.T) {
	dir := t.TempDir()
	disk := filepath.Join(dir, "disk.bin")
	d := &diary{}
	counted := d.pass("counted")
	counted.Keep = true // what it has counted is lost with the file
	svc := start(t, service.Options{Images: []service.ImageSpec{
		{Name: "x", Format: "raw", Graph: on(disk, d.pass("plain"))},
		{Name: "y", Format: "raw", Graph: on(disk, counted)},
	}})
	for _, name := range []string{"x", "y"} {
		if _, err := svc.Acquire(t.Context(), name); !errors.Is(err, storage.ErrBackingUnavailable) || errors.Is(err, storage.ErrNotFound) {
			t.Errorf("without a file: %v", err)
		}
		for seed := byte(1); seed < 4; seed++ {
			next := filepath.Join(dir, "next")
			write(t, next, pattern(seed, 4096))
			if err := os.Rename(next, disk); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(readImage(t, svc, name), pattern(seed, 4096)) {
				t.Errorf("%s: wrong content of file %d", name, seed)
			}
		}
		if err := os.Remove(disk); err != nil {
			t.Fatal(err)
		}
	}
	if err := svc.Close(); err != nil {
		t.Error(err)
	}
	opened, shut := 0, 0
	for _, e := range d.take() {
		if e[0] == 'o' {
			opened++
		} else {
			shut++
		}
	}
	if opened != 6 || shut != 6 || openFiles(t, dir) != 0 {
		t.Errorf("%d opened, %d closed", opened, shut)
	}
}

// What a kept filter has counted outlives what was written through it.
func TestKeptOverAFile(t *testing.T) {
	dir := t.TempDir()
	disk := filepath.Join(dir, "disk.raw")
	write(t, disk, pattern(1, 4096))
	d := &diary{}
	counted := d.pass("counted")
	counted.Keep = true
	svc := start(t, service.Options{Idle: shortIdle, Recheck: -1, Images: []service.ImageSpec{{Name: "x", Graph: on(disk, counted)}}})
	w := acquireWritable(t, svc, "x")
	put(t, w, pattern(2, 512), 0)
	generation := w.DataGeneration()
	w.Release()
	eventually(t, "the image is closed", func() bool {
		time.Sleep(2 * shortIdle)
		h := acquire(t, svc, "x")
		defer h.Release()
		if h.DataGeneration() != generation {
			t.Fatal("a clean close changes the generation")
		}
		return h != w
	})
	d.expect(t, "open counted")
	write(t, disk, pattern(3, 4096)) // behind our back
	if !bytes.Equal(readImage(t, svc, "x"), pattern(3, 4096)) {
		t.Error("a change of the file does not show")
	}
	d.expect(t, "close counted", "open counted")
}

// Overlays of one base are written to side by side, and the base is not, while
// they are open.
func TestOverlaysShareABase(t *testing.T) {
	dir := t.TempDir()
	base := filepath.Join(dir, "base.raw")
	write(t, base, pattern(1, 1<<20))
	svc := start(t, service.Options{Dir: dir, Idle: shortIdle, Images: []service.ImageSpec{
		{Name: "a", Graph: on(base, overlaid())},
		{Name: "b", Graph: on(base, window(0, 65536), overlaid())},
	}})
	a, b := acquireWritable(t, svc, "a"), acquireWritable(t, svc, "b")
	put(t, a, pattern(2, 4096), 0)
	put(t, b, pattern(3, 4096), 4096)
	if p := readImage(t, svc, "base.raw"); !bytes.Equal(p, pattern(1, 1<<20)) {
		t.Error("the base was written to")
	}
	refused(t, svc, "base.raw", storage.ErrConflict)
	generation := a.DataGeneration()
	a.Release()
	b.Release()
	refused(t, svc, "base.raw", storage.ErrConflict)
	h := acquire(t, svc, "a")
	if h.DataGeneration() != generation || !bytes.Equal(read(t, h), append(pattern(2, 4096), pattern(1, 1<<20-4096)...)) {
		t.Error("the overlay is another")
	}
	h.Release()
	if !bytes.Equal(readImage(t, svc, "b"), slices.Concat(pattern(1, 4096), pattern(3, 4096), pattern(1, 65536-8192))) {
		t.Error("wrong content of the other")
	}
	if err := svc.Close(); err != nil {
		t.Error(err)
	}
	svc = start(t, service.Options{Dir: dir, Images: []service.ImageSpec{{Name: "a", Graph: on(base, overlaid())}}})
	h = acquire(t, svc, "a")
	defer h.Release()
	if h.DataGeneration() == generation || !bytes.Equal(read(t, h), pattern(1, 1<<20)) {
		t.Error("an overlay outlives its service")
	}
}

// What takes no writes counts where writes come by.
func TestGraphReadOnly(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a.raw")
	write(t, path, pattern(1, 4096))
	d := &diary{}
	ro := d.pass("readonly")
	ro.ReadOnly = true
	fixed := on(path)
	fixed.Node.ReadOnly = true
	fixedBelow := on(path, overlaid())
	fixedBelow.Node.ReadOnly = true
	for name, c := range map[string]struct {
		g    *service.Graph
		want bool
	}{
		"node": {fixed, true}, "filter": {on(path, ro), true}, "under": {on(path, ro, overlaid()), false},
		"over": {on(path, overlaid(), ro), true}, "node.under": {fixedBelow, false}, "none": {on(path, d.pass("x")), false},
	} {
		svc := start(t, service.Options{Images: []service.ImageSpec{{Name: name, Graph: c.g}}})
		h := acquire(t, svc, name)
		if h.ReadOnly() != c.want {
			t.Errorf("%s: read-only is %v", name, h.ReadOnly())
		}
		if c.want {
			refused(t, svc, name, storage.ErrReadOnly)
		} else {
			acquireWritable(t, svc, name).Release()
		}
		h.Release()
		if err := svc.Close(); err != nil {
			t.Error(err)
		}
	}
}

// mapped is the first mapping of the image.
func mapped(t *testing.T, h *service.Handle) storage.Mapping {
	t.Helper()
	for m, err := range h.Device().Walk(t.Context(), 0, 512, block.WalkOptions{}) {
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	t.Fatal("there is no mapping")
	return storage.Mapping{}
}

func TestGraphInfo(t *testing.T) {
	dir := t.TempDir()
	disk := filepath.Join(dir, "disk.raw")
	write(t, disk, pattern(1, 1<<20))
	d := &diary{}
	svc := start(t, service.Options{Dir: dir, Images: []service.ImageSpec{
		{Name: "x", Graph: on(disk, window(65536, 65536), d.pass("counts"))},
		{Name: "mem", Format: "raw", Graph: &service.Graph{Node: d.keptNode(pattern(1, 512), nil)}},
		{Name: "alias", Graph: on(disk)},
	}})
	h := acquire(t, svc, "x")
	defer h.Release()
	info, err := h.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	limits, _ := storage.Limits{}.Complete()
	want := []service.LayerInfo{{
		Format: "raw", Node: "counts(offset(disk.raw))", Size: 65536, Graph: []service.NodeInfo{
			{Kind: "file", Name: "disk.raw", Limits: limits},
			{Kind: "offset", Name: "offset(disk.raw)", Limits: limits},
			{Kind: "counts", Name: "counts(offset(disk.raw))", Limits: limits, Counters: []filter.Counter{{Name: "tests", Value: 7}}},
		},
	}}
	if diff := cmp.Diff(want, info.Layers, cmpopts.IgnoreFields(service.LayerInfo{}, "Allocated")); diff != "" {
		t.Error(diff)
	}
	if m := mapped(t, h); m.Node.Name() != "counts(offset(disk.raw))" || m.NodeOffset != 0 || h.Path(m.Node) != disk {
		t.Errorf("%s at %d is %s", m.Node.Name(), m.NodeOffset, h.Path(m.Node))
	}
	m := acquire(t, svc, "mem")
	defer m.Release()
	node := mapped(t, m).Node
	if at := m.Path(node); at != "mem" || h.Path(node) != "" {
		t.Errorf("the path of what is no file: %q", at)
	}
	whole, alias := acquire(t, svc, "disk.raw"), acquire(t, svc, "alias")
	defer whole.Release()
	defer alias.Release()
	if whole.Device() != alias.Device() {
		t.Error("a graph that is no more than a file is not shared")
	}
}
