package qcow2_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/qcow2"
	"github.com/extentd/extentd/storage/storagetest"
)

// bitmapWorkload changes bitmaps, and writes what they record.
func bitmapWorkload(ctx context.Context, i *qcow2.Image) error {
	for k := range int64(6) {
		changes := []storage.BitmapChange{{Kind: storage.BitmapCreate, Name: fmt.Sprint(k), Granularity: 512, Enabled: true}}
		if k > 1 {
			changes = append(changes, storage.BitmapChange{Kind: storage.BitmapDisable, Name: fmt.Sprint(k - 1)}, storage.BitmapChange{Kind: storage.BitmapDelete, Name: fmt.Sprint(k - 2)})
		}
		if err := i.ChangeBitmaps(ctx, changes); err != nil {
			return err
		}
		if err := i.Record(ctx, 5000*k, 600); err != nil {
			return err
		}
		if k == 3 {
			if err := i.Resize(ctx, i.Size()+4<<20, storage.ResizeOptions{}); err != nil {
				return err
			}
		}
	}
	return i.Close()
}

// TestBitmapFaults fails each write and each sync in turn, and has them find no space:
// what was not done is not half done.
func TestBitmapFaults(t *testing.T) {
	dir := t.TempDir()
	create(t, dir, "image", 128<<10, "cluster_size=512")
	content := load(t, dir, "image")
	for _, kind := range []storagetest.OpKind{storagetest.OpWrite, storagetest.OpFlush} {
		for _, fault := range []error{errors.New("broken"), storage.ErrNoSpace} {
			for nth := int64(1); ; nth += 1 + nth/16 {
				var count atomic.Int64
				file := storagetest.NewMemFileWith(storagetest.MemOptions{Hook: func(_ context.Context, op *storagetest.Op) error {
					if op.Kind == kind && count.Add(1) == nth {
						return fault
					}
					return nil
				}})
				file.Put(content, 0)
				i, err := qcow2.Open(t.Context(), storage.NewNode("image", file, storage.NodeOptions{}), qcow2.Options{})
				if err == nil {
					err = i.StartWriting(t.Context())
				}
				if err == nil {
					err = bitmapWorkload(t.Context(), i)
				}
				if count.Load() < nth {
					break
				}
				if err == nil && !errors.Is(fault, storage.ErrNoSpace) { // a resize may leave bitmaps behind
					t.Errorf("%v of %v, %d: no error", fault, kind, nth)
				}
				failed := i.Failed()
				if err := i.Close(); err != nil && !failed {
					t.Errorf("%v of %v, %d: close: %v", fault, kind, nth, err)
				}
				checkFaulted(t, dir, file.Clone(), nth, failed)
			}
		}
	}
}

