package block_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"testing"

	"pgregory.net/rapid"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/block"
	"github.com/extentd/extentd/storage/storagetest"
)

// A disk is a device to be written to, and the bytes that it must read as.
type disk struct {
	d      *block.Device
	mapper *clusterMapper
	bytes  []byte
}

// A backing is a layer below, and what it reads as.
type backing struct {
	table *tableMapper
	bytes []byte
}

// randomLayer has blocks that are data, packed, zeros, or nothing.
func randomLayer(size int64, seed uint64) backing {
	raw := make([]byte, (size+unitSize-1)&^(unitSize-1))
	fillRandom(raw, seed)
	b := backing{&tableMapper{size: size}, make([]byte, size)}
	node := storage.NewNode("backing", storagetest.NewMemFile(raw), storage.NodeOptions{})
	r := rand.New(rand.NewPCG(seed, 3))
	for off := int64(0); off < size; off += unitSize {
		m := storage.Mapping{Offset: off, Length: min(unitSize, size-off)}
		switch r.IntN(5) {
		case 0, 1:
			m.Status, m.Node, m.NodeOffset = storage.Local|storage.Alloc|storage.OffsetValid, node, off
			copy(b.bytes[off:m.End()], raw[off:])
		case 2:
			m.Status, m.Flags, m.Node, m.NodeOffset, m.PackedLength = storage.Local|storage.Alloc, storage.Compressed, node, off, unitSize
			for i := off; i < m.End(); i++ {
				b.bytes[i] = ^raw[i]
			}
		case 3:
			m.Status = storage.Local | storage.Zero
		}
		b.table.mappings = append(b.table.mappings, m)
	}
	return b
}

// drawDisk draws an image over a backing that may be longer or shorter, or none.
func drawDisk(t *rapid.T) *disk {
	opt := clusterOptions{
		size:    rapid.Int64Range(1, 40<<10).Draw(t, "size"),
		cluster: rapid.SampledFrom([]int64{512, 1024, 4096}).Draw(t, "cluster"),
		pack:    rapid.Bool().Draw(t, "pack"),
		short:   rapid.Bool().Draw(t, "short"),
		seed:    rapid.Uint64().Draw(t, "seed"),
	}
	opt.sub = opt.cluster / rapid.SampledFrom([]int64{1, 4}).Draw(t, "subclusters")
	opt.noZero = rapid.IntRange(0, 3).Draw(t, "no zeros") == 0
	s := &disk{bytes: make([]byte, opt.size)}
	s.mapper = newClusterMapper(opt)
	layers := []storage.Mapper{s.mapper}
	if opt.noZero || rapid.Bool().Draw(t, "backed") {
		below := randomLayer(rapid.Int64Range(1, 64<<10).Draw(t, "backing"), opt.seed)
		layers = append(layers, below.table)
		copy(s.bytes, below.bytes)
	}
	s.d = newDevice(t, layers)
	if err := s.d.StartWriting(context.Background()); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *disk) drawRange(t *rapid.T) (off, n int64) {
	size := int64(len(s.bytes))
	off = rapid.Int64Range(0, size).Draw(t, "off")
	n = rapid.Int64Range(0, min(size-off, rapid.SampledFrom([]int64{100, 5000, 1 << 20}).Draw(t, "most"))).Draw(t, "n")
	if rapid.IntRange(0, 2).Draw(t, "aligned") == 0 {
		off -= off % s.mapper.cluster
		n = min(n-n%s.mapper.cluster, size-off)
	}
	return off, n
}

// whole is the part of [off, off+n) that is whole clusters.
func (s *disk) whole(off, n int64) (lo, hi int64) {
	c := s.mapper.cluster
	lo, hi = (off+c-1)/c*c, (off+n)/c*c
	if off+n == int64(len(s.bytes)) {
		hi = off + n
	}
	if lo >= hi {
		return off, off
	}
	return lo, hi
}

// Whatever is written in whatever order, the device reads as the model, no
// cluster stays reserved, and no pin is out.
func TestWritesAgreeWithModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := drawDisk(t)
		ctx := context.Background()
		t.Repeat(map[string]func(*rapid.T){
			"write": func(t *rapid.T) {
				off, n := s.drawRange(t)
				p := make([]byte, n)
				fillRandom(p, rapid.Uint64().Draw(t, "data"))
				must(t, s.d.WriteAt(ctx, p, off))
				copy(s.bytes[off:], p)
			},
			"zero": func(t *rapid.T) {
				off, n := s.drawRange(t)
				must(t, s.d.Zero(ctx, off, n, rapid.Bool().Draw(t, "keep")))
				clear(s.bytes[off : off+n])
			},
			"trim": func(t *rapid.T) {
				off, n := s.drawRange(t)
				lo, hi := s.whole(off, n)
				err := s.d.Trim(ctx, off, n)
				if s.mapper.noZero && lo < hi && errors.Is(err, storage.ErrUnsupported) {
					return
				}
				must(t, err)
				clear(s.bytes[lo:hi])
			},
			"resize": func(t *rapid.T) {
				size := rapid.Int64Range(0, 48<<10).Draw(t, "size")
				must(t, s.d.Resize(ctx, size, true))
				grown := make([]byte, size)
				copy(grown, s.bytes)
				s.bytes = grown
			},
			"share":   func(*rapid.T) { s.mapper.share() },
			"claim":   func(t *rapid.T) { s.claim(t) },
			"reserve": func(t *rapid.T) { s.reserve(t) },
			"":        s.check,
		})
	})
}

