package storage_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/extentd/extentd/storage"
)

// told is a file that answers with the extents that it has, one at a time.
type told struct {
	storage.File
	size    int64
	minimum int64
	extents []storage.Mapping
}

func (f *told) Size(context.Context) (int64, error) { return f.size, nil }

func (f *told) Limit(_ context.Context, which storage.Limit) (int64, error) {
	if which == storage.Minimum {
		return f.minimum, nil
	}
	return 0, nil
}

func (f *told) Extents(_ context.Context, off, n int64, into *storage.ExtentList) error {
	if err := storage.CheckRange(off, n, f.size); err != nil {
		return err
	}
	for _, m := range f.extents {
		if m.End() > off {
			m.Clip(off, m.End())
			return into.Add(m)
		}
	}
	return errors.New("nothing there")
}

// told returns a file with extents of the lengths and statuses.
func tell(minimum int64, parts ...storage.Mapping) *told {
	f := &told{minimum: minimum}
	for _, m := range parts {
		if m.Offset = f.size; m.Status.Has(storage.OffsetValid) {
			m.NodeOffset = m.Offset
		}
		f.extents = append(f.extents, m)
		f.size += m.Length
	}
	return f
}

func part(n int64, s storage.Status) storage.Mapping { return storage.Mapping{Length: n, Status: s} }

const (
	anch = storage.Zero | storage.Alloc | storage.OffsetValid
	far  = storage.Zero // a hole that is nowhere
)

// TestNodeExtentsAtTheMinimum: a block is one thing.
func TestNodeExtentsAtTheMinimum(t *testing.T) {
	for name, c := range map[string]struct {
		file *told
		off  int64
		want []storage.Mapping
	}{
		"aligned":       {tell(512, part(1024, data), part(512, hole)), 0, []storage.Mapping{part(1024, data), part(512, hole)}},
		"straddling":    {tell(512, part(700, data), part(836, hole)), 0, []storage.Mapping{part(1024, data), part(512, hole)}},
		"in one block":  {tell(512, part(100, hole), part(100, data), part(312, hole)), 0, []storage.Mapping{part(512, data)}},
		"zeros alike":   {tell(512, part(100, hole), part(412, anch)), 0, []storage.Mapping{part(512, anch)}},
		"nowhere":       {tell(512, part(100, hole), part(412, far)), 0, []storage.Mapping{part(512, far)}},
		"inaccessible":  {tell(512, part(100, data), part(412, 0)), 0, []storage.Mapping{part(512, 0)}},
		"a short tail":  {tell(512, part(512, data), part(88, hole)), 0, []storage.Mapping{part(512, data), part(88, hole)}},
		"a mixed tail":  {tell(512, part(512, hole), part(8, hole), part(80, data)), 0, []storage.Mapping{part(512, hole), part(88, data)}},
		"from within":   {tell(512, part(700, data), part(836, hole)), 600, []storage.Mapping{part(424, data), part(512, hole)}},
		"from the tail": {tell(512, part(512, data), part(88, hole)), 550, []storage.Mapping{part(50, hole)}},
	} {
		t.Run(name, func(t *testing.T) {
			node := storage.NewNode("node", c.file, storage.NodeOptions{Check: true})
			at := c.off
			for i := range c.want {
				if c.want[i].Offset = at; c.want[i].Status.Has(storage.OffsetValid) {
					c.want[i].NodeOffset = at
				}
				at += c.want[i].Length
			}
			var l storage.ExtentList
			for off := c.off; off < c.file.size; off = l.End() {
				if err := node.Extents(t.Context(), off, c.file.size-off, &l); err != nil {
					t.Fatal(err)
				}
			}
			var whole storage.ExtentList // the list of several answers does not join them
			for _, m := range mappings(&l) {
				m.Node = nil
				if err := whole.Add(m); err != nil {
					t.Fatal(err)
				}
			}
			got := mappings(&whole)
			if d := cmp.Diff(c.want, got); d != "" {
				t.Error(d)
			}
		})
	}
}

// TestNodeExtentsLoseNothing: zeros are told where all is zeros, and nowhere else.
func TestNodeExtentsLoseNothing(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	for range 200 {
		var parts []storage.Mapping
		for range 1 + random.IntN(20) {
			parts = append(parts, part(1+random.Int64N(3000), []storage.Status{data, hole, anch, far}[random.IntN(4)]))
		}
		f := tell(512, parts...)
		node := storage.NewNode("node", f, storage.NodeOptions{Check: true})
		var l storage.ExtentList
		for off := random.Int64N(f.size); off < f.size; off = l.End() {
			l.Reset()
			if err := node.Extents(t.Context(), off, f.size-off, &l); err != nil || l.Start() != off {
				t.Fatal(l.Start(), off, err)
			}
			for i := range l.Len() {
				m := l.At(i)
				if m.End()%512 != 0 && m.End() != f.size {
					t.Fatalf("an extent ends at %d", m.End())
				}
				for _, p := range f.extents {
					overlaps := p.Offset < m.End() && m.Offset < p.End()
					if overlaps && m.Status.Has(storage.Zero) && !p.Status.Has(storage.Zero) {
						t.Fatalf("data at %d is told as zeros", p.Offset)
					}
				}
			}
		}
	}
}
