package block_test

import (
	"context"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/block"
	"github.com/extentd/extentd/storage/file"
	"github.com/extentd/extentd/storage/raw"
)

// rawDevice is a writable device over a file of the given size.
func rawDevice(t testing.TB, size int64) *block.Device {
	path := filepath.Join(t.TempDir(), "disk.raw")
	must(t, os.WriteFile(path, nil, 0o600))
	must(t, os.Truncate(path, size))
	f, err := file.Open(t.Context(), path, file.Options{})
	must(t, err)
	t.Cleanup(func() { _ = f.Close() })
	image, err := raw.New(t.Context(), storage.NewNode("raw", f, storage.NodeOptions{}))
	must(t, err)
	d, err := block.New([]storage.Mapper{image}, block.Options{Changing: func(bool) {}})
	must(t, err)
	must(t, f.StartWriting(t.Context()))
	must(t, image.StartWriting(t.Context()))
	must(t, d.StartWriting(t.Context()))
	return d
}

// BenchmarkOverwrite writes 4 KiB at random, 16 at once: in place through a
// device, and, to compare, straight into a file.
func BenchmarkOverwrite(b *testing.B) {
	const size = 256 << 20
	full := make([]byte, size)
	b.Run("pwrite", func(b *testing.B) {
		path := filepath.Join(b.TempDir(), "disk")
		must(b, os.WriteFile(path, full, 0o600))
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		must(b, err)
		defer f.Close()
		parallelWrites(b, size, func(_ context.Context, p []byte, off int64) error {
			_, err := f.WriteAt(p, off)
			return err
		})
	})
	b.Run("raw", func(b *testing.B) {
		d := rawDevice(b, size)
		must(b, d.WriteAt(b.Context(), full, 0))
		parallelWrites(b, size, d.WriteAt)
	})
	b.Run("clusters", func(b *testing.B) {
		d := clusterDevice(b, clusterOptions{size: size, cluster: 64 << 10, sub: 64 << 10})
		must(b, d.WriteAt(b.Context(), full, 0))
		parallelWrites(b, size, d.WriteAt)
	})
}

func parallelWrites(b *testing.B, size int64, write func(context.Context, []byte, int64) error) {
	b.ReportAllocs()
	b.SetBytes(4096)
	b.SetParallelism(8)
	ctx := context.Background()
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		p := make([]byte, 4096)
		r := rand.New(rand.NewPCG(rand.Uint64(), 0))
		for pb.Next() {
			if err := write(ctx, p, r.Int64N(size/4096)*4096); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func clusterDevice(t testing.TB, opt clusterOptions) *block.Device {
	d, err := block.New([]storage.Mapper{newClusterMapper(opt)}, block.Options{})
	must(t, err)
	must(t, d.StartWriting(t.Context()))
	return d
}

// BenchmarkAllocatingWrite writes into an image in which nothing is allocated,
// from many goroutines; the map and the data are in memory.
func BenchmarkAllocatingWrite(b *testing.B) {
	for _, bb := range []struct {
		name string
		n    int64
	}{{"4K", 4 << 10}, {"1M", 1 << 20}} {
		b.Run(bb.name, func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(bb.n)
			const size = 512 << 20
			p := make([]byte, bb.n)
			var d *block.Device
			var at atomic.Int64
			at.Store(size)
			for b.Loop() {
				off := at.Add(max(bb.n, 64<<10))
				if off >= size { // a new image
					b.StopTimer()
					d, off = clusterDevice(b, clusterOptions{size: size, cluster: 64 << 10, sub: 64 << 10}), 0
					at.Store(0)
					b.StartTimer()
				}
				must(b, d.WriteAt(b.Context(), p, off))
			}
		})
	}
}

// A small write in place allocates nothing, and neither does a small read.
func TestSmallRequestsAllocateNothing(t *testing.T) {
	most := 0.0
	if racing {
		most = 10
	}
	d := clusterDevice(t, clusterOptions{size: 1 << 20, cluster: 64 << 10, sub: 64 << 10})
	for name, d := range map[string]*block.Device{"raw": rawDevice(t, 1<<20), "clusters": d} {
		p := make([]byte, 1<<20)
		must(t, d.WriteAt(t.Context(), p, 0))
		off := int64(0)
		if n := testing.AllocsPerRun(500, func() {
			off = (off + 20<<10) % (1 << 19)
			must(t, d.WriteAt(t.Context(), p[:4096], off))
		}); n > most {
			t.Errorf("%s: %v allocations a write", name, n)
		}
		if n := testing.AllocsPerRun(500, func() {
			off = (off + 20<<10) % (1 << 19)
			must(t, d.ReadAt(t.Context(), p[:4096], off))
		}); n > most {
			t.Errorf("%s: %v allocations a read", name, n)
		}
	}
}
