package service_test

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/extentd/extentd/service"
	"github.com/extentd/extentd/storage"
)

func TestQCOW2Chain(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "base.raw"), pattern(7, 1<<20))
	qemu(t, dir, "qemu-img", "create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw", "middle.qcow2")
	qemu(t, dir, "qemu-io", "-f", "qcow2", "-c", "write -P 2 128k 64k", "middle.qcow2")
	qemu(t, dir, "qemu-img", "create", "-q", "-f", "qcow2", "-b", "middle.qcow2", "-F", "qcow2",
		"-o", "cluster_size=4096,lazy_refcounts=on,compression_type=zstd", "top.qcow2")
	qemu(t, dir, "qemu-io", "-f", "qcow2", "-c", "write -P 3 130k 1k", "top.qcow2")
	qemu(t, dir, "qemu-img", "bitmap", "--add", "-g", "64k", "top.qcow2", "dirty")
	qemu(t, dir, "qemu-img", "snapshot", "-c", "before", "top.qcow2")
	svc := start(t, service.Options{Dir: dir})
	want := pattern(7, 1<<20)
	copy(want[128<<10:], bytes.Repeat([]byte{2}, 64<<10))
	copy(want[130<<10:], bytes.Repeat([]byte{3}, 1<<10))
	if !bytes.Equal(readImage(t, svc, "top.qcow2"), want) {
		t.Error("wrong content")
	}
	h := acquire(t, svc, "top.qcow2")
	defer h.Release()
	got, err := h.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if age := time.Since(got.QCOW2.Snapshots[0].Created); age < 0 || age > time.Minute {
		t.Errorf("a snapshot of %v ago", age)
	}
	graph := func(name string) []service.NodeInfo {
		limits, err := storage.Limits{}.Complete()
		if err != nil {
			t.Fatal(err)
		}
		return []service.NodeInfo{{Kind: "file", Name: name, Limits: limits}}
	}
	diff := cmp.Diff(service.Info{
		Name: "top.qcow2", Format: "qcow2", Size: 1 << 20,
		Generation: h.Generation(), DataGeneration: h.DataGeneration(),
		Layers: []service.LayerInfo{
			{Depth: 0, Format: "qcow2", Node: "top.qcow2", Size: 1 << 20, ClusterSize: 4096, BackingFile: "middle.qcow2", BackingFormat: "qcow2", Graph: graph("top.qcow2")},
			{Depth: 1, Format: "qcow2", Node: "middle.qcow2", Size: 1 << 20, ClusterSize: 65536, BackingFile: "base.raw", BackingFormat: "raw", Graph: graph("middle.qcow2")},
			{Depth: 2, Format: "raw", Node: "base.raw", Size: 1 << 20, Graph: graph("base.raw")},
		},
		QCOW2: &service.QCOW2{
			Version: 3, ClusterSize: 4096, RefcountBits: 16, CompressionType: "zstd", LazyRefcounts: true,
			Snapshots: []service.Snapshot{{ID: "1", Name: "before", Size: 1 << 20}},
			Bitmaps:   []storage.BitmapInfo{{Name: "dirty", Granularity: 65536, Enabled: true, Dirty: -1}},
		},
	}, got,
		cmpopts.IgnoreFields(service.Info{}, "Allocated", "Limits"),
		cmpopts.IgnoreFields(service.LayerInfo{}, "Allocated"),
		cmpopts.IgnoreFields(service.Snapshot{}, "Created"))
	if diff != "" {
		t.Error(diff)
	}
	if got.Allocated < 8192 || got.Allocated != got.Layers[0].Allocated || got.Limits.Preferred != 4096 {
		t.Errorf("allocated %d, of which the file %d; limits %+v", got.Allocated, got.Layers[0].Allocated, got.Limits)
	}
}

