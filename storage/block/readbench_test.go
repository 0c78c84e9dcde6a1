package block_test

import (
	"io"
	"testing"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/block"
)

// BenchmarkRead reads, and walks, a chain of two layers with an extent a block.
func BenchmarkRead(b *testing.B) {
	data := make([]byte, 4096*unitSize)
	d, err := block.New([]storage.Mapper{alternating(data, 0), alternating(data, 1)}, block.Options{})
	if err != nil {
		b.Fatal(err)
	}
	b.Run("4K", func(b *testing.B) {
		b.ReportAllocs()
		off := int64(0)
		for b.Loop() {
			off = (off + 20<<10) % (d.Size() - 4096)
			if err := d.ReadAt(b.Context(), data[:4096], off); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("stream", func(b *testing.B) {
		b.ReportAllocs()
		b.SetBytes(d.Size())
		for b.Loop() {
			s, err := d.Stream(b.Context(), 0, d.Size())
			if err != nil {
				b.Fatal(err)
			}
			if _, err := io.Copy(io.Discard, s); err != nil {
				b.Fatal(err)
			}
			_ = s.Close()
		}
	})
	b.Run("walk", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			for _, err := range d.Walk(b.Context(), 0, d.Size(), block.WalkOptions{}) {
				if err != nil {
					b.Fatal(err)
				}
			}
		}
	})
}
