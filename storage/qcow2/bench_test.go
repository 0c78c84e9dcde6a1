package qcow2_test

import (
	"testing"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/qcow2"
)

// alternating maps every other of so many clusters.
func alternating(clusterBits uint32, clusters int) *builder {
	b := &builder{clusterBits: clusterBits, entries: make([]uint64, clusters)}
	for k := 0; k < clusters; k += 2 {
		b.entries[k] = 1<<63 | uint64(k+1024)<<clusterBits
	}
	return b
}

// contiguous maps all of so many clusters, one after the other.
func contiguous(clusterBits uint32, clusters int) *builder {
	b := &builder{clusterBits: clusterBits, entries: make([]uint64, clusters)}
	for k := range clusters {
		b.entries[k] = 1<<63 | uint64(k+1024)<<clusterBits
	}
	return b
}

func mustOpen(t testing.TB, content []byte) *qcow2.Image {
	t.Helper()
	i, err := openBytes(t, content)
	if err != nil {
		t.Fatal(err)
	}
	return i
}

// TestHotPath checks that a small fetch from a cached slice allocates nothing.
func TestHotPath(t *testing.T) {
	extended := contiguous(16, 1024)
	extended.extended = true
	for k := 1; k < 1024; k += 2 {
		extended.entries[k] = 0x0000ff00_00ff00ff
	}
	for _, tt := range []struct {
		name  string
		image *builder
	}{
		{"standard", alternating(16, 1024)},
		{"extended", extended},
		{"unallocated table", &builder{size: 1 << 40}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			i := mustOpen(t, tt.image.bytes())
			var l storage.ExtentList
			off := int64(0)
			n := testing.AllocsPerRun(1000, func() {
				off = (off + 20<<10) % (i.Size() - 4096)
				l.ResetWindow(off, off+4096)
				if err := i.Fetch(t.Context(), off, 4096, &l); err != nil {
					t.Fatal(err)
				}
			})
			if n > 0 {
				t.Errorf("%v allocations a fetch", n)
			}
		})
	}
}

// BenchmarkRandomRead is what a random read of 4 KiB asks, with all metadata
// cached.
func BenchmarkRandomRead(b *testing.B) {
	const clusters = 1 << 17 // 8 GiB
	i := mustOpen(b, alternating(16, clusters).bytes())
	var all storage.ExtentList
	if err := i.Fetch(b.Context(), 0, i.Size(), &all); err != nil {
		b.Fatal(err)
	}
	ctx := b.Context()
	b.ReportAllocs()
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		var l storage.ExtentList
		x := uint64(88172645463325252)
		for pb.Next() {
			x ^= x << 13
			x ^= x >> 7
			x ^= x << 17
			off := int64(x%uint64(clusters)) << 16
			l.ResetWindow(off, off+4096)
			if err := i.Fetch(ctx, off, 4096, &l); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkMap walks a map as a caller that lists it does, a slice at a time.
func BenchmarkMap(b *testing.B) {
	for _, bb := range []struct {
		name  string
		image *builder
	}{
		{"alternating", alternating(12, 1<<21)},
		{"contiguous", contiguous(12, 1<<21)},
	} {
		b.Run(bb.name, func(b *testing.B) {
			content := bb.image.bytes()
			i := mustOpen(b, content)
			ctx := b.Context()
			var l storage.ExtentList
			var entries int
			b.ReportAllocs()
			for b.Loop() {
				entries += 1 << 21
				for off := int64(0); off < i.Size(); off = l.End() {
					l.ResetWindow(off, i.Size())
					if err := i.Fetch(ctx, off, 1, &l); err != nil {
						b.Fatal(err)
					}
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(entries), "ns/cluster")
		})
	}
}

// BenchmarkMiss is a fetch that has to read its slice.
func BenchmarkMiss(b *testing.B) {
	content := contiguous(12, 1<<21).bytes()
	i, err := qcow2.Open(b.Context(), memNode(content), qcow2.Options{CacheSize: 1})
	if err != nil {
		b.Fatal(err)
	}
	defer i.Close()
	var l storage.ExtentList
	b.ReportAllocs()
	for off := int64(0); b.Loop(); off = (off + 7<<21) % i.Size() {
		l.ResetWindow(off, off+4096)
		if err := i.Fetch(b.Context(), off, 4096, &l); err != nil {
			b.Fatal(err)
		}
	}
}
