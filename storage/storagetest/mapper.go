package storagetest

import (
	"bytes"
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/extentd/extentd/storage"
)

// An OpenMapper returns one layer without a backing, with the content. The holes
// read as zeros, and should be unallocated where the format can say so; whether
// they are is not tested. What must be cleaned up beside the mapper, such as its
// nodes, it registers with t.
type OpenMapper func(t *testing.T, content []byte, holes ...Range) storage.Mapper

// TestMapper tests that a storage.Mapper keeps its contract. unit is what sizes
// are multiples of, a power of two up to 4096: 1 where anything goes.
func TestMapper(t *testing.T, unit int64, open OpenMapper) {
	t.Helper()
	for _, l := range layouts(t, unit) {
		t.Run(l.name, func(t *testing.T) {
			s := &mapperSuite{layout: l, mapper: open(t, bytes.Clone(l.content), l.holes...)}
			t.Cleanup(func() { _ = s.mapper.Close() }) // the last subtest has closed it, unless one before failed
			if got := s.mapper.Size(); got != l.size() {
				t.Fatalf("Size() = %d, want %d", got, l.size())
			}
			t.Run("fetch", s.fetch)
			t.Run("out of range", s.outOfRange)
			t.Run("properties", func(t *testing.T) { CheckContent(t, s.mapper, bytes.NewReader(l.content)) })
			t.Run("concurrent", s.concurrent)
			t.Run("cancelled", s.cancelled)
			t.Run("closed", s.closed)
		})
	}
}

type mapperSuite struct {
	layout
	mapper storage.Mapper
}

// fetch asks at every point for every length, wide and in a window.
func (s *mapperSuite) fetch(t *testing.T) {
	whole := wholeMap(t, s.mapper)
	for _, off := range s.points(1) {
		for _, n := range s.lengths(off, 1) {
			var l storage.ExtentList
			s.check(t, off, n, &l, whole)
			l.ResetWindow(off, off+n)
			s.check(t, off, n, &l, whole)
			if last := l.At(l.Len() - 1); last.Offset >= off+n || l.At(0).End() <= off {
				t.Errorf("Fetch(%d, %d) adds %d to %d, outside the window", off, n, l.Start(), l.End())
			}
		}
	}
}

func (s *mapperSuite) check(t *testing.T, off, n int64, l, whole *storage.ExtentList) {
	if err := storage.CheckMapper(s.mapper).Fetch(t.Context(), off, n, l); err != nil {
		t.Fatalf("Fetch(%d, %d): %v", off, n, err)
	}
	if err := agree(l, whole); err != nil {
		t.Errorf("Fetch(%d, %d): %v", off, n, err)
	}
	p := make([]byte, n)
	if err := readList(t.Context(), s.mapper, l, p, off); err != nil {
		t.Errorf("Fetch(%d, %d): %v", off, n, err)
	} else if !bytes.Equal(p, s.content[off:off+n]) {
		t.Errorf("Fetch(%d, %d) leads to the wrong bytes", off, n)
	}
}

func (s *mapperSuite) outOfRange(t *testing.T) {
	size := s.size()
	for _, r := range []Range{
		{0, 0},
		{size, 0},
		{size, 1},
		{size + 1, 1},
		{0, size + 1},
		{size / 2, size + 1},
		{0, math.MaxInt64},
		{1, math.MaxInt64},
		{math.MaxInt64, 1},
		{math.MaxInt64, math.MaxInt64},
		{-1, 1},
		{-1, 2},
		{0, -1},
		{math.MinInt64, math.MaxInt64},
	} {
		var l storage.ExtentList
		if err := s.mapper.Fetch(t.Context(), r.Offset, r.Length, &l); !errors.Is(err, storage.ErrOutOfRange) {
			t.Errorf("Fetch(%d, %d) = %v, want %v", r.Offset, r.Length, err, storage.ErrOutOfRange)
		}
	}
}

func (s *mapperSuite) concurrent(t *testing.T) {
	points := s.points(1)
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
				n := min(s.size()-off, int64(len(p)))
				if err := Read(t.Context(), s.mapper, p[:n], off); err != nil {
					t.Error(err)
				} else if !bytes.Equal(p[:n], s.content[off:off+n]) {
					t.Errorf("Fetch(%d, %d) leads to the wrong bytes", off, n)
				}
			}
		})
	}
}

func (s *mapperSuite) cancelled(t *testing.T) {
	if s.size() == 0 {
		return
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var l storage.ExtentList
	if err := s.mapper.Fetch(ctx, 0, s.size(), &l); err != nil && !errors.Is(err, context.Canceled) {
		t.Errorf("Fetch = %v, want %v, or nothing where no I/O is needed", err, context.Canceled)
	}
}

func (s *mapperSuite) closed(t *testing.T) {
	if err := s.mapper.Close(); err != nil {
		t.Fatal(err)
	}
	if s.size() == 0 {
		return
	}
	var l storage.ExtentList
	if err := s.mapper.Fetch(t.Context(), 0, 1, &l); !errors.Is(err, storage.ErrClosed) {
		t.Errorf("Fetch = %v, want %v", err, storage.ErrClosed)
	}
	if err := s.mapper.Close(); err != nil && !errors.Is(err, storage.ErrClosed) {
		t.Errorf("second Close = %v, want nil or %v", err, storage.ErrClosed)
	}
}
