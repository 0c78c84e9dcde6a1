package qcow2_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/qcow2"
	"github.com/extentd/extentd/storage/storagetest"
)

// workload writes, discards and flushes, and reports the first error.
func workload(ctx context.Context, i *qcow2.Image) error {
	rng := rand.New(rand.NewPCG(7, 7))
	unit := i.Units().Alloc
	for step := range 120 {
		guest := rng.Int64N(i.Size()/unit) * unit
		if err := writeTagged(ctx, i, rng, guest, unit); err != nil {
			return fmt.Errorf("step %d: %w", step, err)
		}
	}
	return i.Close()
}

// TestFaults fails each write and each sync in turn: what writes fails from then
// on, what was there is read, nothing more is written, and the image can be
// opened anew. A lack of space is different: it passes.
func TestFaults(t *testing.T) {
	broken := errors.New("broken")
	for _, options := range []string{"cluster_size=512", "cluster_size=4k,lazy_refcounts=on", "cluster_size=16k,extended_l2=on"} {
		dir := t.TempDir()
		create(t, dir, "image", 128<<10, options)
		content := load(t, dir, "image")
		for _, kind := range []storagetest.OpKind{storagetest.OpWrite, storagetest.OpFlush} {
			for nth := int64(1); ; nth += 1 + nth/8 {
				failed := testFault(t, dir, content, kind, nth, broken)
				if !failed {
					break
				}
				if t.Failed() {
					t.Fatalf("%s: operation %d of kind %d", options, nth, kind)
				}
			}
		}
	}
}

// testFault reports whether the fault came about.
func testFault(t *testing.T, dir string, content []byte, kind storagetest.OpKind, nth int64, fault error) bool {
	t.Helper()
	var count, after atomic.Int64
	hook := func(_ context.Context, op *storagetest.Op) error {
		if count.Load() >= nth && (op.Kind == storagetest.OpWrite || op.Kind == storagetest.OpFlush) {
			after.Add(1)
		}
		if op.Kind == kind && count.Add(1) == nth {
			return fault
		}
		return nil
	}
	file := storagetest.NewMemFileWith(storagetest.MemOptions{Hook: hook})
	file.Put(content, 0)
	i, err := qcow2.Open(t.Context(), storage.NewNode("image", file, storage.NodeOptions{}), qcow2.Options{})
	if err != nil {
		t.Fatal(err)
	}
	err = i.StartWriting(t.Context())
	if err == nil {
		err = workload(t.Context(), i)
	}
	if count.Load() < nth {
		if err != nil {
			t.Errorf("without a fault: %v", err)
		}
		return false
	}
	if !errors.Is(err, fault) && !errors.Is(err, storage.ErrOutOfService) {
		t.Errorf("the error is %v", err)
	}
	if errors.Is(err, storage.ErrOutOfService) {
		wrote := after.Load()
		if _, err := i.Alloc(t.Context(), 1, storage.AllocOptions{}); !errors.Is(err, storage.ErrOutOfService) && !errors.Is(err, storage.ErrClosed) {
			t.Errorf("Alloc afterwards: %v", err)
		}
		i.Close()
		if after.Load() != wrote {
			t.Error("written to after the failure")
		}
	}
	i.Close()
	w := &written{t: t, dir: dir, file: file.Clone()}
	w.open()
	w.model = w.read(0, w.image.Size())
	w.write([]byte("goes on"), 0)
	w.ok(w.image.Close())
	w.save()
	if out, err := try(t, dir, "qemu-img", "check", "-f", "qcow2", "-r", "leaks", "image"); err != nil {
		t.Errorf("qemu-img check -r leaks: %v\n%s", err, out)
	}
	return true
}

// TestNoSpace runs out of space at each write in turn: what could not be done is
// not half done, what is given up leaks nothing, and when there is space again
// everything goes on.
func TestNoSpace(t *testing.T) {
	for _, options := range []string{"cluster_size=512", "cluster_size=16k,extended_l2=on"} {
		dir := t.TempDir()
		create(t, dir, "image", 128<<10, options)
		content := load(t, dir, "image")
		for nth := int64(1); nth < 120; nth += 1 + nth/10 {
			var count atomic.Int64
			hook := func(_ context.Context, op *storagetest.Op) error {
				if op.Kind == storagetest.OpWrite && count.Add(1) == nth {
					return storage.ErrNoSpace
				}
				return nil
			}
			file := storagetest.NewMemFileWith(storagetest.MemOptions{Hook: hook})
			file.Put(content, 0)
			w := &written{t: t, dir: dir, file: file}
			w.open()
			rng := rand.New(rand.NewPCG(uint64(nth), 1))
			failed := 0
			for range 60 {
				guest := rng.Int64N(w.image.Size()/w.units.Alloc) * w.units.Alloc
				if err := writeOrGiveUp(t.Context(), w.image, guest); errors.Is(err, storage.ErrNoSpace) {
					failed++
				} else if err != nil {
					t.Fatalf("%s, write %d: %v", options, nth, err)
				}
			}
			if err := w.image.Close(); err != nil && !errors.Is(err, storage.ErrNoSpace) {
				t.Fatalf("%s, write %d: %v", options, nth, err)
			} else if failed > 1 {
				t.Errorf("%s, write %d: failed %d times", options, nth, failed)
			} else if out := w.check(); err == nil && out[:9] != "No errors" {
				t.Errorf("%s, write %d:\n%s", options, nth, out)
			}
		}
	}
}

