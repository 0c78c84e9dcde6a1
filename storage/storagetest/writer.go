package storagetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
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
	testWriter(t, unit, false, open)
}

// TestFixedWriter is TestWriter for a file that can neither grow nor shrink, as
// a device.
func TestFixedWriter(t *testing.T, unit int64, open OpenWriter) {
	t.Helper()
	testWriter(t, unit, true, open)
}

func testWriter(t *testing.T, unit int64, fixed bool, open OpenWriter) {
	t.Helper()
	atTheEnd := (*writerSuite).atTheEnd
	if fixed {
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
		if fixed && c.name == "concurrent growth" {
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			size := 256 << 10 / unit * unit
			f := open(t, size)
			t.Cleanup(func() { _ = f.Close() }) // one has closed it
			w, ok := f.(storage.Writer)
			if !ok {
				t.Fatalf("%T is no storage.Writer", f)
			}
			c.test(&writerSuite{file: f, w: w, unit: unit, fixed: fixed, m: newModel(size)}, t)
		})
	}
}

type writerSuite struct {
	file  storage.File
	w     storage.Writer
	unit  int64
	fixed bool // it cannot grow or shrink
	m     *model
}

// A model is what a file or image is to contain.
type model struct {
	content []byte
	unknown []bool // what was trimmed reads as anything
}

func newModel(size int64) *model {
	return &model{content: make([]byte, size), unknown: make([]bool, size)}
}

func (m *model) size() int64 { return int64(len(m.content)) }

func (m *model) resize(size int64) {
	grow := max(0, size-m.size())
	m.content = append(m.content, make([]byte, grow)...)[:size]
	m.unknown = append(m.unknown, make([]bool, grow)...)[:size]
}

func (m *model) write(p []byte, off int64) {
	if len(p) == 0 {
		return
	}
	m.resize(max(m.size(), off+int64(len(p))))
	copy(m.content[off:], p)
	clear(m.unknown[off : off+int64(len(p))])
}

func (m *model) trim(off, n int64) {
	if n = min(n, m.size()-off); n > 0 {
		copy(m.unknown[off:], slices.Repeat([]bool{true}, int(n)))
	}
}

// equal reports whether got may be what is read at off.
func (m *model) equal(got []byte, off int64) error {
	if bytes.Equal(got, m.content[off:off+int64(len(got))]) {
		return nil
	}
	for i, b := range got {
		if at := off + int64(i); b != m.content[at] && !m.unknown[at] {
			return fmt.Errorf("byte %d is %#x, want %#x", at, b, m.content[at])
		}
	}
	return nil
}

// check compares the whole file, its size and its extents.
func (s *writerSuite) check(t *testing.T) {
	t.Helper()
	size, err := s.file.Size(t.Context())
	if err != nil || size != s.m.size() {
		t.Fatalf("Size() = %d, %v, want %d", size, err, s.m.size())
	}
	got := make([]byte, size+s.unit)
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
		off = min(off, s.m.size())
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
		off = min(off, 400<<10)
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
		at := s.m.size()
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
		"Zero":     s.w.Zero(ctx, 0, s.m.size()+s.unit, false),
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
