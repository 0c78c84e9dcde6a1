package storagetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/extentd/extentd/storage"
)

// An OpenWriter returns a new file of that size, which reads as zeros, is open
// for writing, and implements [storage.Writer]. What must be cleaned up beside
// the file, it registers with t.
type OpenWriter func(t *testing.T, size int64) storage.File

// TestWriter tests that a storage.Writer keeps its contract. unit is what sizes
// and requests are multiples of, a power of two up to 4096: 1 where anything
// goes. The file can grow and shrink.
func TestWriter(t *testing.T, unit int64, open OpenWriter) {
	t.Helper()
	testWriter(t, writerKind{unit: unit}, open)
}

// TestFixedWriter is TestWriter for a file that can neither grow nor shrink, as
// a device.
func TestFixedWriter(t *testing.T, unit int64, open OpenWriter) {
	t.Helper()
	testWriter(t, writerKind{unit: unit, fixed: true}, open)
}

// TestWriterTail is TestWriter for files whose size is no multiple of the unit,
// which is more than 1: their tail is changed by requests that end where the file
// does.
func TestWriterTail(t *testing.T, unit int64, open OpenWriter) {
	t.Helper()
	testWriter(t, writerKind{unit: unit, tail: unit/2 + 1}, open)
}

// TestFixedWriterTail is TestWriterTail for a file that can neither grow nor
// shrink.
func TestFixedWriterTail(t *testing.T, unit int64, open OpenWriter) {
	t.Helper()
	testWriter(t, writerKind{unit: unit, tail: unit/2 + 1, fixed: true}, open)
}

// TestSink tests a file of a fixed size that reads as zeros and forgets what is
// written to it, as TestFile and TestFixedWriter test one that does not.
func TestSink(t *testing.T, open OpenWriter) {
	t.Helper()
	var holes []layout
	for _, l := range layouts(t, 1) {
		clear(l.content)
		holes = append(holes, l)
	}
	testFile(t, 1, holes, func(t *testing.T, content []byte, _ ...Range) storage.File {
		return open(t, int64(len(content)))
	})
	testWriter(t, writerKind{unit: 1, fixed: true, forgets: true}, open)
}

// A writerKind is what the suite has to know of a file.
type writerKind struct {
	unit    int64
	tail    int64 // what is behind the last whole unit; 0: nothing
	fixed   bool  // it cannot grow or shrink
	forgets bool  // what is written reads as zeros
}

func testWriter(t *testing.T, kind writerKind, open OpenWriter) {
	t.Helper()
	atTheEnd := (*writerSuite).atTheEnd
	if kind.fixed {
		atTheEnd = (*writerSuite).atTheFixedEnd
	}
	for _, c := range []struct {
		name string
		test func(*writerSuite, *testing.T)
	}{
		{"random changes", (*writerSuite).random},
		{"at the end", atTheEnd},
		{"buffers", (*writerSuite).buffers},
		{"out of range", (*writerSuite).outOfRange},
		{"concurrent", (*writerSuite).concurrent},
		{"concurrent growth", (*writerSuite).concurrentGrowth},
		{"cancelled", (*writerSuite).cancelled},
		{"closed", (*writerSuite).closed},
	} {
		if kind.fixed && c.name == "concurrent growth" {
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			size := 256<<10/kind.unit*kind.unit + kind.tail
			f := open(t, size)
			t.Cleanup(func() { _ = f.Close() }) // one has closed it
			w, ok := f.(storage.Writer)
			if !ok {
				t.Fatalf("%T is no storage.Writer", f)
			}
			m := newModel(size)
			m.forgets = kind.forgets
			c.test(&writerSuite{writerKind: kind, file: f, w: w, m: m}, t)
		})
	}
}

type writerSuite struct {
	writerKind
	file storage.File
	w    storage.Writer
	m    *model
}