// checkFaulted opens the image anew.
func checkFaulted(t *testing.T, dir string, file *storagetest.MemFile, nth int64, failed bool) {
	t.Helper()
	i, err := qcow2.Open(t.Context(), storage.NewNode("image", file, storage.NodeOptions{}), qcow2.Options{})
	if err == nil {
		err = i.StartWriting(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	all, err := i.Bitmaps(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range all {
		if !b.Inconsistent {
			var k int64
			_, _ = fmt.Sscan(b.Name, &k)
			if got := dirty(t, i, b.Name, 5000*k, 600); b.Dirty != 0 && !got[0].Dirty {
				t.Errorf("%d: %+v: %v", nth, b, got)
			}
		}
	}
	if err := i.ChangeBitmaps(t.Context(), []storage.BitmapChange{{Kind: storage.BitmapCreate, Name: "goes on"}}); err != nil {
		t.Error(err)
	}
	if err := i.Close(); err != nil {
		t.Error(err)
	}
	if err := file.WriteFile(filepath.Join(dir, "faulted")); err != nil {
		t.Fatal(err)
	}
	if out, err := try(t, dir, "qemu-img", "check", "-f", "qcow2", "-r", "leaks", "faulted"); err != nil {
		t.Fatalf("%d, out of service %v: qemu-img check: %v\n%s", nth, failed, err, out)
	}
}

// TestBitmapTables: what a table cannot say is refused, and can be got rid of.
func TestBitmapTables(t *testing.T) {
	for _, tt := range []struct {
		name  string
		entry uint64
	}{
		{"reserved low", 2}, {"reserved high", 1 << 56}, {"ones at an offset", 0x10001}, {"unaligned", 0x10200}, {"past the end", 1 << 40}, {"at the most", 0x00ffffffffff0000},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			create(t, dir, "image", 1<<20, "")
			run(t, dir, "qemu-img", "bitmap", "--add", "--disable", "image", "a")
			run(t, dir, "qemu-img", "bitmap", "--add", "--disable", "image", "b")
			pokeBitmapTable(t, dir, "image", tt.entry)
			w := &written{t: t, dir: dir, model: make([]byte, 1<<20)}
			w.load()
			w.open()
			if err := w.image.Dirty(t.Context(), "a", 0, 1, func(int64, int64, bool) error { return nil }); !errors.Is(err, storage.ErrCorrupt) {
				t.Errorf("Dirty: %v", err)
			}
			for _, c := range []storage.BitmapChange{{Kind: storage.BitmapEnable, Name: "a"}, {Kind: storage.BitmapMerge, Name: "b", From: []string{"a"}}, {Kind: storage.BitmapMerge, Name: "a", From: []string{"b"}}} {
				if err := w.image.ChangeBitmaps(t.Context(), []storage.BitmapChange{c}); !errors.Is(err, storage.ErrCorrupt) {
					t.Errorf("%v: %v", c.Kind, err)
				}
			}
			all, err := w.image.Bitmaps(t.Context())
			if err != nil || len(all) != 2 || all[0].Dirty != -1 || all[1].Dirty != 0 {
				t.Errorf("%+v, %v", all, err)
			}
			w.change(storage.BitmapChange{Kind: storage.BitmapDelete, Name: "a"}, storage.BitmapChange{Kind: storage.BitmapEnable, Name: "b"})
			w.record([]byte("goes on"), 5)
			w.shown()
		})
	}
}

// TestBitmapTableOverMetadata: bits that are said to be where metadata are.
func TestBitmapTableOverMetadata(t *testing.T) {
	dir := t.TempDir()
	create(t, dir, "image", 1<<20, "")
	run(t, dir, "qemu-img", "bitmap", "--add", "image", "a")
	pokeBitmapTable(t, dir, "image", 0x10000) // the refcount table
	i, _, err := startWriting(t, dir)
	if !errors.Is(err, storage.ErrCorrupt) || !strings.Contains(err.Error(), "refcount table") {
		t.Errorf("StartWriting: %v", err)
	}
	i.Close()
}

// TestBitmapHeaders: the extension is put into headers of all kinds, and taken out.
func TestBitmapHeaders(t *testing.T) {
	padding := func(length int) func(b []byte) {
		return func(b []byte) { // an unknown extension, and the end
			copy(b[112:], bytes.Join([][]byte{be32(0x12345678), be32(uint32(length))}, nil))
			clear(b[120+length : 120+length+8])
		}
	}
	long := strings.Repeat("b", 150)
	for _, tt := range []struct {
		name, options, below string
		edit                 func(b []byte)
		err                  error
	}{
		{name: "no room to move to", options: "cluster_size=512", below: long + long[:100], err: storage.ErrUnsupported},
		{name: "moved in 512 bytes", options: "cluster_size=512", below: long},
		{name: "moved", options: "cluster_size=4k", below: long},
		{name: "type across", options: "cluster_size=4k", edit: padding(504 - 120 - 4)},
		{name: "across sectors", options: "cluster_size=4k", edit: padding(496 - 120)},
		{name: "across sectors, the count alone", options: "cluster_size=4k", edit: padding(488 - 120)},
		{name: "right before a sector", options: "cluster_size=4k", edit: padding(480 - 120)},
		{name: "in the second sector", options: "cluster_size=4k", edit: padding(512 - 120)},
		{name: "full", options: "cluster_size=512", edit: padding(512 - 120 - 24), err: storage.ErrUnsupported},
		{name: "no end marker", options: "cluster_size=512", edit: func(b []byte) { copy(b[112:], append(be32(1), be32(512-120)...)) }, err: storage.ErrUnsupported},
		{name: "bit without extension", edit: func(b []byte) { b[95] |= 1 }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := &written{t: t, dir: t.TempDir(), model: make([]byte, 1<<20)}
			if tt.below != "" {
				create(t, w.dir, tt.below, 1<<20, "")
				tt.options += ",backing_fmt=qcow2,backing_file=" + tt.below
				w.opt.Backed = true
			}
			create(t, w.dir, "image", 1<<20, tt.options)
			content := load(t, w.dir, "image")
			if tt.edit != nil {
				tt.edit(content)
			}
			w.file = storagetest.NewMemFile(content)
			w.open()
			err := w.image.ChangeBitmaps(t.Context(), []storage.BitmapChange{{Kind: storage.BitmapCreate, Name: "a", Enabled: true}, {Kind: storage.BitmapCreate, Name: "b"}})
			if !errors.Is(err, tt.err) {
				t.Fatalf("%v, want %v", err, tt.err)
			}
			if err == nil {
				w.record([]byte("x"), 300_000)
				w.change(storage.BitmapChange{Kind: storage.BitmapDelete, Name: "b"})
			}
			w.shown()
			if err != nil {
				return
			}
			w.load()
			w.open()
			if got := w.image.Info().BackingFile; got != tt.below {
				t.Errorf("the backing is %q", got)
			}
			w.change(storage.BitmapChange{Kind: storage.BitmapDelete, Name: "a"})
			w.shown()
			if out, err := try(t, w.dir, "qemu-img", "info", "image"); err != nil || strings.Contains(out, "bitmap") {
				t.Errorf("qemu-img info: %v\n%s", err, out)
			}
			b := load(t, w.dir, "image")
			if bytes.Contains(b[:512], be32(extBitmaps)) || binary.BigEndian.Uint64(b[88:])&1 != 0 {
				t.Error("something of the extension is left")
			}
		})
	}
}

