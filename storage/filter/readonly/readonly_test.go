package readonly_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"testing"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/filter/readonly"
	"github.com/extentd/extentd/storage/storagetest"
)

// over is the filter over a file in memory.
func over(t *testing.T, m storagetest.MemOptions) (*storage.Node, *storagetest.MemFile) {
	t.Helper()
	mem := storagetest.NewMemFileWith(m)
	f, err := readonly.New(storage.NewNode("mem", mem, storage.NodeOptions{Check: true}), readonly.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return storage.NewNode("readonly(mem)", f, storage.NodeOptions{Check: true}), mem
}

func TestConformance(t *testing.T) {
	for _, unit := range []int64{1, 512} {
		open := func(t *testing.T, content []byte, holes ...storagetest.Range) storage.File {
			node, mem := over(t, storagetest.MemOptions{Limits: storage.Limits{Minimum: unit}})
			mem.Put(content, 0)
			for _, h := range holes {
				mem.Punch(h.Offset, h.Length)
			}
			return node.File()
		}
		t.Run(fmt.Sprint("file ", unit), func(t *testing.T) { storagetest.TestFile(t, unit, open) })
		if unit > 1 {
			t.Run(fmt.Sprint("tail ", unit), func(t *testing.T) { storagetest.TestFileTail(t, unit, open) })
		}
	}
}

// TestNothingIsWritten: neither asked through a node nor past it, neither in the
// file nor where no file reaches, nor for nothing at all.
func TestNothingIsWritten(t *testing.T) {
	asked := func(_ context.Context, op *storagetest.Op) error {
		if op.Kind >= storagetest.OpWrite {
			t.Errorf("the node below is asked: %+v", *op)
		}
		return nil
	}
	node, _ := over(t, storagetest.MemOptions{Size: 1 << 20, Hook: asked})
	ctx := t.Context()
	type writer interface {
		storage.Writer
		storage.Starter
	}
	for name, w := range map[string]writer{"node": node, "filter": node.File().(writer)} {
		for _, off := range []int64{0, 4096, 1 << 20, storage.MaxSize - 4096} {
			for _, n := range []int64{0, 1, 4096} {
				written, write := w.WriteAt(ctx, make([]byte, n), off)
				for k, err := range []error{write, w.Zero(ctx, off, n, false), w.Zero(ctx, off, n, true), w.Trim(ctx, off, n), w.Truncate(ctx, off)} {
					if !errors.Is(err, storage.ErrReadOnly) || written != 0 {
						t.Errorf("%s: write, zero, zero kept, trim, truncate of %d bytes at %d: %d: %d, %v", name, n, off, k, written, err)
					}
				}
			}
		}
		for range 2 {
			if err := w.StartWriting(ctx); !errors.Is(err, storage.ErrReadOnly) {
				t.Errorf("%s: StartWriting = %v", name, err)
			}
			if err := w.Flush(ctx); !errors.Is(err, storage.ErrReadOnly) {
				t.Errorf("%s: Flush = %v", name, err)
			}
		}
	}
	if _, err := node.WriteAt(ctx, make([]byte, 4096), math.MaxInt64-1); !errors.Is(err, storage.ErrOutOfRange) {
		t.Errorf("WriteAt past all files = %v", err)
	}
}

// TestTheNodeBelowIsWrittenToByOthers: the filter shows what is there now.
func TestTheNodeBelowIsWrittenToByOthers(t *testing.T) {
	node, mem := over(t, storagetest.MemOptions{Size: 4096})
	mem.Put([]byte("abc"), 4096)
	p := make([]byte, 3)
	if n, err := node.ReadAt(t.Context(), p, 4096); n != 3 || string(p) != "abc" {
		t.Errorf("ReadAt = %d, %v, %q", n, err, p)
	}
	if size, err := node.Size(t.Context()); size != 4099 || err != nil {
		t.Errorf("Size() = %d, %v", size, err)
	}
}

func TestLimitsAndTailArePassedOn(t *testing.T) {
	want := storage.Limits{Minimum: 512, Preferred: 8192, MaxData: 1 << 20, MaxTrim: 2 << 20, MaxZero: 4 << 20, MaxCache: 1 << 20}
	node, _ := over(t, storagetest.MemOptions{Size: 1000, Limits: want})
	if got, err := node.Limits(t.Context()); err != nil || got != want {
		t.Errorf("Limits() = %+v, %v", got, err)
	}
	if n, err := node.ReadAt(t.Context(), make([]byte, 488), 512); n != 488 {
		t.Errorf("ReadAt of the tail = %d, %v", n, err)
	}
	var l storage.ExtentList
	if err := node.Extents(t.Context(), 512, 488, &l); err != nil || l.End() != 1000 {
		t.Errorf("Extents of the tail: %d, %v", l.End(), err)
	}
}
