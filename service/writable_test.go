package service_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/extentd/extentd/service"
	"github.com/extentd/extentd/storage"
	storagefile "github.com/extentd/extentd/storage/file"
)

func acquireWritable(t testing.TB, svc *service.Service, name string) *service.Handle {
	t.Helper()
	h, err := svc.AcquireWritable(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// refused asks for an image to write to, which must fail in that way.
func refused(t *testing.T, svc *service.Service, name string, want error) {
	t.Helper()
	h, err := svc.AcquireWritable(t.Context(), name)
	if err == nil {
		h.Release()
	}
	if !errors.Is(err, want) {
		t.Errorf("%s: %v, want %v", name, err, want)
	}
}

func put(t testing.TB, h *service.Handle, p []byte, off int64) {
	t.Helper()
	if err := h.Device().WriteAt(t.Context(), p, off); err != nil {
		t.Fatal(err)
	}
}

// occupy runs qemu-io with the image open until the end of the test, or until the
// function that it returns is called.
func occupy(t *testing.T, args ...string) (end func()) {
	t.Helper()
	cmd := exec.Command("qemu-io", args...)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatalf("qemu-io: %v: apt-get install qemu-utils", err)
	}
	if _, err := io.WriteString(in, "length\n"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(out, make([]byte, 16)); err != nil { // it answers: it is open
		t.Fatalf("qemu-io %v: %v", args, err)
	}
	go func() { _, _ = io.Copy(io.Discard, out) }()
	end = sync.OnceFunc(func() {
		_ = in.Close()
		_ = cmd.Wait()
	})
	t.Cleanup(end)
	return end
}

func TestUpgradeInPlace(t *testing.T) {
	for _, format := range []string{"raw", "qcow2"} {
		t.Run(format, func(t *testing.T) {
			dir := t.TempDir()
			name := "a." + format
			qemu(t, dir, "qemu-img", "create", "-q", "-f", format, name, "1M")
			svc := start(t, service.Options{Dir: dir})
			reader := acquire(t, svc, name)
			if reader.Writable() || reader.ReadOnly() {
				t.Errorf("writable %v, read-only %v", reader.Writable(), reader.ReadOnly())
			}
			var wg sync.WaitGroup
			for range 8 {
				wg.Go(func() {
					h, err := svc.AcquireWritable(t.Context(), name)
					if err != nil {
						t.Error(err)
						return
					}
					if h != reader || !h.Writable() {
						t.Errorf("another handle, or writable is %v", h.Writable())
					}
					h.Release()
				})
			}
			wg.Wait()
			put(t, reader, pattern(7, 5000), 3000)
			want := make([]byte, 1<<20)
			copy(want[3000:], pattern(7, 5000))
			if !bytes.Equal(read(t, reader), want) {
				t.Error("the reader does not see what was written")
			}
			again := acquire(t, svc, name)
			again.Release()
			if again != reader {
				t.Error("our own write made the handle stale")
			}
			reader.Release()
			if err := svc.Close(); err != nil {
				t.Fatal(err)
			}
			qemu(t, dir, "qemu-io", "-f", format, "-c", "read -P 1 3001 1", name)
			if !bytes.Equal(readImage(t, start(t, service.Options{Dir: dir}), name), want) {
				t.Error("it is not in the file")
			}
		})
	}
}

func TestUpgradeWhileAStreamReads(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "a.raw"), pattern(1, 4<<20))
	svc := start(t, service.Options{Dir: dir})
	h := acquire(t, svc, "a.raw")
	defer h.Release()
	stream, err := h.Device().Stream(t.Context(), 0, 4<<20)
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	got := make([]byte, 1<<20)
	if _, err := io.ReadFull(stream, got); err != nil {
		t.Fatal(err)
	}
	w := acquireWritable(t, svc, "a.raw")
	put(t, w, pattern(2, 1<<20), 0)
	w.Release()
	rest, err := io.ReadAll(stream)
	if got = append(got, rest...); err != nil || !bytes.Equal(got, pattern(1, 4<<20)) {
		t.Errorf("the stream: %v, %d bytes", err, len(got))
	}
}

