package raw_test

import (
	"context"
	"errors"
	"math"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/raw"
	"github.com/extentd/extentd/storage/storagetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func open(t *testing.T, f storage.File) (*raw.Image, *storage.Node) {
	t.Helper()
	node := storage.NewNode("disk.raw", f, storage.NodeOptions{Check: true})
	i, err := raw.New(t.Context(), node)
	if err != nil {
		t.Fatal(err)
	}
	return i, node
}

func TestConformance(t *testing.T) {
	storagetest.TestMapper(t, 1, func(t *testing.T, content []byte, holes ...storagetest.Range) storage.Mapper {
		i, _ := open(t, storagetest.NewMemFile(content, holes...))
		return i
	})
}

func TestWritableConformance(t *testing.T) {
	storagetest.TestWritableMapper(t, func(_ *testing.T, size int64) func(t *testing.T) storagetest.WritableImage {
		f := storagetest.NewMemFileWith(storagetest.MemOptions{Size: size, Limits: storage.Limits{MaxZero: 64 << 20}})
		return func(t *testing.T) storagetest.WritableImage {
			i, _ := open(t, f)
			return i
		}
	})
}

// stub answers with a fixed size, and with extents of its own choice.
type stub struct {
	storage.File
	size    int64
	err     error
	extents func(off, n int64, into *storage.ExtentList) error
}

func (s *stub) Size(context.Context) (int64, error) { return s.size, s.err }

func (s *stub) Limit(context.Context, storage.Limit) (int64, error) { return 0, nil }

func (s *stub) Extents(_ context.Context, off, n int64, into *storage.ExtentList) error {
	return s.extents(off, n, into)
}

func TestNew(t *testing.T) {
	broken := errors.New("broken")
	for _, c := range []struct {
		name string
		stub stub
		want error
	}{
		{"empty", stub{}, nil},
		{"odd", stub{size: 513}, nil},
		{"largest", stub{size: storage.MaxSize}, nil},
		{"too large", stub{size: storage.MaxSize + 1}, storage.ErrUnsupported},
		{"far too large", stub{size: math.MaxInt64}, storage.ErrUnsupported},
		{"negative", stub{size: -1}, storage.ErrUnsupported},
		{"no size", stub{err: broken}, broken},
	} {
		t.Run(c.name, func(t *testing.T) {
			i, err := raw.New(t.Context(), storage.NewNode("disk.raw", &c.stub, storage.NodeOptions{}))
			if !errors.Is(err, c.want) {
				t.Fatalf("New = %v, want %v", err, c.want)
			}
			if err == nil && i.Size() != c.stub.size {
				t.Errorf("Size() = %d, want %d", i.Size(), c.stub.size)
			}
		})
	}
}

