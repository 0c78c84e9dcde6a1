package api

import (
	"encoding/json"
	"fmt"
	"strconv"

	"github.com/extentd/extentd/storage"
)

// An encoder writes extents as JSON. What stands between the numbers depends on
// few things, of which a map has few combinations, so each is written once and
// copied after that; neighbours often have one length, and so is that. It costs
// a tenth of encoding/json. It belongs to one goroutine.
type encoder struct {
	length     int64  // of the last extent
	lengthText []byte // the member of that length
	fragments  [32]fragment
}

// A fragment is the text of an extent around its numbers.
type fragment struct {
	node        *storage.Node
	depth       int16
	status      storage.Status
	flags       storage.Flags
	front, back []byte // before and after node_offset; nil: not written yet
}

// append writes one extent, without anything around it.
func (e *encoder) append(b []byte, m *storage.Mapping) []byte {
	if m.Length != e.length {
		e.length = m.Length
		e.lengthText = append(e.lengthText[:0], `,"length":`...)
		e.lengthText = strconv.AppendInt(e.lengthText, m.Length, 10)
	}
	f := e.fragment(m)
	b = append(b, `{"offset":`...)
	b = strconv.AppendInt(b, m.Offset, 10)
	b = append(b, e.lengthText...)
	b = append(b, f.front...)
	if m.Status.Has(storage.OffsetValid) {
		b = strconv.AppendInt(b, m.NodeOffset, 10)
	}
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
	f.front = fmt.Appendf(f.front[:0], `,"local":%t,"zero":%t,"alloc":%t,"offset_valid":%t`,
		m.Status.Has(storage.Local), m.Status.Has(storage.Zero), m.Status.Has(storage.Alloc), m.Status.Has(storage.OffsetValid))
	if m.Status.Has(storage.OffsetValid) {
		name, _ := json.Marshal(m.Node.Name()) // a string: it cannot fail
		f.front = append(f.front, `,"node":`...)
		f.front = append(f.front, name...)
		f.front = append(f.front, `,"node_offset":`...)
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
