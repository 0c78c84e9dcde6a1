package storage_test

import (
	"errors"
	"math"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/storagetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	data = storage.Alloc | storage.OffsetValid
	hole = storage.Zero | storage.OffsetValid
)

// sameNode compares nodes by identity.
func sameNode(a, b *storage.Node) bool { return a == b }

func node(name string) *storage.Node {
	return storage.NewNode(name, storagetest.NewMemFile(nil), storage.NodeOptions{})
}

func mappings(l *storage.ExtentList) []storage.Mapping {
	var all []storage.Mapping
	for i := range l.Len() {
		all = append(all, *l.At(i))
	}
	return all
}

func TestAddCoalesces(t *testing.T) {
	a, b := node("a"), node("b")
	base := storage.Mapping{Offset: 100, Length: 10, Status: storage.Local | data, Node: a, NodeOffset: 1000}
	with := func(change func(m *storage.Mapping)) storage.Mapping {
		m := base
		m.Offset, m.NodeOffset = 110, 1010
		change(&m)
		return m
	}
	for _, c := range []struct {
		name  string
		first storage.Mapping
		next  storage.Mapping
		one   bool
	}{
		{"the same", base, with(func(*storage.Mapping) {}), true},
		{"status", base, with(func(m *storage.Mapping) { m.Status |= storage.Zero }), false},
		{"flags", base, with(func(m *storage.Mapping) { m.Flags = storage.Writable }), false},
		{"depth", base, with(func(m *storage.Mapping) { m.Depth = 1 }), false},
		{"node", base, with(func(m *storage.Mapping) { m.Node = b }), false},
		{"a gap in the node", base, with(func(m *storage.Mapping) { m.NodeOffset++ }), false},
		{"back in the node", base, with(func(m *storage.Mapping) { m.NodeOffset = 1000 }), false},
		{
			"offsets of nothing do not count",
			storage.Mapping{Offset: 100, Length: 10, Status: storage.Local | storage.Zero, NodeOffset: 3},
			storage.Mapping{Offset: 110, Length: 10, Status: storage.Local | storage.Zero, NodeOffset: 7},
			true,
		},
		{
			"compressed units stay apart",
			storage.Mapping{Offset: 100, Length: 10, Status: storage.Local | storage.Alloc, Flags: storage.Compressed, Node: a, NodeOffset: 5, PackedLength: 4},
			storage.Mapping{Offset: 110, Length: 10, Status: storage.Local | storage.Alloc, Flags: storage.Compressed, Node: a, NodeOffset: 5, PackedLength: 4},
			false,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			var l storage.ExtentList
			for _, m := range []storage.Mapping{c.first, c.next} {
				if err := l.Add(m); err != nil {
					t.Fatal(err)
				}
			}
			want := []storage.Mapping{c.first, c.next}
			if c.one {
				want = want[:1]
				want[0].Length = 20
			}
			if diff := cmp.Diff(want, mappings(&l), cmp.Comparer(sameNode)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestAddRefuses(t *testing.T) {
	for _, c := range []struct {
		name        string
		off, length int64
		ok          bool
	}{
		{"adjacent", 20, 1, true},
		{"empty", 20, 0, true},
		{"empty elsewhere", 5, 0, true},
		{"gap", 21, 1, false},
		{"overlap", 19, 1, false},
		{"again", 10, 10, false},
		{"before", 0, 10, false},
		{"negative length", 20, -1, false},
		{"negative offset", -1, 1, false},
		{"negative offset, empty", -1, 0, false},
		{"up to the largest size", 20, storage.MaxSize - 20, true},
		{"past the largest size", 20, storage.MaxSize - 19, false},
		{"overflow", 20, math.MaxInt64, false},
		{"far", math.MaxInt64, 1, false},
		{"far and long", math.MaxInt64, math.MaxInt64, false},
		{"smallest", math.MinInt64, math.MinInt64, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			var l storage.ExtentList
			if err := l.Add(storage.Mapping{Offset: 10, Length: 10}); err != nil {
				t.Fatal(err)
			}
			err := l.Add(storage.Mapping{Offset: c.off, Length: c.length})
			if c.ok && err != nil || !c.ok && !errors.Is(err, storage.ErrContract) {
				t.Errorf("Add = %v", err)
			}
			if want := map[bool]int64{true: 20 + c.length, false: 20}[c.ok]; l.End() != want || l.Len() != 1 {
				t.Errorf("%d mappings up to %d, want %d", l.Len(), l.End(), want)
			}
		})
	}
}

func TestWindow(t *testing.T) {
	var l storage.ExtentList
	if lo, hi := l.Window(); lo != 0 || hi != math.MaxInt64 {
		t.Errorf("the zero value wants %d to %d", lo, hi)
	}
	l.ResetWindow(15, 30)
	if lo, hi := l.Window(); lo != 15 || hi != 30 {
		t.Errorf("the window is %d to %d", lo, hi)
	}
	for off := int64(0); off < 60; off += 5 { // all different
		if err := l.Add(storage.Mapping{Offset: off, Length: 5, Status: data, NodeOffset: -off}); err != nil {
			t.Fatal(err)
		}
	}
	if l.Len() != 3 || l.Start() != 15 || l.End() != 30 {
		t.Errorf("%d mappings from %d to %d", l.Len(), l.Start(), l.End())
	}
	l.ResetWindow(17, 18)
	if err := l.Add(storage.Mapping{Offset: 0, Length: 100}); err != nil || l.Start() != 0 || l.End() != 100 {
		t.Errorf("a mapping is cut to %d to %d, %v", l.Start(), l.End(), err)
	}
	if err := l.Add(storage.Mapping{Offset: 16, Length: 1, Status: data}); err != nil {
		t.Errorf("what is outside the window need not be adjacent: %v", err)
	}
	if err := l.Add(storage.Mapping{Offset: 17, Length: 1, Status: data}); !errors.Is(err, storage.ErrContract) {
		t.Errorf("what is inside must be: %v", err)
	}
	l.Reset()
	if lo, hi := l.Window(); lo != 0 || hi != math.MaxInt64 || l.Len() != 0 {
		t.Errorf("after Reset %d mappings, and the window is %d to %d", l.Len(), lo, hi)
	}
}

func TestTooManyExtents(t *testing.T) {
	var l storage.ExtentList
	add := func(i int64) error {
		return l.Add(storage.Mapping{Offset: i, Length: 1, Status: data, NodeOffset: -i})
	}
	for i := range int64(storage.MaxExtents) {
		if err := add(i); err != nil {
			t.Fatal(err)
		}
	}
	if err := add(storage.MaxExtents); !errors.Is(err, storage.ErrContract) {
		t.Errorf("Add = %v, want %v", err, storage.ErrContract)
	}
	last := *l.At(l.Len() - 1)
	last.Offset++
	last.NodeOffset++
	if err := l.Add(last); err != nil || l.Len() != storage.MaxExtents {
		t.Errorf("what continues the last one has room: %v", err)
	}
}

func TestEmptyList(t *testing.T) {
	var l storage.ExtentList
	if l.Start() != 0 || l.End() != 0 || l.Len() != 0 || l.Find(0) != -1 || l.Covers(0, 0) {
		t.Error("the empty list says something")
	}
}

// TestFindAndCovers compares with a look at every mapping.
func TestFindAndCovers(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var l storage.ExtentList
		off := rapid.Int64Range(0, 20).Draw(t, "start")
		for i, n := range rapid.SliceOfN(rapid.Int64Range(1, 9), 1, 20).Draw(t, "lengths") {
			if err := l.Add(storage.Mapping{Offset: off, Length: n, Status: data, NodeOffset: int64(-i)}); err != nil {
				t.Fatal(err)
			}
			off += n
		}
		at := rapid.Int64Range(-5, 200).Draw(t, "at")
		want := -1
		for i, m := range mappings(&l) {
			if m.Offset <= at && at < m.End() {
				want = i
			}
		}
		if got := l.Find(at); got != want {
			t.Fatalf("Find(%d) = %d, want %d", at, got, want)
		}
		n := rapid.Int64Range(0, 200).Draw(t, "n")
		if got, want := l.Covers(at, n), at >= l.Start() && at+n <= off; got != want {
			t.Fatalf("Covers(%d, %d) = %v", at, n, got)
		}
	})
}

func TestClip(t *testing.T) {
	base := storage.Mapping{Offset: 100, Length: 50, Status: data, NodeOffset: 1000}
	packed := storage.Mapping{Offset: 100, Length: 50, Status: storage.Local | storage.Alloc, Flags: storage.Compressed, NodeOffset: 1000, PackedLength: 7}
	for _, c := range []struct {
		name    string
		m       storage.Mapping
		lo, hi  int64
		off, n  int64
		nodeOff int64
	}{
		{"not at all", base, 0, 1000, 100, 50, 1000},
		{"exactly", base, 100, 150, 100, 50, 1000},
		{"below", base, 110, 1000, 110, 40, 1010},
		{"above", base, 0, 110, 100, 10, 1000},
		{"both", base, 110, 120, 110, 10, 1010},
		{"one byte", base, 149, 150, 149, 1, 1049},
		{"to the largest", base, 120, math.MaxInt64, 120, 30, 1020},
		{"compressed", packed, 110, 120, 110, 10, 1000},
	} {
		t.Run(c.name, func(t *testing.T) {
			want := c.m
			want.Offset, want.Length, want.NodeOffset = c.off, c.n, c.nodeOff
			got := c.m
			got.Clip(c.lo, c.hi)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestReuse: a list that is reset keeps its memory.
func TestReuse(t *testing.T) {
	var l storage.ExtentList
	fill := func() {
		for i := range int64(100) {
			if err := l.Add(storage.Mapping{Offset: i, Length: 1, Status: data, NodeOffset: -i}); err != nil {
				t.Fatal(err)
			}
		}
	}
	fill()
	if n := testing.AllocsPerRun(10, func() { l.ResetWindow(0, 1000); fill() }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
