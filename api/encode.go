package api

import (
	"encoding/json"
	"fmt"
	"strconv"

	"github.com/extentd/extentd/storage"
)

// An encoder writes extents as JSON. What stands between the numbers depends on
// few things, of which a map has few combinations, so each is written once and
// copied after that, together with the length, which seldom changes. It belongs
// to one goroutine.
type encoder struct {
	fragments [32]fragment
}

// A fragment is the text of an extent around its offsets.
type fragment struct {
	node       *storage.Node
	depth      int16
	status     storage.Status
	flags      storage.Flags
	length     int64  // what middle says
	middle     []byte // from the length to node_offset
	bits, back []byte // of middle what follows the length; and what follows node_offset
}

// append writes one extent, without anything around it.
func (e *encoder) append(b []byte, m *storage.Mapping) []byte {
	f := e.fragment(m)
	if f.length != m.Length {
		f.measure(m.Length)
	}
	b = append(b, `{"offset":`...)
	b = strconv.AppendInt(b, m.Offset, 10)
	b = append(b, f.middle...)
	if !m.Status.Has(storage.OffsetValid) {
		return b
	}
	b = strconv.AppendInt(b, m.NodeOffset, 10)
	return append(b, f.back...)
}

func (e *encoder) fragment(m *storage.Mapping) *fragment {
	slot := (uint(m.Depth)*11 + uint(m.Status) + uint(m.Flags)<<3) % uint(len(e.fragments))
	f := &e.fragments[slot]
	if f.back == nil || f.node != m.Node || f.depth != m.Depth || f.status != m.Status || f.flags != m.Flags {
		f.write(m)
	}
	return f
}

func (f *fragment) write(m *storage.Mapping) {
	f.node, f.depth, f.status, f.flags = m.Node, m.Depth, m.Status, m.Flags
	f.length = 0
	f.bits = fmt.Appendf(f.bits[:0], `,"local":%t,"zero":%t,"alloc":%t,"offset_valid":%t`,
		m.Status.Has(storage.Local), m.Status.Has(storage.Zero), m.Status.Has(storage.Alloc), m.Status.Has(storage.OffsetValid))
	if m.Status.Has(storage.OffsetValid) {
		name, _ := json.Marshal(m.Node.Name()) // a string: it cannot fail
		f.bits = append(f.bits, `,"node":`...)
		f.bits = append(f.bits, name...)
		f.bits = append(f.bits, `,"node_offset":`...)
	}
	f.back = fmt.Appendf(f.back[:0], `,"depth":%d`, m.Depth)
	if m.Flags&storage.Compressed != 0 {
		f.back = append(f.back, `,"compressed":true`...)
	}
	if m.Flags&storage.Encrypted != 0 {
		f.back = append(f.back, `,"encrypted":true`...)
	}
	f.back = append(f.back, '}')
}

// measure writes the middle of the fragment for extents of a length.
func (f *fragment) measure(length int64) {
	f.length = length
	f.middle = append(f.middle[:0], `,"length":`...)
	f.middle = strconv.AppendInt(f.middle, length, 10)
	f.middle = append(f.middle, f.bits...)
	if !f.status.Has(storage.OffsetValid) {
		f.middle = append(f.middle, f.back...)
	}
}
