package qcow2_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/qcow2"
	"github.com/extentd/extentd/storage/storagetest"
)

// resize resizes the image and its model. What is left in a cluster beyond the
// old size is for the caller to zero.
func (w *written) resize(size int64) {
	w.t.Helper()
	old := w.image.Size()
	w.ok(w.image.Resize(w.t.Context(), size, storage.ResizeOptions{Shrink: true}))
	size = (size + 511) &^ 511
	if got := w.image.Size(); got != size {
		w.t.Fatalf("Size() = %d, want %d", got, size)
	}
	model := make([]byte, size)
	copy(model, w.model)
	w.model = model
	if tail := min(size, (old+w.units.Alloc-1)&^(w.units.Alloc-1)); tail > old {
		w.write(make([]byte, tail-old), old)
	}
}

// TestResize resizes back and forth, with writes in between. What comes out is
// well in QEMU's eyes, and reads zeros where it grew.
func TestResize(t *testing.T) {
	for _, k := range []writtenKind{
		{name: "512", options: "cluster_size=512"},
		{name: "default"},
		{name: "v2", options: "compat=0.10,cluster_size=4k"},
		{name: "1 bit", options: "cluster_size=512,refcount_bits=1"},
		{name: "extended", options: "extended_l2=on,cluster_size=16k"},
		{name: "lazy", options: "lazy_refcounts=on,cluster_size=1k"},
		{name: "snapshots", options: "cluster_size=1k", prepare: snapshots},
		{name: "data file", options: "data_file=data,cluster_size=4k"},
		{name: "raw data file", options: "data_file=data,data_file_raw=on,cluster_size=4k"},
		{name: "raw extended", options: "data_file=data,data_file_raw=on,extended_l2=on,cluster_size=16k"},
		{name: "preallocated", options: "preallocation=metadata,cluster_size=512"},
	} {
		t.Run(k.name, func(t *testing.T) {
			rng := random(t)
			w := newWritten(t, 300<<10, k.options, func(dir string) {
				if k.prepare != nil {
					k.prepare(t, dir)
				}
			})
			for _, size := range []int64{300<<10 + 1, 1 << 20, 700 << 10, 123 << 9, 40 << 10, 0, 2 << 20, 512, 3 << 20, 100 << 10} {
				for range 5 {
					if w.image.Size() > 0 {
						w.randomStep(rng)
					}
				}
				w.resize(size)
				w.compare()
			}
			w.ok(w.image.Flush(t.Context()))
			if res, err := w.image.Check(t.Context(), qcow2.CheckOptions{}); err != nil || !res.Clean() {
				t.Fatalf("Check = %+v, %v", res, err)
			}
			w.close()
			w.open()
			w.compare()
		})
	}
}