// FuzzBitmapTable has any table, of an enabled or frozen bitmap, read and changed.
func FuzzBitmapTable(f *testing.F) {
	f.Add(uint32(0), be64(0), []byte{1})
	f.Add(uint32(2), be64(1), []byte{1})
	f.Add(uint32(2), be64(tableAt+0x10000), bytes.Repeat([]byte{0xf0}, 3))
	f.Add(uint32(1), be64(tableAt), []byte{})
	f.Fuzz(func(t *testing.T, flags uint32, table, bits []byte) {
		if len(table) > 4096 || len(bits) > 4096 {
			return
		}
		e := bitmapEntry{name: "a", flags: flags & 3}
		content := patched(withDirectory(1, 32, e.bytes()), patch{0x40000, table}, patch{tableAt + 0x10000, bits}, patch{tableAt + 0x1ffff, []byte{0}})
		i := openFuzzed(t, content)
		if i == nil {
			return
		}
		defer i.Close()
		allowed := func(err error) {
			if err != nil && !errors.Is(err, storage.ErrCorrupt) && !errors.Is(err, storage.ErrConflict) && !errors.Is(err, storage.ErrOutOfService) && !errors.Is(err, storage.ErrReadOnly) && !errors.Is(err, storage.ErrNotFound) {
				t.Error(err)
			}
		}
		allowed(i.Dirty(t.Context(), "a", 0, i.Size(), func(int64, int64, bool) error { return nil }))
		_, err := i.Bitmaps(t.Context())
		allowed(err)
		allowed(i.StartWriting(t.Context()))
		allowed(i.Record(t.Context(), 5, 70_000))
		for kind := storage.BitmapClear; kind <= storage.BitmapMerge; kind++ {
			allowed(i.ChangeBitmaps(t.Context(), []storage.BitmapChange{{Kind: kind, Name: "a", From: []string{"a"}}}))
		}
		allowed(i.ChangeBitmaps(t.Context(), []storage.BitmapChange{{Kind: storage.BitmapDelete, Name: "a"}}))
	})
}
