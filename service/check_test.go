package service_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/extentd/extentd/service"
	"github.com/extentd/extentd/storage"
)

// patch overwrites a part of a file.
func patch(t *testing.T, path string, p []byte, off int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(p, off); err != nil {
		t.Fatal(err)
	}
}

// damaged makes an image with a leaked cluster, and another that is in use and
// has no refcount, if corrupt.
func damaged(t *testing.T, dir, name string, corrupt bool) {
	t.Helper()
	qemu(t, dir, "qemu-img", "create", "-q", "-f", "qcow2", name, "1M")
	qemu(t, dir, "qemu-io", "-f", "qcow2", "-c", "write -P 7 0 64k", name)
	path := filepath.Join(dir, name)
	one := binary.BigEndian.AppendUint16(nil, 1)
	patch(t, path, one, 2<<16+2*8)
	if err := os.Truncate(path, 9<<16); err != nil {
		t.Fatal(err)
	}
	if corrupt {
		patch(t, path, []byte{0, 0}, 2<<16+2*5)
	}
}

func check(t *testing.T, svc *service.Service, name, repair string) *service.CheckReport {
	t.Helper()
	r, err := svc.Check(t.Context(), name, repair)
	if err != nil {
		t.Fatalf("check %s, repair %s: %v", name, repair, err)
	}
	return r
}

func TestCheck(t *testing.T) {
	dir := t.TempDir()
	damaged(t, dir, "leaks.qcow2", false)
	damaged(t, dir, "corrupt.qcow2", true)
	write(t, filepath.Join(dir, "a.raw"), pattern(1, 4096))
	ro := start(t, service.Options{Dir: dir, ReadOnly: true})
	if r := check(t, ro, "leaks.qcow2", "none"); r.Leaks != 1 || r.Corruptions != 0 || r.Format != "qcow2" || len(r.Errors) == 0 {
		t.Errorf("%+v", r)
	}
	for _, repair := range []string{"leaks", "all"} {
		if _, err := ro.Check(t.Context(), "leaks.qcow2", repair); !errors.Is(err, storage.ErrReadOnly) {
			t.Errorf("repair %s on a read-only server: %v", repair, err)
		}
	}
	if err := ro.Close(); err != nil {
		t.Fatal(err)
	}
	svc := start(t, service.Options{Dir: dir})
	if r := check(t, svc, "leaks.qcow2", "leaks"); r.Leaks != 0 || r.LeaksFixed != 1 || r.Corruptions != 0 {
		t.Errorf("%+v", r)
	}
	if r := check(t, svc, "corrupt.qcow2", "none"); r.Leaks != 1 || r.Corruptions == 0 {
		t.Errorf("%+v", r)
	}
	if r := check(t, svc, "corrupt.qcow2", "all"); r.Leaks != 0 || r.Corruptions != 0 || r.CorruptionsFixed == 0 {
		t.Errorf("%+v", r)
	}
	var invalid *storage.InvalidError
	if _, err := svc.Check(t.Context(), "leaks.qcow2", "most"); !errors.As(err, &invalid) || invalid.Field != "repair" {
		t.Error(err)
	}
	if _, err := svc.Check(t.Context(), "a.raw", "none"); !errors.Is(err, storage.ErrUnsupported) {
		t.Error(err)
	}
	if _, err := svc.Check(t.Context(), "none.qcow2", "none"); !errors.Is(err, storage.ErrNotFound) {
		t.Error(err)
	}
	if err := svc.Close(); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"leaks.qcow2", "corrupt.qcow2"} {
		qemu(t, dir, "qemu-img", "check", "-q", name)
		qemu(t, dir, "qemu-io", "-f", "qcow2", "-c", "read -P 7 0 64k", name)
	}
}

// An image that is marked corrupt cannot be written to, and a repair makes it
// writable again, once nobody uses it.
func TestRepairOfACorruptImage(t *testing.T) {
	dir := t.TempDir()
	damaged(t, dir, "a.qcow2", true)
	patch(t, filepath.Join(dir, "a.qcow2"), binary.BigEndian.AppendUint64(nil, 2), 72) // the corrupt bit
	svc := start(t, service.Options{Dir: dir})
	refused(t, svc, "a.qcow2", storage.ErrCorrupt)
	h := acquire(t, svc, "a.qcow2")
	if _, err := svc.Check(t.Context(), "a.qcow2", "all"); !errors.Is(err, storage.ErrConflict) {
		t.Errorf("while it is in use: %v", err)
	}
	h.Release()
	if r := check(t, svc, "a.qcow2", "all"); r.Corruptions != 0 || r.Leaks != 0 {
		t.Errorf("%+v", r)
	}
	w := acquireWritable(t, svc, "a.qcow2")
	put(t, w, pattern(3, 4096), 0)
	if got := read(t, w); !bytes.Equal(got[:4096], pattern(3, 4096)) || got[5000] != 7 {
		t.Error("wrong content")
	}
	w.Release()
	if err := svc.Close(); err != nil {
		t.Fatal(err)
	}
	qemu(t, dir, "qemu-img", "check", "-q", "a.qcow2")
}

// Leaks are repaired in an image that is in use.
func TestRepairOfAnImageThatIsBeingRead(t *testing.T) {
	dir := t.TempDir()
	damaged(t, dir, "a.qcow2", false)
	svc := start(t, service.Options{Dir: dir, Idle: 50 * time.Millisecond})
	h := acquire(t, svc, "a.qcow2")
	defer h.Release()
	generation := h.DataGeneration()
	if r := check(t, svc, "a.qcow2", "leaks"); r.LeaksFixed != 1 {
		t.Errorf("%+v", r)
	}
	if h.DataGeneration() == generation {
		t.Error("a repair has left the generation as it was")
	}
	if got := read(t, h); got[0] != 7 {
		t.Error("wrong content")
	}
}
