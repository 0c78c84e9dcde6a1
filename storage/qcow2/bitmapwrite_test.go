package qcow2_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/qcow2"
	"github.com/extentd/extentd/storage/storagetest"
)

// A piece is what a bitmap says of a range.
type piece struct {
	Offset, Length int64
	Dirty          bool
}

// dirty is what the image says, with the rules of Dirty checked.
func dirty(t testing.TB, i *qcow2.Image, name string, off, n int64) []piece {
	t.Helper()
	var got []piece
	at := off
	err := i.Dirty(t.Context(), name, off, n, func(off, n int64, dirty bool) error {
		if off != at || n <= 0 || len(got) > 0 && got[len(got)-1].Dirty == dirty {
			t.Fatalf("a piece of %d bytes at %d, %v, after %v", n, off, dirty, got)
		}
		got, at = append(got, piece{off, n, dirty}), at+n
		return nil
	})
	if err != nil || at != off+n {
		t.Fatalf("Dirty(%q): up to %d of %d, %v", name, at, off+n, err)
	}
	return got
}

// qemuDirty is what an NBD client is told by qemu-nbd.
func qemuDirty(t testing.TB, dir, name string) []piece {
	t.Helper()
	out := run(t, dir, "nbdinfo", "--json", "--map=qemu:dirty-bitmap:"+name, "--", "[", "qemu-nbd", "-r", "-f", "qcow2", "-B", name, "image", "]")
	var extents []struct {
		Offset, Length int64
		Type           int
	}
	if err := json.Unmarshal([]byte(out), &extents); err != nil {
		t.Fatalf("nbdinfo: %v\n%s", err, out)
	}
	var got []piece
	for _, e := range extents {
		if n := len(got); n > 0 && got[n-1].Dirty == (e.Type == 1) {
			got[n-1].Length += e.Length
			continue
		}
		got = append(got, piece{e.Offset, e.Length, e.Type == 1})
	}
	return got
}

// record writes as a device does: the bitmaps are told first.
func (w *written) record(p []byte, off int64) {
	w.t.Helper()
	w.ok(w.image.Record(w.t.Context(), off, int64(len(p))))
	w.write(p, off)
}

func (w *written) change(changes ...storage.BitmapChange) {
	w.t.Helper()
	w.ok(w.image.ChangeBitmaps(w.t.Context(), changes))
}

// shown closes the image, has QEMU check it, and compares what it says of all
// bitmaps; those that are in use must be the ones named.
func (w *written) shown(lost ...string) {
	w.t.Helper()
	before, err := w.image.Bitmaps(w.t.Context())
	w.ok(err)
	ours := map[string][]piece{}
	for _, b := range before {
		if !b.Inconsistent {
			ours[b.Name] = dirty(w.t, w.image, b.Name, 0, w.image.Size())
		}
	}
	w.close() // and qemu-img check
	var names []string
	for _, b := range qemuInfoOf(w.t, w.dir, "image").FormatSpecific.Data.Bitmaps {
		names = append(names, b.Name)
		if slices.Contains(b.Flags, "in-use") != slices.Contains(lost, b.Name) {
			w.t.Errorf("qemu-img info says of %q: %v", b.Name, b.Flags)
		}
		if ours[b.Name] == nil {
			continue
		}
		if diff := cmp.Diff(qemuDirty(w.t, w.dir, b.Name), ours[b.Name]); diff != "" {
			w.t.Errorf("%q (-qemu +ours):\n%s", b.Name, diff)
		}
	}
	if len(names) != len(before) {
		w.t.Errorf("QEMU has %q, we had %+v", names, before)
	}
}

// remodel opens what QEMU has written to.
func (w *written) remodel() {
	w.t.Helper()
	run(w.t, w.dir, "qemu-img", "convert", "-f", "qcow2", "-O", "raw", "image", "model")
	w.model = load(w.t, w.dir, "model")
	w.load()
	w.open()
}