// TestStatuses: the image is Local plus whatever the file says.
func TestStatuses(t *testing.T) {
	const page = 4096
	for _, rule := range storage.ProtocolStatuses() {
		if !rule.Valid {
			continue
		}
		t.Run(rule.Status.String(), func(t *testing.T) {
			i, node := open(t, &stub{size: page, extents: func(off, n int64, into *storage.ExtentList) error {
				return into.Add(storage.Mapping{Offset: off, Length: n, NodeOffset: off, Status: rule.Status})
			}})
			var l storage.ExtentList
			err := storage.CheckMapper(i).Fetch(t.Context(), 512, page-512, &l)
			if rule.Status == 0 {
				if !errors.Is(err, storage.ErrRefused) {
					t.Fatalf("Fetch = %v, want %v", err, storage.ErrRefused)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			want := storage.Mapping{Offset: 512, Length: page - 512, Status: rule.Status | storage.Local}
			if rule.Status.Has(storage.OffsetValid) {
				want.Node, want.NodeOffset = node, 512
			}
			if diff := cmp.Diff(want, *l.At(0), cmp.Comparer(func(a, b *storage.Node) bool { return a == b })); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestFetchGathers: a node may answer piecemeal, from before the offset, and
// past the end of what the image is.
func TestFetchGathers(t *testing.T) {
	const size = 1 << 20
	calls := 0
	f := &stub{size: size, extents: func(off, _ int64, into *storage.ExtentList) error {
		calls++
		status := storage.Alloc | storage.OffsetValid
		if off >= size/2 {
			status = storage.Zero | storage.OffsetValid
		}
		from := max(0, off-100)
		return into.Add(storage.Mapping{Offset: from, Length: off - from + 64<<10, NodeOffset: from, Status: status})
	}}
	i, _ := open(t, f)
	var l storage.ExtentList
	if err := storage.CheckMapper(i).Fetch(t.Context(), 5, size-5, &l); err != nil {
		t.Fatal(err)
	}
	if l.Len() != 2 || l.Start() != 5 || l.End() != size {
		t.Errorf("%d extents from %d to %d", l.Len(), l.Start(), l.End())
	}
	if want := 16; calls != want {
		t.Errorf("the file is asked %d times, want %d", calls, want)
	}
	calls = 0
	l.ResetWindow(5, 10)
	if err := i.Fetch(t.Context(), 5, size-5, &l); err != nil || calls != 1 {
		t.Errorf("a fetch with a narrow window asks the file %d times, %v", calls, err)
	}
}

func TestBrokenFile(t *testing.T) {
	broken := errors.New("broken")
	for _, c := range []struct {
		name    string
		extents func(off, n int64, into *storage.ExtentList) error
		want    error
	}{
		{"error", func(int64, int64, *storage.ExtentList) error { return broken }, broken},
		{"nothing", func(int64, int64, *storage.ExtentList) error { return nil }, storage.ErrContract},
		{"elsewhere", func(off, _ int64, into *storage.ExtentList) error {
			return into.Add(storage.Mapping{Offset: off + 1, Length: 1, Status: storage.Zero})
		}, storage.ErrContract},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := &stub{size: 4096, extents: c.extents}
			i, err := raw.New(t.Context(), storage.NewNode("disk.raw", f, storage.NodeOptions{}))
			if err != nil {
				t.Fatal(err)
			}
			var l storage.ExtentList
			if err := i.Fetch(t.Context(), 0, 4096, &l); !errors.Is(err, c.want) {
				t.Errorf("Fetch = %v, want %v", err, c.want)
			}
		})
	}
}

// TestInaccessibleBeyond: what cannot be accessed matters only to who asks.
func TestInaccessibleBeyond(t *testing.T) {
	i, _ := open(t, &stub{size: 8192, extents: func(off, _ int64, into *storage.ExtentList) error {
		if off < 4096 {
			if err := into.Add(storage.Mapping{Offset: off, Length: 4096 - off, NodeOffset: off, Status: storage.Alloc | storage.OffsetValid}); err != nil {
				return err
			}
			off = 4096
		}
		return into.Add(storage.Mapping{Offset: off, Length: 8192 - off})
	}})
	var l storage.ExtentList
	if err := storage.CheckMapper(i).Fetch(t.Context(), 0, 4096, &l); err != nil || l.End() != 4096 {
		t.Errorf("Fetch = %v to %d", err, l.End())
	}
	l.Reset()
	if err := i.Fetch(t.Context(), 0, 4097, &l); !errors.Is(err, storage.ErrRefused) {
		t.Errorf("Fetch = %v, want %v", err, storage.ErrRefused)
	}
}

func TestFileChangesSize(t *testing.T) {
	const size = 64 << 10
	f := storagetest.NewMemFile(make([]byte, size))
	i, _ := open(t, f)
	fetch := func(off, n int64) (*storage.ExtentList, error) {
		l := new(storage.ExtentList)
		return l, storage.CheckMapper(i).Fetch(t.Context(), off, n, l)
	}

	f.SetSize(2 * size)
	f.Put([]byte{1}, size)
	if l, err := fetch(0, size); err != nil || l.End() != size || i.Size() != size {
		t.Errorf("after growth the image is %d bytes, and its map ends at %d, %v", i.Size(), l.End(), err)
	}
	if _, err := fetch(0, size+1); !errors.Is(err, storage.ErrOutOfRange) {
		t.Errorf("Fetch past the image = %v", err)
	}

	f.SetSize(size / 2)
	if _, err := fetch(0, size/2); err != nil {
		t.Errorf("Fetch of what is left = %v", err)
	}
	for _, r := range []storagetest.Range{{Offset: 0, Length: size}, {Offset: size / 2, Length: 1}, {Offset: size - 1, Length: 1}} {
		if _, err := fetch(r.Offset, r.Length); !errors.Is(err, storage.ErrOutOfRange) {
			t.Errorf("Fetch(%d, %d) of a shrunken file = %v, want %v", r.Offset, r.Length, err, storage.ErrOutOfRange)
		}
	}
}

func TestDirect(t *testing.T) {
	i, node := open(t, storagetest.NewMemFile(make([]byte, 1000)))
	for _, c := range []struct {
		off, n int64
		want   bool
	}{
		{0, 1000, true},
		{999, 1, true},
		{1000, 0, true},
		{0, 1001, false},
		{1000, 1, false},
		{-1, 1, false},
		{0, -1, false},
		{math.MaxInt64, math.MaxInt64, false},
	} {
		got, at, ok := i.Direct(c.off, c.n)
		if ok != c.want || ok && (got != node || at != c.off) {
			t.Errorf("Direct(%d, %d) = %d, %v, want %v", c.off, c.n, at, ok, c.want)
		}
	}
	if err := i.Close(); err != nil {
		t.Fatal(err)
	}
	if _, _, ok := i.Direct(0, 1); ok {
		t.Error("Direct after Close")
	}
}

// TestFetchAllocations: the memory is used again, but for what the collector and
// the race detector take from the pool. Nothing is allocated for each extent.
func TestFetchAllocations(t *testing.T) {
	f := storagetest.NewMemFile(nil)
	for off := int64(0); off < 1000; off++ {
		f.Put([]byte{1}, 2*off*storagetest.PageSize)
	}
	i, _ := open(t, f)
	var l storage.ExtentList
	ctx := t.Context()
	per := testing.AllocsPerRun(50, func() {
		l.Reset()
		if err := i.Fetch(ctx, 0, i.Size(), &l); err != nil {
			t.Fatal(err)
		}
	})
	if l.Len() != 1999 || per > 50 {
		t.Errorf("%d extents take %v allocations", l.Len(), per)
	}
}
