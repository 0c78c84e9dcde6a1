package offset_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"go.uber.org/goleak"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/filter/offset"
	"github.com/extentd/extentd/storage/storagetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func memory(size, minimum int64) *storagetest.MemFile {
	return storagetest.NewMemFileWith(storagetest.MemOptions{Size: size, Limits: storage.Limits{Minimum: minimum}, Litter: 0xdb})
}

func open(t *testing.T, f storage.File, opt offset.Options) *offset.Filter {
	t.Helper()
	w, err := offset.New(t.Context(), storage.NewNode("below", f, storage.NodeOptions{Check: true}), opt)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// A guarded file sees to it, when it is closed, that what lies outside a window
// has not changed.
type guarded struct {
	*storagetest.MemFile
	t              *testing.T
	before, behind []byte
	end            int64
}

func guard(t *testing.T, f *storagetest.MemFile, opt offset.Options) *offset.Filter {
	t.Helper()
	g := &guarded{MemFile: f, t: t, before: bytes.Repeat([]byte{0xab}, int(opt.Offset)), end: opt.Offset + opt.Length}
	f.Put(g.before, 0)
	if opt.Length > 0 {
		g.behind = bytes.Repeat([]byte{0xcd}, 8192)
		f.Put(g.behind, g.end)
	}
	return open(t, g, opt)
}

func (g *guarded) Close() error {
	if now := g.Bytes(); g.t != nil && (!bytes.HasPrefix(now, g.before) || len(g.behind) > 0 && !bytes.Equal(now[g.end:], g.behind)) {
		g.t.Error("what lies outside the window has changed")
	}
	g.t = nil
	return g.MemFile.Close()
}

func TestConformance(t *testing.T) {
	for _, unit := range []int64{1, 512, 4096} {
		for _, begin := range []int64{0, 3 * unit} {
			t.Run(fmt.Sprintf("minimum %d offset %d", unit, begin), func(t *testing.T) {
				t.Parallel()
				for _, fixed := range []bool{false, true} {
					storagetest.TestFile(t, unit, func(t *testing.T, content []byte, holes ...storagetest.Range) storage.File {
						f := memory(begin, unit)
						f.Put(content, begin)
						for _, h := range holes {
							f.Punch(begin+h.Offset, h.Length)
						}
						opt := offset.Options{Offset: begin}
						if fixed {
							opt.Length = int64(len(content)) // 0: the empty one has no such window
						}
						if opt.Length > 0 {
							f.Put(make([]byte, unit), begin+opt.Length)
						}
						return open(t, f, opt)
					})
				}
				storagetest.TestWriter(t, unit, func(t *testing.T, size int64) storage.File {
					return guard(t, memory(begin+size, unit), offset.Options{Offset: begin})
				})
				storagetest.TestFixedWriter(t, unit, func(t *testing.T, size int64) storage.File {
					return guard(t, memory(begin+size, unit), offset.Options{Offset: begin, Length: size})
				})
			})
		}
	}
}

// TestTail: the window ends where the file does, inside a block.
func TestTail(t *testing.T) {
	storagetest.TestFileTail(t, 512, func(t *testing.T, content []byte, holes ...storagetest.Range) storage.File {
		f := memory(0, 512)
		f.Put(make([]byte, 1024), 0)
		f.Put(content, 1024)
		for _, h := range holes {
			f.Punch(1024+h.Offset, h.Length)
		}
		return open(t, f, offset.Options{Offset: 1024})
	})
	storagetest.TestWriterTail(t, 512, func(t *testing.T, size int64) storage.File {
		return guard(t, memory(1024+size, 512), offset.Options{Offset: 1024})
	})
}

func TestInvalid(t *testing.T) {
	const size = 1<<20 + 100
	for _, c := range []struct {
		opt   offset.Options
		field string
		want  string
	}{
		{offset.Options{Offset: -512}, "offset", "is -512, must not be negative"},
		{offset.Options{Offset: 100}, "offset", "is 100, must be a multiple of the node's minimum, 512"},
		{offset.Options{Offset: 1<<20 + 512}, "offset", "is 1049088, must be at most 1048676: the node ends at 1048676"},
		{offset.Options{Offset: math.MaxInt64 - 511, Length: 1024}, "offset", "is 9223372036854775296, must be at most 1048676: the node ends at 1048676"},
		{offset.Options{Length: -1}, "length", "is -1, must not be negative"},
		{offset.Options{Length: 100}, "length", "is 100, must be a multiple of the node's minimum, 512"},
		{offset.Options{Offset: 512, Length: 1 << 20}, "length", "is 1048576, must be at most 1048164: the node ends at 1048676"},
		{offset.Options{Offset: 512, Length: math.MaxInt64 - 511}, "length", "is 9223372036854775296, must be at most 1048164: the node ends at 1048676"},
	} {
		_, err := offset.New(t.Context(), storage.NewNode("below", memory(size, 512), storage.NodeOptions{}), c.opt)
		var invalid *storage.InvalidError
		if !errors.As(err, &invalid) || invalid.Field != c.field || invalid.Detail != c.want {
			t.Errorf("%+v: %v", c.opt, err)
		}
	}
	for _, opt := range []offset.Options{{}, {Offset: 1 << 20}, {Offset: 512, Length: 1<<20 - 512}, {Length: 512}} {
		open(t, memory(size, 512), opt)
	}
	open(t, memory(1<<20, 512), offset.Options{Offset: 1 << 20}) // nothing, which may grow
}

// TestFar: windows that begin or end at the largest size there is.
func TestFar(t *testing.T) {
	ctx := t.Context()
	for _, opt := range []offset.Options{
		{Offset: storage.MaxSize - 4096},
		{Offset: storage.MaxSize - 8192, Length: 4096},
		{Offset: 4096, Length: storage.MaxSize - 4096},
		{Offset: storage.MaxSize},
	} {
		f := open(t, memory(storage.MaxSize, 512), opt)
		size, err := f.Size(ctx)
		if want := or(opt.Length, storage.MaxSize-opt.Offset); size != want || err != nil {
			t.Fatalf("%+v: the size is %d, %v", opt, size, err)
		}
		p := make([]byte, 4096)
		for _, off := range []int64{size, size + 512, storage.MaxSize, 1 << 62, math.MaxInt64, math.MaxInt64 - 4096} {
			if n, err := f.ReadAt(ctx, p, off); n != 0 || err != io.EOF { //nolint:errorlint // must be bare
				t.Errorf("%+v: read at %d = %d, %v", opt, off, n, err)
			}
			var l storage.ExtentList
			if err := f.Extents(ctx, off, 4096, &l); !errors.Is(err, storage.ErrOutOfRange) {
				t.Errorf("%+v: extents at %d = %v", opt, off, err)
			}
			_, write := f.WriteAt(ctx, p, off)
			for k, err := range []error{write, f.Zero(ctx, off, 4096, false), f.Zero(ctx, off, math.MaxInt64-511, true)} {
				if !errors.Is(err, storage.ErrOutOfRange) && !errors.Is(err, storage.ErrNoSpace) {
					t.Errorf("%+v: write, zero, far zero at %d: %d: %v", opt, off, k, err)
				}
			}
		}
		if size == 0 {
			continue
		}
		want := bytes.Repeat([]byte{3}, 512)
		if _, err := f.WriteAt(ctx, want, size-512); err != nil {
			t.Error(err)
		}
		if n, err := f.ReadAt(ctx, p, size-512); n != 512 || err != io.EOF || !bytes.Equal(p[:n], want) { //nolint:errorlint // must be bare
			t.Errorf("%+v: read at the end = %d, %v", opt, n, err)
		}
		var l storage.ExtentList
		if err := f.Extents(ctx, size-1, 1, &l); err != nil || l.End() != size {
			t.Errorf("%+v: extents of the last byte: %v, end at %d", opt, err, l.End())
		}
		if err := f.Truncate(ctx, storage.MaxSize-opt.Offset+1); !errors.Is(err, storage.ErrOutOfRange) {
			t.Errorf("%+v: truncate = %v", opt, err)
		}
	}
}

// TestExtents: rebased, and cut at the window's edges.
func TestExtents(t *testing.T) {
	f := memory(0, 1)
	f.Put(bytes.Repeat([]byte{1}, 8*4096), 0)
	f.Punch(2*4096, 2*4096)
	const data, hole = storage.Alloc | storage.OffsetValid, storage.Zero | storage.OffsetValid
	at := func(off, n int64, s storage.Status) storage.Mapping {
		return storage.Mapping{Offset: off, Length: n, NodeOffset: off, Status: s}
	}
	for _, c := range []struct {
		opt    offset.Options
		off, n int64
		want   []storage.Mapping
	}{
		{offset.Options{Offset: 100}, 0, 1, []storage.Mapping{at(0, 8092, data)}},
		{offset.Options{Offset: 100}, 8091, 8194, []storage.Mapping{at(8091, 1, data), at(8092, 8192, hole), at(16284, 16384, data)}},
		{offset.Options{Offset: 8192, Length: 4096}, 0, 4096, []storage.Mapping{at(0, 4096, hole)}},
		{offset.Options{Offset: 8191, Length: 8194}, 0, 8194, []storage.Mapping{at(0, 1, data), at(1, 8192, hole), at(8193, 1, data)}},
		{offset.Options{Offset: 8191, Length: 8194}, 8193, 1, []storage.Mapping{at(8193, 1, data)}},
	} {
		w := open(t, f, c.opt)
		var l storage.ExtentList
		if err := w.Extents(t.Context(), c.off, c.n, &l); err != nil {
			t.Fatal(err)
		}
		var got []storage.Mapping
		for i := range l.Len() {
			got = append(got, *l.At(i))
		}
		if diff := cmp.Diff(c.want, got, cmpopts.IgnoreFields(storage.Mapping{}, "Node")); diff != "" {
			t.Errorf("%+v: extents of %d bytes at %d:\n%s", c.opt, c.n, c.off, diff)
		}
		var again storage.ExtentList
		again.ResetWindow(c.off, c.off+c.n)
		if n := testing.AllocsPerRun(20, func() {
			again.ResetWindow(c.off, c.off+c.n)
			if err := w.Extents(t.Context(), c.off, c.n, &again); err != nil {
				t.Error(err)
			}
		}); !racing && n >= 1 {
			t.Errorf("extents cost %v allocations", n)
		}
	}
}

// TestShrunk: a node that has become shorter than the window.
func TestShrunk(t *testing.T) {
	f := memory(16384, 1)
	w := open(t, f, offset.Options{Offset: 4096, Length: 8192})
	for below, want := range map[int64]int64{5000: 904, 4096: 0, 100: 0, 12287: 8191, 1 << 20: 8192} {
		f.SetSize(below)
		size, err := w.Size(t.Context())
		n, e := w.ReadAt(t.Context(), make([]byte, 9000), 0)
		if size != want || err != nil || int64(n) != want || e != io.EOF { //nolint:errorlint // must be bare
			t.Errorf("over %d bytes: size %d, %v, read %d, %v, want %d", below, size, err, n, e, want)
		}
		allocated, err := w.Allocated(t.Context())
		if allocated > want || err != nil {
			t.Errorf("over %d bytes: %d allocated, %v", below, allocated, err)
		}
	}
}

func or(v, otherwise int64) int64 {
	if v == 0 {
		return otherwise
	}
	return v
}
