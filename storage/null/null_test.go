package null_test

import (
	"bytes"
	"errors"
	"io"
	"math"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/null"
	"github.com/extentd/extentd/storage/raw"
	"github.com/extentd/extentd/storage/storagetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func open(t *testing.T, size int64) *null.File {
	t.Helper()
	f, err := null.New(size)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func TestConformance(t *testing.T) {
	storagetest.TestSink(t, func(t *testing.T, size int64) storage.File { return open(t, size) })
}

func TestNew(t *testing.T) {
	for _, size := range []int64{-1, math.MinInt64, storage.MaxSize + 1, math.MaxInt64} {
		_, err := null.New(size)
		var invalid *storage.InvalidError
		if !errors.As(err, &invalid) || invalid.Field != "size" {
			t.Errorf("New(%d) = %v", size, err)
		}
	}
	for _, size := range []int64{0, 1, storage.MaxSize} {
		f := open(t, size)
		if got, err := f.Size(t.Context()); err != nil || got != size {
			t.Errorf("Size() = %d, %v, want %d", got, err, size)
		}
		if got, err := f.Allocated(t.Context()); err != nil || got != 0 {
			t.Errorf("Allocated() = %d, %v", got, err)
		}
	}
}

// TestLargest: one of 2 EiB is as any other, at both ends.
func TestLargest(t *testing.T) {
	ctx, f := t.Context(), open(t, storage.MaxSize)
	node := storage.NewNode("null", f, storage.NodeOptions{Check: true})
	p := bytes.Repeat([]byte{9}, 100)
	for _, off := range []int64{0, 1 << 60, storage.MaxSize - 100} {
		if n, err := node.WriteAt(ctx, p, off); n != 100 || err != nil {
			t.Errorf("WriteAt(%d) = %d, %v", off, n, err)
		}
		got := bytes.Clone(p)
		if n, err := node.ReadAt(ctx, got, off); n != 100 || err != nil && err != io.EOF || !bytes.Equal(got, make([]byte, 100)) { //nolint:errorlint // must be bare
			t.Errorf("ReadAt(%d) = %d, %v", off, n, err)
		}
	}
	got := bytes.Clone(p)
	if n, err := node.ReadAt(ctx, got, storage.MaxSize-10); n != 10 || err != io.EOF || got[9] != 0 || got[10] != 9 { //nolint:errorlint // must be bare
		t.Errorf("ReadAt over the end = %d, %v, %v", n, err, got)
	}
	if n, err := node.WriteAt(ctx, p, storage.MaxSize-10); n != 0 || !errors.Is(err, storage.ErrOutOfRange) {
		t.Errorf("WriteAt over the end = %d, %v", n, err)
	}
	if err := f.Zero(ctx, 0, storage.MaxSize, false); err != nil {
		t.Error(err)
	}
	if err := f.Trim(ctx, 0, storage.MaxSize); err != nil {
		t.Error(err)
	}
}

// TestExtents: it is one hole, at no offset, from where it is asked.
func TestExtents(t *testing.T) {
	for _, size := range []int64{100, storage.MaxSize} {
		node := storage.NewNode("null", open(t, size), storage.NodeOptions{Check: true})
		for _, off := range []int64{0, 1, size - 1} {
			var l storage.ExtentList
			if err := node.Extents(t.Context(), off, 1, &l); err != nil {
				t.Fatal(err)
			}
			want := storage.Mapping{Offset: off, Length: size - off, Node: node, Status: storage.Zero}
			if l.Len() != 1 || *l.At(0) != want {
				t.Errorf("Extents(%d, 1) has %d, %+v, want %+v", off, l.Len(), *l.At(0), want)
			}
		}
	}
}

// TestRaw: a raw image on it is zeros without storage.
func TestRaw(t *testing.T) {
	node := storage.NewNode("null", open(t, 1<<40), storage.NodeOptions{Check: true})
	i, err := raw.New(t.Context(), node)
	if err != nil {
		t.Fatal(err)
	}
	var l storage.ExtentList
	if err := storage.CheckMapper(i).Fetch(t.Context(), 4096, 4096, &l); err != nil {
		t.Fatal(err)
	}
	want := storage.Mapping{Offset: 4096, Length: 1<<40 - 4096, Status: storage.Local | storage.Zero}
	if diff := cmp.Diff(want, *l.At(0)); diff != "" {
		t.Error(diff)
	}
}

func TestNoAllocations(t *testing.T) {
	ctx, p := t.Context(), make([]byte, 4096)
	node := storage.NewNode("null", open(t, 1<<40), storage.NodeOptions{})
	var l storage.ExtentList
	if n := testing.AllocsPerRun(100, func() {
		l.Reset()
		_, read := node.ReadAt(ctx, p, 1<<30)
		_, write := node.WriteAt(ctx, p, 1<<30)
		if err := errors.Join(read, write, node.Extents(ctx, 0, 4096, &l)); err != nil {
			t.Fatal(err)
		}
	}); n > 0 {
		t.Errorf("%v allocations for three requests", n)
	}
}
