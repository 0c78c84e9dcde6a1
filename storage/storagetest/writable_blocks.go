package storagetest

import (
	"bytes"
	"errors"
	"math"
	"slices"
	"testing"

	"github.com/extentd/extentd/storage"
)

// units are powers of two, the smaller inside the larger.
func (s *writableSuite) units(t *testing.T) {
	u := s.granule
	if u.Alloc < 1 || u.Alloc&(u.Alloc-1) != 0 || u.Data < 1 || u.Data&(u.Data-1) != 0 || u.Data > u.Alloc {
		t.Errorf("units are %+v", u)
	}
}

// alloc: what is reserved is somebody's alone, and nobody sees it.
func (s *writableSuite) alloc(t *testing.T) {
	s.fill(t, 0, 3*s.block, 1)
	before := s.alike(t)
	var all []storage.Blocks
	for i := range int64(12) {
		guest := (4 + i*5) * s.granule.Alloc
		n := 1 + i%4*s.granule.Alloc
		b, err := s.image.Alloc(t.Context(), n, storage.AllocOptions{Guest: guest, Contiguous: i%2 == 0})
		if err != nil {
			t.Fatal(err)
		}
		whole := (n + s.granule.Alloc - 1) / s.granule.Alloc * s.granule.Alloc
		if b.Node == nil || b.Offset < 0 || b.Offset%s.granule.Alloc != 0 || b.Length%s.granule.Alloc != 0 ||
			b.Length > whole || b.Length < s.granule.Alloc || i%2 == 0 && b.Length < whole {
			t.Errorf("Alloc(%d bytes) gives %d at %d, want %d", n, b.Length, b.Offset, whole)
		}
		if s.granule.Fixed && b.Offset != guest {
			t.Errorf("Alloc for %d gives %d, and nothing else is possible", guest, b.Offset)
		}
		for _, other := range all {
			if b.Node == other.Node && b.Offset < other.Offset+other.Length && other.Offset < b.Offset+b.Length {
				t.Errorf("%d bytes at %d are reserved twice", b.Length, b.Offset)
			}
		}
		for _, m := range before {
			if !s.granule.Fixed && m.Node == b.Node && b.Offset < m.NodeOffset+m.Length && m.NodeOffset < b.Offset+b.Length {
				t.Errorf("%d bytes at %d are reserved, and in use at %d", b.Length, b.Offset, m.Offset)
			}
		}
		if b.Zeroed {
			s.zeroed(t, b)
		}
		all = append(all, b)
	}
	if !slices.Equal(before, s.alike(t)) {
		t.Error("reserving changes the map")
	}
	for _, n := range []int64{0, -1, math.MinInt64, math.MaxInt64} {
		if _, err := s.image.Alloc(t.Context(), n, storage.AllocOptions{Contiguous: true}); err == nil {
			t.Errorf("Alloc(%d bytes) succeeds", n)
		}
	}
	s.check(t)
}

// zeroed: reserved blocks read as zeros, or lie past the end of the node.
func (s *writableSuite) zeroed(t *testing.T, b storage.Blocks) {
	t.Helper()
	p := make([]byte, b.Length)
	if n, _ := b.Node.ReadAt(t.Context(), p, b.Offset); !isZero(p[:n]) {
		t.Errorf("%d bytes at %d are said to be zeros", b.Length, b.Offset)
	}
}

func (s *writableSuite) give(t *testing.T, b storage.Blocks, at, n int64, want error) {
	t.Helper()
	err := s.image.Free(t.Context(), storage.Blocks{Node: b.Node, Offset: b.Offset + at, Length: n})
	if !errors.Is(err, want) {
		t.Fatalf("Free(%d bytes at %d) = %v, want %v", n, b.Offset+at, err, want)
	}
}

// free: what is given back can be reserved anew.
func (s *writableSuite) free(t *testing.T) {
	highest := int64(0)
	for range 200 {
		b := s.reserve(t, 0, 4)
		highest = max(highest, b.Offset+b.Length)
		s.give(t, b, 0, b.Length, nil)
	}
	if limit := 100 * s.block; !s.granule.Fixed && highest > limit+s.m.size() {
		t.Errorf("blocks that were freed are not reserved anew: the last one ends at %d", highest)
	}
	s.check(t)
}