// TestResizeRefused: what QEMU refuses, and what the format cannot hold.
func TestResizeRefused(t *testing.T) {
	shrink := storage.ResizeOptions{Shrink: true}
	for _, c := range []struct {
		name, options string
		prepare       func(t testing.TB, dir string)
		size          int64
		opt           storage.ResizeOptions
		err           error
		field         string
	}{
		{"negative", "", nil, -1, shrink, storage.ErrInvalid, "size"},
		{"beyond all", "cluster_size=2M", nil, 1<<61 + 1, shrink, storage.ErrInvalid, "size"},
		{"beyond l1", "cluster_size=512", nil, 128<<30 + 1, shrink, storage.ErrInvalid, "size"},
		{"shrink", "", nil, 512, storage.ResizeOptions{}, storage.ErrInvalid, "shrink"},
		{"v2 with a snapshot", "compat=0.10", snapshots, 8 << 20, shrink, storage.ErrUnsupported, ""},
		{"v2 over a backing", "compat=0.10", nil, 8 << 20, storage.ResizeOptions{Backing: 9 << 20}, storage.ErrUnsupported, ""},
		{"bitmaps", "", func(t testing.TB, dir string) {
			run(t, dir, "qemu-img", "bitmap", "--add", "--disable", "image", "map")
		}, 0, shrink, storage.ErrUnsupported, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWritten(t, 300<<10, c.options, func(dir string) {
				if c.prepare != nil {
					c.prepare(t, dir)
				}
			})
			before := w.file.Bytes()
			err := w.image.Resize(t.Context(), c.size, c.opt)
			var invalid *storage.InvalidError
			if !errors.Is(err, c.err) || c.field != "" && (!errors.As(err, &invalid) || invalid.Field != c.field) {
				t.Errorf("Resize = %v, want %v, field %q", err, c.err, c.field)
			}
			if w.image.Size() != 300<<10 || !bytes.Equal(before, w.file.Bytes()) {
				t.Error("something was changed")
			}
			w.close()
		})
	}
	i := openDisk(t, func() string { dir := t.TempDir(); create(t, dir, "image", 1<<20, ""); return dir }(), "image")
	if err := i.Resize(t.Context(), 2<<20, storage.ResizeOptions{}); !errors.Is(err, storage.ErrReadOnly) {
		t.Errorf("Resize of what is not being written to = %v, want %v", err, storage.ErrReadOnly)
	}
}

// TestResizeOverBacking: what the image grows by does not show a longer backing.
func TestResizeOverBacking(t *testing.T) {
	for _, options := range []string{"cluster_size=512", "", "extended_l2=on,cluster_size=16k"} {
		t.Run(options, func(t *testing.T) {
			dir := t.TempDir()
			cloneFile(t, dir, "base.raw", bytes.Repeat([]byte{7}, 3<<20))
			more := "backing_file=base.raw,backing_fmt=raw"
			if options != "" {
				more += "," + options
			}
			create(t, dir, "image", 128<<10, more)
			w := &written{t: t, dir: dir}
			w.load()
			w.open()
			w.ok(w.image.Resize(t.Context(), 4<<20, storage.ResizeOptions{Backing: 3 << 20}))
			w.ok(w.image.Close())
			w.save()
			if out, err := try(t, dir, "qemu-img", "check", "image"); err != nil {
				t.Errorf("qemu-img check: %v\n%s", err, out)
			}
			run(t, dir, "qemu-img", "convert", "-f", "qcow2", "-O", "raw", "image", "result")
			want := append(bytes.Repeat([]byte{7}, 128<<10), make([]byte, 4<<20-128<<10)...)
			if got := load(t, dir, "result"); !bytes.Equal(got, want) {
				t.Errorf("qemu-img reads something else at %d", differs(got, want))
			}
		})
	}
}

// TestResizeLarge: the largest sizes there are, and back.
func TestResizeLarge(t *testing.T) {
	for options, size := range map[string]int64{"cluster_size=512": 128 << 30, "cluster_size=2M": 2 << 60} {
		t.Run(options, func(t *testing.T) {
			w := newWritten(t, 64<<10, options, nil)
			w.write([]byte("something"), 1000)
			w.ok(w.image.Resize(t.Context(), size, storage.ResizeOptions{}))
			w.ok(w.image.Update(t.Context(), size-w.units.Alloc, w.units.Alloc, storage.Target{Kind: storage.ToZero}))
			w.ok(w.image.Flush(t.Context()))
			w.ok(w.image.Resize(t.Context(), 64<<10, storage.ResizeOptions{Shrink: true}))
			w.close()
		})
	}
}