// TestBitmapsBesideQEMU: what we and QEMU record, store and change is understood by
// the other.
func TestBitmapsBesideQEMU(t *testing.T) {
	for _, options := range []string{"", "cluster_size=512", "cluster_size=2M,extended_l2=on", "data_file=data,data_file_raw=on", "lazy_refcounts=on", "backing_file=below,backing_fmt=qcow2"} {
		t.Run(options, func(t *testing.T) {
			t.Parallel()
			size := 5*mib + 512
			if strings.Contains(options, "data_file") {
				size = 5 * mib
			}
			w := &written{t: t, dir: t.TempDir()}
			create(t, w.dir, "below", size, "")
			create(t, w.dir, "image", size, options)
			w.opt.Backed = strings.Contains(options, "backing")
			w.model = make([]byte, size)
			w.load()
			w.open()
			w.change(storage.BitmapChange{Kind: storage.BitmapCreate, Name: "ours", Enabled: true},
				storage.BitmapChange{Kind: storage.BitmapCreate, Name: "frozen", Granularity: 512},
				storage.BitmapChange{Kind: storage.BitmapCreate, Name: "fine", Granularity: 512, Enabled: true})
			w.record([]byte("something"), mib+5)
			w.record(make([]byte, 200_000), 3*mib-7)
			w.record([]byte("end"), size-3)
			w.change(storage.BitmapChange{Kind: storage.BitmapMerge, Name: "frozen", From: []string{"fine", "ours"}})
			w.record([]byte("more"), 100)
			w.shown()
			if got := dirty(t, openDisk(t, w.dir, "image"), "ours", mib, 100_000); !slices.Equal(got, []piece{{mib, 65536, true}, {mib + 65536, 100_000 - 65536, false}}) {
				t.Errorf("ours: %v", got)
			}
			qemuIO(t, w.dir, "image", "write 2M 1k", "write 4M 70k")
			run(t, w.dir, "qemu-img", "bitmap", "--add", "-g", "32k", "image", "theirs")
			qemuIO(t, w.dir, "image", "write 300k 1k")
			run(t, w.dir, "qemu-img", "bitmap", "--disable", "image", "fine")
			run(t, w.dir, "qemu-img", "bitmap", "--merge", "ours", "image", "frozen")
			w.remodel()
			w.record([]byte("again"), 600_000)
			w.shown()
			w.load()
			w.open()
			w.change(storage.BitmapChange{Kind: storage.BitmapDisable, Name: "theirs"}, storage.BitmapChange{Kind: storage.BitmapEnable, Name: "frozen"},
				storage.BitmapChange{Kind: storage.BitmapClear, Name: "ours"}, storage.BitmapChange{Kind: storage.BitmapDelete, Name: "fine"})
			w.record([]byte("and again"), 700_000)
			w.shown()
			w.load()
			w.open()
			for _, name := range []string{"ours", "frozen", "theirs"} {
				w.change(storage.BitmapChange{Kind: storage.BitmapDelete, Name: name})
			}
			w.shown()
			if out, err := try(t, w.dir, "qemu-img", "bitmap", "--add", "image", "last"); err != nil || out != "" {
				t.Errorf("qemu-img bitmap --add: %v\n%s", err, out)
			}
		})
	}
}

// TestBitmapsAreLost: an image that is not closed has lost what its enabled bitmaps
// have recorded, here and for QEMU; those that recorded nothing are right.
func TestBitmapsAreLost(t *testing.T) {
	w := newWritten(t, 4*mib, "", nil)
	w.change(storage.BitmapChange{Kind: storage.BitmapCreate, Name: "a", Enabled: true}, storage.BitmapChange{Kind: storage.BitmapCreate, Name: "b"})
	w.record([]byte("1"), mib)
	w.change(storage.BitmapChange{Kind: storage.BitmapCreate, Name: "idle", Enabled: true}) // nothing is written after it
	crashed := w.file.Bytes()
	w.record([]byte("2"), mib+1)
	again := w.file.Bytes()
	for _, c := range []struct {
		content []byte
		lost    map[string]bool
	}{{crashed, map[string]bool{"a": true}}, {again, map[string]bool{"a": true, "idle": true}}} {
		i, err := openBytes(t, c.content)
		w.ok(err)
		w.ok(i.StartWriting(t.Context()))
		all, err := i.Bitmaps(t.Context())
		w.ok(err)
		for _, b := range all {
			if flags := qemuFlags(t, c.content, b.Name); slices.Contains(flags, "in-use") != b.Inconsistent {
				t.Errorf("QEMU says of %q: %q", b.Name, flags)
			}
			if b.Inconsistent != c.lost[b.Name] || (b.Dirty < 0) != b.Inconsistent {
				t.Errorf("%+v, want lost: %v", b, c.lost)
			}
		}
		for _, change := range []storage.BitmapChange{
			{Kind: storage.BitmapClear, Name: "a"},
			{Kind: storage.BitmapEnable, Name: "a"},
			{Kind: storage.BitmapDisable, Name: "a"},
			{Kind: storage.BitmapMerge, Name: "a", From: []string{"b"}},
			{Kind: storage.BitmapMerge, Name: "b", From: []string{"a"}},
		} {
			if err := i.ChangeBitmaps(t.Context(), []storage.BitmapChange{change}); !errors.Is(err, storage.ErrConflict) {
				t.Errorf("%v %q: %v", change.Kind, change.Name, err)
			}
		}
		if err := i.Dirty(t.Context(), "a", 0, 1, nil); !errors.Is(err, storage.ErrConflict) {
			t.Errorf("Dirty: %v", err)
		}
		if err := i.ChangeBitmaps(t.Context(), []storage.BitmapChange{{Kind: storage.BitmapCreate, Name: "a"}}); !errors.Is(err, storage.ErrExists) {
			t.Errorf("create: %v", err)
		}
		w.ok(i.ChangeBitmaps(t.Context(), []storage.BitmapChange{{Kind: storage.BitmapDelete, Name: "a"}, {Kind: storage.BitmapCreate, Name: "a", Enabled: true}}))
		if got := dirty(t, i, "a", 0, 4*mib); !slices.Equal(got, []piece{{0, 4 * mib, false}}) {
			t.Errorf("the new one: %v", got)
		}
		w.ok(i.Close())
	}
	w.shown()
}

