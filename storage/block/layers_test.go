package block_test

import (
	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/storagetest"
)

// alternating is a layer of which every other block, from first on, is data,
// scattered so that no two are one extent.
func alternating(data []byte, first int64) *tableMapper {
	t := &tableMapper{size: int64(len(data))}
	node := storage.NewNode("alternating", storagetest.NewMemFile(data), storage.NodeOptions{})
	for off := int64(0); off < t.size; off += unitSize {
		m := storage.Mapping{Offset: off, Length: unitSize}
		if off/unitSize%2 == first {
			m.Status = storage.Local | storage.Alloc | storage.OffsetValid
			m.Node, m.NodeOffset = node, off
		}
		t.mappings = append(t.mappings, m)
	}
	return t
}

// uniform is a layer of which every block is data, or a packed unit.
func uniform(data []byte, flags storage.Flags) *tableMapper {
	t := &tableMapper{size: int64(len(data))}
	node := storage.NewNode("uniform", storagetest.NewMemFile(data), storage.NodeOptions{})
	for off := int64(0); off < t.size; off += unitSize {
		m := storage.Mapping{Offset: off, Length: unitSize, Node: node, NodeOffset: off, Flags: flags}
		m.Status = storage.Local | storage.Alloc
		if flags&storage.Compressed != 0 {
			m.PackedLength = unitSize
		} else {
			m.Status |= storage.OffsetValid
		}
		t.mappings = append(t.mappings, m)
	}
	return t
}
