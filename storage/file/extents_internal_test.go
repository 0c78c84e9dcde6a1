package file

import (
	"context"
	"errors"
	"io"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/extentd/extentd/storage"
)

// seekFunc plays lseek.
type seekFunc func(off int64, whence int) (int64, error)

func (f seekFunc) Seek(off int64, whence int) (int64, error) { return f(off, whence) }

// A step is a call that is expected, and its answer.
type step struct {
	whence int
	off    int64
	at     int64
	err    error
}

type want struct {
	end    int64
	status storage.Status
}

// TestSeekAnswers plays file systems and races, call by call.
func TestSeekAnswers(t *testing.T) {
	const end, seekData, seekHole = io.SeekEnd, unix.SEEK_DATA, unix.SEEK_HOLE
	for _, c := range []struct {
		name   string
		off, n int64
		steps  []step
		want   []want
		err    error
	}{
		{
			"one call for an extent", 0, 100,
			[]step{{end, 0, 100, nil}, {seekData, 0, 10, nil}, {seekHole, 10, 30, nil}, {seekData, 30, 0, unix.ENXIO}, {end, 0, 100, nil}},
			[]want{{10, hole}, {30, data}, {100, hole}},
			nil,
		},
		{
			"data up to the end", 50, 50,
			[]step{{end, 0, 100, nil}, {seekData, 50, 50, nil}, {seekHole, 50, 100, nil}},
			[]want{{100, data}},
			nil,
		},
		{
			"nothing is asked past the range", 0, 5,
			[]step{{end, 0, 100, nil}, {seekData, 0, 10, nil}},
			[]want{{10, hole}},
			nil,
		},
		{
			"no support", 5, 5,
			[]step{{end, 0, 100, nil}, {seekData, 5, 0, unix.EINVAL}},
			[]want{{100, data}},
			nil,
		},
		{
			"no support, said otherwise", 5, 5,
			[]step{{end, 0, 100, nil}, {seekData, 5, 0, unix.EOPNOTSUPP}},
			[]want{{100, data}},
			nil,
		},
		{
			"an error", 5, 5,
			[]step{{end, 0, 100, nil}, {seekData, 5, 0, unix.EIO}},
			nil,
			unix.EIO,
		},
		{
			"an error midway", 0, 100,
			[]step{{end, 0, 100, nil}, {seekData, 0, 10, nil}, {seekHole, 10, 0, unix.EIO}},
			[]want{{10, hole}},
			unix.EIO,
		},
		{
			"an error of the size", 0, 100,
			[]step{{end, 0, 0, unix.ESTALE}},
			nil,
			unix.ESTALE,
		},
		{
			"shrinks before data is looked for", 50, 50,
			[]step{{end, 0, 100, nil}, {seekData, 50, 0, unix.ENXIO}, {end, 0, 20, nil}},
			nil,
			storage.ErrOutOfRange,
		},
		{
			"shrinks inside the hole", 50, 50,
			[]step{{end, 0, 100, nil}, {seekData, 50, 0, unix.ENXIO}, {end, 0, 60, nil}},
			[]want{{60, hole}}, // and the next call finds that there is no more
			nil,
		},
		{
			"shrinks before the hole is looked for", 50, 50,
			[]step{{end, 0, 100, nil}, {seekData, 50, 50, nil}, {seekHole, 50, 0, unix.ENXIO}},
			nil,
			storage.ErrOutOfRange,
		},
		{
			"shrinks after the first extent", 0, 100,
			[]step{{end, 0, 100, nil}, {seekData, 0, 0, nil}, {seekHole, 0, 10, nil}, {seekData, 10, 20, nil}, {seekHole, 20, 0, unix.ENXIO}},
			[]want{{10, data}, {20, hole}},
			nil,
		},
		{
			"grows by data behind the hole at the end", 50, 50,
			[]step{{end, 0, 100, nil}, {seekData, 50, 0, unix.ENXIO}, {end, 0, 200, nil}},
			[]want{{100, hole}}, // of what came after the look nothing is said
			nil,
		},
		{
			"grows by data", 50, 50,
			[]step{{end, 0, 100, nil}, {seekData, 50, 50, nil}, {seekHole, 50, 200, nil}, {end, 0, 200, nil}},
			[]want{{200, data}},
			nil,
		},
		{
			"rounds up past the end", 50, 50,
			[]step{{end, 0, 100, nil}, {seekData, 50, 50, nil}, {seekHole, 50, 4096, nil}, {end, 0, 100, nil}},
			[]want{{100, data}},
			nil,
		},
		{
			"punched meanwhile", 0, 100,
			[]step{{end, 0, 100, nil}, {seekData, 0, 10, nil}, {seekHole, 10, 10, nil}, {seekData, 10, 40, nil}, {seekHole, 40, 100, nil}},
			[]want{{40, hole}, {100, data}},
			nil,
		},
		{
			"contradicts itself", 10, 20,
			[]step{
				{end, 0, 100, nil},
				{seekData, 10, 10, nil},
				{seekHole, 10, 10, nil},
				{seekData, 10, 10, nil},
				{seekHole, 10, 10, nil},
				{seekData, 10, 10, nil},
				{seekHole, 10, 10, nil},
				{seekData, 10, 10, nil},
				{seekHole, 10, 10, nil},
			},
			[]want{{100, data}},
			nil,
		},
		{
			"goes back", 10, 20,
			[]step{{end, 0, 100, nil}, {seekData, 10, 5, nil}, {seekHole, 10, 20, nil}, {seekData, 20, 5, nil}, {seekHole, 20, 30, nil}},
			[]want{{30, data}},
			nil,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			steps := c.steps
			f := &File{seeks: seekFunc(func(off int64, whence int) (int64, error) {
				if len(steps) == 0 || steps[0].whence != whence || steps[0].off != off {
					t.Fatalf("seek to %d, whence %d; expected %+v", off, whence, steps)
				}
				s := steps[0]
				steps = steps[1:]
				return s.at, s.err
			})}
			var l storage.ExtentList
			if err := f.Extents(t.Context(), c.off, c.n, &l); !errors.Is(err, c.err) {
				t.Errorf("Extents = %v, want %v", err, c.err)
			}
			if len(steps) != 0 {
				t.Errorf("not asked: %+v", steps)
			}
			at := c.off
			for i, w := range c.want {
				m := storage.Mapping{Offset: at, Length: w.end - at, NodeOffset: at, Status: w.status}
				if i >= l.Len() || *l.At(i) != m {
					t.Fatalf("extent %d of %d is not %+v", i, l.Len(), m)
				}
				at = w.end
			}
			if l.Len() != len(c.want) {
				t.Errorf("%d extents, want %d", l.Len(), len(c.want))
			}
		})
	}
}

