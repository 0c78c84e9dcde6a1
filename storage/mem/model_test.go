package mem_test

import (
	"io"
	"math"
	"testing"

	"pgregory.net/rapid"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/mem"
)

// TestModel makes the same changes to a file here and to one of the suite, far
// from each other and from the beginning.
func TestModel(t *testing.T) {
	const page = mem.PageSize
	rapid.Check(t, func(rt *rapid.T) {
		f, m := open(t, mem.Options{}), map[int64]byte{} // what is not zero
		size := int64(0)
		ctx := t.Context()
		bases := []int64{0, 62 * page, 64 * 64 * page, 1 << 45, 1<<60 - 3*page}
		draw := func(rt *rapid.T, what string) int64 {
			return rapid.SampledFrom(bases).Draw(rt, "base of "+what) + rapid.Int64Range(0, 5*page).Draw(rt, what)
		}
		drop := func(off, end int64) {
			for at := range m {
				if at >= off && at < end {
					delete(m, at)
				}
			}
		}
		rt.Repeat(map[string]func(*rapid.T){
			"write": func(rt *rapid.T) {
				p, off := rapid.SliceOfN(rapid.Byte(), 1, 40).Draw(rt, "p"), draw(rt, "off")
				if _, err := f.WriteAt(ctx, p, off); err != nil {
					rt.Fatal(err)
				}
				for i, b := range p {
					delete(m, off+int64(i))
					if b != 0 {
						m[off+int64(i)] = b
					}
				}
				size = max(size, off+int64(len(p)))
			},
			"zero": func(rt *rapid.T) {
				off, end := draw(rt, "off"), draw(rt, "end")
				if end < off {
					off, end = end, off
				}
				if err := f.Zero(ctx, off, end-off, rapid.Bool().Draw(rt, "keep")); err != nil {
					rt.Fatal(err)
				}
				drop(off, end)
				if end > off {
					size = max(size, end)
				}
			},
			"trim": func(rt *rapid.T) {
				off, end := draw(rt, "off"), draw(rt, "end")
				if err := f.Trim(ctx, min(off, end), max(off, end)-min(off, end)); err != nil {
					rt.Fatal(err)
				}
				drop(min(off, end), max(off, end))
			},
			"truncate": func(rt *rapid.T) {
				size = draw(rt, "size")
				if err := f.Truncate(ctx, size); err != nil {
					rt.Fatal(err)
				}
				drop(size, math.MaxInt64)
			},
			"": func(rt *rapid.T) { compare(rt, f, m, size) },
		})
	})
}

// compare reads the pages of a file, and makes sure that nothing is where there
// is none.
func compare(rt *rapid.T, f *mem.File, m map[int64]byte, size int64) {
	ctx := rt.Context()
	if got, err := f.Size(ctx); err != nil || got != size {
		rt.Fatalf("Size() = %d, %v, want %d", got, err, size)
	}
	left, pages := len(m), int64(0)
	for off := int64(0); off < size; {
		var l storage.ExtentList
		if err := f.Extents(ctx, off, size-off, &l); err != nil {
			rt.Fatal(err)
		}
		for i := range l.Len() {
			e := l.At(i)
			if e.Status == hole {
				continue
			}
			pages += (e.End()+mem.PageSize-1)/mem.PageSize - e.Offset/mem.PageSize
			p := make([]byte, e.Length)
			if n, err := f.ReadAt(ctx, p, e.Offset); n != len(p) || err != nil && err != io.EOF { //nolint:errorlint // must be bare
				rt.Fatal(n, err)
			}
			for k, b := range p {
				if b != m[e.Offset+int64(k)] {
					rt.Fatalf("byte %d is %d, want %d", e.Offset+int64(k), b, m[e.Offset+int64(k)])
				}
				if b != 0 {
					left--
				}
			}
		}
		off = l.End()
	}
	if left != 0 {
		rt.Fatalf("%d bytes are in holes", left)
	}
	if got := allocated(rt, f); got != pages*mem.PageSize {
		rt.Fatalf("%d bytes are allocated, and the map says %d pages", got, pages)
	}
}
