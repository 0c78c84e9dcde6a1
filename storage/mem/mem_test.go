package mem_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/mem"
	"github.com/extentd/extentd/storage/storagetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func open(t *testing.T, opt mem.Options) *mem.File {
	t.Helper()
	f, err := mem.New(opt)
	must(t, err)
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func TestConformance(t *testing.T) {
	storagetest.TestFile(t, 1, func(t *testing.T, content []byte, _ ...storagetest.Range) storage.File {
		f := open(t, mem.Options{Size: int64(len(content))})
		_, err := f.WriteAt(t.Context(), content, 0) // of holes it makes holes
		must(t, err)
		return f
	})
}

func TestWriterConformance(t *testing.T) {
	storagetest.TestWriter(t, 1, func(t *testing.T, size int64) storage.File {
		return open(t, mem.Options{Size: size})
	})
}

func TestNew(t *testing.T) {
	for field, opt := range map[string]mem.Options{
		"size": {Size: -1},
		"max":  {MaxBytes: -1},
	} {
		var invalid *storage.InvalidError
		if _, err := mem.New(opt); !errors.As(err, &invalid) || invalid.Field != field {
			t.Errorf("%s: %v", field, err)
		}
	}
	for _, size := range []int64{storage.MaxSize + 1, math.MaxInt64, math.MinInt64} {
		if _, err := mem.New(mem.Options{Size: size}); !errors.Is(err, storage.ErrInvalid) {
			t.Errorf("size %d: %v", size, err)
		}
	}
	must(t, open(t, mem.Options{Size: storage.MaxSize, MaxBytes: math.MaxInt64}).Close())
}

// TestLargest: one of 2 EiB takes pages where it is written to, at both ends as
// anywhere.
func TestLargest(t *testing.T) {
	ctx, f := t.Context(), open(t, mem.Options{Size: storage.MaxSize})
	node := storage.NewNode("mem", f, storage.NodeOptions{Check: true})
	p := bytes.Repeat([]byte{9}, 100)
	at := []int64{0, mem.PageSize - 50, 1 << 40, 1<<60 - 50, storage.MaxSize - 100}
	for _, off := range at {
		if n, err := node.WriteAt(ctx, p, off); n != 100 || err != nil {
			t.Errorf("WriteAt(%d) = %d, %v", off, n, err)
		}
	}
	for _, off := range at {
		got := make([]byte, 100)
		if n, err := node.ReadAt(ctx, got, off); n != 100 || err != nil || !bytes.Equal(got, p) {
			t.Errorf("ReadAt(%d) = %d, %v", off, n, err)
		}
	}
	var all []storage.Mapping
	for off := int64(0); off < storage.MaxSize; {
		var l storage.ExtentList
		must(t, f.Extents(ctx, off, storage.MaxSize-off, &l))
		for i := range l.Len() {
			all = append(all, *l.At(i))
		}
		off = l.End()
	}
	const page, tera, exa, last = mem.PageSize, 1 << 40, 1 << 60, storage.MaxSize - mem.PageSize
	want := []storage.Mapping{
		extent(0, 2*page, data), extent(2*page, tera, hole), extent(tera, tera+page, data), extent(tera+page, exa-page, hole),
		extent(exa-page, exa+page, data), extent(exa+page, last, hole), extent(last, storage.MaxSize, data),
	}
	if diff := cmp.Diff(want, all); diff != "" {
		t.Error(diff)
	}
	if got := allocated(t, f); got != 6*page {
		t.Errorf("%d bytes are allocated, want six pages", got)
	}
	if n, err := f.WriteAt(ctx, p, storage.MaxSize-99); n != 0 || !errors.Is(err, storage.ErrOutOfRange) {
		t.Errorf("WriteAt over the end = %d, %v", n, err)
	}
	must(t, f.Zero(ctx, 1, storage.MaxSize-2, false))
	if got := allocated(t, f); got != 2*page {
		t.Errorf("%d bytes are allocated after a zero of all but two bytes, want two pages", got)
	}
	must(t, f.Trim(ctx, 0, storage.MaxSize))
	if got := allocated(t, f); got != 0 {
		t.Errorf("%d bytes are allocated after a trim", got)
	}
}

const (
	data = storage.Alloc | storage.OffsetValid
	hole = storage.Zero | storage.OffsetValid
)

func extent(off, end int64, status storage.Status) storage.Mapping {
	return storage.Mapping{Offset: off, Length: end - off, NodeOffset: off, Status: status}
}

