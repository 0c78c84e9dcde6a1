package storagetest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/extentd/extentd/storage"
)

// An OpenFile returns an open file with the content. The holes read as zeros,
// and should be holes where the file can have some; whether they are is not
// tested. What must be cleaned up beside the file, it registers with t.
type OpenFile func(t *testing.T, content []byte, holes ...Range) storage.File

// TestFile tests that a storage.File keeps its contract. unit is what sizes and
// requests are multiples of, a power of two up to 4096: 1 where anything goes.
func TestFile(t *testing.T, unit int64, open OpenFile) {
	t.Helper()
	testFile(t, unit, layouts(t, unit), open)
}

// TestFileTail is TestFile for files whose size is no multiple of the unit, which
// is more than 1: their tail is read by requests that end where the file does.
func TestFileTail(t *testing.T, unit int64, open OpenFile) {
	t.Helper()
	testFile(t, unit, tailLayouts(t, unit), open)
}

func testFile(t *testing.T, unit int64, layouts []layout, open OpenFile) {
	t.Helper()
	for _, l := range layouts {
		t.Run(l.name, func(t *testing.T) {
			f := open(t, bytes.Clone(l.content), l.holes...)
			s := &fileSuite{layout: l, unit: unit, file: f}
			s.node = storage.NewNode("node", f, storage.NodeOptions{Check: true})
			t.Cleanup(func() { _ = f.Close() }) // the last subtest has closed it, unless one before failed
			t.Run("size", s.size)
			t.Run("limits", s.limits)
			t.Run("reads", s.reads)
			t.Run("reads out of range", s.readsOutOfRange)
			t.Run("extents", s.extents)
			t.Run("extents out of range", s.extentsOutOfRange)
			t.Run("extents in a window", s.extentsInWindow)
			t.Run("concurrent", s.concurrent)
			t.Run("cancelled", s.cancelled)
			t.Run("closed", s.closed)
		})
	}
}

type fileSuite struct {
	layout
	unit int64
	file storage.File
	node *storage.Node
}

func (s *fileSuite) size(t *testing.T) {
	got, err := s.file.Size(t.Context())
	if err != nil || got != s.layout.size() {
		t.Fatalf("Size() = %d, %v, want %d", got, err, s.layout.size())
	}
}