// TestResizeCrashes cuts resizes off at every write: the size is the old one or
// the new one, with all that it covers.
func TestResizeCrashes(t *testing.T) {
	for _, c := range []struct {
		options string
		sizes   []int64
	}{
		{"cluster_size=512", []int64{64 << 10, 300 << 10, 20 << 10, 100 << 10}},
		{"cluster_size=1k,lazy_refcounts=on", []int64{128 << 10, 900 << 10, 30 << 10}},
	} {
		t.Run(c.options, func(t *testing.T) {
			w := newWritten(t, c.sizes[0], c.options, nil)
			w.write(bytes.Repeat([]byte{1}, int(c.sizes[0])), 0)
			w.close()
			journal := storagetest.NewJournal()
			file := journal.File("image", w.file.Bytes())
			w.node = storage.NewNode("image", file, storage.NodeOptions{})
			w.image = nil
			i, err := qcow2.Open(t.Context(), w.node, qcow2.Options{})
			w.ok(err)
			w.ok(i.StartWriting(t.Context()))
			w.image, w.units = i, i.Units()
			w.file = file.MemFile
			from := []int{journal.Len()}
			for _, size := range c.sizes[1:] {
				w.resize(size)
				w.ok(i.Flush(t.Context()))
				from = append(from, journal.Len())
			}
			w.ok(i.Close())
			rng := random(t)
			for at := range journal.Len() + 1 {
				cut := journal.Cut(at, storagetest.CutOptions{Seed: rng.Uint64(), Drop: rng.IntN(2) == 0})["image"]
				step := 0
				for step+1 < len(from) && at > from[step+1] {
					step++
				}
				sizes := c.sizes[step:min(len(c.sizes), step+2)]
				w.ok(checkResized(t, w, cut, sizes, c.sizes[:step+1]))
			}
		})
	}
}

// checkResized checks what a crash has left.
func checkResized(t *testing.T, w *written, cut *storagetest.MemFile, sizes, before []int64) error {
	node := storage.NewNode("cut", cut, storage.NodeOptions{})
	res, err := qcow2.Check(t.Context(), node, qcow2.CheckOptions{})
	if err != nil || res.Corruptions > 0 && !w.image.Info().LazyRefcounts {
		return fmt.Errorf("%+v, %w", res, err)
	}
	i, err := qcow2.Open(t.Context(), node, qcow2.Options{})
	if err != nil {
		return err
	}
	defer i.Close()
	if i.Size() != sizes[0] && i.Size() != sizes[len(sizes)-1] {
		return fmt.Errorf("the size is %d, want one of %d", i.Size(), sizes)
	}
	keeps := i.Size() // so much was never cut off
	for _, size := range before {
		keeps = min(keeps, size)
	}
	r := &written{t: t, image: i, units: i.Units()}
	for off, b := range r.read(0, i.Size()) {
		if int64(off) < keeps && b != 1 || b > 1 {
			return fmt.Errorf("byte %d of %d is %d", off, i.Size(), b)
		}
	}
	return shrinkWhole(t, node, i)
}

// shrinkWhole makes the image that a crash has left smaller yet: what was beyond
// the size already is given back too.
func shrinkWhole(t *testing.T, node *storage.Node, i *qcow2.Image) error {
	ctx := t.Context()
	if _, err := qcow2.Check(ctx, node, qcow2.CheckOptions{Repair: qcow2.RepairAll}); err != nil {
		return err
	}
	if err := i.StartWriting(ctx); err != nil {
		return err
	}
	if err := i.Resize(ctx, 512, storage.ResizeOptions{Shrink: true}); err != nil {
		return err
	}
	if err := i.Close(); err != nil {
		return err
	}
	res, err := qcow2.Check(ctx, node, qcow2.CheckOptions{})
	if err != nil || !res.Clean() {
		return fmt.Errorf("made smaller: %+v, %w", res, err)
	}
	return nil
}

// A resizeFault fails operations of a kind, the nth from 1 on.
type resizeFault struct {
	kind storagetest.OpKind
	err  error
	half bool // a part of a write is done
}

