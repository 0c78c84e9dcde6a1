package block_test

import (
	"bytes"
	"context"
	"testing"

	"pgregory.net/rapid"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/block"
	"github.com/extentd/extentd/storage/raw"
	"github.com/extentd/extentd/storage/storagetest"
)

// Whatever is done to a raw image, it reads as the model, whatever the limits of
// its node are.
func TestRawAgreesWithModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ctx := context.Background()
		unit := rapid.SampledFrom([]int64{1, 512}).Draw(t, "unit")
		limits := storage.Limits{Minimum: unit, Preferred: 512, MaxData: 1024, MaxZero: 2048, MaxTrim: 2048}
		f := storagetest.NewMemFileWith(storagetest.MemOptions{Size: 64 << 10, Limits: limits})
		node := storage.NewNode("raw", f, storage.NodeOptions{Check: true})
		image, err := raw.New(ctx, node)
		must(t, err)
		must(t, image.StartWriting(ctx))
		d, err := block.New([]storage.Mapper{image}, block.Options{Check: true, Nodes: []*storage.Node{node}})
		must(t, err)
		must(t, d.StartWriting(ctx))
		want := make([]byte, d.Size())
		draw := func(t *rapid.T) (off, n int64) {
			off = rapid.Int64Range(0, int64(len(want))/unit).Draw(t, "off") * unit
			return off, rapid.Int64Range(0, (int64(len(want))-off)/unit).Draw(t, "n") * unit
		}
		t.Repeat(map[string]func(*rapid.T){
			"write": func(t *rapid.T) {
				off, n := draw(t)
				fillRandom(want[off:off+n], rapid.Uint64().Draw(t, "data"))
				must(t, d.WriteAt(ctx, want[off:off+n], off))
			},
			"zero": func(t *rapid.T) {
				off, n := draw(t)
				clear(want[off : off+n])
				must(t, d.Zero(ctx, off, n, rapid.Bool().Draw(t, "keep")))
			},
			"trim": func(t *rapid.T) {
				off, n := draw(t)
				clear(want[off : off+n])
				must(t, d.Trim(ctx, off, n))
			},
			"resize": func(t *rapid.T) {
				size := rapid.Int64Range(0, 100).Draw(t, "size") * 512
				must(t, d.Resize(ctx, size, true))
				want = append(want, make([]byte, max(size-int64(len(want)), 0))...)[:size]
			},
			"": func(t *rapid.T) {
				got := make([]byte, len(want))
				must(t, d.ReadAt(ctx, got, 0))
				diff(t, "ReadAt", got, want)
			},
		})
		if !bytes.Equal(f.Bytes(), want) {
			t.Fatal("the file is not what it reads as")
		}
	})
}

// The same of clusters on a node that takes only blocks, and few at a time; the
// last one is cut by the size.
func TestClustersOnNodeWithLimits(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ctx := context.Background()
		const unit = 512
		m := newClusterMapper(clusterOptions{
			size: rapid.Int64Range(1, 20<<10).Draw(t, "size"), cluster: 2048, sub: unit, short: true, seed: rapid.Uint64().Draw(t, "seed"),
			limits: storage.Limits{Minimum: unit, Preferred: unit, MaxData: 1024, MaxZero: 4096, MaxTrim: 1024},
		})
		d, err := block.New([]storage.Mapper{m}, block.Options{Check: true, Nodes: []*storage.Node{m.node}})
		must(t, err)
		must(t, d.StartWriting(ctx))
		want := make([]byte, d.Size())
		t.Repeat(map[string]func(*rapid.T){
			"write": func(t *rapid.T) {
				off := rapid.Int64Range(0, int64(len(want))/unit).Draw(t, "off") * unit
				n := min(rapid.Int64Range(0, 40).Draw(t, "n")*unit, int64(len(want))-off)
				fillRandom(want[off:off+n], rapid.Uint64().Draw(t, "data"))
				must(t, d.WriteAt(ctx, want[off:off+n], off))
			},
			"zero": func(t *rapid.T) {
				off := rapid.Int64Range(0, int64(len(want))/unit).Draw(t, "off") * unit
				clear(want[off:])
				must(t, d.Zero(ctx, off, int64(len(want))-off, rapid.Bool().Draw(t, "keep")))
			},
			"share": func(*rapid.T) { m.share() },
			"": func(t *rapid.T) {
				got := make([]byte, len(want))
				must(t, d.ReadAt(ctx, got, 0))
				diff(t, "ReadAt", got, want)
			},
		})
	})
}