// qemuFlags is what qemu-img info says of a bitmap.
func qemuFlags(t testing.TB, content []byte, name string) []string {
	t.Helper()
	dir := t.TempDir()
	if err := storagetest.NewMemFile(content).WriteFile(filepath.Join(dir, "image")); err != nil {
		t.Fatal(err)
	}
	for _, b := range qemuInfoOf(t, dir, "image").FormatSpecific.Data.Bitmaps {
		if b.Name == name {
			return b.Flags
		}
	}
	return []string{"none"}
}

// TestBitmapsRecordReverts: where a snapshot differs, and nothing else, is dirty once
// it is back; also what was not there for a while.
func TestBitmapsRecordReverts(t *testing.T) {
	w := newWritten(t, 4*mib, "", nil)
	w.write(bytes.Repeat([]byte{1}, 1<<20), 0)
	s, err := w.image.CreateSnapshot(t.Context(), qcow2.SnapshotOptions{Name: "s"})
	w.ok(err)
	then := bytes.Clone(w.model)
	w.write([]byte("changed"), 5<<16)
	w.write([]byte("new"), 40<<16)
	w.ok(w.image.Resize(t.Context(), 3*mib, storage.ResizeOptions{Shrink: true}))
	w.change(storage.BitmapChange{Kind: storage.BitmapCreate, Name: "a", Granularity: 4096, Enabled: true}, storage.BitmapChange{Kind: storage.BitmapCreate, Name: "b"})
	w.ok(w.image.RevertTo(t.Context(), s.ID))
	w.model = then
	w.compare()
	want := []piece{{0, 5 << 16, false}, {5 << 16, 1 << 16, true}, {6 << 16, 34 << 16, false}, {40 << 16, 1 << 16, true}, {41 << 16, 7 << 16, false}, {48 << 16, 16 << 16, true}}
	if got := dirty(t, w.image, "a", 0, 4*mib); !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	w.shown()
}

// TestBitmapsJoined: what is joined is changed with the bitmaps, or neither is.
func TestBitmapsJoined(t *testing.T) {
	a, b := newWritten(t, mib, "", nil), newWritten(t, mib, "", nil)
	changes := []storage.BitmapChange{{Kind: storage.BitmapCreate, Name: "x", Enabled: true}}
	both := func() error {
		return a.image.ChangeBitmapsWith(t.Context(), changes, func(ctx context.Context) error { return b.image.ChangeBitmaps(ctx, changes) })
	}
	b.change(changes...)
	if err := both(); !errors.Is(err, storage.ErrExists) {
		t.Errorf("%v", err)
	}
	if all, err := a.image.Bitmaps(t.Context()); err != nil || len(all) != 0 {
		t.Errorf("%+v, %v", all, err)
	}
	b.change(storage.BitmapChange{Kind: storage.BitmapDelete, Name: "x"})
	a.ok(both())
	a.shown()
	b.shown()
}