func TestQCOW2DataFile(t *testing.T) {
	top := t.TempDir()
	dir := filepath.Join(top, "served")
	write(t, filepath.Join(dir, "x.raw"), nil)
	qemu(t, dir, "qemu-img", "create", "-q", "-f", "qcow2", "-o", "data_file=disk.data,data_file_raw=on", "inside.qcow2", "1M")
	qemu(t, dir, "qemu-io", "-f", "qcow2", "-c", "write -P 5 0 64k", "inside.qcow2")
	outside := filepath.Join(top, "outside.data")
	qemu(t, dir, "qemu-img", "create", "-q", "-f", "qcow2", "-o", "data_file="+outside, "outside.qcow2", "1M")
	qemu(t, dir, "qemu-io", "-f", "qcow2", "-c", "write -P 6 0 64k", "outside.qcow2")
	svc := start(t, service.Options{Dir: dir, Images: []service.ImageSpec{
		{Name: "bound", Path: filepath.Join(dir, "outside.qcow2"), DataFile: outside},
	}})
	h := acquire(t, svc, "inside.qcow2")
	defer h.Release()
	if p := read(t, h); p[0] != 5 || p[65536] != 0 {
		t.Error("wrong content inside")
	}
	info, err := h.Info(t.Context())
	if err != nil || info.Allocated < info.Layers[0].Allocated+65536 || info.QCOW2.DataFile != "disk.data" || !info.QCOW2.DataFileRaw {
		t.Errorf("%+v, %v", info, err)
	}
	if _, err := svc.Acquire(t.Context(), "outside.qcow2"); !errors.Is(err, storage.ErrRefused) {
		t.Errorf("a data file outside: %v", err)
	}
	if p := readImage(t, svc, "bound"); p[0] != 6 {
		t.Error("wrong content of the bound one")
	}
	generation := h.DataGeneration()
	write(t, filepath.Join(dir, "disk.data"), pattern(9, 1<<20))
	again := acquire(t, svc, "inside.qcow2")
	defer again.Release()
	if again.DataGeneration() == generation || !bytes.Equal(read(t, again), pattern(9, 1<<20)) {
		t.Error("the changed data file is not noticed")
	}
}

func TestRawStaysRaw(t *testing.T) {
	dir := t.TempDir()
	qemu(t, dir, "qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", "/etc/passwd", "-F", "raw", "disguised.raw", "1M")
	svc := start(t, service.Options{Dir: dir})
	h := acquire(t, svc, "disguised.raw")
	defer h.Release()
	if info, err := h.Info(t.Context()); err != nil || info.Format != "raw" || len(info.Layers) != 1 || info.QCOW2 != nil {
		t.Errorf("%+v, %v", info, err)
	}
	if !bytes.HasPrefix(read(t, h), []byte("QFI\xfb")) {
		t.Error("not the bytes of the file")
	}
}

func TestBusy(t *testing.T) {
	dir := t.TempDir()
	overlay(t, dir, "over.qcow2", "disk.raw", "raw")
	write(t, filepath.Join(dir, "disk.raw"), pattern(1, 1<<20))
	svc := start(t, service.Options{Dir: dir, Idle: 20 * time.Millisecond})
	for _, held := range []string{"over.qcow2", "disk.raw"} {
		release := hold(t, dir, held)
		for _, name := range []string{"over.qcow2", held} {
			if _, err := svc.Acquire(t.Context(), name); !errors.Is(err, storage.ErrBusy) {
				t.Errorf("%s while %s is held: %v", name, held, err)
			}
		}
		release()
		h := acquire(t, svc, "over.qcow2")
		if out, err := exec.Command("qemu-io", "-c", "write 0 512", filepath.Join(dir, "over.qcow2")).CombinedOutput(); err == nil {
			t.Errorf("QEMU writes to an image that is open here: %s", out)
		}
		h.Release()
		eventually(t, "it closes", func() bool { return openFiles(t, dir) == 0 })
	}
}

// hold keeps an image open in QEMU, for writing, until the function that it
// returns is called.
func hold(t *testing.T, dir, name string) (release func()) {
	t.Helper()
	format := "raw"
	if strings.HasSuffix(name, ".qcow2") {
		format = "qcow2"
	}
	cmd := exec.Command("qemu-io", "-f", format, name)
	cmd.Dir = dir
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(stdin, "read 0 512\n"); err != nil {
		t.Fatal(err)
	}
	for lines := bufio.NewScanner(stdout); lines.Scan(); {
		if strings.Contains(lines.Text(), "read 512/512") {
			return func() {
				stdin.Close()
				_, _ = io.Copy(io.Discard, stdout)
				_ = cmd.Wait()
			}
		}
	}
	t.Fatalf("qemu-io did not open %s", name)
	return nil
}