func (s *writableSuite) freePart(t *testing.T) {
	b := s.reserve(t, 0, 4)
	s.give(t, b, s.block, s.block, nil)
	if s.granule.Fixed {
		return // there is nothing to reserve
	}
	s.give(t, b, s.block, s.block, storage.ErrConflict)
	s.give(t, b, 0, 2*s.block, storage.ErrConflict) // and nothing is freed:
	if err := s.image.Update(t.Context(), 0, s.block, data(b, 0)); err != nil {
		t.Errorf("what a failed Free named is not reserved any more: %v", err)
	}
	s.give(t, b, 2*s.block, 2*s.block, nil)
}

func (s *writableSuite) freeConflicts(t *testing.T) {
	b := s.reserve(t, 0, 1)
	foreign := storage.NewNode("foreign", NewMemFile(make([]byte, 1<<20)), storage.NodeOptions{})
	s.give(t, storage.Blocks{Node: foreign, Offset: b.Offset}, 0, s.block, storage.ErrConflict)
	s.give(t, storage.Blocks{}, 0, s.block, storage.ErrConflict)
	half := s.granule.Alloc / 2 // 0 where there is nothing that a range could not be
	for _, r := range []Range{{0, math.MaxInt64}, {math.MaxInt64 - b.Offset, s.block}, {-b.Offset - s.block, s.block}, {0, -s.block}, {0, half}, {half, s.granule.Alloc}} {
		if half == 0 && (r.Length == 0 || r.Offset == 0 && r.Length == 1) {
			continue
		}
		if err := s.image.Free(t.Context(), storage.Blocks{Node: b.Node, Offset: b.Offset + r.Offset, Length: r.Length}); err == nil {
			t.Errorf("Free(%d bytes at %d) succeeds", r.Length, b.Offset+r.Offset)
		}
	}
	if s.granule.Fixed {
		return
	}
	s.give(t, b, -b.Offset, s.block, storage.ErrConflict) // metadata
	s.give(t, b, 1<<40/s.block*s.block-b.Offset, s.block, storage.ErrConflict)
	s.put(t, b, 0, bytes.Repeat([]byte{7}, int(s.block)))
	if err := s.image.Update(t.Context(), 0, s.block, data(b, 0)); err != nil {
		t.Fatal(err)
	}
	s.m.write(bytes.Repeat([]byte{7}, int(s.block)), 0)
	s.give(t, b, 0, s.block, storage.ErrConflict) // it is mapped
	s.check(t)
}

// pins: blocks that a mapping of before names are nobody else's, however much is
// reserved, until the pin is returned.
func (s *writableSuite) pins(t *testing.T) {
	pinner, ok := s.image.(storage.Pinner)
	if s.granule.Fixed && !ok {
		return // no block is ever another's
	}
	if !ok {
		t.Fatalf("%T reuses blocks, and is no storage.Pinner", s.image)
	}
	s.fill(t, 0, 8*s.block, 5)
	if err := s.image.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	pin := pinner.Pin()
	old := s.mappings(t, 0, 8*s.block)
	s.update(t, 0, 8*s.block, storage.ToZero)
	for range 3 {
		if err := s.image.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		pinner.Unpin(pinner.Pin()) // those of others come and go
	}
	for range 50 {
		b := s.reserve(t, 0, 1)
		for _, m := range old {
			if m.Node == b.Node && b.Offset < m.NodeOffset+m.Length && m.NodeOffset < b.Offset+b.Length && !s.granule.Fixed {
				t.Fatalf("%d is reserved, and pinned", b.Offset)
			}
		}
	}
	p := make([]byte, 8*s.block)
	for _, m := range old {
		if _, err := m.Node.ReadAt(t.Context(), p[m.Offset:m.End()], m.NodeOffset); err != nil {
			t.Fatal(err)
		}
	}
	if !s.granule.Fixed && !bytes.Equal(p, bytes.Repeat([]byte{5}, len(p))) {
		t.Error("what is pinned has changed")
	}
	pinner.Unpin(pin)
	s.check(t)
}

// reuse: an image that is written to and zeroed again and again does not grow.
func (s *writableSuite) reuse(t *testing.T) {
	highest := func() (end int64) {
		for _, m := range s.alike(t) {
			if m.Status.Has(storage.OffsetValid) {
				end = max(end, m.NodeOffset+m.Length)
			}
		}
		return end
	}
	cycle := func() {
		s.fill(t, 0, 16*s.block, 3)
		if err := s.image.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	cycle()
	first := highest()
	for i := range 40 {
		s.update(t, 0, 16*s.block, []storage.TargetKind{storage.ToZero, storage.ToUnmapped}[i%2])
		if err := s.image.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		cycle()
	}
	if last := highest(); last > first+80*s.block {
		t.Errorf("data ended at %d, and after 40 cycles at %d", first, last)
	}
	s.check(t)
}
