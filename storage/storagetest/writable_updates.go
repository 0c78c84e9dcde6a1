package storagetest

import (
	"bytes"
	"errors"
	"math"
	"slices"
	"testing"

	"github.com/extentd/extentd/storage"
)

// toData: blocks that have been filled show, in any order, and replace what was
// there.
func (s *writableSuite) toData(t *testing.T) {
	for round := range byte(2) {
		b := s.reserve(t, 8*s.block, 4)
		for k := range int64(4) {
			s.put(t, b, k*s.block, bytes.Repeat([]byte{1 + 16*round + byte(k)}, int(s.block)))
		}
		if !s.granule.Fixed { // there they show when they were mapped before
			s.check(t)
		}
		guests := []int64{10, 8, 11, 9} // where the blocks go
		if s.granule.Fixed {
			guests = []int64{8, 9, 10, 11}
		}
		for k, guest := range guests {
			if err := s.image.Update(t.Context(), guest*s.block, s.block, data(b, int64(k)*s.block)); err != nil {
				t.Fatal(err)
			}
			s.m.write(bytes.Repeat([]byte{1 + 16*round + byte(k)}, int(s.block)), guest*s.block)
			for _, m := range s.mappings(t, guest*s.block, s.block) {
				if m.Status != storage.Local|storage.Alloc|storage.OffsetValid || m.Node != b.Node || m.Flags&storage.Writable == 0 ||
					m.NodeOffset != b.Offset+int64(k)*s.block+m.Offset-guest*s.block {
					t.Errorf("block %d is %+v, and was mapped to %d", guest, m, b.Offset+int64(k)*s.block)
				}
			}
			if !s.granule.Fixed {
				s.check(t)
			}
		}
		s.check(t)
	}
	s.reopen(t)
	s.check(t)
}

// toDataUnits: units of a block show one by one, those of a block that was
// anchored, and those of a new one.
func (s *writableSuite) toDataUnits(t *testing.T) {
	unit := max(s.granule.Data, 512)
	type blocks struct {
		off int64
		storage.Blocks
	}
	all := []blocks{{3 * s.block, s.reserve(t, 3*s.block, 1)}}
	s.fill(t, 0, s.block, 1)
	if s.update(t, 0, s.block, storage.ToAnchored) {
		all = append(all, blocks{0, s.kept(t, 0)})
	}
	for _, b := range all {
		for k, at := range []int64{s.block - unit, 0, s.block / 2 / unit * unit} {
			p := bytes.Repeat([]byte{byte(2 + k)}, int(unit))
			s.put(t, b.Blocks, at, p)
			if err := s.image.Update(t.Context(), b.off+at, unit, data(b.Blocks, at)); err != nil {
				t.Fatalf("update of %d bytes at %d: %v", unit, b.off+at, err)
			}
			s.m.write(p, b.off+at)
			s.check(t)
		}
	}
	s.reopen(t)
	s.check(t)
}

// kept are the blocks that an anchored block has kept. Where the mapper cannot
// say, which only those may whose blocks have their place, it is that.
func (s *writableSuite) kept(t *testing.T, off int64) storage.Blocks {
	t.Helper()
	m := s.mappings(t, off, s.block)[0]
	if !m.Status.Has(storage.Alloc|storage.OffsetValid) || m.Flags&storage.Writable == 0 {
		if !s.granule.Fixed {
			t.Fatalf("an anchored block has kept nothing: %+v", m)
		}
		return s.reserve(t, off, 1)
	}
	return storage.Blocks{Node: m.Node, Offset: m.NodeOffset, Length: s.block}
}