// TestNoSupportIsRemembered: a block device is asked for holes once.
func TestNoSupportIsRemembered(t *testing.T) {
	asked := 0
	f := &File{seeks: seekFunc(func(_ int64, whence int) (int64, error) {
		if whence == io.SeekEnd {
			return 100, nil
		}
		asked++
		return 0, unix.EINVAL
	})}
	for range 3 {
		var l storage.ExtentList
		if err := f.Extents(t.Context(), 7, 1, &l); err != nil || l.Len() != 1 || *l.At(0) != (storage.Mapping{Offset: 7, Length: 93, NodeOffset: 7, Status: data}) {
			t.Fatalf("%+v, %v", *l.At(0), err)
		}
	}
	if asked != 1 {
		t.Errorf("asked %d times", asked)
	}
}

// moving is a file that changes after every call: a byte for a block, true for
// data.
type moving struct {
	t      *rapid.T
	blocks []bool
	zero   [24]bool // which blocks were a hole, or not there, at some call
	size   int      // the largest that was told
}

func (m *moving) Seek(off int64, whence int) (int64, error) {
	at, err := m.answer(off, whence)
	for i := range m.zero {
		m.zero[i] = m.zero[i] || i >= len(m.blocks) || !m.blocks[i]
	}
	m.size = max(m.size, len(m.blocks))
	switch rapid.IntRange(0, 5).Draw(m.t, "change") {
	case 0:
		m.blocks = m.blocks[:rapid.IntRange(0, len(m.blocks)).Draw(m.t, "shrink")]
	case 1:
		more := rapid.IntRange(0, len(m.zero)-len(m.blocks)).Draw(m.t, "grow")
		m.blocks = append(m.blocks, make([]bool, more)...)
	case 2, 3:
		if len(m.blocks) > 0 {
			i := rapid.IntRange(0, len(m.blocks)-1).Draw(m.t, "flip")
			m.blocks[i] = !m.blocks[i]
		}
	}
	return at, err
}

func (m *moving) answer(off int64, whence int) (int64, error) {
	size := int64(len(m.blocks))
	if whence == io.SeekEnd {
		return size, nil
	}
	if off >= size {
		return 0, unix.ENXIO
	}
	for ; off < size; off++ {
		if m.blocks[off] == (whence == unix.SEEK_DATA) {
			return off, nil
		}
	}
	if whence == unix.SEEK_DATA {
		return 0, unix.ENXIO
	}
	return size, nil // there is a hole at every end
}

// TestMovingFile: what is called a hole was one during the call, and nothing is
// told past the largest size that the file had.
func TestMovingFile(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := &moving{t: t, blocks: rapid.SliceOfN(rapid.Bool(), 1, 20).Draw(t, "blocks")}
		off := rapid.Int64Range(0, int64(len(m.blocks))-1).Draw(t, "off")
		n := rapid.Int64Range(1, int64(len(m.blocks))-off).Draw(t, "n")
		f := &File{seeks: m}
		var l storage.ExtentList
		err := f.Extents(context.Background(), off, n, &l)
		if errors.Is(err, storage.ErrOutOfRange) {
			return
		}
		if err != nil || l.Len() == 0 || l.Start() != off {
			t.Fatalf("%d extents from %d, %v", l.Len(), l.Start(), err)
		}
		if l.End() > int64(m.size) {
			t.Fatalf("extents up to %d of a file that had %d at most", l.End(), m.size)
		}
		for i := range l.Len() {
			e := l.At(i)
			for b := e.Offset; b < e.End() && e.Status.Has(storage.Zero); b++ {
				if !m.zero[b] {
					t.Fatalf("%d is called a hole", b)
				}
			}
		}
	})
}
