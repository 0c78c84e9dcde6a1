package qcow2_test

import (
	"context"
	"testing"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/qcow2"
	"github.com/extentd/extentd/storage/storagetest"
)

// benchImage is an empty image in memory. Nothing is written to it but
// metadata.
func benchImage(b *testing.B, size int64, options string) *qcow2.Image {
	b.Helper()
	dir := b.TempDir()
	create(b, dir, "image", size, options)
	node := storage.NewNode("image", storagetest.NewMemFile(load(b, dir, "image")), storage.NodeOptions{})
	i, err := qcow2.Open(b.Context(), node, qcow2.Options{})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { i.Close() })
	if err := i.StartWriting(b.Context()); err != nil {
		b.Fatal(err)
	}
	return i
}

// BenchmarkAllocatingWrite is what the driver does for a random write of 4 KiB
// into an empty image: fetch, reserve, map.
func BenchmarkAllocatingWrite(b *testing.B) {
	for _, bb := range []struct{ name, options string }{
		{"default", ""},
		{"4096", "cluster_size=4096"},
		{"extended", "extended_l2=on"},
	} {
		b.Run(bb.name, func(b *testing.B) {
			const size = 64 << 30
			i := benchImage(b, size, bb.options)
			ctx, unit := context.Background(), i.Units().Alloc
			x := uint64(88172645463325252)
			var l storage.ExtentList
			b.ReportAllocs()
			b.ResetTimer()
			for range b.N {
				x ^= x << 13
				x ^= x >> 7
				x ^= x << 17
				off := int64(x%(size/uint64(unit))) * unit
				pin := i.Pin()
				l.ResetWindow(off, off+unit)
				if err := i.Fetch(ctx, off, unit, &l); err != nil {
					b.Fatal(err)
				}
				i.Unpin(pin)
				blocks, err := i.Alloc(ctx, unit, storage.AllocOptions{})
				if err != nil {
					b.Fatal(err)
				}
				err = i.Update(ctx, off, unit, storage.Target{Kind: storage.ToData, Node: blocks.Node, NodeOffset: blocks.Offset})
				if err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkAlloc reserves and gives back.
func BenchmarkAlloc(b *testing.B) {
	i := benchImage(b, 64<<30, "")
	b.ReportAllocs()
	for b.Loop() {
		blocks, err := i.Alloc(b.Context(), 1, storage.AllocOptions{})
		if err == nil {
			err = i.Free(b.Context(), blocks)
		}
		if err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkZero zeroes a terabyte that is empty, and discards it, in turns: all
// of it is metadata work.
func BenchmarkZero(b *testing.B) {
	i := benchImage(b, 1<<40, "")
	for b.Loop() {
		for _, kind := range []storage.TargetKind{storage.ToZero, storage.ToUnmapped} {
			if err := i.Update(b.Context(), 0, 1<<40, storage.Target{Kind: kind}); err != nil {
				b.Fatal(err)
			}
		}
		if err := i.Flush(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkCheckWrite is asked before every write in place.
func BenchmarkCheckWrite(b *testing.B) {
	i := benchImage(b, 64<<30, "")
	node := storage.NewNode("other", storagetest.NewMemFile(nil), storage.NodeOptions{})
	blocks, err := i.Alloc(b.Context(), 1<<20, storage.AllocOptions{})
	if err != nil {
		b.Fatal(err)
	}
	if err := i.CheckWrite(b.Context(), node, 0, 1); err == nil {
		b.Fatal("a write to another node")
	}
	b.ReportAllocs()
	for b.Loop() {
		if err := i.CheckWrite(b.Context(), blocks.Node, blocks.Offset, 4096); err != nil {
			b.Fatal(err)
		}
	}
}
