package storagetest_test

import (
	"context"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/filter"
	"github.com/extentd/extentd/storage/null"
	"github.com/extentd/extentd/storage/storagetest"
)

// strict is a file that a node keeps from being asked for anything but multiples
// of a minimum, and its own mistake.
type strict struct {
	filter.Filter
	mistake string
	unit    int64
}

type idle struct{}

func (idle) Interpose(ctx context.Context, r filter.Request) (int, error) { return r.Do(ctx) }

func newStrict(unit int64, m *storagetest.MemFile, mistake string) storage.File {
	node := storage.NewNode("node", m, storage.NodeOptions{Check: true})
	return &strict{Filter: filter.Interpose(node, idle{}), mistake: mistake, unit: unit}
}

func (s *strict) is(mistake string) bool { return s.mistake == "unit: "+mistake }

func (s *strict) Extents(ctx context.Context, off, n int64, into *storage.ExtentList) error {
	if !s.is("extents of parts") {
		return s.Filter.Extents(ctx, off, n, into)
	}
	var l storage.ExtentList
	if err := s.Filter.Extents(ctx, off, n, &l); err != nil {
		return err
	}
	m := *l.At(0)
	if m.Length > 1 {
		m.Length--
	}
	return into.Add(m)
}

func (s *strict) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	switch {
	case s.is("no unaligned lengths") && int64(len(p))%s.unit != 0:
		return 0, &storage.MisalignedError{Minimum: s.unit, Offset: off, Length: int64(len(p))}
	case s.is("no tail"):
		n, err := s.Filter.ReadAt(ctx, p, off)
		if n%int(s.unit) != 0 {
			n -= n % int(s.unit)
			err = io.EOF
		}
		return n, err
	}
	return s.Filter.ReadAt(ctx, p, off)
}

func (s *strict) WriteAt(ctx context.Context, p []byte, off int64) (int, error) {
	if tail := int64(len(p)) % s.unit; s.is("the tail grows") && tail != 0 {
		more, err := s.Filter.WriteAt(ctx, append(p[:len(p):len(p)], make([]byte, s.unit-tail)...), off)
		return min(more, len(p)), err
	}
	return s.Filter.WriteAt(ctx, p, off)
}

func (s *strict) Zero(ctx context.Context, off, n int64, keep bool) error {
	if s.is("the tail is not zeroed") && n%s.unit != 0 {
		n -= n % s.unit
	}
	return s.Filter.Zero(ctx, off, n, keep)
}

// forgetful is a file of zeros with a mistake.
type forgetful struct {
	*null.File
	mistake string
	last    byte
}

func (f *forgetful) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	n, err := f.File.ReadAt(ctx, p, off)
	if f.mistake == "sink: remembers" && n > 0 {
		p[0] = f.last
	}
	return n, err
}

func (f *forgetful) WriteAt(ctx context.Context, p []byte, off int64) (int, error) {
	if len(p) > 0 && f.mistake == "sink: remembers" {
		f.last = p[0]
	}
	if f.mistake == "sink: no end" && off >= 0 && off <= storage.MaxSize-int64(len(p)) && ctx.Err() == nil {
		return len(p), nil
	}
	return f.File.WriteAt(ctx, p, off)
}

// TestUnits runs the suite with units that are enforced, and sizes that are no
// multiples of them.
func TestUnits(t *testing.T) {
	mistake := os.Getenv(mistakes) // without one, everything passes
	if !strings.HasPrefix(mistake, "sink") {
		testUnits(t, mistake)
	}
	if !strings.HasPrefix(mistake, "unit") {
		storagetest.TestSink(t, func(t *testing.T, size int64) storage.File {
			f, err := null.New(size)
			if err != nil {
				t.Fatal(err)
			}
			return &forgetful{File: f, mistake: mistake}
		})
	}
}

func testUnits(t *testing.T, mistake string) {
	units := []int64{512, 4096}
	if mistake != "" {
		units = units[:1]
	}
	for _, unit := range units {
		limits := storage.Limits{Minimum: unit}
		open := func(_ *testing.T, content []byte, holes ...storagetest.Range) storage.File {
			m := storagetest.NewMemFileWith(storagetest.MemOptions{Limits: limits})
			m.Put(content, 0)
			for _, h := range holes {
				m.Punch(h.Offset, h.Length)
			}
			return newStrict(unit, m, mistake)
		}
		create := func(_ *testing.T, size int64) storage.File {
			return newStrict(unit, storagetest.NewMemFileWith(storagetest.MemOptions{Size: size, Litter: 0xdb, Limits: limits}), mistake)
		}
		storagetest.TestFile(t, unit, open)
		storagetest.TestFileTail(t, unit, open)
		storagetest.TestWriter(t, unit, create)
		storagetest.TestWriterTail(t, unit, create)
		storagetest.TestFixedWriterTail(t, unit, func(t *testing.T, size int64) storage.File {
			return &fixed{create(t, size).(*strict), size}
		})
	}
}

// A fixed file keeps its size.
type fixed struct {
	*strict
	size int64
}

func (f *fixed) fits(off, n int64) error {
	if off >= 0 && n > 0 && off <= storage.MaxSize-n && off+n > f.size {
		return storage.ErrNoSpace
	}
	return nil
}

func (f *fixed) WriteAt(ctx context.Context, p []byte, off int64) (int, error) {
	if err := f.fits(off, int64(len(p))); err != nil {
		return 0, err
	}
	return f.strict.WriteAt(ctx, p, off)
}

func (f *fixed) Zero(ctx context.Context, off, n int64, keep bool) error {
	if err := f.fits(off, n); err != nil && ctx.Err() == nil {
		if _, err := f.Size(ctx); err != nil {
			return err
		}
		return err
	}
	return f.strict.Zero(ctx, off, n, keep)
}

func (f *fixed) Truncate(ctx context.Context, size int64) error {
	if size != f.size && size >= 0 && size <= storage.MaxSize && ctx.Err() == nil {
		if _, err := f.Size(ctx); err != nil {
			return err
		}
		return storage.ErrUnsupported
	}
	return f.strict.Truncate(ctx, size)
}

// TestSuitesFindMistakesOfUnits: they fail for each.
func TestSuitesFindMistakesOfUnits(t *testing.T) {
	for _, mistake := range []string{
		"unit: extents of parts", "unit: no unaligned lengths", "unit: no tail", "unit: the tail grows", "unit: the tail is not zeroed",
		"sink: remembers", "sink: no end",
	} {
		t.Run(mistake, func(t *testing.T) {
			t.Parallel()
			findMistake(t, "TestUnits", mistake)
		})
	}
}