// check compares the whole file, its size and its extents.
func (s *writerSuite) check(t *testing.T) {
	t.Helper()
	size, err := s.file.Size(t.Context())
	if err != nil || size != s.m.size() {
		t.Fatalf("Size() = %d, %v, want %d", size, err, s.m.size())
	}
	got := make([]byte, s.end()+s.unit)
	n, err := s.file.ReadAt(t.Context(), got, 0)
	if int64(n) != size || err != io.EOF { //nolint:errorlint // must be bare
		t.Fatalf("ReadAt of everything = %d, %v", n, err)
	}
	if err := s.m.equal(got[:n], 0); err != nil {
		t.Fatal(err)
	}
	node := storage.NewNode("node", s.file, storage.NodeOptions{Check: true})
	for off := int64(0); off < size; {
		var l storage.ExtentList
		if err := node.Extents(t.Context(), off, size-off, &l); err != nil {
			t.Fatal(err)
		}
		for i := range l.Len() {
			if e := l.At(i); e.End() > size || e.Status.Has(storage.Zero) && s.m.equal(make([]byte, e.Length), e.Offset) != nil {
				t.Fatalf("extent at %d with length %d is %v", e.Offset, e.Length, e.Status)
			}
		}
		off = l.End()
	}
}

// round makes something of the order of n a multiple of the unit.
func (s *writerSuite) round(n int64) int64 { return n / s.unit * s.unit }

// end is where the first unit begins that lies wholly past the end.
func (s *writerSuite) end() int64 { return s.round(s.m.size() + s.unit - 1) }

// last is where the last unit begins, of which the file may end inside.
func (s *writerSuite) last() int64 { return s.end() - s.unit }

// random makes random changes, inside and past the end.
func (s *writerSuite) random(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("changes of seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	for step := range 300 {
		off := s.round(random.Int64N(s.m.size() + 20<<10))
		n := s.round(random.Int64N(1 << (8 + random.IntN(10))))
		if step%3 == 0 { // whole blocks are another path
			off, n = off&^4095, n&^4095
		}
		if s.tail > 0 && step%4 == 0 { // all that is not aligned may end
			off = min(off, s.round(s.m.size()))
			n = s.m.size() - off
		}
		s.change(t, random, off, n)
		if step%10 == 0 {
			s.check(t)
		}
	}
	s.check(t)
}