// writeOrGiveUp writes a cluster and flushes, or gives back what it reserved.
func writeOrGiveUp(ctx context.Context, i *qcow2.Image, guest int64) error {
	unit := i.Units().Alloc
	b, err := i.Alloc(ctx, unit, storage.AllocOptions{})
	if err != nil {
		return err
	}
	_, err = b.Node.WriteAt(ctx, make([]byte, unit), b.Offset)
	if err == nil {
		err = i.Update(ctx, guest, unit, storage.Target{Kind: storage.ToData, Node: b.Node, NodeOffset: b.Offset})
	}
	if err != nil {
		return errors.Join(err, i.Free(ctx, b))
	}
	return i.Flush(ctx)
}

// TestAdopt takes up what an earlier session had reserved, and nothing else.
func TestAdopt(t *testing.T) {
	var snapshotted int64 // nothing else refers to it later
	w := newWritten(t, 1<<20, "", func(dir string) {
		qemuIO(t, dir, "image", "write -P 1 0 64k", "write -c -P 2 64k 64k")
		snapshotted = *qemuMap(t, dir, "image")[0].Offset
		run(t, dir, "qemu-img", "snapshot", "-c", "s", "image")
		qemuIO(t, dir, "image", "write -P 3 0 64k")
	})
	ctx, c := t.Context(), int64(64<<10)
	mapped := w.mapping(0).NodeOffset
	b, err := w.image.Alloc(ctx, 4*c, storage.AllocOptions{Contiguous: true})
	w.ok(err)
	unwritten, err := w.image.Alloc(ctx, 2*c, storage.AllocOptions{Contiguous: true}) // past the end of the file
	w.ok(err)
	w.ok(w.image.Free(ctx, storage.Blocks{Node: b.Node, Offset: b.Offset + 3*c, Length: c}))
	b.Length = 3 * c
	_, err = b.Node.WriteAt(ctx, make([]byte, b.Length), b.Offset)
	w.ok(err)
	w.ok(w.image.Close())
	if out := w.check(); !strings.Contains(out, "3 leaked clusters") {
		t.Errorf("reserved clusters:\n%s", out)
	}
	w.open()
	block := func(at, n int64) storage.Blocks { return storage.Blocks{Node: w.node, Offset: at, Length: n} }
	for name, blocks := range map[string][]storage.Blocks{
		"mapped":     {block(mapped, c)},
		"snapshot":   {block(snapshotted, c)},
		"free":       {block(b.Offset+3*c, c)},
		"in part":    {block(b.Offset, 4*c)},
		"one of two": {block(b.Offset, c), block(b.Offset+3*c, c)},
		"twice":      {block(b.Offset, 2*c), block(b.Offset+c, c)},
		"header":     {block(c, c)},
		"elsewhere":  {{Node: storage.NewNode("other", w.file, storage.NodeOptions{}), Offset: b.Offset, Length: c}},
	} {
		if err := w.image.Adopt(ctx, blocks, true); !errors.Is(err, storage.ErrConflict) {
			t.Errorf("%s: %v", name, err)
		}
	}
	w.ok(w.image.Adopt(ctx, []storage.Blocks{block(b.Offset+2*c, c), block(b.Offset, 2*c), block(unwritten.Offset, 2*c)}, true))
	w.ok(w.image.Free(ctx, block(unwritten.Offset, 2*c)))
	if err := w.image.Adopt(ctx, []storage.Blocks{block(b.Offset, c)}, false); !errors.Is(err, storage.ErrConflict) {
		t.Errorf("again: %v", err)
	}
	w.ok(w.image.Update(ctx, 5*c, c, storage.Target{Kind: storage.ToData, Node: w.node, NodeOffset: b.Offset}))
	w.ok(w.image.Free(ctx, block(b.Offset+c, 2*c)))
	w.close()
}