// dataConflicts: only what is reserved, or there already, can be mapped.
func (s *writableSuite) dataConflicts(t *testing.T) {
	if s.granule.Fixed {
		s.fixedConflicts(t)
		return
	}
	s.fill(t, 0, 2*s.block, 1)
	mapped := s.mappings(t, 0, s.block)[0]
	b := s.reserve(t, 0, 3)
	s.give(t, b, 0, s.block, nil)
	foreign := storage.NewNode("foreign", NewMemFile(make([]byte, 1<<20)), storage.NodeOptions{})
	before := s.alike(t)
	for _, c := range []struct {
		name string
		to   storage.Target
		n    int64
	}{
		{"what another range has", storage.Target{Kind: storage.ToData, Node: mapped.Node, NodeOffset: mapped.NodeOffset}, s.block},
		{"what was freed", data(b, 0), s.block},
		{"what is reserved in part", data(b, 0), 2 * s.block},
		{"what ends after what is reserved", data(b, s.block), 3 * s.block},
		{"metadata", storage.Target{Kind: storage.ToData, Node: b.Node}, s.block},
		{"what is not in the file", storage.Target{Kind: storage.ToData, Node: b.Node, NodeOffset: 1 << 40 / s.block * s.block}, s.block},
		{"another file", storage.Target{Kind: storage.ToData, Node: foreign, NodeOffset: b.Offset + s.block}, s.block},
		{"nothing", storage.Target{Kind: storage.ToData}, s.block},
	} {
		if err := s.image.Update(t.Context(), 8*s.block, c.n, c.to); !errors.Is(err, storage.ErrConflict) {
			t.Errorf("mapping %s = %v, want %v", c.name, err, storage.ErrConflict)
		}
	}
	if !slices.Equal(before, s.alike(t)) {
		t.Error("updates that fail change the map")
	}
	s.put(t, b, s.block, bytes.Repeat([]byte{4}, int(2*s.block)))
	for _, want := range []error{nil, storage.ErrConflict} { // the second time it is mapped
		at := []int64{8, 12}
		if err := s.image.Update(t.Context(), at[0]*s.block, s.block, data(b, s.block)); want == nil && err != nil {
			t.Error(err)
		}
		if err := s.image.Update(t.Context(), at[1]*s.block, s.block, data(b, s.block)); !errors.Is(err, storage.ErrConflict) {
			t.Errorf("mapping a block twice = %v, want %v", err, storage.ErrConflict)
		}
	}
	s.m.write(bytes.Repeat([]byte{4}, int(s.block)), 8*s.block)
	s.give(t, b, 2*s.block, s.block, nil)
	s.check(t)
}

// fixedConflicts: blocks can be mapped nowhere else.
func (s *writableSuite) fixedConflicts(t *testing.T) {
	s.fill(t, 0, 2*s.block, 1)
	b := s.reserve(t, 4*s.block, 2)
	foreign := storage.NewNode("foreign", NewMemFile(make([]byte, writableSize)), storage.NodeOptions{})
	for _, to := range []storage.Target{
		data(b, s.block),
		{Kind: storage.ToData, Node: foreign, NodeOffset: b.Offset},
		{Kind: storage.ToData},
	} {
		if err := s.image.Update(t.Context(), 4*s.block, s.block, to); !errors.Is(err, storage.ErrConflict) {
			t.Errorf("mapping %+v = %v, want %v", to, err, storage.ErrConflict)
		}
	}
	s.check(t)
}

// toZeros: each target over each state.
func (s *writableSuite) toZeros(t *testing.T) {
	kinds := []storage.TargetKind{storage.ToUnmapped, storage.ToZero, storage.ToAnchored}
	at := int64(0)
	for _, first := range append([]storage.TargetKind{0, storage.ToData}, kinds...) {
		for _, kind := range kinds {
			off := at * s.block
			at += 3
			s.fill(t, off+s.block, s.block, 9) // beside it
			switch first {
			case 0:
			case storage.ToData:
				s.fill(t, off, s.block, 1)
			default:
				s.fill(t, off, s.block, 1)
				s.update(t, off, s.block, first)
			}
			before := s.mappings(t, off, s.block)[0]
			if s.update(t, off, s.block, kind) {
				s.zeroStatus(t, before, s.mappings(t, off, s.block), kind)
			}
			s.check(t)
		}
	}
	s.update(t, 0, s.m.size()/2, storage.ToUnmapped) // across all of them
	s.update(t, s.m.size()/2, s.m.size()/2, storage.ToZero)
	s.check(t)
	s.reopen(t)
	s.check(t)
}

// zeroStatus: blocks are kept or given back as the target says. What shows where
// the map is the file's own is the file's business.
func (s *writableSuite) zeroStatus(t *testing.T, before storage.Mapping, after []storage.Mapping, kind storage.TargetKind) {
	t.Helper()
	if s.granule.Alloc == 1 {
		return
	}
	for _, m := range after {
		keeps := m.Status.Has(storage.Alloc)
		switch {
		case m.Status.Has(storage.Local) && !m.Status.Has(storage.Zero):
			t.Errorf("%v over %+v is %+v", kind, before, m)
		case kind != storage.ToAnchored && keeps && !s.granule.Fixed:
			t.Errorf("%v over %+v keeps %+v", kind, before, m)
		case kind == storage.ToAnchored && before.Status.Has(storage.Alloc|storage.OffsetValid) &&
			(!keeps || m.Node != before.Node || m.NodeOffset-m.Offset != before.NodeOffset-before.Offset):
			t.Errorf("%v over %+v is %+v", kind, before, m)
		}
	}
}

