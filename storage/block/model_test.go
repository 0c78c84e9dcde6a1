package block_test

import (
	"context"
	"fmt"
	"sort"
	"sync/atomic"

	"pgregory.net/rapid"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/storagetest"
)

const unitSize = 4096

// A tableMapper is a layer whose map is a table, with packed units that are
// their own bytes with every bit turned. It volunteers in runs of eight blocks.
type tableMapper struct {
	size     int64
	mappings []storage.Mapping // contiguous from 0 to size
	fetches  atomic.Int64
}

func (t *tableMapper) Size() int64  { return t.size }
func (t *tableMapper) Close() error { return nil }

func (t *tableMapper) Fetch(_ context.Context, off, n int64, into *storage.ExtentList) error {
	if err := storage.CheckRange(off, n, t.size); err != nil {
		return err
	}
	t.fetches.Add(1)
	lo, hi := off&^(8*unitSize-1), min((off+n+8*unitSize-1)&^(8*unitSize-1), t.size)
	i := sort.Search(len(t.mappings), func(i int) bool { return t.mappings[i].End() > lo })
	for ; i < len(t.mappings) && t.mappings[i].Offset < hi; i++ {
		if err := into.Add(t.mappings[i]); err != nil {
			return err
		}
	}
	return nil
}

func (t *tableMapper) PackedUnit() int64 { return unitSize }

func (t *tableMapper) Unpack(dst, src []byte) error {
	if len(src) < len(dst) {
		return fmt.Errorf("%w: %d packed bytes", storage.ErrCorrupt, len(src))
	}
	for i := range dst {
		dst[i] = ^src[i]
	}
	return nil
}

// A model is a chain of layers and the bytes that it must read as.
type model struct {
	layers []storage.Mapper
	bytes  []byte
	depth  []int16 // of the layer that supplies each block
}

// drawModel draws a chain of up to four layers of up to 64 blocks, each with
// every kind of mapping.
func drawModel(t *rapid.T) *model {
	m := &model{}
	depth := rapid.IntRange(1, 4).Draw(t, "layers")
	for k := depth - 1; k >= 0; k-- { // the lowest first
		size := int64(rapid.IntRange(1, 64*unitSize).Draw(t, "size"))
		m.over(drawLayer(t, k, size))
	}
	return m
}

func drawLayer(t *rapid.T, k int, size int64) (*tableMapper, []byte) {
	blocks := (size + unitSize - 1) / unitSize
	raw := make([]byte, 2*blocks*unitSize)
	for i := range raw {
		raw[i] = byte(i*7+i>>9+k*31) | 1
	}
	node := storage.NewNode(fmt.Sprintf("node%d", k), storagetest.NewMemFile(raw), storage.NodeOptions{Check: true})
	table := &tableMapper{size: size}
	guest := make([]byte, 2*blocks*unitSize) // value, then a mask of what is local
	var list storage.ExtentList
	for b := range blocks {
		off := b * unitSize
		at := rapid.Int64Range(0, 2*blocks-1).Draw(t, "at") * unitSize
		n := min(unitSize, size-off)
		mp := storage.Mapping{Offset: off, Length: n}
		switch rapid.SampledFrom([]string{"data", "next", "packed", "zero", "anchor", "defer"}).Draw(t, "kind") {
		case "next":
			at = min(off+unitSize, (2*blocks-1)*unitSize)
			fallthrough
		case "data":
			mp.Status, mp.Node, mp.NodeOffset = storage.Local|storage.Alloc|storage.OffsetValid, node, at
			copy(guest[off:off+n], raw[at:])
		case "packed":
			mp.Status, mp.Flags = storage.Local|storage.Alloc, storage.Compressed
			mp.Node, mp.NodeOffset, mp.PackedLength = node, at, unitSize
			for i := range n {
				guest[off+i] = ^raw[at+i]
			}
		case "zero":
			mp.Status = storage.Local | storage.Zero
		case "anchor":
			mp.Status, mp.Node, mp.NodeOffset = storage.Local|storage.Zero|storage.Alloc|storage.OffsetValid, node, at
		}
		if mp.Status.Has(storage.Local) {
			for i := range n {
				guest[blocks*unitSize+off+i] = 1
			}
		}
		if err := list.Add(mp); err != nil {
			t.Fatal(err)
		}
	}
	for i := range list.Len() {
		table.mappings = append(table.mappings, *list.At(i))
	}
	return table, guest
}

// over puts a layer on top of the model.
func (m *model) over(t *tableMapper, guest []byte) {
	half := int64(len(guest) / 2)
	below, belowDepth := m.bytes, m.depth
	m.layers = append([]storage.Mapper{t}, m.layers...)
	m.bytes, m.depth = make([]byte, t.size), make([]int16, t.size)
	for i := range m.bytes {
		switch {
		case guest[half+int64(i)] == 1:
			m.bytes[i] = guest[i]
		case i < len(below):
			m.bytes[i], m.depth[i] = below[i], belowDepth[i]+1
		}
	}
}