// TestResizeFaults fails each operation of a resize in turn: it has succeeded, or
// the size is what it was, or the image is out of service. Where it is not,
// everything goes on, and nothing has leaked.
func TestResizeFaults(t *testing.T) {
	broken := errors.New("broken")
	for _, k := range []struct {
		options string
		block   int64 // of the nodes
		prepare func(t testing.TB, dir string)
	}{
		{"cluster_size=512", 0, nil},
		{"cluster_size=4k", 4 << 10, nil},
		{"cluster_size=512", 0, snapshots},
		{"data_file=data,cluster_size=512", 0, nil},
		{"data_file=data,data_file_raw=on,cluster_size=512", 0, nil},
	} {
		w := newWritten(t, 300<<10, k.options, func(dir string) {
			if k.prepare != nil {
				k.prepare(t, dir)
			}
		})
		w.write(bytes.Repeat([]byte{1}, len(w.model)), 0)
		w.ok(w.image.Close())
		for _, f := range []resizeFault{
			{storagetest.OpWrite, storage.ErrNoSpace, false},
			{storagetest.OpWrite, storage.ErrNoSpace, true},
			{storagetest.OpWrite, broken, false},
			{storagetest.OpTruncate, storage.ErrNoSpace, false},
			{storagetest.OpTruncate, broken, false},
			{storagetest.OpFlush, broken, false},
			{storagetest.OpTrim, broken, false},
			{storagetest.OpRead, broken, false},
		} {
			for _, size := range []int64{20 << 10, 4 << 20} {
				for nth := int64(1); testResizeFault(t, w, k.block, size, nth, f); nth += 1 + nth/8 {
					if t.Failed() {
						t.Fatalf("%q: resize to %d, operation %d of %+v", k.options, size, nth, f)
					}
				}
			}
		}
	}
}

// testResizeFault reports whether the fault came about.
func testResizeFault(t *testing.T, from *written, block, size, nth int64, f resizeFault) bool {
	t.Helper()
	var armed atomic.Bool
	var count atomic.Int64
	hooked := func(file *storagetest.MemFile) *storagetest.MemFile {
		m := storagetest.NewMemFileWith(storagetest.MemOptions{
			Limits: storage.Limits{Minimum: block},
			Hook: func(_ context.Context, op *storagetest.Op) error {
				if op.Kind != f.kind || !armed.Load() || count.Add(1) != nth {
					return nil
				}
				if f.half && op.Length > 512 {
					op.Length = op.Length / 1024 * 512
				}
				return f.err
			},
		})
		m.Put(file.Bytes(), 0)
		return m
	}
	w := &written{t: t, dir: from.dir, file: hooked(from.file), model: from.model}
	if from.data != nil {
		w.data = hooked(from.data)
	}
	w.open()
	old := w.image.Size()
	armed.Store(true)
	err := w.image.Resize(t.Context(), size, storage.ResizeOptions{Shrink: true})
	armed.Store(false)
	failed := w.image.Failed()
	if failed != errors.Is(err, storage.ErrOutOfService) {
		t.Errorf("Resize = %v, out of service: %v", err, failed)
	}
	want := size
	if err != nil {
		want = old
	}
	if got := w.image.Size(); got != want && !failed {
		t.Errorf("Resize = %v, and the size is %d, want %d", err, got, want)
	}
	if failed {
		w.image.Close()
		w.open()
		want = w.image.Size()
	}
	w.model = append(bytes.Clone(w.model[:min(want, old)]), make([]byte, max(0, want-old))...)
	w.compare()
	w.resize(1 << 20)
	w.compare()
	w.resize(64 << 10)
	w.ok(w.image.Close())
	res, err := qcow2.Check(t.Context(), w.node, qcow2.CheckOptions{OpenData: func(context.Context, string) (*storage.Node, error) {
		return storage.NewNode("data", w.data, storage.NodeOptions{}), nil
	}})
	if err != nil || res.Corruptions > 0 || res.Leaks > 0 && !failed {
		t.Errorf("Check = %+v, %v", res, err)
	}
	return count.Load() >= nth
}