// anchored: blocks that were kept show again when they are made data.
func (s *writableSuite) anchored(t *testing.T) {
	s.fill(t, 0, 4*s.block, 1)
	if !s.update(t, 0, 4*s.block, storage.ToAnchored) {
		return
	}
	s.reopen(t)
	s.startWriting(t)
	s.check(t)
	for k := range int64(4) {
		off := k * s.block
		b := s.kept(t, off)
		p := bytes.Repeat([]byte{byte(10 + k)}, int(s.block))
		s.put(t, b, 0, p)
		if err := s.image.Update(t.Context(), off, s.block, data(b, 0)); err != nil {
			t.Fatal(err)
		}
		s.m.write(p, off)
		s.check(t)
	}
}

// lastBlock: the size may cut it.
func (s *writableSuite) lastBlock(t *testing.T) {
	r, ok := s.image.(storage.Resizer)
	if !ok {
		return
	}
	size := s.m.size() - s.block + 1536
	if err := r.Resize(t.Context(), size, storage.ResizeOptions{Shrink: true}); err != nil {
		t.Fatal(err)
	}
	s.m.resize(size)
	off := size - 1536
	for _, kind := range []storage.TargetKind{storage.ToZero, storage.ToUnmapped, storage.ToAnchored} {
		s.fill(t, off, 1536, 6)
		s.check(t)
		s.update(t, off, 1536, kind)
		s.check(t)
		s.fill(t, off+100, 1000, 7)
		s.check(t)
	}
	s.reopen(t)
	s.check(t)
}

// badUpdates change nothing.
func (s *writableSuite) badUpdates(t *testing.T) {
	s.fill(t, 0, 4*s.block, 1)
	b := s.reserve(t, 4*s.block, 1)
	before := s.alike(t)
	size, alloc := s.m.size(), s.granule.Alloc
	for _, kind := range []storage.TargetKind{storage.ToData, storage.ToUnmapped, storage.ToZero, storage.ToAnchored} {
		to := storage.Target{Kind: kind}
		if kind == storage.ToData {
			to = data(b, 0)
		}
		for _, r := range []Range{{size, alloc}, {size - alloc, 2 * alloc}, {-alloc, alloc}, {0, -alloc}, {0, math.MaxInt64 / alloc * alloc}, {math.MaxInt64 / alloc * alloc, alloc}, {math.MinInt64, alloc}} {
			if err := s.image.Update(t.Context(), r.Offset, r.Length, to); !errors.Is(err, storage.ErrOutOfRange) {
				t.Errorf("update of %d bytes at %d to %v = %v, want %v", r.Length, r.Offset, kind, err, storage.ErrOutOfRange)
			}
		}
		unit := alloc
		if kind == storage.ToData {
			unit = s.granule.Data
		}
		if unit == 1 {
			continue
		}
		for _, r := range []Range{{4*s.block + 1, unit}, {4 * s.block, unit - 1}, {4*s.block + unit/2, unit}, {4 * s.block, unit / 2}} {
			if err := s.image.Update(t.Context(), r.Offset, r.Length, to); !errors.Is(err, storage.ErrMisaligned) {
				t.Errorf("update of %d bytes at %d to %v = %v, want %v", r.Length, r.Offset, kind, err, storage.ErrMisaligned)
			}
		}
		if kind == storage.ToData {
			if err := s.image.Update(t.Context(), 4*s.block, s.block, data(b, 1)); err == nil {
				t.Error("data between blocks can be mapped")
			}
		}
	}
	for _, kind := range []storage.TargetKind{0, storage.ToAnchored + 1, 255} {
		if err := s.image.Update(t.Context(), 0, s.block, storage.Target{Kind: kind}); err == nil {
			t.Errorf("update to %v succeeds", kind)
		}
	}
	if !slices.Equal(before, s.alike(t)) {
		t.Error("updates that fail change the map")
	}
	s.check(t)
}

// metadata are not overwritten: a mapping that leads there takes the image out of
// service.
func (s *writableSuite) metadata(t *testing.T) {
	s.fill(t, 0, s.block, 1)
	m := s.mappings(t, 0, s.block)[0]
	if err := s.image.CheckWrite(t.Context(), m.Node, m.NodeOffset, m.Length); err != nil {
		t.Errorf("a write in place is refused: %v", err)
	}
	if s.granule.Fixed {
		return // they are elsewhere, if anywhere
	}
	if err := s.image.CheckWrite(t.Context(), m.Node, 0, 1); !errors.Is(err, storage.ErrCorrupt) {
		t.Errorf("a write to the header = %v, want %v", err, storage.ErrCorrupt)
	}
	if _, err := s.image.Alloc(t.Context(), s.block, storage.AllocOptions{}); err == nil {
		t.Error("the image is still in service")
	}
}
