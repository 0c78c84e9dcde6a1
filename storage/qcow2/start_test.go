package qcow2_test

import (
	"encoding/binary"
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

// startWriting opens the image of a directory for reading, and starts to write.
func startWriting(t *testing.T, dir string) (*qcow2.Image, *storagetest.MemFile, error) {
	t.Helper()
	file := storagetest.NewMemFile(load(t, dir, "image"))
	i, err := qcow2.Open(t.Context(), storage.NewNode("image", file, storage.NodeOptions{}), qcow2.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { i.Close() })
	return i, file, i.StartWriting(t.Context())
}

// poke64 changes a field of the header on disk.
func poke64(t *testing.T, dir string, off int64, edit func(uint64) uint64) {
	t.Helper()
	b := load(t, dir, "image")
	binary.BigEndian.PutUint64(b[off:], edit(binary.BigEndian.Uint64(b[off:])))
	if err := os.WriteFile(filepath.Join(dir, "image"), b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestStartRefused: what must not be written to is not touched.
func TestStartRefused(t *testing.T) {
	for _, tt := range []struct {
		name    string
		options string
		prepare func(dir string)
		err     error
		says    string
	}{
		{"corrupt", "", func(dir string) { poke64(t, dir, 72, func(v uint64) uint64 { return v | 2 }) }, storage.ErrCorrupt, "marked corrupt"},
		{"encrypted", "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10", nil, storage.ErrUnsupported, "luks"},
		{"bitmap too large", "", func(dir string) {
			run(t, dir, "qemu-img", "resize", "image", "2T")
			run(t, dir, "qemu-img", "bitmap", "--add", "-g", "2k", "image", "b0")
		}, storage.ErrUnsupported, `"b0"`},
		{"bitmap with a malformed table", "", func(dir string) {
			run(t, dir, "qemu-img", "bitmap", "--add", "image", "b0")
			pokeBitmapTable(t, dir, "image", 0x1f0001)
		}, storage.ErrCorrupt, `"b0"`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			if tt.name == "encrypted" {
				createEncrypted(t, dir, "image", tt.options)
			} else {
				create(t, dir, "image", 1<<20, tt.options)
			}
			if tt.prepare != nil {
				tt.prepare(dir)
			}
			i, file, err := startWriting(t, dir)
			if !errors.Is(err, tt.err) || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("StartWriting: %v, want %v and %q", err, tt.err, tt.says)
			}
			if _, err := i.Alloc(t.Context(), 1, storage.AllocOptions{}); !errors.Is(err, storage.ErrReadOnly) {
				t.Errorf("Alloc: %v", err)
			}
			if err := i.Close(); err != nil {
				t.Error(err)
			}
			if string(file.Bytes()) != string(load(t, dir, "image")) {
				t.Error("the file was changed")
			}
		})
	}
}

// TestAutoclear: unknown autoclear bits are cleared, a disabled bitmap keeps
// its, and unknown header extensions survive.
func TestAutoclear(t *testing.T) {
	dir := t.TempDir()
	create(t, dir, "image", 1<<20, "")
	run(t, dir, "qemu-img", "bitmap", "--add", "--disable", "-f", "qcow2", "image", "b0")
	poke64(t, dir, 88, func(v uint64) uint64 { return v | 0xf0 })
	b := load(t, dir, "image")
	at := 112 // the first extension: the feature name table, from here on unknown
	for binary.BigEndian.Uint32(b[at:]) != 0x6803f857 {
		at += 8 + int(binary.BigEndian.Uint32(b[at+4:])+7)&^7
	}
	binary.BigEndian.PutUint32(b[at:], 0x12345678)
	if err := os.WriteFile(filepath.Join(dir, "image"), b, 0o600); err != nil {
		t.Fatal(err)
	}
	i, file, err := startWriting(t, dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := i.StartWriting(t.Context()); err != nil {
		t.Errorf("again: %v", err)
	}
	got := file.Bytes()
	if bits := binary.BigEndian.Uint64(got[88:]); bits != 1 {
		t.Errorf("autoclear bits %#x, want those of the bitmaps", bits)
	}
	copy(got[88:96], b[88:96])
	if string(got) != string(b) {
		t.Error("more than the autoclear bits was changed")
	}
	w := &written{t: t, dir: dir, image: i, file: file, units: i.Units(), model: make([]byte, 1<<20)}
	w.write([]byte("hello"), 1000)
	w.close()
	if out := run(t, dir, "qemu-img", "info", "image"); !strings.Contains(out, "b0") {
		t.Errorf("the bitmap is gone:\n%s", out)
	}
}

// TestLazy: the dirty bit is set before the first table is written and cleared at
// the end; an image that was left dirty is repaired.
func TestLazy(t *testing.T) {
	dirty := func(b []byte) bool { return b[79]&1 != 0 }
	w := newWritten(t, 1<<20, "lazy_refcounts=on", nil)
	w.write([]byte("one"), 100)
	if dirty(w.file.Bytes()) {
		t.Error("dirty before a flush")
	}
	w.ok(w.image.Flush(t.Context()))
	if !dirty(w.file.Bytes()) || !w.image.Info().Dirty {
		t.Error("not dirty after a flush")
	}
	crashed := w.file.Clone()
	if w.close(); dirty(w.file.Bytes()) || w.image.Info().Dirty {
		t.Error("dirty after a close")
	}
	w.file = crashed
	if out := w.check(); !strings.Contains(out, "ERROR") {
		t.Errorf("refcounts were written:\n%s", out)
	}
	w.open()
	if dirty(w.file.Bytes()) {
		t.Error("dirty after a repair")
	}
	w.write([]byte("two"), 200<<10)
	w.compare()
	w.close()
}

// TestReadOnlyNode: a node that cannot be written to fails the first write.
func TestReadOnlyNode(t *testing.T) {
	dir := t.TempDir()
	create(t, dir, "image", 1<<20, "")
	i, err := qcow2.Open(t.Context(), diskNode(t, dir, "image"), qcow2.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { i.Close() })
	blocks := storage.Blocks{}
	for name, err := range map[string]error{
		"Free":       i.Free(t.Context(), blocks),
		"Update":     i.Update(t.Context(), 0, 1<<20, storage.Target{Kind: storage.ToZero}),
		"CheckWrite": i.CheckWrite(t.Context(), nil, 0, 0),
		"Flush":      i.Flush(t.Context()),
		"Adopt":      i.Adopt(t.Context(), nil, false),
	} {
		if !errors.Is(err, storage.ErrReadOnly) {
			t.Errorf("%s before StartWriting: %v", name, err)
		}
	}
}

// TestGrowth writes so much at 512 bytes a cluster that the refcount table has to
// move, several times.
func TestGrowth(t *testing.T) {
	for _, bits := range []int{1, 16, 64} {
		t.Run(fmt.Sprint(bits), func(t *testing.T) {
			const size = 24 << 20
			w := newWritten(t, size, fmt.Sprintf("cluster_size=512,refcount_bits=%d", bits), nil)
			tableAt := func() uint64 { return binary.BigEndian.Uint64(w.file.Bytes()[48:]) }
			before := tableAt()
			for off := int64(0); off < size; {
				b, err := w.image.Alloc(t.Context(), min(64<<10, size-off), storage.AllocOptions{})
				w.ok(err)
				p := make([]byte, b.Length)
				for k := 0; k < len(p); k += 512 {
					binary.BigEndian.PutUint64(p[k:], uint64(off)+uint64(k))
				}
				_, err = b.Node.WriteAt(t.Context(), p, b.Offset)
				w.ok(err)
				w.ok(w.image.Update(t.Context(), off, b.Length, storage.Target{Kind: storage.ToData, Node: b.Node, NodeOffset: b.Offset}))
				copy(w.model[off:], p)
				off += b.Length
			}
			if bits > 1 && tableAt() == before {
				t.Error("the refcount table was not moved")
			}
			w.close()
			w.open()
			w.clear(0, size, storage.ToUnmapped)
			w.close()
			if out := w.check(); strings.Contains(out, "allocated") { // it says so only if something is
				t.Errorf("after discarding everything:\n%s", out)
			}
		})
	}
}

// TestContiguous reserves runs longer than what a refcount block counts.
func TestContiguous(t *testing.T) {
	w := newWritten(t, 1<<20, "cluster_size=512,refcount_bits=64", nil)
	for _, n := range []int64{1, 512, 32 << 10, 33 << 10, 1 << 20, 20 << 20} {
		b, err := w.image.Alloc(t.Context(), n, storage.AllocOptions{Contiguous: true})
		w.ok(err)
		if b.Length != (n+511)&^511 {
			t.Errorf("Alloc(%d) gave %d", n, b.Length)
		}
		if n == 33<<10 {
			w.ok(w.image.Free(t.Context(), storage.Blocks{Node: b.Node, Offset: b.Offset, Length: 1024}))
			b.Offset, b.Length = b.Offset+1024, b.Length-1024
		}
		defer func() { w.ok(w.image.Free(t.Context(), b)) }()
	}
	if _, err := w.image.Alloc(t.Context(), 1<<40, storage.AllocOptions{Contiguous: true}); !errors.Is(err, storage.ErrNoSpace) {
		t.Errorf("a terabyte in a row: %v", err)
	}
}