func (s *fileSuite) limits(t *testing.T) {
	l, err := s.node.Limits(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if l.Minimum > s.unit {
		t.Errorf("minimum is %d, and the suite is told to use %d", l.Minimum, s.unit)
	}
}

func (s *fileSuite) reads(t *testing.T) {
	for _, off := range s.points(s.unit) {
		for _, n := range append(s.lengths(off, s.unit), 0) {
			s.read(t, off, n)
		}
	}
}

// read checks one read that lies in the file.
func (s *fileSuite) read(t *testing.T, off, n int64) {
	p := bytes.Repeat([]byte{0xee}, int(n)+1)
	got, err := s.file.ReadAt(t.Context(), p[:n], off)
	if atEnd := off+n == s.layout.size(); int64(got) != n || err != nil && (!atEnd || err != io.EOF) { //nolint:errorlint // must be bare
		t.Errorf("ReadAt(%d bytes, %d) = %d, %v", n, off, got, err)
		return
	}
	if !bytes.Equal(p[:n], s.content[off:off+n]) {
		t.Errorf("ReadAt(%d bytes, %d): wrong bytes", n, off)
	}
	if p[n] != 0xee {
		t.Errorf("ReadAt(%d bytes, %d) wrote past the buffer", n, off)
	}
}

func (s *fileSuite) readsOutOfRange(t *testing.T) {
	size := s.layout.size()
	end := (size + s.unit - 1) / s.unit * s.unit // what can be asked for
	far := int64(math.MaxInt64) - math.MaxInt64%s.unit
	for _, at := range []struct {
		off, n, want int64
		eof          bool
	}{
		{end, s.unit, 0, true},
		{end - s.unit, 2 * s.unit, size - (end - s.unit), true},
		{0, end + 8192, size, true},
		{end + s.unit, s.unit, 0, true},
		{end + 1<<40, 4096, 0, true},
		{storage.MaxSize, 4096, 0, false},
		{far - 8192, 4096, 0, false},
		{far - s.unit, 8192, 0, false}, // the sum overflows
		{-s.unit, 2 * s.unit, 0, false},
		{math.MinInt64, s.unit, 0, false},
	} {
		if at.off < 0 && at.eof { // there is no last unit
			continue
		}
		got, err := s.file.ReadAt(t.Context(), make([]byte, at.n), at.off)
		if int64(got) != at.want || err == nil || at.eof && err != io.EOF { //nolint:errorlint // must be bare
			t.Errorf("ReadAt(%d bytes, %d) = %d, %v, want %d and an error, EOF: %v", at.n, at.off, got, err, at.want, at.eof)
		}
	}
}

func (s *fileSuite) extents(t *testing.T) {
	for _, off := range s.points(s.unit) {
		for _, n := range s.lengths(off, s.unit) {
			var l storage.ExtentList
			s.walk(t, off, n, &l)
		}
	}
}

// walk asks for extents until the range is covered, and checks each answer.
func (s *fileSuite) walk(t *testing.T, off, n int64, l *storage.ExtentList) {
	for end := off + n; off < end; off = l.End() {
		before := l.Len()
		if err := s.file.Extents(t.Context(), off, end-off, l); err != nil {
			t.Fatalf("Extents(%d, %d): %v", off, end-off, err)
		}
		if l.Len() == 0 || l.End() <= off || before == 0 && l.Start() != off {
			t.Fatalf("Extents(%d, %d) adds %d to %d", off, end-off, l.Start(), l.End())
		}
		if l.End() > s.layout.size() {
			t.Fatalf("Extents(%d, %d) reaches %d, past the end of the file", off, end-off, l.End())
		}
	}
	for i := range l.Len() {
		s.extent(t, l.At(i))
	}
}

func (s *fileSuite) extent(t *testing.T, m *storage.Mapping) {
	switch rule := storage.ProtocolStatuses()[m.Status&15]; {
	case m.Status > 15 || !rule.Valid:
		t.Errorf("extent at %d has status %v: %s", m.Offset, m.Status, rule.Meaning)
	case m.Flags != 0 || m.Depth != 0 || m.PackedLength != 0:
		t.Errorf("extent at %d says more than a file knows: %+v", m.Offset, *m)
	case m.Status.Has(storage.OffsetValid) && m.NodeOffset != m.Offset:
		t.Errorf("extent at %d is said to be at %d of the file", m.Offset, m.NodeOffset)
	case m.Offset%s.unit != 0 || m.Length%s.unit != 0 && m.End() != s.layout.size():
		t.Errorf("extent at %d with length %d is no multiple of %d", m.Offset, m.Length, s.unit)
	case m.Status.Has(storage.Zero) && !isZero(s.content[m.Offset:m.End()]):
		t.Errorf("extent at %d with length %d is said to be zero and is not", m.Offset, m.Length)
	}
}

func (s *fileSuite) extentsOutOfRange(t *testing.T) {
	size := s.layout.size()
	for _, r := range []Range{
		{size, 1},
		{size + s.unit, s.unit},
		{0, size + s.unit},
		{0, math.MaxInt64},
		{s.unit, math.MaxInt64},
		{math.MaxInt64, 1},
		{math.MaxInt64, math.MaxInt64},
		{-s.unit, s.unit},
		{-s.unit, 2 * s.unit},
		{0, -s.unit},
		{math.MinInt64, math.MaxInt64},
	} {
		var l storage.ExtentList
		if err := s.file.Extents(t.Context(), r.Offset, r.Length, &l); !errors.Is(err, storage.ErrOutOfRange) {
			t.Errorf("Extents(%d, %d) = %v, want %v", r.Offset, r.Length, err, storage.ErrOutOfRange)
		}
	}
}

func (s *fileSuite) extentsInWindow(t *testing.T) {
	for _, off := range s.points(s.unit) {
		for _, n := range s.lengths(off, s.unit) {
			var l storage.ExtentList
			l.ResetWindow(off, off+n)
			s.walk(t, off, n, &l)
			if at := l.At(l.Len() - 1).Offset; at >= off+n {
				t.Errorf("Extents(%d, %d) adds an extent at %d, outside the window", off, n, at)
			}
			var checked storage.ExtentList
			if err := s.node.Extents(t.Context(), off, n, &checked); err != nil {
				t.Error(err)
			}
		}
	}
}

func (s *fileSuite) concurrent(t *testing.T) {
	points := s.points(s.unit)
	if len(points) == 0 {
		return
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	for range 4 {
		wg.Go(func() {
			p := make([]byte, 64<<10)
			for range 40 {
				off := points[rand.IntN(len(points))]
				n := min(s.layout.size()-off, int64(len(p)))
				got, err := s.file.ReadAt(t.Context(), p[:n], off)
				if int64(got) != n || err != nil && err != io.EOF || !bytes.Equal(p[:n], s.content[off:off+n]) { //nolint:errorlint // must be bare
					t.Errorf("ReadAt(%d bytes, %d) = %d, %v", n, off, got, err)
				}
				var l storage.ExtentList
				if err := s.file.Extents(t.Context(), off, n, &l); err != nil || l.Start() != off {
					t.Errorf("Extents(%d, %d) adds %d to %d, %v", off, n, l.Start(), l.End(), err)
				}
				for i := range l.Len() {
					s.extent(t, l.At(i))
				}
			}
		})
	}
}

func (s *fileSuite) cancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.file.ReadAt(ctx, make([]byte, s.unit), 0); !errors.Is(err, context.Canceled) {
		t.Errorf("ReadAt = %v, want %v", err, context.Canceled)
	}
	var l storage.ExtentList
	if err := s.file.Extents(ctx, 0, s.unit, &l); !errors.Is(err, context.Canceled) {
		t.Errorf("Extents = %v, want %v", err, context.Canceled)
	}
}

func (s *fileSuite) closed(t *testing.T) {
	if err := s.file.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.file.ReadAt(t.Context(), make([]byte, s.unit), 0); !errors.Is(err, storage.ErrClosed) {
		t.Errorf("ReadAt = %v, want %v", err, storage.ErrClosed)
	}
	var l storage.ExtentList
	if err := s.file.Extents(t.Context(), 0, s.unit, &l); !errors.Is(err, storage.ErrClosed) {
		t.Errorf("Extents = %v, want %v", err, storage.ErrClosed)
	}
	if _, err := s.file.Size(t.Context()); !errors.Is(err, storage.ErrClosed) {
		t.Errorf("Size = %v, want %v", err, storage.ErrClosed)
	}
	if err := s.file.Close(); err != nil && !errors.Is(err, storage.ErrClosed) {
		t.Errorf("second Close = %v, want nil or %v", err, storage.ErrClosed)
	}
}
