package storagetest

import (
	"bytes"
	"errors"
	"math"
	"testing"

	"github.com/extentd/extentd/storage"
)

// atTheEnd: what makes the file longer, and what does not.
func (s *writerSuite) atTheEnd(t *testing.T) {
	ctx, far := t.Context(), s.end()+64<<10
	for _, c := range []struct {
		name string
		err  error
		want int64
	}{
		{"write of nothing", s.write(ctx, nil, far), s.m.size()},
		{"zero of nothing", s.w.Zero(ctx, far, 0, false), s.m.size()},
		{"zero of nothing, kept", s.w.Zero(ctx, far, 0, true), s.m.size()},
		{"trim past the end", s.w.Trim(ctx, far, s.unit), s.m.size()},
		{"trim over the end", s.w.Trim(ctx, s.last(), 64<<10), s.m.size()},
	} {
		size, err := s.file.Size(ctx)
		if c.err != nil || err != nil || size != c.want {
			t.Errorf("%s: %v, and the size is %d, %v, want %d", c.name, c.err, size, err, c.want)
		}
	}
	s.m.trim(s.last(), s.unit)
	for _, grow := range []func(off int64) error{
		func(off int64) error { return s.write(ctx, make([]byte, s.unit), off) },
		func(off int64) error { return s.w.Zero(ctx, off, s.unit, false) },
		func(off int64) error { return s.w.Zero(ctx, off, s.unit, true) },
		func(off int64) error { return s.w.Zero(ctx, off-8192, 8192+s.unit, false) },
		func(off int64) error { return s.w.Truncate(ctx, off+s.unit) },
	} {
		if s.tail > 0 {
			s.truncate(t, s.last()+s.tail)
		}
		off := s.end() + 16<<10 // with a gap
		if err := grow(off); err != nil {
			t.Fatal(err)
		}
		s.m.resize(off + s.unit)
		s.check(t)
	}
	full := bytes.Repeat([]byte{0xaa}, int(s.m.size()))
	if err := s.write(ctx, full, 0); err != nil {
		t.Fatal(err)
	}
	s.m.write(full, 0)
	for _, size := range []int64{s.round(100 << 10), s.round(200 << 10), 0, s.unit} { // nothing comes back
		s.truncate(t, size+s.tail)
	}
}

func (s *writerSuite) truncate(t *testing.T, size int64) {
	t.Helper()
	if err := s.w.Truncate(t.Context(), size); err != nil {
		t.Fatal(err)
	}
	s.m.resize(size)
	s.check(t)
}

// atTheFixedEnd: what does not fit is refused, and the size stays. What lies
// before the end may have been written.
func (s *writerSuite) atTheFixedEnd(t *testing.T) {
	ctx, size := t.Context(), s.m.size()
	refused := func(err error) bool {
		return errors.Is(err, storage.ErrNoSpace) || errors.Is(err, storage.ErrOutOfRange)
	}
	p := make([]byte, 2*s.unit)
	for off := s.last(); off <= s.end()+64<<10; off += 64 << 10 {
		write := s.write(ctx, p, off)
		for k, err := range []error{write, s.w.Zero(ctx, off, 2*s.unit, false), s.w.Zero(ctx, off, 2*s.unit, true)} {
			if !refused(err) {
				t.Errorf("write, zero, zero kept past the end, at %d: %d: %v", off, k, err)
			}
		}
	}
	if err := s.w.Trim(ctx, s.last(), 64<<10); err != nil && !refused(err) {
		t.Errorf("trim over the end = %v", err)
	}
	s.m.trim(s.last(), s.unit)
	for _, other := range []int64{0, size - s.unit, size + s.unit} {
		err := s.w.Truncate(ctx, other)
		if ignored := err == nil && other < size; !ignored && !errors.Is(err, storage.ErrUnsupported) {
			t.Errorf("Truncate(%d) = %v, want %v", other, err, storage.ErrUnsupported)
		}
	}
	if err := s.w.Truncate(ctx, size); err != nil {
		t.Errorf("Truncate to the size that it has = %v", err)
	}
	s.check(t)
}

// outOfRange: what no file can hold changes nothing.
func (s *writerSuite) outOfRange(t *testing.T) {
	ctx := t.Context()
	most := int64(math.MaxInt64) / s.unit * s.unit
	for _, r := range []Range{{-s.unit, s.unit}, {-s.unit, 2 * s.unit}, {most, s.unit}, {storage.MaxSize, s.unit}, {math.MinInt64, s.unit}} {
		if n, err := s.w.WriteAt(ctx, make([]byte, r.Length), r.Offset); n != 0 || !errors.Is(err, storage.ErrOutOfRange) {
			t.Errorf("WriteAt(%d bytes, %d) = %d, %v", r.Length, r.Offset, n, err)
		}
	}
	for _, r := range []Range{{-s.unit, s.unit}, {0, -s.unit}, {s.unit, most}, {most, most}, {storage.MaxSize, s.unit}, {math.MinInt64, s.unit}} {
		for i, err := range []error{s.w.Zero(ctx, r.Offset, r.Length, false), s.w.Zero(ctx, r.Offset, r.Length, true), s.w.Trim(ctx, r.Offset, r.Length)} {
			if !errors.Is(err, storage.ErrOutOfRange) {
				t.Errorf("zero, kept, trim of %d bytes at %d: %d: %v", r.Length, r.Offset, i, err)
			}
		}
	}
	for _, size := range []int64{-s.unit, math.MinInt64, storage.MaxSize + s.unit, most} {
		if err := s.w.Truncate(ctx, size); !errors.Is(err, storage.ErrOutOfRange) {
			t.Errorf("Truncate(%d) = %v", size, err)
		}
	}
	s.check(t)
}