func allocated(t interface {
	Fatal(args ...any)
	Context() context.Context
}, f *mem.File,
) int64 {
	n, err := storage.NewNode("mem", f, storage.NodeOptions{}).Allocated(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestBound: what does not fit changes nothing, and what is freed can be used
// again.
func TestBound(t *testing.T) {
	const page = mem.PageSize
	ctx := t.Context()
	f := open(t, mem.Options{MaxBytes: 4*page + 100}) // the rest is no page
	ones := func(n int) []byte { return bytes.Repeat([]byte{1}, n) }
	write := func(n int, off int64) error {
		k, err := f.WriteAt(ctx, ones(n), off)
		if k != n && (k != 0 || err == nil) {
			t.Errorf("WriteAt(%d bytes, %d) = %d, %v", n, off, k, err)
		}
		return err
	}
	must(t, write(3*page, page/2)) // in four pages
	must(t, write(4*page, 0))      // there already
	for _, c := range []struct {
		n   int
		off int64
	}{{1, 4 * page}, {1, 1 << 40}, {page + 1, 3 * page}, {2, 4*page - 1}} {
		if err := write(c.n, c.off); !errors.Is(err, storage.ErrNoSpace) {
			t.Errorf("a write of %d bytes at %d = %v", c.n, c.off, err)
		}
	}
	if size, err := f.Size(ctx); err != nil || size != 4*page {
		t.Errorf("Size() = %d, %v: a write that failed has changed it", size, err)
	}
	if _, err := f.WriteAt(ctx, make([]byte, 10*page), 4*page); err != nil { // zeros take nothing
		t.Error(err)
	}
	mixed := append(append(make([]byte, page), ones(page)...), make([]byte, page)...)
	if _, err := f.WriteAt(ctx, mixed, 5*page); !errors.Is(err, storage.ErrNoSpace) {
		t.Errorf("one page among zeros = %v", err)
	}
	must(t, f.Zero(ctx, page, page, true)) // kept
	if _, err := f.WriteAt(ctx, mixed, 5*page); !errors.Is(err, storage.ErrNoSpace) {
		t.Errorf("after zeros that keep a page: %v", err)
	}
	must(t, f.Trim(ctx, page, page))
	if _, err := f.WriteAt(ctx, mixed, 5*page); err != nil {
		t.Errorf("after a trim: %v", err)
	}
	must(t, f.Truncate(ctx, page/2))
	must(t, write(4*page, 0))
	if got := allocated(t, f); got != 4*page {
		t.Errorf("%d bytes are allocated", got)
	}
	none := open(t, mem.Options{Size: page, MaxBytes: 1})
	if _, err := none.WriteAt(ctx, ones(1), 0); !errors.Is(err, storage.ErrNoSpace) {
		t.Errorf("a write without a page = %v", err)
	}
}

// TestConcurrent: readers see each write wholly or not at all, while others take
// pages and give them back.
func TestConcurrent(t *testing.T) {
	const page, workers, rounds = mem.PageSize, 4, 200
	ctx := t.Context()
	f := open(t, mem.Options{Size: workers * 2 * page, MaxBytes: workers * 2 * page})
	var wg sync.WaitGroup
	for k := range int64(workers) {
		off := k * 2 * page
		wg.Go(func() {
			for round := range rounds {
				var err error
				switch round % 4 {
				case 0:
					err = f.Trim(ctx, off, 2*page)
				case 1:
					err = f.Zero(ctx, off, 2*page, round%8 == 1)
				default:
					_, err = f.WriteAt(ctx, bytes.Repeat([]byte{byte(round)}, 2*page), off)
				}
				if err != nil {
					t.Error(err)
				}
			}
		})
		wg.Go(func() {
			p := make([]byte, 2*page)
			for range rounds {
				if _, err := f.ReadAt(ctx, p, off); err != nil || !bytes.Equal(p, bytes.Repeat(p[:1], len(p))) {
					t.Errorf("ReadAt(%d) sees parts: %v", off, err)
				}
				var l storage.ExtentList
				if err := f.Extents(ctx, 0, workers*2*page, &l); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

// TestManyExtents: one call answers with a bounded number.
func TestManyExtents(t *testing.T) {
	ctx, f := t.Context(), open(t, mem.Options{})
	const n = 3000
	for i := range int64(n) {
		_, err := f.WriteAt(ctx, []byte{1}, i*2*mem.PageSize)
		must(t, err)
	}
	var l storage.ExtentList
	size, err := f.Size(ctx)
	must(t, err)
	calls := 0
	for off := int64(0); off < size; off = l.End() {
		must(t, f.Extents(ctx, off, size-off, &l))
		calls++
	}
	if l.Len() != 2*n-1 || calls != 6 {
		t.Errorf("%d extents in %d calls", l.Len(), calls)
	}
}

func TestNoAllocations(t *testing.T) {
	ctx, p := t.Context(), bytes.Repeat([]byte{1}, 64<<10)
	f := open(t, mem.Options{Size: 1 << 30})
	_, err := f.WriteAt(ctx, p, 1<<20)
	must(t, err)
	var l storage.ExtentList
	if n := testing.AllocsPerRun(100, func() {
		l.Reset()
		_, read := f.ReadAt(ctx, p, 1<<20)
		_, write := f.WriteAt(ctx, p, 1<<20)
		if err := errors.Join(read, write, f.Extents(ctx, 0, 2<<20, &l)); err != nil {
			t.Fatal(err)
		}
	}); n > 0 {
		t.Errorf("%v allocations for three requests", n)
	}
}

func BenchmarkRead(b *testing.B) {
	f, err := mem.New(mem.Options{})
	if err != nil {
		b.Fatal(err)
	}
	ctx, p := b.Context(), bytes.Repeat([]byte{1}, 1<<20)
	if _, err := f.WriteAt(ctx, p, 0); err != nil {
		b.Fatal(err)
	}
	b.SetBytes(4096)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		p := make([]byte, 4096)
		for off := int64(0); pb.Next(); off = (off + 4096) % (1 << 20) {
			if _, err := f.ReadAt(ctx, p, off); err != nil && err != io.EOF { //nolint:errorlint // must be bare
				b.Fatal(err)
			}
		}
	})
}