// claim fills and shows anchored clusters by hand.
func (s *disk) claim(t *rapid.T) {
	ctx := context.Background()
	off, n := s.drawRange(t)
	lo, hi := s.whole(off, n)
	if lo == hi {
		return
	}
	c, err := s.d.Claim(ctx, lo, hi-lo)
	if errors.Is(err, storage.ErrConflict) {
		return
	}
	must(t, err)
	defer c.Release()
	if err := s.d.WriteAt(ctx, []byte{1}, hi-1); !errors.Is(err, storage.ErrConflict) {
		t.Fatalf("a write into a claim: %v", err)
	}
	for _, b := range c.Blocks() {
		p := make([]byte, b.Length)
		fillRandom(p, uint64(b.Offset))
		must(t, s.d.FillBlocks(ctx, b.Blocks, p, 0))
		part := min(b.Length, hi-b.Offset)
		must(t, c.Publish(ctx, b.Offset, part))
		if err := c.Publish(ctx, b.Offset, part); !errors.Is(err, storage.ErrConflict) {
			t.Fatalf("published twice: %v", err)
		}
		must(t, s.d.WriteAt(ctx, p[:part], b.Offset)) // it is as any other now
		copy(s.bytes[b.Offset:hi], p)
	}
}

// reserve maps reserved clusters by hand.
func (s *disk) reserve(t *rapid.T) {
	ctx := context.Background()
	off, n := s.drawRange(t)
	lo, hi := s.whole(off, n)
	if lo == hi {
		return
	}
	b, err := s.d.Alloc(ctx, hi-lo, storage.AllocOptions{})
	must(t, err)
	hi = min(hi, lo+b.Length)
	p := make([]byte, b.Length)
	fillRandom(p, uint64(b.Offset))
	must(t, s.d.FillBlocks(ctx, b, p, 0))
	must(t, s.d.Update(ctx, lo, hi-lo, storage.Target{Kind: storage.ToData, Node: b.Node, NodeOffset: b.Offset}))
	copy(s.bytes[lo:hi], p)
}

func (s *disk) check(t *rapid.T) {
	ctx := context.Background()
	if got := s.d.Size(); got != int64(len(s.bytes)) {
		t.Fatalf("size is %d, not %d", got, len(s.bytes))
	}
	p := make([]byte, len(s.bytes))
	must(t, s.d.ReadAt(ctx, p, 0))
	diff(t, "ReadAt", p, s.bytes)
	for off := int64(0); off < int64(len(s.bytes)); off += 700 { // through the cache of units
		n := min(700, int64(len(s.bytes))-off)
		must(t, s.d.ReadAt(ctx, p[:n], off))
		diff(t, "small ReadAt", p[:n], s.bytes[off:off+n])
	}
	stream, err := s.d.Stream(ctx, 0, int64(len(s.bytes)))
	must(t, err)
	defer stream.Close()
	got, err := io.ReadAll(stream)
	must(t, err)
	diff(t, "Stream", got, s.bytes)
	if n := s.mapper.leaks(); n > 0 {
		t.Fatalf("%d clusters are reserved", n)
	}
	if n := s.mapper.pinned(); n > 0 {
		t.Fatalf("%d epochs are pinned", n)
	}
	for _, err := range s.d.Walk(ctx, 0, s.d.Size(), block.WalkOptions{}) {
		must(t, err)
	}
}

func diff(t *rapid.T, what string, got, want []byte) {
	if bytes.Equal(got, want) {
		return
	}
	for i := range got {
		if got[i] != want[i] {
			t.Fatalf("%s: byte %d of %d is %#x, not %#x", what, i, len(want), got[i], want[i])
		}
	}
}

func must(t interface {
	Helper()
	Fatal(...any)
}, err error,
) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// fillRandom never makes a zero byte, nor the litter of free clusters.
func fillRandom(p []byte, seed uint64) {
	r := rand.New(rand.NewPCG(seed, 2))
	for i := range p {
		p[i] = byte(1 + r.IntN(200))
	}
}
