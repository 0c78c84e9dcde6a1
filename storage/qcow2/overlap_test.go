package qcow2_test

import (
	"encoding/binary"
	"errors"
	"strings"
	"testing"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/qcow2"
	"github.com/extentd/extentd/storage/storagetest"
)

// refcountsAt is where the refcounts of an image begin that has one block.
func refcountsAt(b []byte) uint64 {
	table := binary.BigEndian.Uint64(b[48:])
	return binary.BigEndian.Uint64(b[table:])
}

// TestOverlap writes to images whose tables claim each other's clusters: none
// may be overwritten, and the image is marked corrupt.
func TestOverlap(t *testing.T) {
	be := binary.BigEndian
	l1 := func(b []byte) uint64 { return be.Uint64(b[40:]) }
	l2 := func(b []byte) uint64 { return be.Uint64(b[l1(b):]) &^ (1 << 63) }
	for _, tt := range []struct {
		name   string
		damage func(b []byte)
		says   string
	}{
		{"l2 table over the refcount table", func(b []byte) { be.PutUint64(b[l1(b):], be.Uint64(b[48:])|1<<63) }, "the refcount table"},
		{"refcount table over the l1 table", func(b []byte) { be.PutUint64(b[48:], l1(b)) }, "the l1 table"},
		{"l2 table twice", func(b []byte) { be.PutUint64(b[l1(b)+8:], be.Uint64(b[l1(b):])) }, "an l2 table"},
		{"refcount block over the l1 table", func(b []byte) { be.PutUint64(b[be.Uint64(b[48:]):], l1(b)) }, "the l1 table"},
		{"free l2 table", func(b []byte) { be.PutUint16(b[refcountsAt(b)+2*(l2(b)>>16):], 0) }, "an l2 table"},
		{"free header", func(b []byte) { be.PutUint16(b[refcountsAt(b):], 0) }, "the header"},
		{"unaligned l2 table", func(b []byte) { be.PutUint64(b[l1(b):], l2(b)|1<<63|512) }, "multiple of the cluster size"},
		{"unaligned refcount block", func(b []byte) { be.PutUint64(b[be.Uint64(b[48:]):], refcountsAt(b)|512) }, "multiple of the cluster size"},
		{"unaligned data", func(b []byte) { be.PutUint64(b[l2(b):], be.Uint64(b[l2(b):])|512) }, "multiple of the cluster size"},
		{"data in a table", func(b []byte) { be.PutUint64(b[l2(b):], l2(b)|1<<63) }, "an l2 table"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			create(t, dir, "image", 1<<30, "")
			qemuIO(t, dir, "image", "write -P 1 0 64k", "write -P 2 128k 64k")
			b := load(t, dir, "image")
			tt.damage(b)
			file := storagetest.NewMemFile(b)
			node := storage.NewNode("image", file, storage.NodeOptions{})
			i, err := qcow2.Open(t.Context(), node, qcow2.Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer i.Close()
			err = damagedWrites(t, i, node)
			if !errors.Is(err, storage.ErrCorrupt) || !strings.Contains(err.Error(), tt.says) {
				t.Fatalf("%v, want %v and %q", err, storage.ErrCorrupt, tt.says)
			}
			after := file.Bytes()
			if after[79]&2 == 0 {
				t.Error("not marked corrupt")
			}
			after[79] &^= 2
			if string(after) != string(b) {
				t.Errorf("the file was changed at %#x", differs(after, b))
			}
			if _, err := i.Alloc(t.Context(), 1, storage.AllocOptions{}); err == nil {
				t.Error("Alloc goes on")
			}
			if err := i.StartWriting(t.Context()); err == nil {
				t.Error("StartWriting goes on")
			}
		})
	}
}

// damagedWrites does one of each and returns the first error.
func damagedWrites(t *testing.T, i *qcow2.Image, node *storage.Node) error {
	t.Helper()
	ctx := t.Context()
	if err := i.StartWriting(ctx); err != nil {
		return err
	}
	var l storage.ExtentList
	if err := i.Fetch(ctx, 0, 1, &l); err == nil {
		if m := l.At(0); m.Status.Has(storage.OffsetValid) {
			if err := i.CheckWrite(ctx, node, m.NodeOffset, 4096); err != nil {
				return err
			}
		}
	}
	for range 8 {
		if _, err := i.Alloc(ctx, 64<<10, storage.AllocOptions{}); err != nil {
			return err
		}
	}
	if err := i.Update(ctx, 0, 64<<10, storage.Target{Kind: storage.ToZero}); err != nil {
		return err
	}
	return i.Flush(ctx)
}

// TestCheckWrite: metadata are out of bounds, data and new clusters are not.
func TestCheckWrite(t *testing.T) {
	w := newWritten(t, 1<<20, "", func(dir string) {
		qemuIO(t, dir, "image", "write -P 1 0 64k")
		run(t, dir, "qemu-img", "snapshot", "-c", "s", "image")
		run(t, dir, "qemu-img", "bitmap", "--add", "--disable", "-f", "qcow2", "image", "b0")
	})
	b, err := w.image.Alloc(t.Context(), 1<<20, storage.AllocOptions{})
	w.ok(err)
	w.ok(w.image.CheckWrite(t.Context(), b.Node, b.Offset, b.Length))
	w.ok(w.image.CheckWrite(t.Context(), b.Node, b.Offset, 0))
	for _, off := range []int64{-1, 1 << 61} {
		if err := w.image.CheckWrite(t.Context(), b.Node, off, 1); !errors.Is(err, storage.ErrOutOfRange) {
			t.Errorf("at %d: %v", off, err)
		}
	}
	w.ok(w.image.Free(t.Context(), b))
	w.close()

	content := w.file.Bytes()
	clean, dirty := 0, 0
	for at := int64(0); at < int64(len(content)); at += 64 << 10 {
		w.file = storagetest.NewMemFile(content)
		w.open()
		err := w.image.CheckWrite(t.Context(), w.node, at, 1)
		switch {
		case err == nil:
			clean++
		case errors.Is(err, storage.ErrCorrupt):
			dirty++
			if w.file.Bytes()[79]&2 == 0 {
				t.Errorf("at %#x: not marked corrupt", at)
			}
		default:
			t.Errorf("at %#x: %v", at, err)
		}
		w.image.Close()
	}
	// The header, l1, refcount table and block, l2 table, the snapshot's table and
	// l1 and the bitmap's directory and table; data, and the snapshot's l2 table.
	if dirty < 8 || clean < 1 {
		t.Errorf("%d clusters are metadata, %d are not", dirty, clean)
	}
}