func TestReadOnly(t *testing.T) {
	dir, elsewhere := t.TempDir(), t.TempDir()
	write(t, filepath.Join(dir, "a.raw"), pattern(1, 4096))
	write(t, filepath.Join(elsewhere, "b.raw"), pattern(1, 4096))
	b := service.ImageSpec{Name: "b", Path: filepath.Join(elsewhere, "b.raw"), ReadOnly: true}
	c := service.ImageSpec{Name: "c", Path: filepath.Join(elsewhere, "b.raw")}
	isReadOnly := func(svc *service.Service, name string) bool {
		h := acquire(t, svc, name)
		defer h.Release()
		info, err := h.Info(t.Context())
		if err != nil || info.ReadOnly != h.ReadOnly() {
			t.Errorf("%s: info says %v, the handle %v: %v", name, info.ReadOnly, h.ReadOnly(), err)
		}
		return info.ReadOnly
	}
	svc := start(t, service.Options{Dir: dir, Images: []service.ImageSpec{b, c}})
	refused(t, svc, "b", storage.ErrReadOnly)
	if !isReadOnly(svc, "b") || isReadOnly(svc, "c") || isReadOnly(svc, "a.raw") {
		t.Error("info does not tell what is read-only")
	}
	w := acquireWritable(t, svc, "c")
	defer w.Release()
	put(t, w, pattern(3, 4096), 0)
	if got := readImage(t, svc, "b"); !bytes.Equal(got, pattern(3, 4096)) {
		t.Error("what is read-only under one name is not what was written under the other")
	}
	refused(t, svc, "b", storage.ErrReadOnly)

	ro := start(t, service.Options{Dir: dir, ReadOnly: true})
	refused(t, ro, "a.raw", storage.ErrReadOnly)
	if !isReadOnly(ro, "a.raw") {
		t.Error("info says that it can be written")
	}
	for what, err := range map[string]error{
		"create": ro.Create(t.Context(), service.CreateRequest{Name: "n.raw", Format: "raw", HasSize: true}),
		"delete": ro.Delete(t.Context(), "a.raw", nil),
		"resize": ro.Resize(t.Context(), "a.raw", 8192, false, nil),
	} {
		if !errors.Is(err, storage.ErrReadOnly) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("%v, %v", entries, err)
	}
}

// QEMU and we keep each other out.
func TestLocksOfOtherProcesses(t *testing.T) {
	dir := t.TempDir()
	qemu(t, dir, "qemu-img", "create", "-q", "-f", "qcow2", "a.qcow2", "1M")
	path := filepath.Join(dir, "a.qcow2")
	svc := start(t, service.Options{Dir: dir})
	end := occupy(t, "-f", "qcow2", path)
	refused(t, svc, "a.qcow2", storage.ErrBusy)
	end()
	end = occupy(t, "-r", "-f", "qcow2", path) // a reader that lets nobody write
	h := acquire(t, svc, "a.qcow2")
	refused(t, svc, "a.qcow2", storage.ErrBusy)
	_ = read(t, h)
	end()
	w := acquireWritable(t, svc, "a.qcow2")
	if w != h {
		t.Error("who was refused once has lost the handle")
	}
	h.Release()
	for _, args := range [][]string{{"-f", "qcow2"}, {"-r", "-f", "qcow2"}} {
		out, err := exec.Command("qemu-io", append(args, "-c", "length", path)...).CombinedOutput()
		if err == nil || !strings.Contains(string(out), "lock") {
			t.Errorf("qemu-io %v is let in: %v\n%s", args, err, out)
		}
	}
	put(t, w, pattern(1, 4096), 0)
	w.Release()
	if err := svc.Close(); err != nil {
		t.Fatal(err)
	}
	qemu(t, dir, "qemu-io", "-f", "qcow2", "-c", "write 64k 4k", "a.qcow2")
	qemu(t, dir, "qemu-img", "check", "-q", "a.qcow2")
}

// The lock of an external data file counts like the image's own, and an upgrade
// that stops there leaves an image that can be read, and upgraded later.
func TestLockOfTheDataFile(t *testing.T) {
	dir := t.TempDir()
	qemu(t, dir, "qemu-img", "create", "-q", "-f", "qcow2", "-o", "data_file=a.data", "a.qcow2", "1M")
	svc := start(t, service.Options{Dir: dir})
	h := acquire(t, svc, "a.qcow2")
	other, err := storagefile.Open(t.Context(), filepath.Join(dir, "a.data"), storagefile.Options{})
	if err != nil {
		t.Fatal(err)
	}
	refused(t, svc, "a.qcow2", storage.ErrBusy)
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	_ = read(t, h)
	h.Release()
	w := acquireWritable(t, svc, "a.qcow2")
	put(t, w, pattern(5, 4096), 0)
	w.Release()
	if err := svc.Close(); err != nil {
		t.Fatal(err)
	}
	qemu(t, dir, "qemu-img", "check", "-q", "a.qcow2")
}

// An image that a server writes to is another process's, too.
func TestTwoServices(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "a.raw"), pattern(1, 4096))
	first, second := start(t, service.Options{Dir: dir, Idle: 40 * time.Millisecond}), start(t, service.Options{Dir: dir})
	w := acquireWritable(t, first, "a.raw")
	if _, err := second.Acquire(t.Context(), "a.raw"); !errors.Is(err, storage.ErrBusy) {
		t.Error(err)
	}
	w.Release()
	eventually(t, "the first lets go", func() bool {
		h, err := second.AcquireWritable(t.Context(), "a.raw")
		if err == nil {
			h.Release()
		}
		return err == nil
	})
}

func TestUpgradeIsCancelled(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "a.raw"), pattern(1, 4096))
	svc := start(t, service.Options{Dir: dir})
	h := acquire(t, svc, "a.raw")
	defer h.Release()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := svc.AcquireWritable(ctx, "a.raw"); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	acquireWritable(t, svc, "a.raw").Release()
}
