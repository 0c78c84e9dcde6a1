package nbd

import (
	"math"

	"github.com/extentd/extentd/service"
	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/block"
	"github.com/extentd/extentd/storage/nbd/wire"
)

const (
	// maxList is the most memory that the descriptors of a context take,
	// bytes: fewer replies would not be faster.
	maxList = 1 << 20
	// shortList is enough for one descriptor.
	shortList = 4 << 10
	// maxWalk bounds the extents that one request looks at.
	maxWalk = 1 << 20
)

// listSize is the most memory for the descriptors of a context, bytes.
func (s *session) listSize(r *request) int64 {
	if r.Flags&wire.FlagReqOne != 0 {
		return shortList
	}
	// Each is of a minimum at least.
	most := uint64(wire.DescriptorSize(s.extended)) * (r.Length/s.export.minimum + 1)
	return int64(min(most+uint64(wire.StatusHeaderSize(s.extended)), maxList))
}

// status builds a reply of what each context says.
func (s *session) status(r *request, h *service.Handle) error {
	var lists [contextCount]list
	for id := range lists {
		lists[id] = list{s: s, r: r, id: id, done: !r.contexts.has(id), most: s.listSize(r)}
	}
	if r.contexts&contextsOfMap != 0 {
		if err := s.statusOfMap(r, h.Device(), (*mapLists)(lists[:contextBitmaps])); err != nil {
			return err
		}
	}
	for i := range s.contexts.bitmaps {
		if l := &lists[contextBitmaps+i]; !l.done {
			if err := s.statusOfBitmap(r, h, &s.contexts.bitmaps[i], l); err != nil {
				return err
			}
		}
	}
	for id := range lists {
		if r.contexts.has(id) {
			if err := lists[id].end(); err != nil {
				return err
			}
		}
	}
	s.last(r)
	return nil
}

// mapLists are of the contexts that the map answers.
type mapLists [contextBitmaps]list

func (s *session) statusOfMap(r *request, d *block.Device, lists *mapLists) error {
	blocks := blockwise{unit: int64(s.export.minimum)}
	seen := 0
	for m, err := range d.Walk(r.ctx, int64(r.Offset), int64(r.Length), block.WalkOptions{}) {
		if err != nil {
			return err
		}
		if seen++; seen > maxWalk {
			break
		}
		at := said{length: m.Length, is: [contextBitmaps]uint64{allocation(&m), depth(&m, d.Depth())}}
		if !blocks.add(m.Offset, at, lists) {
			break
		}
	}
	blocks.flush(lists)
	return nil
}

// allocation is what base:allocation says.
func allocation(m *storage.Mapping) uint64 {
	var flags uint32
	if !m.Status.Has(storage.Alloc) {
		flags |= wire.StateHole
	}
	if m.Status.Has(storage.Zero) {
		flags |= wire.StateZero
	}
	return uint64(flags)
}

// depth is what qemu:allocation-depth says: the number of the layer that supplies
// the bytes, from 1, or 0 where none does. Past the end of a short backing the
// zeros are that layer's.
func depth(m *storage.Mapping, layers int) uint64 {
	switch {
	case m.Status.Has(storage.Local):
		return uint64(m.Depth) + 1
	case int(m.Depth) < layers-1:
		return uint64(m.Depth) + 2
	}
	return 0
}

// A said is what all contexts of the map say of some bytes.
type said struct {
	length int64
	is     [contextBitmaps]uint64
}

// A blockwise keeps the boundaries of descriptors at multiples of the minimum,
// whatever those of the map are.
type blockwise struct {
	unit int64
	part said // of a block, that is not whole yet
}

// add adds what is said from off on. It reports whether there is more to know.
func (b *blockwise) add(off int64, at said, to *mapLists) bool {
	if b.unit > 1 {
		if left := -off & (b.unit - 1); left > 0 && b.part.length > 0 {
			n := min(left, at.length)
			b.join(at.is, n)
			if at.length -= n; at.length == 0 && n < left {
				return true
			}
			off += n
			b.flush(to)
		}
		rest := (off + at.length) & (b.unit - 1)
		if at.length -= rest; rest > 0 {
			b.part = said{rest, at.is}
		}
	}
	return put(at, to)
}

// join adds n bytes to a part of a block: it is zeros where all of it is, and a
// hole likewise; of its layers the topmost counts.
func (b *blockwise) join(is [contextBitmaps]uint64, n int64) {
	b.part.length += n
	b.part.is[contextAllocation] &= is[contextAllocation]
	have := &b.part.is[contextDepth]
	if other := is[contextDepth]; *have == 0 || other != 0 && other < *have {
		*have = other
	}
}

// flush adds the block that is not whole, if there is one.
func (b *blockwise) flush(to *mapLists) {
	if b.part.length > 0 {
		put(b.part, to)
		b.part.length = 0
	}
}

// put adds to all lists, and reports whether one of them has room.
func put(at said, to *mapLists) bool {
	if at.length == 0 {
		return true
	}
	room := false
	for id := range to {
		to[id].add(wire.Descriptor{Length: uint64(at.length), Flags: at.is[id]})
		room = room || !to[id].done
	}
	return room
}

// A list is the descriptors of a context in the making.
type list struct {
	s    *session
	r    *request
	id   int
	most int64 // bytes that it may have
	out  []byte
	n    int
	last wire.Descriptor // not yet in out; Length 0: none
	done bool            // there is no room for more
}

// add adds a descriptor, or makes the last one longer.
func (l *list) add(d wire.Descriptor) {
	switch {
	case l.done:
	case l.last.Length > 0 && l.last.Flags == d.Flags && l.last.Length+d.Length <= l.longest():
		l.last.Length += d.Length
	default:
		l.flush()
		l.last = d
		one := l.r.Flags&wire.FlagReqOne != 0 && l.n > 0
		l.done = one || int64(len(l.out)+wire.DescriptorSize(l.s.extended)) > l.most
	}
}

// longest is the most that a descriptor can say.
func (l *list) longest() uint64 {
	if l.s.extended {
		return math.MaxInt64
	}
	return math.MaxUint32
}

// flush puts the last descriptor into out.
func (l *list) flush() {
	if l.last.Length == 0 {
		return
	}
	l.grow(wire.DescriptorSize(l.s.extended))
	l.out = wire.AppendDescriptor(l.out, l.last, l.s.extended)
	l.n++
	l.last.Length = 0
}

// grow makes room for n bytes.
func (l *list) grow(n int) {
	have := l.r.lists[l.id]
	if have != nil && len(l.out)+n <= len(have.data) {
		return
	}
	pool := &l.s.c.s.pool
	bigger := pool.get(int64(max(len(l.out)+n, shortList)))
	l.out = append(bigger.data[:0], l.out...)
	if have != nil {
		pool.put(have)
	} else {
		l.out = l.out[:wire.StatusHeaderSize(l.s.extended)]
	}
	l.r.lists[l.id] = bigger
}

// end adds the chunk to the reply.
func (l *list) end() error {
	if !l.done {
		l.flush()
	}
	chunk := wire.ChunkBlockStatus
	if l.s.extended {
		chunk = wire.ChunkBlockStatusExt
	}
	if l.n == 0 {
		return storage.ErrContract
	}
	wire.PutStatusHeader(l.out, uint32(l.id), l.n, l.s.extended)
	l.s.chunk(l.r, chunk, uint64(len(l.out)), none)
	l.r.parts = append(l.r.parts, l.out)
	return nil
}