func (s *writerSuite) change(t *testing.T, random *rand.Rand, off, n int64) {
	ctx := t.Context()
	ops := 8
	if s.fixed {
		off = min(off, s.round(s.m.size()))
		n, ops = min(n, s.m.size()-off), 6
	}
	var err error
	switch op := random.IntN(ops); op {
	case 0, 1, 2:
		p := make([]byte, 61) // no block is a multiple of it
		for i := range p {
			p[i] = byte(1 + random.IntN(255))
		}
		p = bytes.Repeat(p, int(n)/len(p)+1)[:n]
		err = s.write(ctx, p, off)
		s.m.write(p, off)
	case 3, 4:
		err = s.w.Zero(ctx, off, n, op == 3)
		s.m.write(make([]byte, n), off)
	case 5:
		err = s.w.Trim(ctx, off, n)
		s.m.trim(off, n)
	case 6:
		off = min(off, 400<<10) + s.tail
		err = s.w.Truncate(ctx, off)
		s.m.resize(off)
	case 7:
		err = s.w.Flush(ctx)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func (s *writerSuite) write(ctx context.Context, p []byte, off int64) error {
	n, err := s.w.WriteAt(ctx, p, off)
	if err == nil && n != len(p) {
		return fmt.Errorf("WriteAt(%d bytes, %d) = %d without an error", len(p), off, n)
	}
	return err
}

// buffers belong to the caller again after a write.
func (s *writerSuite) buffers(t *testing.T) {
	p := bytes.Repeat([]byte{1}, 16<<10)
	if err := s.write(t.Context(), p, 0); err != nil {
		t.Fatal(err)
	}
	s.m.write(p, 0)
	for i := range p {
		if p[i] != 1 {
			t.Fatal("WriteAt changes the buffer")
		}
		p[i] = 2
	}
	s.check(t)
}

// concurrent: each has a stripe of its own, and stripes do not end at blocks.
func (s *writerSuite) concurrent(t *testing.T) {
	const workers = 4
	stripe := s.round(s.m.size()/workers - 100)
	var wg sync.WaitGroup
	for k := range int64(workers) {
		wg.Go(func() {
			random, begin := rand.New(rand.NewPCG(uint64(k), 0)), k*stripe
			for range 100 {
				from := s.round(random.Int64N(stripe - s.unit))
				n := s.round(random.Int64N(stripe - from))
				p := bytes.Repeat([]byte{byte(k + 1)}, int(n))
				var err error
				switch random.IntN(4) {
				case 0:
					clear(p)
					err = s.w.Zero(t.Context(), begin+from, n, random.IntN(2) == 0)
				case 1:
					err = errors.Join(s.w.Flush(t.Context()), s.write(t.Context(), p, begin+from))
				default:
					err = s.write(t.Context(), p, begin+from)
				}
				if s.forgets {
					clear(p)
				}
				got := make([]byte, n)
				if _, e := s.file.ReadAt(t.Context(), got, begin+from); err != nil || e != nil || !bytes.Equal(got, p) {
					t.Errorf("changing and reading %d bytes at %d: %v, %v", n, begin+from, err, e)
				}
				copy(s.m.content[begin+from:], p)
			}
		})
	}
	wg.Wait()
	s.check(t)
}

// concurrentGrowth: who makes the file longer by zeros does not cut off what
// another has written behind.
func (s *writerSuite) concurrentGrowth(t *testing.T) {
	const n = 4096
	for round := range 120 {
		at := s.end()
		p := bytes.Repeat([]byte{0xcc}, n)
		all := []func() error{
			func() error { return s.w.Zero(t.Context(), at, n, false) },
			func() error { return s.w.Zero(t.Context(), at+n, n, true) },
			func() error { return s.write(t.Context(), p, at+2*n) },
		}
		var wg sync.WaitGroup
		for k := range all {
			wg.Go(func() {
				if err := all[(k+round)%len(all)](); err != nil { // in any order
					t.Error(err)
				}
			})
		}
		wg.Wait()
		s.m.write(p, at+2*n)
	}
	s.check(t)
}

// operations are all that change a file.
func (s *writerSuite) operations(ctx context.Context) map[string]error {
	n, write := s.w.WriteAt(ctx, bytes.Repeat([]byte{1}, int(s.unit)), 0)
	if n != 0 {
		write = fmt.Errorf("%d bytes written, %w", n, write)
	}
	return map[string]error{
		"WriteAt":  write,
		"Zero":     s.w.Zero(ctx, 0, s.end()+s.unit, false),
		"Trim":     s.w.Trim(ctx, 0, s.m.size()),
		"Truncate": s.w.Truncate(ctx, 0),
		"Flush":    s.w.Flush(ctx),
	}
}

func (s *writerSuite) cancelled(t *testing.T) {
	p := bytes.Repeat([]byte{9}, int(s.m.size()))
	if err := s.write(t.Context(), p, 0); err != nil {
		t.Fatal(err)
	}
	s.m.write(p, 0)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for name, err := range s.operations(ctx) {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%s = %v, want %v", name, err, context.Canceled)
		}
	}
	s.check(t)
}

func (s *writerSuite) closed(t *testing.T) {
	if err := s.file.Close(); err != nil {
		t.Fatal(err)
	}
	for name, err := range s.operations(t.Context()) {
		if !errors.Is(err, storage.ErrClosed) {
			t.Errorf("%s = %v, want %v", name, err, storage.ErrClosed)
		}
	}
}