// TestBitmapChangesAreAllOrNothing: a list of which one cannot be changes nothing.
func TestBitmapChangesAreAllOrNothing(t *testing.T) {
	w := newWritten(t, 4*mib, "", nil)
	w.change(storage.BitmapChange{Kind: storage.BitmapCreate, Name: "a", Enabled: true}, storage.BitmapChange{Kind: storage.BitmapCreate, Name: "b"})
	w.record([]byte("1"), mib)
	w.ok(w.image.Flush(t.Context()))
	names := []string{strings.Repeat("n", 1024), "", "a\x00b", "\xff"}
	for _, c := range []struct {
		change storage.BitmapChange
		err    error
	}{
		{storage.BitmapChange{Kind: storage.BitmapCreate, Name: "a"}, storage.ErrExists},
		{storage.BitmapChange{Kind: storage.BitmapCreate, Name: names[0]}, storage.ErrInvalid},
		{storage.BitmapChange{Kind: storage.BitmapCreate, Name: names[1]}, storage.ErrInvalid},
		{storage.BitmapChange{Kind: storage.BitmapCreate, Name: names[2]}, storage.ErrInvalid},
		{storage.BitmapChange{Kind: storage.BitmapCreate, Name: names[3]}, storage.ErrInvalid},
		{storage.BitmapChange{Kind: storage.BitmapCreate, Name: "c", Granularity: 256}, storage.ErrInvalid},
		{storage.BitmapChange{Kind: storage.BitmapCreate, Name: "c", Granularity: 768}, storage.ErrInvalid},
		{storage.BitmapChange{Kind: storage.BitmapCreate, Name: "c", Granularity: -512}, storage.ErrInvalid},
		{storage.BitmapChange{Kind: storage.BitmapCreate, Name: "c", Granularity: 4 * gib}, storage.ErrInvalid},
		{storage.BitmapChange{Kind: storage.BitmapDelete, Name: "c"}, storage.ErrNotFound},
		{storage.BitmapChange{Kind: storage.BitmapMerge, Name: "b", From: []string{"c"}}, storage.ErrNotFound},
		{storage.BitmapChange{Kind: storage.BitmapMerge, Name: "b"}, storage.ErrInvalid},
		{storage.BitmapChange{Name: "b"}, storage.ErrInvalid},
	} {
		before, content := dirty(t, w.image, "a", 0, 4*mib), w.file.Bytes()
		err := w.image.ChangeBitmaps(t.Context(), []storage.BitmapChange{
			{Kind: storage.BitmapCreate, Name: "new", Enabled: true},
			{Kind: storage.BitmapClear, Name: "a"},
			{Kind: storage.BitmapDelete, Name: "b"},
			{Kind: storage.BitmapCreate, Name: "b"},
			c.change,
		})
		if !errors.Is(err, c.err) {
			t.Errorf("%+v: %v, want %v", c.change, err, c.err)
		}
		if after := dirty(t, w.image, "a", 0, 4*mib); !slices.Equal(before, after) || string(content) != string(w.file.Bytes()) {
			t.Errorf("%+v: something was changed", c.change)
		}
	}
	w.shown()
	old := newWritten(t, 4*mib, "compat=0.10", nil)
	if err := old.image.ChangeBitmaps(t.Context(), []storage.BitmapChange{{Kind: storage.BitmapCreate, Name: "a"}}); !errors.Is(err, storage.ErrUnsupported) {
		t.Errorf("version 2: %v", err)
	}
}

// TestBitmapLimits: what bitmaps take in memory is bounded, and how many there are.
func TestBitmapLimits(t *testing.T) {
	w := newWritten(t, mib, "", nil)
	w.ok(w.image.Resize(t.Context(), tib, storage.ResizeOptions{}))
	all := []storage.BitmapChange{{Kind: storage.BitmapCreate, Name: "a", Granularity: 4096, Enabled: true}, {Kind: storage.BitmapCreate, Name: "b", Granularity: 4096, Enabled: true}}
	if err := w.image.ChangeBitmaps(t.Context(), append(all, storage.BitmapChange{Kind: storage.BitmapCreate, Name: "c"})); !errors.Is(err, storage.ErrUnsupported) {
		t.Errorf("more than 64 MiB: %v", err)
	}
	w.change(all...)
	if err := w.image.ChangeBitmaps(t.Context(), []storage.BitmapChange{{Kind: storage.BitmapCreate, Name: "c", Enabled: true}}); !errors.Is(err, storage.ErrUnsupported) {
		t.Errorf("more than 64 MiB: %v", err)
	}
	w.ok(w.image.Record(t.Context(), tib-1, 1))
	w.ok(w.image.Record(t.Context(), 0, 512*gib))
	got, err := w.image.Bitmaps(t.Context())
	w.ok(err)
	for _, b := range got {
		if b.Dirty != 512*gib+4096 {
			t.Errorf("%+v", b)
		}
	}
	w.ok(w.image.Close())
	w.open()
	if got := dirty(t, w.image, "a", 0, tib); fmt.Sprint(got) != fmt.Sprint([]piece{{0, 512 * gib, true}, {512 * gib, 512*gib - 4096, false}, {tib - 4096, 4096, true}}) {
		t.Errorf("%v", got)
	}
}
